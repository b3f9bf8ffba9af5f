# SPDX-License-Identifier: Apache-2.0
"""The figures of an epoch, for any number of loggers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from prune_engine.engine import PruneEngine
from prune_engine.epoch import ranks
from prune_engine.errors import PruneEngineError
from prune_engine.recording.codes import lower_bounds
from prune_engine.sharding.buffer import ShardedBuffer

NONE = 1e38  # a threshold that is not there is the smallest float32
MERGED = 4  # codes of a bin of the histogram: half an octave


@runtime_checkable
class Logger(Protocol):
    """Where figures go. Two methods make one."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write the numbers of an epoch; all of them are finite."""
        ...

    def histogram(
        self, name: str, edges: NDArray[np.float64], counts: NDArray[np.int64], step: int
    ) -> None:
        """Write how many values lie between neighbouring edges."""
        ...


class EpochLog:
    """Tells loggers of each epoch of an engine: call ``log()`` after ``engine.end_epoch()``.

    ``prune/kept_share``, ``prune/threshold``, ``prune/dsi``, ``prune/nonfinite``,
    ``prune/saved_seconds`` and the other figures of ``EpochReport``; ``prune/score``, a histogram
    in half octaves; with labels ``prune/kept/NAME``, the share of a class that was kept. Saved
    seconds are an estimate: samples not trained, at this process's mean seconds per sample. The
    first rank logs, the others do nothing.

    Args:
        engine: made, and restored if it is to be.
        loggers: where to.
        labels: [N] integers in 0..C-1, the class of each sample; not with ``shard_scores``, of
            which ``prune/score`` is the first rank's part.
        names: of the C classes; default their numbers.

    Raises:
        TypeError: a logger lacks a method.
        ValueError: labels do not fit the samples, the names or the engine.

    Example:
        >>> import torch, prune_engine as pe
        >>> class Printer:
        ...     def scalars(self, values, step):
        ...         print(step, values["prune/kept_share"], values["prune/kept/b"])
        ...     def histogram(self, name, edges, counts, step):
        ...         print(name, counts.sum())
        >>> engine = pe.PruneEngine(3, pe.KeepAll(), num_epochs=1)
        >>> log = EpochLog(engine, Printer(), labels=[0, 1, 1], names=["a", "b"])
        >>> for epoch in engine.epochs():
        ...     for index in engine.sampler():
        ...         _ = engine.observe(torch.ones(1), torch.tensor([index]))
        ...     _ = engine.end_epoch()
        ...     log.log()
        0 1.0 1.0
        prune/score 3
    """

    def __init__(
        self,
        engine: PruneEngine,
        *loggers: Logger,
        labels: Any = None,
        names: Sequence[str] | None = None,
    ) -> None:
        for logger in loggers:
            if not isinstance(logger, Logger):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"loggers must have scalars() and histogram(), got {logger!r}")
        if labels is not None and isinstance(engine.buffer, ShardedBuffer):
            raise ValueError("labels need whole scores, got an engine with shard_scores=True")
        self.engine, self.loggers = engine, loggers
        self._labels, self.names = _classes(labels, names, engine.num_samples)
        self._edges = np.concatenate([[0.0], lower_bounds()[::MERGED], [math.inf]])
        self._logged = len(engine.history)
        self._before = (engine.history.samples_trained, engine.history.nominal_trained)
        self._began = time.perf_counter()
        self._kept = self._kept_shares()

    def log(self) -> None:
        """Tell all loggers of the epoch that has just ended.

        Raises:
            PruneEngineError: no epoch has ended since the last call, or the labels are those of
                before ``engine.resize``.
        """
        history = self.engine.history
        if len(history) != self._logged + 1:
            raise _misplaced(len(history) - self._logged)
        report, kept = history[-1], self._kept
        if self._labels is not None and len(self._labels) != report.num_samples:
            raise PruneEngineError(
                f"labels are of {len(self._labels)} samples, the epoch had {report.num_samples} "
                "after resize(): make a new EpochLog then, with the labels of all"
            )
        self._logged += 1
        self._kept = self._kept_shares()
        if not self.loggers or ranks.world()[0] != 0:
            return
        values = self.engine.metrics()
        values["prune/kept_share"] = report.planned / report.num_samples
        values["prune/saved_seconds"] = self._saved_seconds()
        values |= {f"prune/kept/{name}": share for name, share in kept.items()}
        finite = {name: value for name, value in values.items() if abs(value) < NONE}
        counts = self._counts()
        for logger in self.loggers:
            logger.scalars(finite, report.epoch)
            logger.histogram("prune/score", self._edges, counts, report.epoch)

    def _saved_seconds(self) -> float:
        history, seconds = self.engine.history, time.perf_counter() - self._began
        trained = history.samples_trained - self._before[0]
        saved = history.nominal_trained - self._before[1] - trained
        return saved * seconds / trained if trained else 0.0

    def _counts(self) -> NDArray[np.int64]:
        scores = self.engine.scores()
        known = scores[torch.isfinite(scores)].double().clamp(min=0).cpu().numpy()
        places = np.searchsorted(self._edges, known, side="right") - 1
        return np.bincount(places, minlength=len(self._edges) - 1)

    def _kept_shares(self) -> dict[str, float]:
        """The share of each class that the current plan keeps."""
        if self._labels is None:
            return {}
        size = len(self.names)
        kept = (self.engine.plan.weights > 0).cpu().numpy()
        counts = np.bincount(self._labels, minlength=size)
        held = np.bincount(self._labels[kept], minlength=size)
        return {
            name: float(held[k]) / float(counts[k])
            for k, name in enumerate(self.names)
            if counts[k]
        }


def _misplaced(epochs: int) -> PruneEngineError:
    return PruneEngineError(
        f"log() must be called once after each end_epoch(), got {epochs} epochs since the last call"
    )


def _classes(
    labels: Any, names: Sequence[str] | None, num_samples: int
) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Check the labels and name the classes."""
    if labels is None:
        if names is not None:
            raise ValueError("names must come with labels, got none")
        return None, []
    found: NDArray[Any] = np.asarray(labels)
    if found.shape != (num_samples,) or found.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be {num_samples} integers, got {found.dtype} of shape {found.shape}"
        )
    top = int(found.max()) + 1 if num_samples else 0
    known = [str(name) for name in (range(top) if names is None else names)]
    if num_samples and (int(found.min()) < 0 or top > len(known)):
        raise ValueError(f"labels must be in 0..{len(known) - 1}, got {found.min()}..{top - 1}")
    if len(set(known)) < len(known):
        raise ValueError("names must differ from each other")
    return found.astype(np.int64), known

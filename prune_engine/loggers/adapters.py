# SPDX-License-Identifier: Apache-2.0
"""Loggers of three packages, around objects that their users have."""

from __future__ import annotations

import importlib
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.05, 0.5, 0.95)


def _middles(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a value for each bin; the last has no upper edge."""
    return np.append((edges[:-2] + edges[1:-1]) / 2, edges[-2])


class TensorBoard:
    """Writes to a ``torch.utils.tensorboard.SummaryWriter``.

    Args:
        writer: of the run; closing it is yours.

    Raises:
        TypeError: it cannot write scalars and histograms.

    Example:
        >>> class Writer:
        ...     def add_scalar(self, name, value, step): print(name, value, step)
        ...     def add_histogram_raw(self, *arguments, **named): ...
        >>> TensorBoard(Writer()).scalars({"prune/dsi": 0.25}, 3)
        prune/dsi 0.25 3
    """

    def __init__(self, writer: Any) -> None:
        _needs("writer", writer, "add_scalar", "add_histogram_raw")
        self.writer = writer

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write the numbers of an epoch."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def histogram(
        self, name: str, edges: NDArray[np.float64], counts: NDArray[np.int64], step: int
    ) -> None:
        """Write a histogram as it is; sums are of the middles of its bins."""
        middles = _middles(edges)
        used = np.flatnonzero(counts)
        self.writer.add_histogram_raw(
            name,
            min=float(edges[used[0]]) if len(used) else 0.0,
            max=float(middles[used[-1]]) if len(used) else 0.0,
            num=int(counts.sum()),
            sum=float((counts * middles).sum()),
            sum_squares=float((counts * middles**2).sum()),
            bucket_limits=np.append(edges[1:-1], np.finfo(np.float64).max).tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )


class WandB:
    """Writes to a run of Weights & Biases, with ``prune/epoch`` as the axis of its figures.

    Args:
        run: what ``wandb.init()`` returned, online or offline; finishing it is yours.

    Raises:
        TypeError: it cannot log.

    Example:
        >>> class Run:
        ...     def define_metric(self, *arguments, **named): ...
        ...     def log(self, values): print(values)
        >>> WandB(Run()).scalars({"prune/dsi": 0.25}, 3)
        {'prune/dsi': 0.25, 'prune/epoch': 3}
    """

    def __init__(self, run: Any) -> None:
        _needs("run", run, "define_metric", "log")
        self.run = run
        run.define_metric("prune/epoch")
        run.define_metric("prune/*", step_metric="prune/epoch")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write the numbers of an epoch."""
        self.run.log({**values, "prune/epoch": step})

    def histogram(
        self, name: str, edges: NDArray[np.float64], counts: NDArray[np.int64], step: int
    ) -> None:
        """Write a histogram; its last bin ends where the largest score that is told apart does."""
        wandb: Any = importlib.import_module("wandb")
        shown = np.append(edges[:-1], 2 * edges[-2])
        found = wandb.Histogram(np_histogram=(counts.tolist(), shown.tolist()))
        self.run.log({name: found, "prune/epoch": step})


class MLflow:
    """Writes metrics to a run of MLflow, through its client and not its global current run.

    MLflow has no histogram: of one, the 5%, 50% and 95% quantiles are written. A name may have
    letters, digits and ``_-. /`` there: others become ``_``, and a checksum tells such names apart.

    Args:
        client: an ``MlflowClient``.
        run_id: of the run.

    Raises:
        TypeError: it cannot log.

    Example:
        >>> class Client:
        ...     def log_metric(self, run_id, name, value, step): print(run_id, name, value, step)
        >>> MLflow(Client(), "r1").scalars({"prune/dsi": 0.25}, 3)
        r1 prune/dsi 0.25 3
    """

    def __init__(self, client: Any, run_id: str) -> None:
        _needs("client", client, "log_metric")
        self.client, self.run_id = client, run_id

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write the numbers of an epoch."""
        for name, value in values.items():
            self.client.log_metric(self.run_id, _plain_name(name), value, step=step)

    def histogram(
        self, name: str, edges: NDArray[np.float64], counts: NDArray[np.int64], step: int
    ) -> None:
        """Write the quantiles of a histogram, each the middle of its bin."""
        total = int(counts.sum())
        if not total:
            return
        reached, middles = np.cumsum(counts), _middles(edges)
        for q in QUANTILES:
            place = int((reached < math.ceil(q * total)).sum())
            self.scalars({f"{name}/p{round(100 * q):02d}": float(middles[place])}, step)


def _plain_name(name: str) -> str:
    """Return a name that MLflow takes, another for each name."""
    plain = re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"


def _needs(argument: str, value: object, *methods: str) -> None:
    missing = [name for name in methods if not callable(getattr(value, name, None))]
    if missing:
        raise TypeError(f"{argument} must have {', '.join(missing)}(), got {value!r}")

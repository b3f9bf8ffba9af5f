# SPDX-License-Identifier: Apache-2.0
"""Reads a recording: kept bits and scores, sample by sample and epoch by epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_engine.recording import layout
from prune_engine.recording.codes import UNSEEN, code_values

Bits = NDArray[np.bool_]


class Recording:
    """What ``engine.record`` wrote, mapped into memory: opened, it is read once for its checksums.

    Args:
        path: the file; it may be written meanwhile, and holds what had ended when it was opened.

    Attributes:
        num_samples: N of the data set.
        indices: int64 [M], the samples that are recorded: all, or evenly many of a large set.
        epochs: those that are whole, ascending.
        identity: policy, seed and length of the run.

    Raises:
        TypeError: path names no file.
        FileNotFoundError: there is none.
        ValueError: it is no recording.

    Example:
        >>> import tempfile, torch, prune_engine as pe
        >>> engine = pe.PruneEngine(3, pe.KeepAll(), num_epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     engine.record(folder + "/run.rec")
        ...     for index in engine.sampler():
        ...         _ = engine.observe(torch.ones(1), torch.tensor([index]))
        ...     _ = engine.end_epoch()
        ...     recording = pe.recording.Recording(folder + "/run.rec")
        ...     recording.epochs, recording.kept(0).tolist(), recording.scores(0).tolist()
        ([0], [True, True, True], [1.0625, 1.0625, 1.0625])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"path must be a string or a Path, got {path!r}")
        self.path = Path(path)
        self.identity, begin = layout.read_head(self.path)
        self.num_samples, count = self.identity["num_samples"], self.identity["recorded"]
        self.indices = layout.recorded_samples(self.num_samples, count)
        block = layout.block_type(count)
        whole = (self.path.stat().st_size - begin) // block.itemsize
        self._blocks: NDArray[np.void] = np.zeros(0, block)
        if whole:
            self._blocks = np.memmap(self.path, block, "r", begin, (whole,))
        self.epochs = [
            at
            for at in range(whole)
            if self._blocks[at]["figures"]["checksum"] == layout.checksum(self._blocks[at])
        ]
        self._values = code_values()

    def _block(self, epoch: int) -> NDArray[np.void]:
        if epoch not in self.epochs:
            raise ValueError(f"epoch: {self.path} has no epoch {epoch} that is whole")
        return self._blocks[epoch]

    def figures(self, epoch: int) -> dict[str, Any]:
        """Return the figures of an epoch's report, as plain numbers."""
        found = self._block(epoch)["figures"]
        return {name: found[name].item() for name in layout.NAMES}

    def codes(self, epoch: int) -> NDArray[np.uint8]:
        """Return the codes of the scores at an epoch's end, uint8 [M]; 0 where never seen."""
        return self._block(epoch)["codes"]

    def scores(self, epoch: int) -> NDArray[np.float32]:
        """Return the scores at an epoch's end, float32 [M], within 1/16; nan where never seen."""
        return self._values[self.codes(epoch)]

    def kept(self, epoch: int) -> Bits:
        """Return which samples the epoch's plan kept, bool [M]."""
        return self._bits("kept", epoch)

    def seen(self, epoch: int) -> Bits:
        """Return which samples got a score in the epoch, bool [M]."""
        return self._bits("seen", epoch)

    def lost(self, epoch: int) -> Bits:
        """Return which samples were served and got none, bool [M]: it was not finite."""
        return self._bits("lost", epoch)

    def weights(self, epoch: int) -> NDArray[np.float32]:
        """Return the sums of the plan's weights by the code before the epoch, float32 [256]."""
        return self._block(epoch)["weights"]

    def _bits(self, name: str, epoch: int) -> Bits:
        packed = self._block(epoch)[name]
        return np.unpackbits(packed, count=len(self.indices)).astype(bool)

    def count(self, name: str) -> NDArray[np.int64]:
        """Count in how many recorded epochs each sample was kept, seen or lost.

        Args:
            name: ``"kept"``, ``"seen"`` or ``"lost"``.

        Returns:
            int64 [M].

        Raises:
            ValueError: another name.
        """
        if name not in ("kept", "seen", "lost"):
            raise ValueError(f"name must be 'kept', 'seen' or 'lost', got {name!r}")
        total = np.zeros(len(self.indices), np.int64)
        for epoch in self.epochs:
            total += self._bits(name, epoch)
        return total

    def last_scores(self) -> NDArray[np.float32]:
        """Return each sample's score at the last epoch's end, float32 [M], nan where never seen."""
        if not self.epochs:
            return np.full(len(self.indices), self._values[UNSEEN])
        return self.scores(self.epochs[-1])

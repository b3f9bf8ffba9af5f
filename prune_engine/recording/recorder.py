# SPDX-License-Identifier: Apache-2.0
"""Writes an engine's epochs to a file as they end."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prune_engine.epoch.report import EpochReport
from prune_engine.epoch.run import EpochRun
from prune_engine.epoch.score_buffer import KEY_MASK
from prune_engine.files import write_bytes
from prune_engine.recording import layout
from prune_engine.recording.codes import CODES, SHIFT, code_table

MAX_RECORDED = 1 << 22  # samples: 5.8 MB an epoch


class Recorder:
    """One engine's recording, written by the first rank (``PruneEngine.record``).

    Args:
        path: the file; one of the same run is continued.
        run: of the engine.
        max_samples: more are sampled evenly.

    Raises:
        ValueError: the file is something else, or of another run.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, run: EpochRun, max_samples: int) -> None:
        self.path, self.seconds, self._broken = path, 0.0, False
        recorded = min(run.num_samples, max_samples)
        device = run.buffer.device
        self._table = torch.from_numpy(code_table()).to(device)  # pyright: ignore[reportUnknownMemberType]
        which = layout.recorded_samples(run.num_samples, recorded)
        self._which = None
        if recorded < run.num_samples:
            self._which = torch.from_numpy(which).to(device)  # pyright: ignore[reportUnknownMemberType]
        identity = {
            "num_samples": run.num_samples,
            "recorded": recorded,
            "policy": run.policy.describe(),
            "seed": run.seed,
            "mode": run.mode,
            "num_epochs": run.num_epochs,
        }
        self._block = layout.block_type(recorded)
        self._begin = _open(path, identity)

    def record(self, run: EpochRun, report: EpochReport) -> None:
        """Write the epoch that ends; where the disk cannot take it, warn and write no more."""
        if self._broken:
            return
        began = time.perf_counter()
        try:
            self._write(report.epoch, self._encode(run, report))
        except OSError as error:
            self._broken = True
            warnings.warn(
                f"nothing is recorded from epoch {report.epoch} on: {self.path}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        self.seconds += time.perf_counter() - began

    def _encode(self, run: EpochRun, report: EpochReport) -> NDArray[np.void]:
        records, classes = self._mine(run.buffer.records), self._mine(run.buffer.weight_class)
        codes = self._table[(records & KEY_MASK) >> SHIFT]
        codes = torch.where(records == 0, 0, codes)
        seen, kept = records >= (report.epoch + 1) << 32, classes != 0
        lost = kept & ~seen
        if report.missing:
            lost &= ~self._unserved(run, report)
        weights = run.buffer.weight_table[classes.to(torch.int64)]
        block = np.zeros((), self._block)
        values = {**report.as_dict(), "partial": int(report.partial)}
        for name in layout.NAMES:
            block["figures"][name] = values[name]
        block["codes"] = codes.cpu().numpy()
        for name, bits in (("kept", kept), ("seen", seen), ("lost", lost)):
            block[name] = np.packbits(bits.cpu().numpy())
        block["weights"] = self._weigh(report.epoch, weights.cpu().numpy())
        block["figures"]["checksum"] = layout.checksum(block)
        return block

    def _mine(self, values: Tensor) -> Tensor:
        return values if self._which is None else values[self._which]

    def _unserved(self, run: EpochRun, report: EpochReport) -> Tensor:
        """Mark what the plan kept and no pass served: the dropped tail, and what was broken off."""
        left = torch.zeros(run.num_samples, dtype=torch.bool, device=run.buffer.device)
        tail = run.plan.order(range(report.served, report.planned))
        left[tail.to(torch.int64)] = True
        return self._mine(left)

    def _weigh(self, epoch: int, weights: NDArray[np.float32]) -> NDArray[Any]:
        """Add up the epoch's weights by the codes of the epoch before, which decided about it."""
        codes = np.zeros(len(weights), np.uint8)
        if epoch and self.path.stat().st_size >= self._at(epoch):
            with self.path.open("rb") as file:
                file.seek(self._at(epoch - 1) + layout.BEFORE_CODES)
                codes = np.frombuffer(file.read(len(weights)), np.uint8)
        return np.bincount(codes, weights, CODES)

    def _at(self, epoch: int) -> int:
        return self._begin + epoch * self._block.itemsize

    def _write(self, epoch: int, block: NDArray[np.void]) -> None:
        """Write a block, after dropping those of a future that a restored run has left."""
        # Not through the map that a reader has: a full disk is an error here, and a signal there.
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            if os.fstat(descriptor).st_size > self._at(epoch):
                os.ftruncate(descriptor, self._at(epoch))
            data, at = memoryview(block.tobytes()), self._at(epoch)
            while data:
                written = os.pwrite(descriptor, data, at)
                data, at = data[written:], at + written
        finally:
            os.close(descriptor)


def _open(path: Path, identity: dict[str, Any]) -> int:
    """Make a recording, or find that of the same run; return where its blocks begin."""
    if path.exists():
        found, size = layout.read_head(path)
        wrong = [
            f"{name}: expected {value!r}, got {found.get(name)!r}"
            for name, value in identity.items()
            if found.get(name) != value
        ]
        if wrong:
            raise ValueError(
                f"path: {path} records another run ({'; '.join(wrong)}): give another path, or "
                "remove it"
            )
        return size
    head = layout.head(identity)
    write_bytes(path, head)
    return len(head)

# SPDX-License-Identifier: Apache-2.0
"""What the plan's operators return for many inputs, as digests.

python _plan_bits.py LIBRARY [EPOCH]: those of a library of its own
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch

SIZES = (1, 15, 33, 4095, 4097, 70_001, 200_000)  # from 65536 on, plan_top guesses first
SCORES = (0.0, -1.5, 0.25, 0.250001, 1e-42, 3.0)
UNSEEN_EVERY = 7
KEEP_ALL, DROP_ALL = 0, 65536  # cuts


def records(size: int, ties: bool) -> torch.Tensor:
    """Return records of many scores, or of a few; some samples were never seen."""
    rng = random.Random(size)
    scores = [rng.choice(SCORES) if ties else rng.expovariate(2) for _ in range(size)]
    bits = torch.tensor(scores).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    keys = torch.where(bits >= 1 << 31, bits ^ 0xFFFFFFFF, bits | 1 << 31)
    return torch.where(torch.arange(size) % UNSEEN_EVERY == 3, 0, keys | 5 << 32)


def cut_tables() -> Iterator[torch.Tensor]:
    """Yield the cuts of levels: those that have 16 bits, and one that does not."""
    rng = random.Random(1)
    cuts = [rng.randrange(DROP_ALL) for _ in range(256)]
    cuts[1:3] = [KEEP_ALL, DROP_ALL - 1]
    yield torch.tensor(cuts, dtype=torch.int32)
    cuts[40] = DROP_ALL
    yield torch.tensor(cuts, dtype=torch.int32)


def results(size: int, ties: bool, epoch: int) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Yield the name of each call and what it gives."""
    ops: Any = torch.ops.prune_engine
    old, seed = records(size, ties), 0x1234_5678_9ABC_DEF0
    classes = torch.full((size,), 9, dtype=torch.uint8)
    bands = torch.tensor([0.2, 0.9]), [40_000, 0, 9_000], [2, 1, 3]
    for den in (0, 3):
        offsets = ops.plan(old, *bands, [1, 3, 2], den, -1, seed, epoch, classes, 0)
        yield f"plan, keep_den {den}", [classes.clone(), offsets]
    for top in (4112, 4200, 8300):
        for k, cuts in enumerate(cut_tables()):
            at = torch.tensor([top], dtype=torch.int32)
            offsets = ops.plan_levels(old, at, cuts, seed, epoch, classes, 4096)
            yield f"levels from {top}, table {k}", [classes.clone(), offsets]
    for k, cut in ((0, 0), (size // 3, 32_768), (size // 2, 0), (size, 65_535)):
        offsets = ops.plan_top(old, k, cut, seed, epoch, classes)
        kept = ops.compact(classes, offsets, int(offsets[-1]))
        yield f"top {k} from {cut}", [classes.clone(), offsets, kept]


def digests(epoch: int = 4) -> dict[str, str]:
    """Return the digest of what each call gives."""
    found = {}
    for size in SIZES:
        for ties in (False, True):
            for name, given in results(size, ties, epoch):
                data = b"".join(tensor.numpy().tobytes() for tensor in given)
                found[f"{size}, ties {ties}: {name}"] = hashlib.sha256(data).hexdigest()
    return found


if __name__ == "__main__":
    torch.ops.load_library(sys.argv[1])
    print(json.dumps(digests(*map(int, sys.argv[2:]))))

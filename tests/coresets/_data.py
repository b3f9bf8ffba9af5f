# SPDX-License-Identifier: Apache-2.0
"""Small data sets for the tests of coresets: no two samples alike, unless a test says so."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import prune_engine as pe


class Data(NamedTuple):
    """What select() is given."""

    features: Tensor
    logits: Tensor
    targets: Tensor
    head: Tensor
    scores: Tensor

    def rows(self, positions: Tensor | slice) -> Data:
        """Return some samples, in this order."""
        return Data(
            self.features[positions],
            self.logits[positions],
            self.targets[positions],
            self.head,
            self.scores[positions],
        )


def made(n: int, classes: int = 3, width: int = 4, seed: int = 0) -> Data:
    """Return float64 data of a linear head."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, width, generator=generator, dtype=torch.float64)
    features = centres[targets] + 0.8 * noise
    head = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    scores = torch.rand(n, generator=generator, dtype=torch.float64)
    return Data(features, features @ head.T, targets, head, scores)


def chosen(name: str | pe.coresets.Method, data: Data, **options: Any) -> pe.coresets.Coreset:
    """Select by a method, with all that it may be given and no more than it needs."""
    kind = pe.coresets.TABLE[name] if isinstance(name, str) else type(name)
    given = {need: getattr(data, need) for need in kind.needs}
    if options.get("balance", True):
        given["targets"] = data.targets
    if not given:
        given["features"] = data.features
    return pe.coresets.select(name, **given, **options)

# SPDX-License-Identifier: Apache-2.0
"""Two operators without which a torchvision built for another torch cannot be imported."""

from __future__ import annotations

import contextlib

import torch

_LIBRARY: list[torch.library.Library] = []  # as long as it lives, so do the operators


def define() -> None:
    """Define them where they are missing; nothing here calls them."""
    if _LIBRARY:
        return
    _LIBRARY.append(torch.library.Library("torchvision", "FRAGMENT"))
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            _LIBRARY[0].define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")

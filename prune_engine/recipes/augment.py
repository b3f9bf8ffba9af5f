# SPDX-License-Identifier: Apache-2.0
"""Random crop and flip of a whole batch in one gather; all randomness from a given generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(images: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Shift every image by up to ``padding`` pixels and mirror half of them.

    Each image of the batch draws its own shift in -padding..padding, both ways, and its own coin.
    Pixels from outside are 0. The work is one gather over the batch, so its cost follows the
    number of samples trained.

    Args:
        images: any dtype [B, C, H, W].
        generator: on the CPU or on the images' device, where nothing crosses; two calls with
            equally seeded generators of one device give equal batches.
        padding: at least 0.

    Returns:
        Same dtype and shape, in channels-last memory, in the order of ``images``.

    Raises:
        ValueError: ``images`` is not four-dimensional, or ``padding`` is negative.

    Example:
        >>> x = torch.arange(4).view(1, 1, 2, 2)
        >>> out = crop_and_flip(x, torch.Generator().manual_seed(0), padding=0)
        >>> sorted(out[0, 0, 0].tolist())  # mirrored or not, never shifted
        [0, 1]
    """
    if images.dim() != 4:
        raise ValueError(f"images: expected [B, C, H, W], got shape {tuple(images.shape)}")
    if padding < 0:
        raise ValueError(f"padding: expected at least 0, got {padding}")
    batch, _, height, width = images.shape
    source, device = generator.device, images.device
    shift = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator, device=source)
    mirror = torch.randint(0, 2, (batch, 1), generator=generator, device=source).bool()
    columns = torch.arange(width, device=source).expand(batch, width)
    columns = torch.where(mirror, columns.flip(1), columns) + shift[1]
    rows = torch.arange(height, device=source).expand(batch, height) + shift[0]
    rows, columns = rows.to(device), columns.to(device)
    padded = F.pad(images, (padding, padding, padding, padding))
    sample = torch.arange(batch, device=device)[:, None, None]
    gathered = padded[sample, :, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
    return gathered.permute(0, 3, 1, 2)

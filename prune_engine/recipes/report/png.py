# SPDX-License-Identifier: Apache-2.0
"""An image as a PNG, whole in a link."""

from __future__ import annotations

import base64
import struct
import zlib

import torch
from torch import Tensor


def data_link(image: Tensor) -> str:
    """Return an image as a ``data:`` link.

    Args:
        image: uint8 [C, H, W] with 1 or 3 channels; darker than 128 throughout, it is stretched.

    Returns:
        The link.

    Raises:
        ValueError: another number of channels.

    Example:
        >>> data_link(torch.zeros(1, 2, 2, dtype=torch.uint8))[:22]
        'data:image/png;base64,'
    """
    channels, height, width = image.shape
    if channels not in (1, 3):
        raise ValueError(f"image must have 1 or 3 channels, got {channels}")
    bright = int(image.max()) if image.numel() else 0
    if 0 < bright < 128:  # digits have 16 levels
        image = (image.to(torch.int32) * 255 // bright).to(torch.uint8)
    rows = image.permute(1, 2, 0).reshape(height, width * channels)
    raw = b"".join(b"\0" + row.numpy().tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

# SPDX-License-Identifier: Apache-2.0
"""Readers of the image files: IDX, CIFAR's binary version, and predicted byte planes.

Each reader takes a folder and a split and returns ``(images uint8 [N, C, H, W], labels int64 [N])``
in the order of the official release. A missing file is a ``FileNotFoundError`` that names it and
the argument; a file that is not what its name says is a ``ValueError``.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prune_engine.files import read_integers

SIDE = 32  # CIFAR images are SIDE x SIDE x 3


def _folder(root: Path, names: Sequence[str], files: Sequence[str]) -> Path:
    """The first of root/<name> and root that holds any of the files, else an error naming them."""
    candidates = [*(root / name for name in names), root]
    for folder in candidates:
        if any((folder / file).is_file() for file in files):
            return folder
    raise FileNotFoundError(
        f"data_root (--data-root): none of {', '.join(files)} is in "
        f"{' or '.join(str(folder) for folder in candidates)}"
    )


def _read(file: Path, unpack: Callable[[bytes], bytes] | None = None) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(f"data_root (--data-root): no file {file}")
    data = file.read_bytes()
    if unpack is None:
        return data
    try:
        return unpack(data)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{file}: a damaged compressed file ({error})") from error


def fashion_mnist(name: str, root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read the official gzipped IDX files: grey images of 28 x 28 pixels."""
    stem = "train" if split == "train" else "t10k"
    images_name, labels_name = f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz"
    folder = _folder(root, [name], [images_name, labels_name])
    images = _idx(folder / images_name, dims=3)
    labels = _idx(folder / labels_name, dims=1)
    return images[:, None], labels.long()


def _idx(file: Path, dims: int) -> Tensor:
    """An IDX file of bytes: 0, 0, 8, number of dimensions, big-endian sizes, then the values."""
    raw = _read(file, gzip.decompress)
    header = 4 + 4 * dims
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, dims)):
        raise ValueError(f"{file}: expected an IDX header of {dims} dimension(s) of bytes")
    shape = [int.from_bytes(raw[4 + 4 * k : 8 + 4 * k], "big") for k in range(dims)]
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected or len(raw) == header:
        raise ValueError(f"{file}: expected {expected} bytes for shape {shape}, got {len(raw)}")
    return _bytes(raw, header).view(shape)


def _bytes(raw: bytes, offset: int = 0) -> Tensor:
    # A copy: torch warns of a buffer that must not be written.
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=offset)


def cifar(name: str, root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read CIFAR from the official binary version, or from predicted byte planes."""
    if name == "cifar100":
        binary = [f"{split}.bin"]
    elif split == "test":
        binary = ["test_batch.bin"]
    else:
        binary = [f"data_batch_{k}.bin" for k in range(1, 6)]
    labels = f"{split}-labels.npy"
    official = "cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary"
    folder = _folder(root, [name, official], [binary[0], labels])
    if (folder / binary[0]).is_file():
        label_bytes = 1 if name == "cifar10" else 2
        return _cifar_binary([folder / file for file in binary], label_bytes)
    return _cifar_planes(folder, split, folder / labels)


def _cifar_binary(files: Sequence[Path], label_bytes: int) -> tuple[Tensor, Tensor]:
    """Records of 1 (CIFAR-10) or 2 (CIFAR-100: coarse, fine) label bytes and 3 byte planes."""
    size = label_bytes + 3 * SIDE * SIDE
    parts: list[Tensor] = []
    for file in files:
        raw = _read(file)
        if len(raw) == 0 or len(raw) % size:
            raise ValueError(f"{file}: expected records of {size} bytes, got {len(raw)} bytes")
        parts.append(_bytes(raw).view(-1, size))
    table = torch.cat(parts)
    images = table[:, label_bytes:].reshape(-1, 3, SIDE, SIDE)
    return images, table[:, label_bytes - 1].long()


def _cifar_planes(folder: Path, split: str, labels_file: Path) -> tuple[Tensor, Tensor]:
    """Files of predicted byte planes: as many as the labels ask for, in parallel."""
    table = read_integers(_read(labels_file), labels_file)
    labels = torch.as_tensor(table if table.ndim == 1 else table[:, 0]).long()
    images = torch.empty(len(labels), 3, SIDE, SIDE, dtype=torch.uint8)
    numbered = [f for f in folder.glob(f"{split}-images-*.xz") if f.stem.split("-")[-1].isdecimal()]
    found = sorted(numbered, key=lambda f: int(f.stem.split("-")[-1]))
    missing = folder / f"{split}-images-{len(found) + 1}.xz"
    filled = 0
    with ThreadPoolExecutor(max_workers=4) as pool:
        for part in pool.map(_planes, found):
            if filled + len(part) > len(labels):
                raise ValueError(f"{folder}: more {split} images than the {len(labels)} labels")
            images[filled : filled + len(part)] = part
            filled += len(part)
    if filled < len(labels):
        raise FileNotFoundError(
            f"data_root (--data-root): {filled} of {len(labels)} {split} images; no file {missing}"
        )
    return images, labels


def _planes(file: Path) -> Tensor:
    """Undo median prediction and colour differences: uint8 [n, 3, 32, 32].

    The file holds planes G, R - G + 128, B - G + 128 (mod 256) of [n, 32, 32]; each value is the
    difference to median(W, N, W + N - NW), folded as 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...

    A border of 128 above and to the left makes one formula serve every pixel: beside the border
    the median is the only real neighbour. Pixels of one anti-diagonal do not depend on each other,
    so the walk takes 63 steps over all images at once and not 1,024.
    """
    raw = _read(file, lzma.decompress)
    if len(raw) == 0 or len(raw) % (3 * SIDE * SIDE):
        raise ValueError(f"{file}: expected planes of {SIDE} x {SIDE} bytes, got {len(raw)} bytes")
    folded = _bytes(raw).view(-1, SIDE * SIDE).T.contiguous()  # [1024, 3 n]
    width = SIDE + 1
    canvas = torch.full((width * width, folded.shape[1]), 128, dtype=torch.uint8)
    for diagonal in range(2 * SIDE - 1):
        rows = torch.arange(max(0, diagonal - SIDE + 1), min(diagonal, SIDE - 1) + 1)
        columns = diagonal - rows
        code = folded[rows * SIDE + columns]
        here = (rows + 1) * width + columns + 1
        west, north = canvas[here - 1].short(), canvas[here - width].short()
        plane = west + north - canvas[here - width - 1]
        guess = plane.clamp(torch.minimum(west, north), torch.maximum(west, north))  # the median
        canvas[here] = guess.to(torch.uint8) + ((code >> 1) ^ -(code & 1))
    pixels = canvas.view(width, width, 3, -1)[1:, 1:].permute(3, 2, 0, 1)  # [n, 3, 32, 32]
    green = pixels[:, 0]
    red, blue = pixels[:, 1] + green - 128, pixels[:, 2] + green - 128
    return torch.stack([red, green, blue], dim=1)

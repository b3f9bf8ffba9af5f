# SPDX-License-Identifier: Apache-2.0
"""Data sets are read from files that the tests write; what is wrong with a file is said."""

from __future__ import annotations

import gzip
import io
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from _assertions import assert_bitwise

from prune_engine.recipes import augment, data


def write_idx(file: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    file.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def images_and_labels(n: int, side: int, seed: int, classes: int = 10):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    return images, rng.integers(0, classes, n)


def fashion_folder(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    (root / "fashion_mnist").mkdir()
    written = {}
    for seed, stem in enumerate(("train", "t10k")):
        images, labels = images_and_labels(5 + seed, 28, seed)
        written[stem] = images[:, 0], labels
        write_idx(root / "fashion_mnist" / f"{stem}-images-idx3-ubyte.gz", images[:, 0])
        write_idx(root / "fashion_mnist" / f"{stem}-labels-idx1-ubyte.gz", labels)
    return written


def encode_planes(images: np.ndarray) -> bytes:
    """Write [n, 3, 32, 32] as the format's description says, pixel by pixel."""
    pixels = images.astype(int)
    red, green, blue = pixels[:, 0], pixels[:, 1], pixels[:, 2]
    planes = np.stack([green, red - green + 128, blue - green + 128]) % 256
    out = bytearray()
    for plane in planes.reshape(-1, 32, 32):
        p = plane.tolist()
        for y in range(32):
            for x in range(32):
                if y and x:
                    w, n, nw = p[y][x - 1], p[y - 1][x], p[y - 1][x - 1]
                elif x:
                    w = n = nw = p[y][x - 1]
                elif y:
                    w = n = nw = p[y - 1][x]
                else:
                    w = n = nw = 128
                guess = sorted((w, n, w + n - nw))[1]
                d = (p[y][x] - guess + 128) % 256 - 128
                out.append(2 * d if d >= 0 else -2 * d - 1)
    return lzma.compress(bytes(out))


def test_fashion_mnist_is_read_from_the_official_idx_files(tmp_path: Path) -> None:
    written = fashion_folder(tmp_path)
    loaded = data.load("fashion_mnist", tmp_path)
    assert_bitwise(loaded.train_images, written["train"][0][:, None], "train images")
    assert_bitwise(loaded.train_labels, written["train"][1], "train labels")
    assert_bitwise(loaded.test_images, written["t10k"][0][:, None], "test images")
    assert loaded.shape == (1, 28, 28)
    pixels = written["train"][0].astype(np.float64)
    assert loaded.mean.item() == pytest.approx(pixels.mean(), rel=1e-6)
    assert loaded.std.item() == pytest.approx(pixels.std(), rel=1e-6)
    # The folder of the files themselves serves as well.
    again = data.load("fashion_mnist", tmp_path / "fashion_mnist")
    assert_bitwise(again.train_images, loaded.train_images, "folder of the files")


@pytest.mark.parametrize(("name", "label_bytes"), [("cifar10", 1), ("cifar100", 2)])
def test_cifar_is_read_from_the_official_binary_version(
    tmp_path: Path, name: str, label_bytes: int
) -> None:
    folder = tmp_path / ("cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary")
    folder.mkdir()
    names = {
        "cifar10": [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"],
        "cifar100": ["train.bin", "test.bin"],
    }[name]
    written = []
    for seed, file in enumerate(names):
        images, labels = images_and_labels(3, 32, seed)
        written.append((images, labels))
        fine = labels[:, None]
        columns = fine if label_bytes == 1 else np.hstack([np.full_like(fine, 99), fine])
        records = np.hstack([columns, images.reshape(3, -1)]).astype(np.uint8)
        (folder / file).write_bytes(records.tobytes())
    loaded = data.load(name, tmp_path)
    assert_bitwise(loaded.train_images, np.concatenate([w[0] for w in written[:-1]]), "images")
    assert_bitwise(loaded.train_labels, np.concatenate([w[1] for w in written[:-1]]), "labels")
    assert_bitwise(loaded.test_images, written[-1][0], "test images")
    assert loaded.num_classes == (10 if name == "cifar10" else 100)


def test_cifar_is_read_from_predicted_planes(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    rng = np.random.default_rng(5)
    smooth = rng.integers(0, 4, (5, 3, 32, 32)).cumsum(axis=-1).astype(np.uint8)
    noise, labels = images_and_labels(5, 32, 6)
    for split, images in (("train", noise), ("test", smooth)):
        np.save(folder / f"{split}-labels.npy", labels)
        (folder / f"{split}-images-1.xz").write_bytes(encode_planes(images[:3]))
        (folder / f"{split}-images-2.xz").write_bytes(encode_planes(images[3:]))
    loaded = data.load("cifar10", tmp_path)
    assert_bitwise(loaded.train_images, noise, "noise: every difference occurs")
    assert_bitwise(loaded.test_images, smooth, "smooth")
    assert_bitwise(loaded.train_labels, labels, "labels")

    (folder / "train-images-2.xz").unlink()
    with pytest.raises(FileNotFoundError, match=r"3 of 5 train images; no file .*images-2\.xz"):
        data.load("cifar10", tmp_path)


def test_a_missing_file_is_named_with_its_argument(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--data-root.*train-images-idx3-ubyte\.gz"):
        data.load("fashion_mnist", tmp_path)
    fashion_folder(tmp_path)
    (tmp_path / "fashion_mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"--data-root.*t10k-labels-idx1-ubyte\.gz"):
        data.load("fashion_mnist", tmp_path)
    with pytest.raises(ValueError, match=r"--data-root.*cifar10"):
        data.load("cifar10")
    with pytest.raises(ValueError, match="expected one of digits"):
        data.load("imagenet", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "damaged"),
        (gzip.compress(b"\0\0\x0d\x03" + bytes(12)), "IDX header"),
        (gzip.compress(bytes((0, 0, 8, 3)) + (5).to_bytes(4, "big") * 3 + b"abc"), "expected 141"),
    ],
    ids=["not-gzip", "not-bytes", "truncated"],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    fashion_folder(tmp_path)
    (tmp_path / "fashion_mnist" / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load("fashion_mnist", tmp_path)


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    fashion_folder(tmp_path)
    labels = tmp_path / "fashion_mnist" / "train-labels-idx1-ubyte.gz"
    write_idx(labels, np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="5 images but 4 labels"):
        data.load("fashion_mnist", tmp_path)
    write_idx(labels, np.array([0, 1, 2, 3, 10]))
    with pytest.raises(ValueError, match=r"labels in 0\.\.9"):
        data.load("fashion_mnist", tmp_path)


def test_a_pickled_label_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    (folder / "train-labels.npy").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        data.load("cifar10", tmp_path)


@pytest.mark.extra("sklearn")
def test_digits_need_no_files_and_their_split_is_always_the_same() -> None:
    one, two = data.load("digits"), data.load("digits", limit=100)
    assert (one.num_samples, len(one.test_labels), one.shape) == (1437, 360, (1, 8, 8))
    assert two.num_samples == 100
    assert_bitwise(two.train_images, one.train_images[:100], "limit")
    assert_bitwise(two.test_images, one.test_images, "the test split stays whole")
    with pytest.raises(ValueError, match="limit"):
        one.limited(0)


@pytest.mark.extra("sklearn")
def test_a_batch_is_gathered_in_the_order_of_its_indices() -> None:
    digits = data.load("digits")
    dataset = data.Positions(digits.num_samples)
    gather = data.Gather(digits.train_images, digits.train_labels)
    positions = [5, 1400, 0, 5]
    images, labels, indices = gather(dataset.__getitems__(positions))
    assert indices.tolist() == positions
    assert [dataset[i] for i in positions] == positions
    assert len(dataset) == 1437
    assert_bitwise(images, digits.train_images[positions], "images")
    assert_bitwise(labels, digits.train_labels[positions], "labels")


def test_augmentation_shifts_and_mirrors_each_image_by_its_generator() -> None:
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(400, 2, 1, 1)

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return augment.crop_and_flip(images, generator, padding=1)

    out = draw(0)
    padded = torch.nn.functional.pad(images[0], (1, 1, 1, 1))
    wanted = set()
    for y in range(3):
        for x in range(3):
            window = padded[:, y : y + 8, x : x + 8]
            wanted |= {tuple(w.flatten().tolist()) for w in (window, window.flip(2))}
    got = {tuple(image.flatten().tolist()) for image in out}
    assert got == wanted  # 9 shifts x 2, every one of them in 400 draws
    assert out.dtype == torch.uint8
    assert_bitwise(draw(0), out, "same seed")
    assert not torch.equal(draw(1), out)
    with pytest.raises(ValueError, match="images"):
        augment.crop_and_flip(images[0], torch.Generator())
    with pytest.raises(ValueError, match="padding"):
        augment.crop_and_flip(images, torch.Generator(), padding=-1)

# SPDX-License-Identifier: Apache-2.0
"""What the tests may claim: equal bits, or a statistic within a stated number of deviations.

Every helper here has a negative control in test_assertions.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

# A derandomised test draws the same numbers each run: 5 deviations never flicker, and a broken
# generator is out by tens.
MAX_Z = 5.0


def _numbers(value: object) -> np.ndarray:
    """Turn a tensor, array or list into an array that keeps every bit."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:
            return value.float().numpy()  # exact: bfloat16 is a prefix of float32
        return value.numpy()
    return np.asarray(value)


def _comparable(values: np.ndarray) -> np.ndarray:
    """Floats as unsigned bit patterns, every nan alike (IEEE leaves its payload open)."""
    if values.dtype.kind != "f":
        return values
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").copy()
    bits[np.isnan(values)] = np.iinfo(bits.dtype).max
    return bits.reshape(values.shape)  # a scalar has become a vector


def assert_bitwise(got: object, want: object, label: str) -> None:
    """Fail unless got and want have the same shape, dtype and bits.

    Tensors, arrays and lists may be mixed; a list takes the dtype of the other side. -0.0 and 0.0
    differ, nan equals nan.

    Args:
        got: what the code returned.
        want: what it should have returned.
        label: named in the message.

    Raises:
        AssertionError: says how many elements differ, the first index and both values.
    """
    if isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor):
        assert got.dtype == want.dtype, f"{label}: dtype {got.dtype}, expected {want.dtype}"
    left, right = _numbers(got), _numbers(want)
    assert left.shape == right.shape or not (left.size or right.size), (
        f"{label}: shape {left.shape}, expected {right.shape}"
    )
    if isinstance(want, list | tuple):
        right = right.astype(left.dtype)
    elif isinstance(got, list | tuple):
        left = left.astype(right.dtype)
    assert left.dtype == right.dtype, f"{label}: dtype {left.dtype}, expected {right.dtype}"
    wrong = np.argwhere(_comparable(left) != _comparable(right)) if left.size else []
    if len(wrong):
        first = tuple(int(i) for i in wrong[0])
        where = first[0] if len(first) == 1 else first
        raise AssertionError(
            f"{label}: {len(wrong)} of {left.size} elements differ, first at index {where}: "
            f"got {left[first]!r}, expected {right[first]!r}"
        )


def chi_square_z(observed: Sequence[float], expected: Sequence[float], freedom: int) -> float:
    """Return a chi-square statistic as a normal deviate (Wilson and Hilferty 1931)."""
    chi = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    spread = 2.0 / (9.0 * freedom)
    return ((chi / freedom) ** (1 / 3) - (1.0 - spread)) / math.sqrt(spread)


def independence_z(first: np.ndarray, second: np.ndarray) -> float:
    """Return the deviate of the 2 x 2 chi-square for two boolean vectors being independent."""
    n = len(first)
    observed, expected = [], []
    for a in (False, True):
        for b in (False, True):
            observed.append(float(((first == a) & (second == b)).sum()))
            expected.append(float((first == a).sum()) * float((second == b).sum()) / n)
    return chi_square_z(observed, expected, 1)


def correlation_z(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of two vectors in standard errors of an independent pair."""
    r = float(np.corrcoef(first.astype(np.float64), second.astype(np.float64))[0, 1])
    return r * math.sqrt(len(first) - 1)


@contextmanager
def global_rng_untouched() -> Iterator[None]:
    """Fail if the body moves torch's, numpy's or Python's global generator.

    The generators are put back where they were, so one leak fails one test.
    """
    torch_before = torch.get_rng_state()
    numpy_before = np.random.get_state()  # noqa: NPY002 - the global state is what is guarded
    python_before = random.getstate()
    yield
    _, words, *position = np.random.get_state()  # noqa: NPY002
    _, words_before, *position_before = numpy_before
    moved = {
        "torch": not torch.equal(torch_before, torch.get_rng_state()),
        "numpy": position != position_before or not np.array_equal(words, words_before),
        "random": python_before != random.getstate(),
    }
    torch.set_rng_state(torch_before)
    np.random.set_state(numpy_before)  # noqa: NPY002
    random.setstate(python_before)
    leaks = ", ".join(name for name, changed in moved.items() if changed)
    assert not leaks, f"global random state was changed: {leaks}"


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Run the body with a number of intra-op threads, then put the old number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

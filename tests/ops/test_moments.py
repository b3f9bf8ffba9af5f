# SPDX-License-Identifier: Apache-2.0
"""moments and merge_moments: within 1e-6 of two passes in long doubles, whatever comes in."""

from __future__ import annotations

import math

import pytest
import torch
from _activations import (
    ACCURACY,
    DTYPES,
    activation,
    assert_moments,
    dtypes,
    laid_out,
    layouts,
    shapes,
    two_pass,
)
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe

moments, merge = pe.ops.moments, pe.ops.merge_moments
OFFSETS = (0.0, 1.0, -30.0, 1e3, 1e5)  # mean / std


@given(
    table=st.lists(st.tuples(shapes, dtypes, layouts, st.sampled_from(OFFSETS)), min_size=1,
                   max_size=4),
    salt=st.integers(0, 2**16),
)  # fmt: skip
def test_every_tensor_of_a_table_is_within_1e6(backend, table, salt):
    tensors = [
        activation(shape, dtype, mean=offset * 0.01, std=0.01, layout=layout, salt=salt + k)
        for k, (shape, dtype, layout, offset) in enumerate(table)
    ]
    got = moments(tensors, backend=backend)
    assert got.shape == (len(tensors), 3)
    for row, tensor in zip(got, tensors, strict=True):
        assert_moments(row, two_pass(tensor))


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e5])
def test_nothing_cancels_where_the_mean_is_large(backend, ratio):
    tensor = activation((1 << 20,), mean=ratio, std=1.0, salt=3)
    got, want = moments([tensor], backend=backend)[0], two_pass(tensor)
    assert_moments(got, want)
    # The control: the textbook sums in float32 are out by far more than is allowed.
    naive = tensor.square().sum() - tensor.sum().square() / tensor.numel()
    error = abs(math.sqrt(max(float(naive), 0.0)) / math.sqrt(want[2]) - 1)
    assert error > 10 * ACCURACY


def test_an_outlier_at_the_start_of_a_block_does_not_spoil_it(backend):
    tensor = activation((3 * 4096,), std=1e-3, salt=1)
    tensor[::4096] = 1e4
    assert_moments(moments([tensor], backend=backend)[0], two_pass(tensor))
    tensor[::4096], tensor[0] = tensor[1], -1e4
    assert_moments(moments([tensor], backend=backend)[0], two_pass(tensor))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extremes_of_the_dtype_do_not_overflow(backend, dtype):
    largest = torch.finfo(dtype).max if dtype != torch.float64 else 1e150
    tensor = torch.tensor([largest, -largest, 0.0, largest] * 700, dtype=dtype)
    assert_moments(moments([tensor], backend=backend)[0], two_pass(tensor))
    tiny = torch.finfo(dtype).smallest_normal if dtype != torch.float64 else 1e-150
    small = torch.tensor([tiny, -tiny, 0.0, tiny, tiny / 4] * 700, dtype=dtype)
    assert_moments(moments([small], backend=backend)[0], two_pass(small))


def test_every_bit_pattern_of_half_precision_is_read_right(backend):
    for dtype in (torch.float16, torch.bfloat16):
        patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        finite = patterns[patterns.isfinite()]
        assert_moments(moments([finite], backend=backend)[0], two_pass(finite))
        for value in (-3.0, 2.0**-14, 2.0**-20, 1000.0):
            same = torch.full((100,), value, dtype=dtype)
            assert moments([same], backend=backend)[0].tolist() == [100, float(same[0]), 0.0]


def test_empty_and_single(backend):
    found = moments([torch.zeros(0), torch.tensor(7.0), torch.zeros(0, 3)], backend=backend)
    assert found.tolist() == [[0, 0, 0], [1, 7, 0], [0, 0, 0]]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_shows(backend, value):
    for size, at in ((1, 0), (300, 17), (70_000, 69_999)):
        tensor = torch.ones(size)
        tensor[at] = value
        count, mean, squares = moments([tensor], backend=backend)[0].tolist()
        assert count == size
        assert not math.isfinite(mean)
        assert math.isnan(squares)


def test_memory_order_is_read_so_dense_layouts_share_their_bits(backend):
    tensor = activation((4, 8, 16, 16))
    last = laid_out(tensor, "channels_last")
    want = moments([last.permute(0, 2, 3, 1).contiguous()], backend=backend)
    assert torch.equal(moments([last], backend=backend), want)


def test_the_gradient_does_not_follow(backend):
    x = torch.ones(3, requires_grad=True)
    assert not moments([x], backend=backend).requires_grad


@given(
    sizes=st.lists(st.sampled_from([0, 1, 2, 100, 5000]), min_size=1, max_size=6),
    offset=st.sampled_from(OFFSETS),
    salt=st.integers(0, 999),
)
def test_merging_parts_gives_the_moments_of_the_whole(sizes, offset, salt):
    parts = [
        activation((n,), torch.float64, mean=offset, std=1.0, salt=salt + k)
        for k, n in enumerate(sizes)
    ]
    merged = merge(moments(parts, backend="reference"))
    assert_moments(merged, two_pass(torch.cat(parts)))
    stacked = merge(torch.stack([moments([p, 2 * p], backend="reference") for p in parts]))
    assert torch.equal(stacked[0], merged)


def test_empty_parts_are_passed_over_even_with_nonsense_in_them():
    nonsense = torch.tensor([0.0, math.nan, math.inf], dtype=torch.float64)
    part = torch.tensor([2.0, 1.0, 4.0], dtype=torch.float64)
    for order in ((nonsense, part), (part, nonsense), (nonsense, part, nonsense)):
        assert merge(torch.stack(order)).tolist() == [2.0, 1.0, 4.0]


@pytest.mark.parametrize("sample", [2, 3, 8])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000, 256 * 64 + 1])
def test_a_sample_is_one_block_of_every_k(backend, sample, size):
    # Each block holds its own number, so that the answer says which blocks were read.
    numbers = torch.arange(size) // 256
    chosen = []
    for first in range(0, int(numbers[-1]) + 1, sample):
        rest = min(sample, int(numbers[-1]) + 1 - first)
        chosen.append(first + hash32(first // sample) % rest)
    want = two_pass(numbers[torch.isin(numbers, torch.tensor(chosen))].double())
    assert_moments(moments([numbers.float()], sample=sample, backend=backend)[0], want)


def hash32(h: int) -> int:
    """The hash of reference_arithmetic with key 0, again."""
    h ^= h >> 16
    h = h * 0x21F0AAAD & 0xFFFFFFFF
    h ^= h >> 15
    h = h * 0xD35A2D97 & 0xFFFFFFFF
    return h ^ (h >> 15)


def test_a_sample_estimates_the_std(backend):
    # Channels of different scale: a regular stride of 2048 would always meet the same ones.
    tensor = activation((64, 64, 16, 16)).relu() * torch.linspace(0.1, 3.0, 64).view(1, 64, 1, 1)
    count, _, squares = moments([tensor], sample=8, backend=backend)[0].tolist()
    assert count == tensor.numel() / 8
    assert math.sqrt(squares / count) == pytest.approx(float(tensor.std()), rel=0.03)
    regular = tensor.view(-1, 8, 256)[:, 0]
    assert float(regular.std()) != pytest.approx(float(tensor.std()), rel=0.03)


@pytest.mark.parametrize(
    ("tensors", "options", "error", "message"),
    [
        ([], {}, ValueError, "at least one tensor, got none"),
        (torch.zeros(2), {}, ValueError, "got a tensor"),
        ([torch.zeros(2), 3.0], {}, TypeError, r"tensors\[1\] must be a tensor, got float"),
        ([torch.zeros(2).int()], {}, TypeError, r"tensors\[0\] must be float32 or .*int32"),
        ([torch.zeros(2), torch.zeros(2, device="meta")], {}, ValueError, "must be on cpu"),
        ([torch.zeros(2)], {"sample": 0}, ValueError, "sample must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(backend, tensors, options, error, message):
    with pytest.raises(error, match=message):
        moments(tensors, backend=backend, **options)


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        (torch.zeros(2, 3), TypeError),
        (torch.zeros(3, dtype=torch.float64), ValueError),
        (torch.zeros(2, 2, dtype=torch.float64), ValueError),
        (torch.zeros(0, 3, dtype=torch.float64), ValueError),
    ],
)
def test_what_cannot_be_merged_is_refused(parts, error):
    with pytest.raises(error, match="parts must be"):
        merge(parts)

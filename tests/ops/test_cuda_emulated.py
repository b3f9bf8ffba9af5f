# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' own sources, run thread by thread on a CPU: same bits as the reference.

This proves their arithmetic, indexing and barriers; what only a GPU has (its memory model, its
compiler, its speed) is for tests/ops/test_cuda.py.
"""

from __future__ import annotations

import random
from pathlib import Path

import _emulated
import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import (
    EVERY_WEIGHT,
    counters,
    epochs,
    floats,
    int64,
    records,
    salts,
    seeds,
    table,
    uint8,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_engine import backends

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIZES = st.sampled_from([1, 2, 8, 31, 32, 33, 257, 2049, 4095, 4096, 4097, 9001])
REFERENCE = backends.load("reference")
WEIGHTS = table(*EVERY_WEIGHT)
CHANGED = ("records", "score_sum", "counters", "step")


def test_the_grids_were_made_small():
    sources = [path.read_text(encoding="utf-8") for path in _emulated.CSRC.glob("cuda/*.cu*")]
    assert sum(_emulated.small_grids(text).count("Grid = 3;") for text in sources) == 14


def offset_view(tensor: torch.Tensor, skip: int) -> torch.Tensor:
    """Copy a tensor to where its first element is ``skip`` elements past an aligned address."""
    room = torch.empty(tensor.numel() + 32, dtype=tensor.dtype)
    shift = (-room.data_ptr() // tensor.element_size()) % 16 + skip
    view = room[shift : shift + tensor.numel()]
    view.copy_(tensor)
    return view


def mutable_state(rng: random.Random, count: int, epoch: int) -> list[torch.Tensor]:
    old = records(rng, count, epoch, unseen=rng.choice([0.0, 0.3, 1.0]))
    return [int64(old), int64(oracle.sum_of_records(old)), counters(), int64([epoch])]


@settings(max_examples=25)
@given(
    num_samples=SIZES,
    batch_size=st.sampled_from([0, 1, 31, 33, 256, 257, 700]),
    dtype=st.sampled_from(DTYPES),
    index_dtype=st.sampled_from([torch.int64, torch.int32]),
    score_dtype=st.sampled_from([None, None, *DTYPES]),
    epoch=epochs,
    salt=salts,
)
def test_observe(emulated, num_samples, batch_size, dtype, index_dtype, score_dtype, epoch, salt):
    rng = random.Random(salt)
    span = rng.choice([num_samples, min(num_samples, 5)])  # the second: many duplicates
    indices = torch.tensor([rng.randrange(span) for _ in range(batch_size)], dtype=index_dtype)
    losses = torch.tensor(floats(rng, batch_size, finite=False), dtype=torch.float64).to(dtype)
    score = None
    if score_dtype is not None:
        score = torch.tensor(floats(rng, batch_size, finite=False)).to(score_dtype)
    start = mutable_state(rng, num_samples, epoch)
    fixed = [uint8([rng.randrange(256) for _ in range(num_samples)]), WEIGHTS, int64([epoch])]
    want_state, got_state = ([t.clone() for t in start] for _ in range(2))
    advance = rng.random() < 0.7
    want = REFERENCE.observe(losses, indices, score, [*want_state, *fixed], advance)
    got = emulated.observe(losses, indices, score, [*got_state, *fixed], advance)
    labels = ("rescaled", "batch_weights", *CHANGED)
    for label, a, b in zip(labels, (*got, *got_state), (*want, *want_state), strict=True):
        assert_bitwise(a, b, label)


@settings(max_examples=15)
@given(
    num_samples=SIZES,
    batch_size=st.sampled_from([0, 1, 31, 33, 256, 257, 700]),
    index_dtype=st.sampled_from([torch.int64, torch.int32]),
    score_dtype=st.sampled_from([None, None, *DTYPES]),
    epoch=epochs,
    salt=salts,
)
def test_observe_mean(emulated, num_samples, batch_size, index_dtype, score_dtype, epoch, salt):
    rng = random.Random(salt)
    # One beyond the end, sometimes: counted, and its share is that of a weight of 1.
    span = num_samples + rng.choice([0, 1])
    indices = torch.tensor([rng.randrange(span) for _ in range(batch_size)], dtype=index_dtype)
    losses = torch.tensor(floats(rng, batch_size, finite=False))
    score = None
    if score_dtype is not None:
        score = torch.tensor(floats(rng, batch_size, finite=False)).to(score_dtype)
    start = mutable_state(rng, num_samples, epoch)
    fixed = [uint8([rng.randrange(256) for _ in range(num_samples)]), WEIGHTS, int64([epoch])]
    want_state, got_state = ([t.clone() for t in start] for _ in range(2))
    part = torch.full((batch_size,), 1 / max(1, batch_size))
    seen = losses if score is None else score
    want, _ = emulated.observe(part, indices, seen, [*want_state, *fixed], True)
    got = emulated.observe_mean(losses, indices, score, [*got_state, *fixed], True)
    for label, a, b in zip(
        ("shares", *CHANGED), (got, *got_state), (want, *want_state), strict=True
    ):
        assert_bitwise(a, b, label)


def test_observe_more_samples_than_threads(ordered):
    rng = random.Random(3)
    losses = torch.tensor(floats(rng, 6000, finite=False))
    indices = int64([rng.randrange(500) for _ in range(6000)])
    start = mutable_state(rng, 500, 4)
    fixed = [uint8([1] * 500), WEIGHTS, int64([4])]
    want, got = ([t.clone() for t in start] for _ in range(2))
    REFERENCE.observe(losses, indices, None, [*want, *fixed], True)
    ordered.observe(losses, indices, None, [*got, *fixed], True)
    for label, a, b in zip(CHANGED, got, want, strict=True):
        assert_bitwise(a, b, label)


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
def test_observe_edge_case_03_out_of_range_is_counted_and_touches_nothing(ordered, index_dtype):
    rng = random.Random(5)
    bad = [-1, 8, 2**31 - 1, -(2**31)] + ([2**40, -(2**63)] if index_dtype == torch.int64 else [])
    indices = torch.tensor([2, *bad, 3], dtype=index_dtype)
    losses = torch.tensor(floats(rng, len(indices)))
    state = mutable_state(rng, 8, 1)
    want = [t.clone() for t in state]
    fixed = [uint8([2] * 8), WEIGHTS, int64([1])]
    rescaled, weights = ordered.observe(losses, indices, None, [*state, *fixed], True)
    good = [0, len(indices) - 1]
    REFERENCE.observe(losses[good], indices[good], None, [*want, *fixed], True)
    want[2][2], want[2][3] = len(bad), min(bad)
    for label, a, b in zip(CHANGED, state, want, strict=True):
        assert_bitwise(a, b, label)
    assert_bitwise(rescaled[1:-1], losses[1:-1], "losses of samples that do not exist")
    assert_bitwise(weights, [2.0, *[1.0] * len(bad), 2.0], "batch_weights")


@settings(max_examples=40)
@given(
    num_samples=SIZES,
    bands=st.integers(1, 6),
    fixed=st.booleans(),
    draws=st.booleans(),
    seed=seeds,
    epoch=epochs,
    salt=salts,
    skip=st.integers(0, 1),
)
def test_plan_compact_and_order(
    emulated, num_samples, bands, fixed, draws, seed, epoch, salt, skip
):
    rng = random.Random(salt)
    scored = offset_view(int64(records(rng, num_samples, epoch)), skip)
    edges = sorted(floats(rng, bands - 1))
    if edges and rng.random() < 0.3:
        edges[-1] = float("inf")  # above it are the never seen, or nobody
    rule = (
        torch.tensor(edges, dtype=torch.float32),
        [rng.randrange(65536) if draws else 0 for _ in range(bands)],
        [rng.randrange(1, 256) for _ in range(bands)],
        [rng.randrange(0, 8) for _ in range(bands)],
        7 if fixed else 0,
        rng.randrange(-1, bands),
        seed,
        epoch,
    )
    want = torch.empty(num_samples, dtype=torch.uint8)
    got = offset_view(want, skip)
    want_offsets = REFERENCE.plan(scored, *rule, want)
    got_offsets = emulated.plan(scored, *rule, got)
    assert_bitwise(got, want, "weight_class")
    assert_bitwise(got_offsets, want_offsets, "block_offsets")
    count = int(want_offsets[-1])
    kept = emulated.compact(got, got_offsets, count)
    assert_bitwise(kept, REFERENCE.compact(want, want_offsets, count), "kept")
    if count:
        step = rng.randrange(1, 4)
        span = (0, step, -(-count // step), seed, epoch)
        order = emulated.order(kept, None, *span)
        assert_bitwise(order, REFERENCE.order(kept, None, *span), "order")
        picked = int64([rng.randrange(count) for _ in range(9)])
        order = emulated.order(kept, picked, 0, 1, 0, seed, epoch)
        assert_bitwise(order, REFERENCE.order(kept, picked, 0, 1, 0, seed, epoch), "positions")


def test_plan_settles_ties_by_index(ordered):
    # Five samples a draw and band: every cut has ties, on both sides of its quota.
    generator = torch.Generator().manual_seed(11)
    count = 330_001
    keys = torch.randint(0x80000000, 0xC0000000, (count,), generator=generator)
    scored = ((1 << 32) | keys) * (torch.rand(count, generator=generator) > 0.1)
    rule = (torch.tensor([1e-3]), [0, 0], [2, 1], [500, 333], 1000, 1, 9, 4)
    want, got = (torch.empty(count, dtype=torch.uint8) for _ in range(2))
    want_offsets = REFERENCE.plan(scored, *rule, want)
    got_offsets = ordered.plan(scored, *rule, got)
    assert_bitwise(got, want, "weight_class")
    assert_bitwise(got_offsets, want_offsets, "block_offsets")


def test_plan_of_nothing(ordered):
    empty, classes = int64([]), uint8([])
    for den in (0, 3):
        offsets = ordered.plan(empty, torch.empty(0), [9], [1], [1], den, -1, 0, 0, classes)
        assert_bitwise(offsets, [0], "block_offsets")


def test_order_reads_nothing_outside(ordered):
    kept = torch.arange(5, dtype=torch.int32)
    samples = ordered.order(kept, int64([-1, 5, 2**62, -(2**63), 0]), 0, 1, 0, 3, 1)
    assert_bitwise(samples[:4], [-(2**31)] * 4, "positions that do not exist")
    assert 0 <= int(samples[4]) < 5


def test_compact_writes_nothing_outside_the_list(ordered):
    classes = uint8([1] * 5000)
    kept = ordered.compact(classes, int64([-7, 4990, 5000]), 4995)
    assert kept.shape == (4995,)
    assert_bitwise(kept[4990:], [4096, 4097, 4098, 4099, 4100], "what fits")


@settings(max_examples=15)
@given(num_samples=SIZES | st.just(0), epoch=epochs, salt=salts, skip=st.integers(0, 1))
def test_audit_and_mean_threshold(emulated, num_samples, epoch, salt, skip):
    rng = random.Random(salt)
    scored = offset_view(int64(records(rng, num_samples, epoch)), skip)
    classes = offset_view(uint8([rng.randrange(3) for _ in range(num_samples)]), skip)
    want = REFERENCE.audit(scored, classes, epoch)
    got = emulated.audit(scored, classes, epoch)
    assert_bitwise(got, want, "audit")
    assert_bitwise(
        emulated.mean_threshold(got[:10]), REFERENCE.mean_threshold(want[:10]), "mean_threshold"
    )


@settings(max_examples=25)
@given(num_samples=SIZES | st.just(0), ties=st.booleans(), salt=salts, skip=st.integers(0, 3))
def test_select_and_top(emulated, num_samples, ties, salt, skip):
    rng = random.Random(salt)
    pool = floats(rng, 3) if ties else floats(rng, num_samples)
    scores = torch.tensor([rng.choice([*pool, torch.nan]) for _ in range(num_samples)])
    den = rng.choice([1, 100, 2**31 - 1])
    shares = [rng.choice([0, den, rng.randint(0, den)]) for _ in range(5)]
    offsets = [rng.choice([0, 1, -1, num_samples, -(2**31 - 1)]) for _ in shares]
    for made in (scores, int64(records(rng, num_samples, 3))):
        values = offset_view(made, skip)
        want = REFERENCE.select(values, offsets, shares, den)
        assert_bitwise(emulated.select(values, offsets, shares, den), want, "select")
        k = rng.choice([0, 1, num_samples // 2, num_samples, num_samples + 5])
        assert_bitwise(emulated.top(values, k), REFERENCE.top(values, k), "top")


def test_top_strides_and_settles_ties_over_blocks(ordered):
    values = torch.arange(60_000).remainder(5).float()
    want = REFERENCE.top(values, 20_001)
    assert_bitwise(ordered.top(values, 20_001), want, "top")
    assert_bitwise(ordered.select(values, [0], [1], 2), [2.0], "select")


def fixed_plan(kernels, scored, shares, where):
    classes = offset_view(uint8([9] * scored.numel()), where)
    rule = (torch.tensor([0.0]), [0, 0], [2, 3], shares, 1000, 1, 11, 4)
    offsets = kernels.plan(scored, *rule, classes)
    return classes, offsets


@pytest.mark.parametrize("shares", [[500, 125], [1000, 0], [1, 999]])
def test_fixed_counts_settle_ties_over_blocks(ordered, shares):
    # Long enough that some draws at the cut are shared: about one more a band.
    scored = offset_view(int64(records(random.Random(1), 70_001, 4)), 1)
    (want, want_offsets), (got, got_offsets) = (
        fixed_plan(kernels, scored, shares, 3) for kernels in (REFERENCE, ordered)
    )
    assert_bitwise(got, want, "weight_class")
    assert_bitwise(got_offsets, want_offsets, "block_offsets")


@pytest.mark.parametrize(
    ("old", "new"),
    [("draw >> 8 == high[band]", "draw >> 8 >= high[band]"), ("before | threadIdx.x", "before")],
    ids=["a wrong byte", "no second byte"],
)
def test_a_wrong_cut_is_caught(emulated, tmp_path, old, new):
    broken = _emulated.break_kernel(tmp_path, emulated, "fixed", old, new)
    scored = int64(records(random.Random(1), 5000, 4))
    want, got = (fixed_plan(k, scored, [500, 125], 0)[0] for k in (REFERENCE, broken))
    assert not torch.equal(got, want)


@pytest.mark.parametrize("name", ["order", "mean_threshold"])
def test_a_kernel_that_a_captured_stream_would_not_let_load_is_caught(emulated, tmp_path, name):
    # All calls of these tests are judged so (``Emulated._call``); here is one that is at fault.
    broken = _emulated.break_kernel(tmp_path, emulated, name, "  const MayLoad load;\n", "")
    with pytest.raises(AssertionError, match="a launch that may not load a kernel"):
        if name == "order":
            broken.order(torch.arange(3, dtype=torch.int32), None, 0, 1, 3, 0, 0)
        else:
            broken.mean_threshold(int64([0] * 10))


def test_a_missing_barrier_is_caught(emulated, tmp_path: Path):
    barrier = "  __syncthreads();\n  Value before"
    broken = _emulated.break_kernel(tmp_path, emulated, "compact", barrier, "  Value before")
    classes = uint8([1] * 4096)
    with broken.descending():
        kept = broken.compact(classes, int64([0, 4096]), 4096)
    assert kept.tolist() != list(range(4096))


def test_a_wrong_draw_is_caught(emulated, tmp_path: Path):
    half = "(word >> (16 * half)) & 0xffffu"
    other = "(word >> (16 * (1 - half))) & 0xffffu"
    broken = _emulated.break_kernel(tmp_path, emulated, "plan", half, other)
    rule = (torch.empty(0), [30000], [1], [1], 0, 0, 5, 2)
    want, got = (torch.empty(500, dtype=torch.uint8) for _ in range(2))
    REFERENCE.plan(torch.zeros(500, dtype=torch.int64), *rule, want)
    broken.plan(torch.zeros(500, dtype=torch.int64), *rule, got)
    assert not torch.equal(got, want)

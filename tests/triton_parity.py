# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels against the reference on the CPU, bit for bit.

Not collected by name. With ``TRITON_INTERPRET=1`` the kernels run under Triton's interpreter on CPU
tensors, which it decides when a kernel is defined: test_triton.py runs this file in a process of
its own. Without it they run on a GPU, through test_triton_device.py. The name of each test begins
with its operator. The interpreter's time goes by program, so the sizes are small.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from fractions import Fraction

import _sums
import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import (
    EVERY_WEIGHT,
    MAX_EPOCH,
    MAX_SEED,
    NON_FINITE,
    counters,
    epochs,
    float32,
    floats,
    int64,
    records,
    records_of,
    rule_of,
    salts,
    seeds,
    sizes,
    table,
    uint8,
)
from _runs import losses_at
from hypothesis import example, given, settings
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine import backends

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

pytestmark = [
    pytest.mark.triton,
    # NumPy, of which the interpreter is made, warns where hardware gives inf and nan quietly.
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),
]
few = settings(max_examples=20)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WEIGHTS = table(*EVERY_WEIGHT)
SIZES = [0, 1, 31, 32, 33, 4095, 4096, 4097, 10_007]


class State:
    """The tensors that observe mutates or reads."""

    def __init__(self, old: list[int], classes: list[int], backend: str) -> None:
        """Start with an exact sum and no samples counted, where the backend runs."""
        self.backend = backend
        self.device = DEVICE if backend == "triton" else "cpu"
        self.tensors = {
            "records": int64(old),
            "score_sum": int64(oracle.sum_of_records(old)),
            "counters": counters(),
            "step": int64([5]),
            "weight_class": uint8(classes),
        }
        self.tensors = {name: value.to(self.device) for name, value in self.tensors.items()}

    def observe(self, losses, indices, *, epoch, score=None, op="observe"):
        """Call the public function and return all that it returned or changed, by name."""
        returned = getattr(pe.ops, op)(
            losses.to(self.device),
            indices.to(self.device),
            epoch=epoch,
            score=None if score is None else score.to(self.device),
            backend=self.backend,
            weight_table=WEIGHTS.to(self.device),
            **self.tensors,
        )
        returned = returned if isinstance(returned, tuple) else (returned,)
        found = dict(zip(("rescaled", "batch_weights"), returned, strict=False)) | self.tensors
        return {name: value.cpu() for name, value in found.items()}


def random_batch(rng, num_samples, batch_size, dtype, index_dtype):
    """Return losses with every awkward value, and indices with many duplicates."""
    losses = torch.tensor(floats(rng, batch_size, finite=False), dtype=torch.float32).to(dtype)
    if dtype == torch.float64 and batch_size > 2:
        losses[1], losses[2] = 1e300, 0.1
    indices = [rng.randrange(num_samples) for _ in range(batch_size)]
    return losses, torch.tensor(indices, dtype=index_dtype)


def both(num_samples, salt, epoch):
    """Return two equal states."""
    rng = random.Random(salt)
    old = records(rng, num_samples, epoch)
    classes = [rng.randrange(256) for _ in range(num_samples)]
    return State(old, classes, "triton"), State(old, classes, "reference")


@few
@given(
    num_samples=sizes.filter(bool),
    batch_size=st.sampled_from([0, 1, 31, 32, 33, 255, 256, 257, 1500]),
    dtype=st.sampled_from(DTYPES),
    index_dtype=st.sampled_from([torch.int64, torch.int32]),
    score_dtype=st.sampled_from([None, *DTYPES]),
    epoch=epochs,
    salt=salts,
)
@example(33, 1500, torch.bfloat16, torch.int64, None, MAX_EPOCH, 1)
@example(33, 1500, torch.float16, torch.int32, None, 0, 2)
@example(1, 257, torch.float64, torch.int64, torch.bfloat16, 7, 3)
def test_observe_equals_the_reference(
    num_samples, batch_size, dtype, index_dtype, score_dtype, epoch, salt
):
    rng = random.Random(salt)
    losses, indices = random_batch(rng, num_samples, batch_size, dtype, index_dtype)
    score = None
    if score_dtype is not None:
        score = torch.tensor(floats(rng, batch_size, finite=False)).to(score_dtype)
    one, other = both(num_samples, salt, epoch)
    got = one.observe(losses, indices, epoch=epoch, score=score)
    want = other.observe(losses, indices, epoch=epoch, score=score)
    for name, value in want.items():
        assert_bitwise(got[name], value, name)


@few
@given(
    batch_size=st.sampled_from([0, 1, 33, 257]),
    score_dtype=st.sampled_from([None, torch.bfloat16, torch.float64]),
    epoch=epochs,
    salt=salts,
)
def test_observe_mean_equals_the_reference(batch_size, score_dtype, epoch, salt):
    losses, indices = random_batch(random.Random(salt), 33, batch_size, torch.float32, torch.int64)
    score = None if score_dtype is None else losses.flip(0).to(score_dtype)
    one, other = both(33, salt, epoch)
    got = one.observe(losses, indices, epoch=epoch, score=score, op="observe_mean")
    want = other.observe(losses, indices, epoch=epoch, score=score, op="observe_mean")
    for name, value in want.items():
        assert_bitwise(got[name], value, name)


LONG = pytest.mark.full("long under the interpreter")


@LONG
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_observe_rounds_every_float16_product_as_the_reference(dtype):
    # Every bit pattern of 16 bits in a few large batches: all exponents, ties and subnormals.
    patterns = torch.arange(-(2**15), 2**15, 7, dtype=torch.int16)
    kind = dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    losses = patterns.view(kind).to(dtype)
    indices = torch.arange(losses.numel()) % 5
    start = [0] * 5, [1, 2, 3, 4, 5]
    one, other = State(*start, "triton"), State(*start, "reference")
    got = one.observe(losses, indices, epoch=0)
    want = other.observe(losses, indices, epoch=0)
    for name, value in want.items():
        assert_bitwise(got[name], value, name)


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32], ids=str)
def test_observe_skips_and_counts_what_is_out_of_range(index_dtype):
    one, other = both(40, 5, 3)
    bad = [40, -1, 2**31 - 1, -(2**31), -7]
    losses = float32([*(9.0 + k for k in range(5)), *floats(random.Random(1), 30), *NON_FINITE])
    inside = [random.Random(2).randrange(40) for _ in range(33)]
    got = one.observe(losses, torch.tensor([*bad, *inside], dtype=index_dtype), epoch=3)
    want = other.observe(losses[5:], torch.tensor(inside, dtype=index_dtype), epoch=3)
    assert_bitwise(got["rescaled"], torch.cat([losses[:5], want["rescaled"]]), "rescaled")
    assert_bitwise(got["batch_weights"][:5], float32([1.0] * 5), "weights out of range")
    for name in ("records", "score_sum", "weight_class"):
        assert_bitwise(got[name], want[name], name)
    assert got["counters"].tolist() == [33, 3, 5, -(2**31), 0]
    assert want["counters"].tolist() == [33, 3, 0, oracle.INT64_MAX, 0]


def test_observe_of_far_indices_keeps_the_smallest_over_batches():
    state = State([0] * 3, [1] * 3, "triton")
    for index in (5, -(2**62), 2**62):
        found = state.observe(float32([1.0]), int64([index]), epoch=0)
    assert found["counters"].tolist() == [0, 0, 3, -(2**62), 0]
    assert found["records"].tolist() == [0, 0, 0]


def test_observe_depends_on_the_epoch():
    one, other = both(40, 5, 3)
    losses, indices = float32([1.0, 2.0]), int64([3, 4])
    got = one.observe(losses, indices, epoch=4)
    want = other.observe(losses, indices, epoch=3)
    with pytest.raises(AssertionError, match="records"):  # the control of the tests above
        assert_bitwise(got["records"], want["records"], "records")


@few
@given(
    first=st.floats(width=32, allow_nan=False, allow_infinity=False),
    second=st.floats(width=32, allow_nan=False, allow_infinity=False),
    count=st.sampled_from([1, 2, 3, 100, 2**31 - 2]),
)
@example(oracle.FLT_MAX, 0.0, 1)
@example(-oracle.FLT_MAX, -oracle.FLT_MAX, 2**31 - 2)
@example(2.0**-149, -(2.0**-149), 3)
@example(-(2.0**-149), 0.0, 1)
def test_mean_threshold_equals_the_reference(first, second, count):
    ones, other = oracle.sum_of_scores([first]), oracle.sum_of_scores([second])
    sums = int64([a * count + b for a, b in zip(ones, other, strict=True)])
    got = pe.ops.mean_threshold(sums.to(DEVICE), backend="triton")
    assert_bitwise(got, pe.ops.mean_threshold(sums, backend="reference"), "threshold")
    assert_bitwise(got, float32([oracle.mean_threshold(sums.tolist())]), "threshold")


def test_mean_threshold_of_nothing():
    got = pe.ops.mean_threshold(int64([0] * 10).to(DEVICE), backend="triton")
    assert_bitwise(got, float32([-oracle.FLT_MAX]), "threshold")


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=LONG) for n in range(1, 6))])
def test_mean_threshold_and_the_sums_have_the_bits_of_every_vector(part):
    assert _sums.check_vectors(backends.load("triton"), DEVICE, slice(part, None, 6)) >= 7


@pytest.mark.parametrize("salt", [0, *(pytest.param(n, marks=LONG) for n in range(1, 6))])
def test_observe_leaves_the_sum_made_anew_after_any_replacements(salt):
    _sums.check_replacements(backends.load("triton"), random.Random(salt), 3, DEVICE)


def test_plan_keeps_the_same_sets_of_losses_of_any_scale():
    _sums.check_scales(backends.load("triton"), losses_at(range(600)), DEVICE)


def random_rule(rng: random.Random, num_thresholds: int, fixed: bool) -> pe.policies.Rule:
    """Return a rule with cuts and shares at both ends and between, and equal thresholds."""
    den = rng.choice([1, 2, 3, 1000, 2**31 - 1])
    own = num_thresholds < 5 and rng.random() < 0.3  # a band of the never seen alone
    fates = [
        oracle.Fate(
            rng.choice([0, 1, 16384, 65535, rng.randrange(65536)]),
            rng.randrange(1, 256),
            Fraction(rng.choice([0, den, rng.randint(0, den)]), den),
        )
        for _ in range(num_thresholds + 1 + own)
    ]
    thresholds = sorted(
        rng.choice([-0.0, 0.25, 0.25, rng.gauss(0, 2)]) for _ in range(num_thresholds)
    )
    unseen = num_thresholds + 1 if own else rng.randint(-1, num_thresholds)
    return rule_of(thresholds, fates, fixed=fixed, unseen_band=unseen)


def assert_plan(old, rule, seed, epoch, fresh_seed=None):
    """Fail unless both backends plan alike; return the reference's plan."""
    there = replace(rule, thresholds=rule.thresholds.to(DEVICE))
    got = pe.ops.plan(old.to(DEVICE), there, seed=seed, epoch=epoch, backend="triton")
    want = pe.ops.plan(old, rule, seed=fresh_seed or seed, epoch=epoch, backend="reference")
    assert_bitwise(got[0], want[0], "weight_class")
    assert_bitwise(got[1], want[1], "block_offsets")
    return want


@few
@given(
    num_samples=sizes,
    num_thresholds=st.integers(0, 5),
    fixed=st.booleans(),
    seed=seeds,
    epoch=epochs,
    salt=salts,
)
@example(33, 1, False, 2**32 - 1, MAX_EPOCH, 1)  # numbers whose sign or width is easily lost
@example(4097, 1, True, MAX_SEED, MAX_EPOCH, 2)
def test_plan_equals_the_reference(num_samples, num_thresholds, fixed, seed, epoch, salt):
    rng = random.Random(salt)
    rule = random_rule(rng, num_thresholds, fixed)
    assert_plan(int64(records(rng, num_samples, epoch)), rule, seed, epoch)


@pytest.mark.full("long under the interpreter")
@pytest.mark.parametrize("fixed", [False, True], ids=["independent", "fixed"])
@pytest.mark.parametrize("num_samples", SIZES)
def test_plan_at_every_size(num_samples, fixed):
    rng = random.Random(num_samples)
    for num_thresholds in (0, 1, 5):
        rule = random_rule(rng, num_thresholds, fixed)
        assert_plan(int64(records(rng, num_samples, 2)), rule, MAX_SEED, MAX_EPOCH)


def test_plan_that_drops_nobody_needs_no_draws():
    rule = pe.policies.Rule.keep_all(torch.device("cpu"))
    classes, offsets = assert_plan(int64(records(random.Random(0), 5000, 0)), rule, 1, 0)
    assert bool((classes == 1).all())
    assert offsets.tolist() == [0, 4096, 5000]


@pytest.mark.full("long under the interpreter")
def test_plan_settles_ties_across_blocks_towards_the_smaller_index():
    # Small data sets rarely have a tie at the cut: look for counts where the last draw kept
    # equals the first one left out, with the tied samples in different blocks.
    count = 9000
    drawn = oracle.draws(count, 1, 2)
    falling = sorted(range(count), key=lambda i: (-drawn[i], i))
    splits = [
        kept
        for kept in range(1, count)
        if drawn[falling[kept - 1]] == drawn[falling[kept]]
        and falling[kept - 1] // 4096 != falling[kept] // 4096
    ]
    assert len(splits) > 10
    old = records_of([0.5] * count)
    for kept in splits[:: len(splits) // 4]:
        fates = [oracle.Fate(0, 3, Fraction(kept, count))]
        classes, _ = assert_plan(old, rule_of([], fates, fixed=True, weights=[2, 3]), 1, 2)
        assert classes[falling[kept - 1]] == 3
        assert classes[falling[kept]] == 0


def test_plan_depends_on_the_seed():
    rule = rule_of([0.0], [oracle.Fate(32768, 2, Fraction(1, 2))] * 2)
    with pytest.raises(AssertionError, match="weight_class"):  # the control of the tests above
        assert_plan(records_of([1.0] * 500), rule, 1, 2, fresh_seed=3)


@pytest.mark.parametrize("num_samples", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_compact_equals_the_reference(num_samples, share):
    rng = random.Random(num_samples)
    classes = uint8([rng.randrange(1, 256) * (rng.random() < share) for _ in range(num_samples)])
    offsets = int64(oracle.block_offsets(classes.tolist()))
    there = (classes.to(DEVICE), offsets.to(DEVICE))
    got = pe.ops.compact(*there, int(offsets[-1]), backend="triton")
    want = pe.ops.compact(classes, offsets, int(offsets[-1]), backend="reference")
    assert_bitwise(got, want, "kept")


def test_compact_never_writes_past_a_wrong_count():
    classes, offsets = uint8([1] * 100).to(DEVICE), int64([0, 100]).to(DEVICE)
    kept = pe.ops.compact(classes, offsets, 5, backend="triton")
    assert kept.tolist() == [0, 1, 2, 3, 4]


def order(kept, positions, seed, epoch):
    """Order with Triton, where it runs."""
    there = positions if isinstance(positions, range) else positions.to(DEVICE)
    return pe.ops.order(kept.to(DEVICE), there, seed=seed, epoch=epoch, backend="triton").cpu()


@few
@given(
    count=st.integers(1, 70) | st.sampled_from([4095, 4096, 4097, 65536, 65537, 2**20 + 1]),
    seed=seeds,
    epoch=epochs,
    salt=salts,
)
def test_order_equals_the_reference(count, seed, epoch, salt):
    rng = random.Random(salt)
    kept = torch.arange(3, count + 3, dtype=torch.int32)
    positions = int64([0, count - 1, *(rng.randrange(count) for _ in range(rng.randrange(600)))])
    step = rng.choice([1, 2, 7, -1, -3])
    share = range(count)[::step][: rng.choice([0, 1, 513])]
    for asked in (positions, share):
        got = order(kept, asked, seed, epoch)
        want = pe.ops.order(kept, asked, seed=seed, epoch=epoch, backend="reference")
        assert_bitwise(got, want, "order")


@pytest.mark.full("long under the interpreter")
@pytest.mark.parametrize("count", [size for size in SIZES if size])
def test_order_of_everything_is_a_permutation_and_depends_on_the_seed(count):
    kept = torch.arange(count, dtype=torch.int32)
    whole = order(kept, range(count), 5, 1)
    want = pe.ops.order(kept, range(count), seed=5, epoch=1, backend="reference")
    assert_bitwise(whole, want, "order")
    assert_bitwise(whole.sort().values, kept, "sorted order")
    other = order(kept, range(count), 6, 1)
    assert torch.equal(whole, other) == (count == 1)


def test_order_out_of_range():
    kept = torch.arange(10, 20, dtype=torch.int32)
    got = order(kept, int64([-1, 0, 10, 2**62]), 0, 0)
    inside = pe.ops.order(kept, int64([0]), seed=0, epoch=0, backend="reference")
    nothing = -(2**31)  # as the CUDA kernel says: it indexes nothing
    assert got.tolist() == [nothing, int(inside), nothing, nothing]
    with pytest.raises(IndexError, match=r"positions must be in 0\.\.9"):
        order(kept, range(11), 0, 0)
    with pytest.raises(IndexError, match="nothing is kept"):
        order(kept[:0], int64([0]), 0, 0)
    empty = order(kept[:0], range(0), 0, 0)
    assert empty.tolist() == []


def audit(old, classes, epoch):
    """Audit with Triton, where it runs."""
    return pe.ops.audit(old.to(DEVICE), classes.to(DEVICE), epoch=epoch, backend="triton").cpu()


@pytest.mark.parametrize("num_samples", [*SIZES, 16_384, 16_385])
def test_audit_equals_the_reference(num_samples):
    rng = random.Random(num_samples)
    old = int64(records(rng, num_samples, 4))
    classes = uint8([rng.choice([0, 1, 2, 7]) for _ in range(num_samples)])
    got = audit(old, classes, 4)
    want = pe.ops.audit(old, classes, epoch=4, backend="reference")
    assert_bitwise(got, want, "audit")
    if num_samples > 100:  # the control: another epoch has other figures
        another = audit(old, classes, 3)
        assert got[:10].equal(another[:10])
        assert not got.equal(another)


@settings(max_examples=8)
@given(num_samples=sizes, ties=st.booleans(), salt=salts)
def test_select_equals_the_reference(num_samples, ties, salt):
    rng = random.Random(salt)
    den = rng.choice([1, 100, 2**31 - 1])
    ranks = [0, 1, -num_samples], [den, rng.randint(0, den), 0], den
    for values in ranked_values(num_samples, ties, rng):
        got = pe.ops.select(values.to(DEVICE), *ranks, backend="triton")
        assert_bitwise(got, pe.ops.select(values, *ranks, backend="reference"), "select")


@settings(max_examples=8)
@given(num_samples=sizes, ties=st.booleans(), salt=salts, share=st.sampled_from([0, 1, 2, 4, 5]))
def test_top_equals_the_reference(num_samples, ties, salt, share):
    for values in ranked_values(num_samples, ties, random.Random(salt)):
        k = num_samples * share // 4
        got = pe.ops.top(values.to(DEVICE), k, backend="triton")
        assert_bitwise(got, pe.ops.top(values, k, backend="reference"), "top")


def ranked_values(num_samples, ties, rng):
    """Return scores with nan among them, and records with unseen ones."""
    pool = floats(rng, 3) if ties else floats(rng, num_samples)
    scores = float32([rng.choice([*pool, torch.nan]) for _ in range(num_samples)])
    return scores, int64(records(rng, num_samples, 3))

# SPDX-License-Identifier: Apache-2.0
"""A fixed number of a batch's elements: exact probabilities, exact sizes, one choice for a key."""

from __future__ import annotations

import hashlib
import importlib
import math
import random
from fractions import Fraction
from typing import Any

import _pick
import numpy as np
import oracle
import pytest
import torch
from _assertions import assert_bitwise, num_threads
from _cases import float32, int64, salts, threads
from _pick import Key
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import prune_engine as pe
from prune_engine import backends
from prune_engine.backends import native

BACKENDS = st.sampled_from(["reference", "cpu"])
KEY = {"seed": 3, "epoch": 1, "step": 2}


def kernels(backend: str) -> Any:
    return backends.load(backend)


def bits_of(weights: torch.Tensor) -> list[int]:
    return weights.numpy().view(np.uint32).tolist()


@given(
    count=st.sampled_from([0, 1, 2, 3, 7, 33, 64, 65, 120]),
    kind=st.sampled_from(_pick.KINDS),
    rule=st.sampled_from(_pick.RULES),
    share=st.floats(0, 1.1),
    floor=st.sampled_from([0, 1, 655, 6554, 65536]),
    backend=BACKENDS,
    salt=salts,
)
def test_a_choice_is_the_oracles(count, kind, rule, share, floor, backend, salt):
    rng = random.Random(salt)
    bits, k, key = _pick.random_bits(rng, kind, count), round(share * count), _pick.random_key(rng)
    want = _pick.choose(bits, k, rule, floor, key)
    indices, weights, eligible = kernels(backend).pick(
        *_pick.arguments(_pick.tensor_of(bits), k, rule, floor, key)
    )
    assert indices.tolist() == sorted(want.weights)
    assert len(want.weights) == min(k, count)
    assert_bitwise(weights, [want.weights[i] for i in sorted(want.weights)], "weights")
    assert eligible.tolist() == [want.eligible]
    if want.pi and min(k, want.eligible) > 0:
        assert sum(want.pi) == min(k, want.eligible), "the probabilities sum to the size"


@pytest.mark.parametrize("vector", _pick.vectors(), ids=lambda vector: vector.name)
def test_the_written_vectors(backend, vector):
    indices, weights, _ = kernels(backend).pick(*vector.arguments)
    assert indices.tolist() == vector.indices
    assert bits_of(weights) == vector.weights


@pytest.mark.parametrize(
    "vector",
    [vector for vector in _pick.vectors() if "sizes" in vector.row],
    ids=lambda vector: vector.name,
)
def test_the_vectors_intermediate_numbers_are_the_oracles(vector):
    row = vector.row
    keys = [_pick.eligible_key(int(word, 16)) for word in row["values"]]
    sizes = [int(key > 0) for key in keys]
    if row["rule"] == "proportional":
        sizes = _pick.sizes_of(keys, row["k"], row["floor"])
    certain, area, left = _pick.caps(sizes, row["k"])
    assert (sizes, sorted(certain), area, left) == (
        *(row["sizes"], row["certain"], row["A"], row["left"]),
    )
    found = _pick.along_the_walk(
        sizes, row["k"], Key(*(row[name] for name in ("seed", "epoch", "step", "rank", "site")))
    )
    assert found.pi == [Fraction(word) for word in row["pi"]]


@pytest.mark.parametrize("count", [1, 2])
def test_the_written_large_vector(backend, count):
    given_, row = _pick.large()
    with num_threads(count):
        indices, weights, _ = kernels(backend).pick(*given_)
    assert indices[:5].tolist() == row["first"]
    found = hashlib.sha256(indices.numpy().tobytes() + weights.numpy().tobytes())
    assert found.hexdigest()[:16] == row["sha256"]


@given(
    count=st.sampled_from([1024, 1025, 4095, 4096, 4097, 8192, 20_001]),
    count_threads=threads,
    salt=salts,
)
def test_large_batches_have_the_references_bits(count, count_threads, salt):
    rng = random.Random(salt)
    case = _pick.random_case(rng, count)
    with num_threads(count_threads):
        got = kernels("cpu").pick(*case)
    for name, a, b in zip(
        ("indices", "weights", "eligible"), got, kernels("reference").pick(*case), strict=True
    ):
        assert_bitwise(a, b, name)


@pytest.mark.parametrize("salt", range(16))
def test_every_start_chooses_everyone_as_often_as_its_probability_says(monkeypatch, salt):
    # The reference with small sizes, so that all starts can be tried, and one walk for all.
    rng = random.Random(salt)
    count = rng.randrange(2, 12)
    k = rng.randrange(1, count)
    sizes = [rng.choice([1, 1, 2, 3, 5, 9, 30]) for _ in range(count)]
    specification = importlib.import_module("prune_engine.backends.reference.pick")
    certain, area, left = _pick.caps(sizes, k)
    monkeypatch.setattr(specification, "_sizes", lambda *_: int64(sizes))
    chosen = [0] * count
    for start in range(area):
        monkeypatch.setattr(specification, "_start", lambda *_, start=start: start)
        indices, _, _ = specification.pick(
            *_pick.arguments(torch.ones(count), k, "proportional", 0, Key(salt))
        )
        assert len(indices) == k
        for i in indices.tolist():
            chosen[i] += 1
    assert chosen == [area if i in certain else left * size for i, size in enumerate(sizes)]


# Edge cases of the values and of the numbers -----------------------------------------------------


def test_who_is_eligible(backend):
    values = float32([math.nan, -math.inf, -1.0, -0.0, 0.0, 2.0, math.inf])
    for rule in _pick.RULES:
        indices, weights, eligible = pe.ops.pick(values, 5, rule=rule, backend=backend, **KEY)
        assert (indices.tolist(), weights.tolist()) == ([2, 3, 4, 5, 6], [1.0] * 5)
        assert eligible.tolist() == [5]
        indices, weights, _ = pe.ops.pick(values, 6, rule=rule, backend=backend, **KEY)
        assert (indices.tolist(), weights.tolist()) == ([0, 2, 3, 4, 5, 6], [0.0] + [1.0] * 5)


def test_infinity_ties_with_the_largest_float_and_ties_go_by_index(backend):
    values = float32([oracle.FLT_MAX, math.inf, 1.0, oracle.FLT_MAX])
    for k, want in enumerate([[], [0], [0, 1], [0, 1, 3]]):
        assert pe.ops.pick(values, k, rule="top", backend=backend, **KEY)[0].tolist() == want


@pytest.mark.parametrize("rule", _pick.RULES)
def test_edge_case_01_nothing_there(backend, rule):
    for values, k in ((float32([]), 3), (float32([1.0, math.nan]), 0), (float32([]), 0)):
        indices, weights, eligible = pe.ops.pick(values, k, rule=rule, backend=backend, **KEY)
        assert (indices.shape, weights.shape) == ((0,), (0,))
        assert (indices.dtype, weights.dtype) == (torch.int32, torch.float32)
        assert eligible.tolist() == [min(1, len(values))]


@pytest.mark.parametrize("rule", _pick.RULES)
def test_where_nobody_is_eligible_the_first_fill_up(backend, rule):
    nobody = torch.full((5,), torch.nan)
    indices, weights, eligible = pe.ops.pick(nobody, 3, rule=rule, backend=backend, **KEY)
    assert (indices.tolist(), weights.tolist(), eligible.tolist()) == ([0, 1, 2], [0.0] * 3, [0])


def test_zero_and_negative_values_are_as_small_as_can_be_and_equal(backend):
    values = float32([-5.0, 0.0, -1e30, 1e-3])
    free = dict(rule="proportional", floor=0, backend=backend, **KEY)
    indices, weights, _ = pe.ops.pick(values, 2, **free)
    assert indices[-1] == 3, "whatever is positive is certain beside them"
    assert weights.tolist() == [3.0, 1.0]
    assert pe.ops.pick(values[:3], 2, **free)[1].tolist() == [1.5, 1.5]


def test_the_floor_lifts_the_small_and_bounds_the_weights(backend):
    values = torch.tensor([0.01] * 90 + [1.0] * 10)
    for floor in (0.25, 0.5, 1.0):
        bound = 100 / (10 * floor) + 100 / 10  # SEMANTICS 3.11: of 100, 10, none of them certain
        heaviest = 0.0
        for step in range(30):
            key = {**KEY, "step": step}
            _, weights, _ = pe.ops.pick(values, 10, floor=floor, backend=backend, **key)
            heaviest = max(heaviest, weights.max().item())
        assert 0.9 * bound < heaviest < 1.001 * bound
    heaviest = max(
        pe.ops.pick(values, 10, floor=0, backend=backend, **{**KEY, "step": step})[1].max().item()
        for step in range(30)
    )
    assert heaviest > 100, "control: without one, a small value weighs as much as it must"


def test_the_largest_is_certain_and_lifts_nobody(backend):
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 1e6])
    seen = set()
    for step in range(60):
        indices, weights, _ = pe.ops.pick(values, 2, backend=backend, **{**KEY, "step": step})
        assert indices[1] == 4
        assert weights[1] == 1.0
        seen.add((indices[0].item(), weights[0].item()))
    assert seen == {(0, 10.0), (1, 5.0), (2, float(np.float32(10 / 3))), (3, 2.5)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_of_every_dtype_are_rounded_to_float32_first(backend, dtype):
    values = torch.tensor([0.1, 3.0, 1.7, 0.25, 65504.0], dtype=torch.float64).to(dtype)
    for rule in _pick.RULES:
        got = pe.ops.pick(values, 3, rule=rule, backend=backend, **KEY)
        want = pe.ops.pick(values.to(torch.float32), 3, rule=rule, backend=backend, **KEY)
        assert all(map(torch.equal, got, want))
    if dtype == torch.float64:
        far = torch.tensor([1e300, 1.0, -1e300, 2.0], dtype=dtype)
        assert pe.ops.pick(far, 2, rule="top", backend=backend, **KEY)[0].tolist() == [0, 3]
        assert pe.ops.pick(far, 2, backend=backend, **KEY)[2].tolist() == [3]


def test_only_the_low_word_of_a_step_counts(backend):
    values = torch.arange(1.0, 60.0)
    picks = [
        pe.ops.pick(values, 9, backend=backend, **{**KEY, "step": step})[0].tolist()
        for step in (5, 5 + 2**32, 6)
    ]
    assert picks[0] == picks[1] != picks[2]


@pytest.mark.parametrize("name", ["seed", "epoch", "step", "rank", "site"])
def test_a_choice_depends_on_each_number(backend, name):
    values, key = torch.ones(200), {**KEY, "rank": 0, "site": 0}
    first = pe.ops.pick(values, 50, backend=backend, **key)[0]
    assert torch.equal(first, pe.ops.pick(values, 50, backend=backend, **key)[0])
    other = pe.ops.pick(values, 50, backend=backend, **{**key, name: key[name] + 1})[0]
    assert not torch.equal(first, other)


def test_numbers_may_be_tensors_and_the_arguments_are_left_alone(backend):
    room = torch.rand(40, generator=torch.Generator().manual_seed(0))
    values, before = room[::2].requires_grad_(), room.clone()
    key = {"seed": 7, "epoch": int64([2]), "step": int64([2**40 + 9])}
    got = pe.ops.pick(values, 6, backend=backend, **key)
    want = pe.ops.pick(values.detach().clone(), 6, seed=7, epoch=2, step=9, backend=backend)
    assert all(map(torch.equal, got, want))
    assert not any(each.requires_grad for each in got)
    assert_bitwise(room, before, "values")
    assert (key["epoch"].item(), key["step"].item()) == (2, 2**40 + 9)


def test_a_loss_of_the_chosen_has_a_gradient(backend):
    losses = torch.tensor([0.5, 4.0, 0.1, 0.4, 1.0], requires_grad=True)
    indices, weights, _ = pe.ops.pick(losses, 3, backend=backend, **KEY)
    ((weights * losses[indices]).sum() / 5).backward()
    assert losses.grad is not None
    assert losses.grad[indices].tolist() == (weights / 5).tolist()
    assert int((losses.grad != 0).sum()) == 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"values": [1.0]}, TypeError, "values must be a tensor"),
        ({"values": int64([1])}, TypeError, "values must be float32 or"),
        ({"values": torch.ones(1, 2)}, ValueError, "values must be a vector"),
        ({"k": -1}, ValueError, r"k must be in 0\.\.2147483647, got -1"),
        ({"k": 2.0}, TypeError, "k must be an int"),
        ({"rule": "best"}, ValueError, "rule must be one of 'top', 'random', 'proportional', got"),
        ({"floor": 1.5}, ValueError, r"floor must be in 0\.\.1, got 1.5"),
        ({"floor": math.nan}, ValueError, r"floor must be in 0\.\.1, got nan"),
        ({"floor": "no"}, TypeError, "floor must be a number"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"epoch": 2**31 - 1}, ValueError, "epoch must be in"),
        ({"epoch": torch.tensor([1.0])}, TypeError, "epoch must be int64"),
        ({"step": -1}, ValueError, "step must be in"),
        ({"step": int64([1, 2])}, ValueError, "step must be a vector of 1 elements"),
        ({"rank": 2**31}, ValueError, "rank must be in"),
        ({"site": 2**27}, ValueError, "site must be in"),
    ],
    ids=str,
)
def test_edge_cases_07_and_10_wrong_arguments_are_named(change, error, message):
    call = {"values": float32([1.0, 2.0]), "k": 1, **KEY, **change}
    with pytest.raises(error, match=message):
        pe.ops.pick(**call)


@pytest.mark.parametrize(
    "place", [(1, -1), (2, 3), (2, -1), (3, 65537), (4, -1), (7, -1), (8, 2**27)], ids=str
)
def test_the_operator_itself_refuses_what_its_kernels_cannot_do(place):
    good = list(_pick.arguments(float32([1.0, 2.0]), 1, "top", 0, Key()))
    assert native.pick(*good)[0].tolist() == [1]
    good[place[0]] = place[1]
    with pytest.raises(RuntimeError, match=r"must be in"):
        native.pick(*good)


@pytest.mark.parametrize("rule", _pick.RULES)
@pytest.mark.parametrize("k", [0, 2, 9])
def test_opcheck(rule, k):
    case = _pick.arguments(float32([2.0, 1.0, 3.0, math.nan]), k, rule, 6554, Key(1, 2, 3))
    torch.library.opcheck(native.pick, case)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_one_graph_serves_every_step_with_the_bits_of_eager(compiler):
    step, epoch = int64([0]), int64([3])

    def work(values: torch.Tensor) -> Any:
        picked = pe.ops.pick(values, 8, seed=5, epoch=epoch, step=step)
        return picked[0], picked[1] * values[picked[0]], picked[2]

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(compiler)
    compiled = torch.compile(work, fullgraph=True, backend=counter)
    seen = set()
    for number in range(5):
        step.fill_(number)
        values = torch.rand(32, generator=torch.Generator().manual_seed(number))
        got, want = compiled(values), work(values)
        assert all(map(torch.equal, got, want))
        seen.add(tuple(got[0].tolist()))
    assert counter.frame_count == 1
    assert len(seen) == 5
    torch._dynamo.reset()


# The engine's choice -----------------------------------------------------------------------------


def engine_of(**options: Any) -> pe.PruneEngine:
    return pe.PruneEngine(64, pe.KeepAll(), num_epochs=3, seed=9, **options)


def test_the_engine_supplies_seed_epoch_and_step(backend):
    engine = engine_of(backend=backend)
    values = torch.rand(16, generator=torch.Generator().manual_seed(0))
    seen = []
    for epoch in range(2):
        for step in range(4):
            got = engine.pick(values, 4, rule="random", site=1)
            again = engine.pick(values, 4, rule="random", site=1)
            key = {"seed": 9, "epoch": epoch, "step": 4 * epoch + step, "site": 1}
            want = pe.ops.pick(values, 4, rule="random", backend=backend, **key)
            assert all(map(torch.equal, got, want))
            assert all(map(torch.equal, got, again)), "a recomputed forward repeats its choice"
            seen.append(tuple(got[0].tolist()))
            engine.observe(values, torch.arange(16 * step, 16 * step + 16))
        engine.end_epoch()
    assert len(set(seen)) > 6


def test_the_engine_takes_plain_and_numpy_numbers_and_names_what_it_refuses():
    engine, values = engine_of(), torch.arange(16.0)
    want = engine.pick(values, 4, floor=0.25, site=2)
    got = engine.pick(values, np.int64(4), floor=np.float32(0.25), site=np.int32(2))  # type: ignore[arg-type]
    assert all(map(torch.equal, got, want))
    with pytest.raises(ValueError, match="rule must be one of"):
        engine.pick(values, 4, rule="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="values must be on cpu, got meta"):
        engine.pick(values.to("meta"), 4)
    with pytest.raises(TypeError, match="values must be a tensor"):
        engine.pick([1.0], 1)  # type: ignore[arg-type]


def test_two_graphs_serve_a_run_of_choices():
    torch._dynamo.reset()
    eager, compiled = engine_of(), engine_of()
    counter = CompileCounterWithBackend("eager")

    def step_of(engine: pe.PruneEngine) -> Any:
        def step(x: torch.Tensor, indices: torch.Tensor) -> Any:
            chosen, weights, _ = engine.pick(x.detach(), 4)
            engine.observe(x.detach(), indices)
            return (weights * x[chosen]).sum(), chosen

        return step

    whole, traced = (
        step_of(eager),
        torch.compile(step_of(compiled), fullgraph=True, backend=counter),
    )
    for number in range(4):
        x = torch.rand(16, generator=torch.Generator().manual_seed(number))
        indices = torch.arange(16 * number, 16 * number + 16)
        assert all(map(torch.equal, traced(x, indices), whole(x, indices)))
    assert counter.frame_count <= 2
    torch._dynamo.reset()


@pytest.mark.parametrize("place", range(2))
def test_ranks_choose_as_many_and_others(monkeypatch, place):
    from prune_engine.epoch import ranks

    monkeypatch.setattr(ranks, "world", lambda group=None: (place, 2))
    values = torch.ones(32)
    got = engine_of().pick(values, 8, rule="random")[0]
    want = pe.ops.pick(values, 8, rule="random", seed=9, epoch=0, step=0, rank=place)[0]
    assert torch.equal(got, want)
    other = pe.ops.pick(values, 8, rule="random", seed=9, epoch=0, step=0, rank=1 - place)[0]
    assert len(other) == len(got) and not torch.equal(got, other)

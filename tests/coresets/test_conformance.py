# SPDX-License-Identifier: Apache-2.0
"""What every method must do, and what a faulty method is caught at."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

import pytest
import torch
from _data import Data, chosen, made

import prune_engine as pe
from prune_engine.coresets import Method, Pick, Samples
from prune_engine.coresets.quotas import quotas

N, K = 60, 23
METHODS = tuple(pe.coresets.TABLE)
# What draws: another place in the data set is another chance. The rest knows no positions.
DRAWN = ("random", "k_center", "contextual_diversity", "dq", "stratified")
# Two samples that are each other's nearest add as much: which comes first is their index' affair.
TIED = ("craig", "facility_location")
WEIGHED = ("craig", "gradmatch")
PUBLISHED = ("herding", "forgetting", "cal", "glister")


def same(one: pe.coresets.Coreset, other: pe.coresets.Coreset) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("indices", "weights", "order")
    )


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("balance", [True, False])
def test_exactly_k_without_repeats(method: str, balance: bool) -> None:
    found = chosen(method, made(N), k=K, balance=balance)
    assert found.indices.tolist() == sorted(set(found.order.tolist()))
    assert len(found) == len(found.order) == len(found.weights) == K
    assert found.indices.dtype == found.order.dtype == torch.int64
    assert found.weights.dtype == torch.float32
    assert 0 <= int(found.indices[0]) and int(found.indices[-1]) < N
    if method not in WEIGHED:
        assert found.weights.tolist() == [1.0] * K


def test_the_seed_decides_and_nothing_else(method: str) -> None:
    data = made(N)
    first = chosen(method, data, k=K, seed=5)
    assert same(first, chosen(method, data, k=K, seed=5))
    if method not in ("k_center", "contextual_diversity"):  # whose first is one of few in a class
        assert same(first, chosen(method, data, k=K, seed=6)) == (method not in DRAWN)


@pytest.mark.parametrize("name", ["k_center", "contextual_diversity"])
def test_the_seed_decides_where_a_traversal_begins(name: str) -> None:
    firsts = {int(chosen(name, made(N), k=2, balance=False, seed=s).order[0]) for s in range(8)}
    assert len(firsts) > 3


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in (*DRAWN, *TIED)])
def test_a_permuted_data_set_permutes_the_answer(method: str, balance: bool) -> None:
    data = made(N)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    before = chosen(method, data, k=K, balance=balance)
    after = chosen(method, data.rows(order), k=K, balance=balance)
    assert torch.equal(order[after.order], before.order)
    weights = torch.zeros(N).index_put((before.indices,), before.weights)
    torch.testing.assert_close(weights[order[after.indices]], after.weights)


@pytest.mark.parametrize("name", DRAWN)
def test_a_permutation_that_takes_the_draw_along_permutes_the_answer(name: str) -> None:
    data, order = made(N), torch.randperm(N, generator=torch.Generator().manual_seed(3))
    rank = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    kind = pe.coresets.TABLE[name]
    rows = {need: getattr(data, need) for need in kind.needs}
    before = kind().pick(Samples(rank, **rows), K).order
    moved = {need: value[order] for need, value in rows.items()}
    after = kind().pick(Samples(rank[order], **moved), K).order
    assert torch.equal(order[after], before)
    if name != "random":
        other = kind().pick(Samples(rank, **moved), K).order
        assert not torch.equal(order[other], before), "control: without the draw it does not"


@pytest.mark.parametrize("sizes", [(40, 15, 5), (20, 20, 20), (0, 59, 1)])
@pytest.mark.parametrize("k", [7, 59])
def test_classes_give_by_largest_remainders(method: str, sizes: tuple[int, ...], k: int) -> None:
    data = made(N)
    targets = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    found = chosen(method, data._replace(targets=targets), k=k)
    counts = torch.bincount(targets[found.indices], minlength=3)
    exact = torch.tensor(sizes, dtype=torch.float64) * k / N
    assert int(counts.sum()) == k
    assert bool(((counts - exact).abs() < 1).all())
    assert counts.tolist() == hamilton(sizes, k)


def hamilton(sizes: tuple[int, ...], k: int) -> list[int]:
    """Give the whole shares, then one each to the largest remainders, in fractions."""
    shares = [Fraction(size * k, sum(sizes)) for size in sizes]
    counts = [int(share) for share in shares]
    while sum(counts) < k:
        rests = [share - count for share, count in zip(shares, counts, strict=True)]
        counts[rests.index(max(rests))] += 1
    return counts


def test_the_smaller_class_has_the_remainder_between_equals() -> None:
    assert hamilton((2, 2, 2), 4) == quotas((2, 2, 2), 4) == [2, 1, 1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        sizes = tuple(torch.randint(0, 9, (5,), generator=generator).tolist())
        k = int(torch.randint(0, sum(sizes) + 1, (), generator=generator))
        assert quotas(sizes, k) == hamilton(sizes, k)
        assert all(count <= size for count, size in zip(quotas(sizes, k), sizes, strict=True))


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("n", [0, 1, 17])
def test_none_and_all(method: str, balance: bool, n: int) -> None:
    data = made(N).rows(slice(0, n))
    nothing = chosen(method, data, k=0, balance=balance)
    assert [len(part) for part in (nothing.indices, nothing.weights, nothing.order)] == [0, 0, 0]
    everything = chosen(method, data, k=n, balance=balance)
    assert everything.indices.tolist() == list(range(n))
    assert sorted(everything.order.tolist()) == list(range(n))


def test_one_class_is_the_same_as_none(method: str) -> None:
    data = made(N)
    data = data._replace(targets=torch.ones(N, dtype=torch.int64))
    whole, parted = (chosen(method, data, k=K, balance=balance) for balance in (False, True))
    assert same(whole, parted)


@pytest.mark.parametrize("balance", [True, False])
def test_duplicates_are_chosen_once_each(method: str, balance: bool) -> None:
    data = made(6)
    data = data.rows(torch.arange(6).repeat(5))
    found = chosen(method, data, k=13, balance=balance)
    assert len(set(found.indices.tolist())) == 13
    alike = made(1).rows(torch.zeros(9, dtype=torch.int64))
    assert len(set(chosen(method, alike, k=4, balance=balance).indices.tolist())) == 4


@pytest.mark.parametrize("method", [name for name in METHODS if name not in DRAWN])
def test_ties_go_to_the_smaller_index(method: str) -> None:
    # In whole numbers, so that equal samples are equal after any arithmetic.
    alike = Data(
        torch.ones(9, 4),
        torch.zeros(9, 2),
        torch.zeros(9, dtype=torch.int64),
        torch.ones(2, 4),
        torch.ones(9),
    )
    found = chosen(method, alike, k=4, balance=False)
    pruned = method == "dp"  # which takes the first away
    assert found.indices.tolist() == ([5, 6, 7, 8] if pruned else [0, 1, 2, 3])


@pytest.mark.parametrize("name", ["k_center", "contextual_diversity"])
@pytest.mark.parametrize("large", [False, True])
def test_ties_of_a_traversal_go_to_the_smaller_index(name: str, large: bool, monkeypatch) -> None:
    if large:
        monkeypatch.setattr("prune_engine.coresets.pairs.SMALL", 0)
        monkeypatch.setattr("prune_engine.coresets.greedy.CANDIDATES", 3)
    alike = {"features": torch.ones(9, 4), "logits": torch.zeros(9, 2)}
    kind = pe.coresets.TABLE[name]
    rank = torch.tensor([3, 1, 4, 0, 5, 2, 8, 6, 7])
    found = kind().pick(Samples(rank, **{need: alike[need] for need in kind.needs}), 6)
    assert found.order.tolist() == [3, 0, 1, 2, 4, 5]


def test_ties_of_bins_go_to_the_smaller_index() -> None:
    alike = Samples(torch.arange(9), features=torch.ones(9, 4))
    found = pe.coresets.DatasetQuantization(3).binned(alike)
    assert [part.tolist() for part in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused_with_its_index(method: str, number: float) -> None:
    data = made(N)
    for name in pe.coresets.TABLE[method].needs:
        if name in ("targets", "head") or (name == "scores" and number == torch.inf):
            continue
        bad = getattr(data, name).clone()
        bad[41] = number
        with pytest.raises(ValueError, match=rf"{name} must .*, got {number} at sample 41"):
            chosen(method, data._replace(**{name: bad}), k=K)


def test_what_is_not_finite_of_the_head_or_the_validation_is_named_as_theirs() -> None:
    data = made(N)
    head = data.head.clone()
    head[2, 1] = torch.nan
    with pytest.raises(ValueError, match="head must be finite, got nan at class 2"):
        chosen("deepfool", data._replace(head=head), k=K)
    bad = data.features.clone()
    bad[3, 1] = torch.inf
    held = pe.coresets.Embedding(bad, data.logits, data.targets)
    with pytest.raises(ValueError, match=r"validation\.features must be finite, .* sample 3"):
        chosen("glister", data, k=K, validation=held)
    with pytest.raises(TypeError, match="validation must be an Embedding, got tuple"):
        chosen("glister", data, k=K, validation=(data.features, data.logits, data.targets))


@pytest.mark.parametrize("number", [3e38, -3e38])
def test_logits_whose_differences_overflow_are_refused(number: float) -> None:
    data = made(N)
    large = data.logits.float()
    large[17, 2] = number
    with pytest.raises(ValueError, match=r"logits must be at most .*, got 3e\+38 at sample 17"):
        chosen("contextual_diversity", data._replace(logits=large), k=K)
    assert len(chosen("contextual_diversity", data._replace(logits=large.double()), k=K)) == K


def test_features_whose_squares_overflow_are_refused() -> None:
    data = made(N)
    large = data.features.float()
    large[17, 2] = -1e19
    with pytest.raises(ValueError, match=r"features must be at most .*, got 1e\+19 at sample 17"):
        chosen("k_center", data._replace(features=large), k=K)
    assert len(chosen("k_center", data._replace(features=large.double()), k=K)) == K


def test_what_is_missing_is_named(method: str) -> None:
    data = made(N)
    for name in pe.coresets.TABLE[method].needs:
        given = {need: getattr(data, need) for need in pe.coresets.TABLE[method].needs}
        del given[name]
        given.setdefault("targets", data.targets)
        if name == "targets":
            del given["targets"]
        with pytest.raises(ValueError, match=f"{name} must be given"):
            pe.coresets.select(method, k=K, balance=False, **given)


def test_progress_ends_at_k_and_may_end_the_choice(method: str) -> None:
    told: list[tuple[int, int]] = []
    chosen(method, made(N), k=K, progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (K, K)
    assert [done for done, _ in told] == sorted({done for done, _ in told})

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen(method, made(N), k=K, progress=stop)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_numbers_are_widened(method: str, dtype: torch.dtype) -> None:
    data = made(N)
    narrow = Data(*(x if x.dtype == torch.int64 else x.to(dtype) for x in data))
    wide = Data(*(x if x.dtype == torch.int64 else x.to(torch.float32) for x in narrow))
    assert same(chosen(method, narrow, k=K), chosen(method, wide, k=K))


def test_inputs_are_not_changed(method: str) -> None:
    data = made(N)
    before = Data(*(x.clone() for x in data))
    chosen(method, data, k=K)
    assert all(torch.equal(x, y) for x, y in zip(data, before, strict=True))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"k": -1}, ValueError, r"k must be in 0\.\.60, got -1"),
        ({"k": 61}, ValueError, r"k must be in 0\.\.60, got 61"),
        ({"k": True}, TypeError, "k must be an int, got True"),
        ({"k": 0.5}, TypeError, "k must be an int, got 0.5"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"targets": torch.zeros(N)}, TypeError, "targets must be integers"),
        ({"targets": torch.full((N,), 3)}, IndexError, r"targets must be in 0\.\.2, got 3"),
        ({"targets": torch.full((N,), -1)}, IndexError, "got -1"),
        ({"targets": torch.zeros(59, dtype=torch.int64)}, ValueError, "as many rows as features"),
        ({"targets": None}, ValueError, "balance=True"),
        ({"features": torch.zeros(N)}, ValueError, r"features must be \[N, d\]"),
        ({"features": torch.zeros(N, 0)}, ValueError, r"features must be \[N, d\]"),
        (
            {"features": torch.zeros(N, 2, dtype=torch.int64)},
            TypeError,
            "features must be floating",
        ),
        ({"features": [1.0]}, TypeError, "features must be a tensor, got list"),
        ({"head": torch.zeros(3, 5)}, ValueError, r"head must be \[3, 4\], got \(3, 5\)"),
        ({"bins": 3}, TypeError, "bins"),
    ],
)
def test_what_does_not_fit_is_refused(options, kind, message) -> None:
    data = made(N)
    given = {
        "features": data.features,
        "logits": data.logits,
        "targets": data.targets,
        "k": K,
        **options,
    }
    with pytest.raises(kind, match=message):
        pe.coresets.select("graphcut", **given)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pe.coresets.GraphCut(a=-1.0),
        lambda: pe.coresets.GraphCut(b=float("nan")),
        lambda: pe.coresets.GraphCut(similarity="rbf"),
        lambda: pe.coresets.FacilityLocation("rbf"),
        lambda: pe.coresets.CAL(0),
        lambda: pe.coresets.GradMatch(0.0),
        lambda: pe.coresets.Glister(rounds=0),
        lambda: pe.coresets.Glister(lr=0.0),
        lambda: pe.coresets.Influence(0.0),
        lambda: pe.coresets.DatasetPruning(sweeps=-1),
        lambda: pe.coresets.DatasetQuantization(0),
        lambda: pe.coresets.Stratified(beta=1.0),
        lambda: pe.coresets.Stratified(strata=0),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused(make) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


def test_only_what_a_table_needs_is_reproduced() -> None:
    for name, kind in pe.coresets.TABLE.items():
        if name in PUBLISHED:
            kind(published=True)
        else:
            with pytest.raises(TypeError, match="published"):
                kind(published=True)
    with pytest.raises(ValueError, match="method must be one of random, herding"):
        pe.coresets.select("magic", k=1, features=torch.zeros(2, 2), balance=False)
    with pytest.raises(TypeError, match="has its parameters already"):
        chosen(pe.coresets.GraphCut(), made(N), k=1, a=2.0)


class Faulty(Method):
    """A method of a user's own that does one thing wrong."""

    needs: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self, order: object, weights: list[float] | None = None, **kind: object) -> None:
        self.order = torch.tensor(order, **kind)
        self.weights = None if weights is None else torch.tensor(weights)

    def pick(self, samples: Samples, k: int) -> Pick:
        return Pick(self.order, self.weights)


@pytest.mark.parametrize("order", [[0, 0], [0], [0, 5], [-1, 0], [[0, 1]]])
def test_control_a_faulty_method_is_caught(order: list) -> None:
    h = torch.zeros(5, 2)
    good = pe.coresets.select(Faulty([4, 2]), k=2, features=h, balance=False)
    assert good.order.tolist() == [4, 2] and good.indices.tolist() == [2, 4]
    with pytest.raises(ValueError, match="Faulty must pick 2 different positions"):
        pe.coresets.select(Faulty(order), k=2, features=h, balance=False)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, torch.nan], [torch.inf, 1.0], []])
@pytest.mark.parametrize("balance", [True, False])
def test_control_faulty_weights_are_caught(weights: list[float], balance: bool) -> None:
    given = {"features": torch.zeros(5, 2), "targets": torch.zeros(5, dtype=torch.int64)}
    good = pe.coresets.select(Faulty([4, 2], [3.0, 1.0]), k=2, balance=balance, **given)
    assert good.indices.tolist() == [2, 4] and good.weights.tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="Faulty must give 2 finite weights of at least 0"):
        pe.coresets.select(Faulty([4, 2], weights), k=2, balance=balance, **given)


def test_positions_are_whole_numbers_of_64_bits() -> None:
    h = torch.zeros(5, 2)
    small = Faulty([4, 2], dtype=torch.int32)
    found = pe.coresets.select(small, k=2, features=h, balance=False)
    assert found.indices.dtype == found.order.dtype == torch.int64
    with pytest.raises(ValueError, match=r"as integers \[2\], got torch.float32 \[2\]"):
        pe.coresets.select(Faulty([4.0, 2.0]), k=2, features=h, balance=False)

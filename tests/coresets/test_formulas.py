# SPDX-License-Identifier: Apache-2.0
"""Each method equals its paper's formula, restated without a shortcut; each known fault is seen."""

from __future__ import annotations

import itertools

import _brute as brute
import numpy as np
import oracle
import pytest
import torch
from _data import Data, chosen, made

import prune_engine as pe
from prune_engine import coresets
from prune_engine.coresets import greedy, pairs

N, K = 40, 12


@pytest.fixture(scope="module")
def data() -> Data:
    return made(N)


@pytest.fixture(params=["kept", "by the block"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the small matrix kept, and as with one too large for that."""
    if request.param != "kept":
        monkeypatch.setattr(pairs, "SMALL", 0)
        monkeypatch.setattr(pairs, "ENTRIES", 64)
        monkeypatch.setattr(greedy, "CANDIDATES", 7)
    return request.param


def order(found: coresets.Coreset) -> list[int]:
    return found.order.tolist()


def unbalanced(name: str | coresets.Method, data: Data, k: int = K, **options):
    return chosen(name, data, k=k, balance=False, **options)


def test_random_is_the_beginning_of_the_keyed_draw(data) -> None:
    place = np.array(oracle.order(range(N), range(N), 7, 0))
    drawn = np.argsort(place)
    assert order(unbalanced("random", data, seed=7)) == drawn[:K].tolist()
    balanced = order(chosen("random", data, k=K, seed=7))
    for label in range(3):
        mine = [i for i in balanced if data.targets[i] == label]
        assert mine == [i for i in drawn.tolist() if data.targets[i] == label][: len(mine)]


def test_no_sample_is_drawn_more_often_than_others() -> None:
    data = made(20)
    drawn = torch.stack([unbalanced("random", data, 5, seed=seed).indices for seed in range(400)])
    counts = torch.bincount(drawn.flatten(), minlength=20)
    # 100 each, and a standard deviation of 8.7.
    assert 60 < int(counts.min()) and int(counts.max()) < 140


def test_herding_follows_the_mean(data, form) -> None:
    features = data.features.numpy()
    assert order(unbalanced("herding", data)) == brute.herding(features, K)
    published = coresets.Herding(published=True)
    assert order(unbalanced(published, data)) == brute.herding(features, K, sign=1.0)


def test_the_published_herding_runs_away_from_the_mean() -> None:
    data = made(400)
    mean = data.features.mean(dim=0)

    def gap(found: coresets.Coreset) -> float:
        return float((data.features[found.indices].mean(dim=0) - mean).norm())

    right, drawn = unbalanced("herding", data, 80), unbalanced("random", data, 80)
    fault = unbalanced(coresets.Herding(published=True), data, 80)
    assert gap(right) < 0.2 * gap(drawn)
    assert gap(fault) > 5 * gap(drawn)


def test_k_center_is_the_farthest_first_traversal(data, form) -> None:
    found = order(unbalanced("k_center", data))
    between = brute.distances(data.features.numpy())
    first = int(np.argmin(oracle.order(range(N), range(N), 0, 0)))
    assert found == brute.traversal(between, K, first)
    assert found != brute.traversal(between, K + 1, first)[1:], "control: the first one is taken"
    radius = between[:, found].min(axis=1).max()
    # Gonzalez: within twice the best; among K + 1 samples so far apart two share any centre.
    assert radius <= between[np.ix_(found, found)][~np.eye(K, dtype=bool)].min() + 1e-12


def test_the_first_centre_is_chosen_and_not_always_the_first_sample(data) -> None:
    firsts = {order(unbalanced("k_center", data, seed=seed))[0] for seed in range(6)}
    assert len(firsts) > 1


def test_contextual_diversity_is_that_over_the_divergence(data, form) -> None:
    found = order(unbalanced("contextual_diversity", data))
    p = brute.softmax(data.logits.numpy())
    between = np.array(
        [[(brute.divergence(a, b) + brute.divergence(b, a)) / 2 for b in p] for a in p]
    )
    assert found == brute.traversal(between, K, found[0])


def test_contextual_diversity_knows_no_nan(data) -> None:
    sure = data._replace(logits=data.logits.float() * 1e4)  # whose small chances are 0 in float32
    assert not torch.softmax(sure.logits, dim=1).all()
    first, second = (unbalanced("contextual_diversity", d) for d in (sure, sure))
    assert torch.equal(first.order, second.order)
    apart = {tuple(row) for row in torch.softmax(sure.logits, 1).round()[first.indices].tolist()}
    assert len(apart) == 3, "each class is represented before any is twice"


@pytest.mark.parametrize("name", ["least_confidence", "entropy", "margin"])
@pytest.mark.parametrize("balance", [True, False])
def test_the_least_sure_are_taken_balanced_or_not(data, name, balance) -> None:
    p = np.sort(brute.softmax(data.logits.numpy()), axis=1)[:, ::-1]
    doubt = {
        "least_confidence": 1 - p[:, 0],
        "margin": 1 - p[:, 0] + p[:, 1],
        "entropy": -(p * np.log(p)).sum(axis=1),
    }[name]
    found = set(order(chosen(name, data, k=K, balance=balance)))
    if balance:
        want: set[int] = set()
        labels = data.targets.numpy()
        counts = np.bincount(labels[list(found)], minlength=3)
        for label, count in enumerate(counts):
            members = np.flatnonzero(labels == label)
            want |= set(members[np.argsort(-doubt[members])[:count]].tolist())
    else:
        want = set(np.argsort(-doubt)[:K].tolist())
    assert found == want


def test_confidence_is_a_probability_and_not_a_logit() -> None:
    logits = torch.tensor([[9.0, 8.9], [1.0, -5.0]])  # the first has the larger logit, and doubt
    found = coresets.select("least_confidence", logits=logits, k=1, balance=False)
    assert found.order.tolist() == [0]


def test_gradient_norms_have_no_share_of_a_batch(data) -> None:
    norms = np.linalg.norm(brute.gradients(data), axis=1)
    assert order(unbalanced("grand", data)) == np.argsort(-norms)[:K].tolist()
    p = brute.softmax(data.logits.numpy())
    errors = np.linalg.norm(p - np.eye(3)[data.targets.numpy()], axis=1)
    assert order(unbalanced("el2n", data)) == np.argsort(-errors)[:K].tolist()
    # The public code takes the mean of each batch of 16: the last 8 samples look twice as large.
    scale = np.where(np.arange(N) < 32, 1 / 16, 1 / 8)
    assert order(unbalanced("grand", data)) != np.argsort(-norms * scale)[:K].tolist()


def test_full_gradient_norms_are_those_of_backward() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
        )
    model[0].bias.requires_grad_(False)
    data = made(11)
    x, y = data.features.float(), data.targets
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = coresets.full_grand(model, x, y, chunk=4)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()
    for i in range(11):
        loss = torch.nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        trained = [p for p in model.parameters() if p.requires_grad]
        parts = torch.autograd.grad(loss, trained)
        norm = torch.stack([part.square().sum() for part in parts]).sum().sqrt()
        torch.testing.assert_close(found[i], norm)


def test_the_hardest_are_the_largest_of_any_score_and_the_infinite_first(data) -> None:
    scores = torch.where(torch.arange(N) == 17, torch.inf, data.scores)
    found = order(unbalanced("hardest", data._replace(scores=scores)))
    assert found == np.argsort(-scores.numpy(), kind="stable")[:K].tolist()
    assert found[0] == 17


def test_never_learned_is_harder_than_any_number_of_events() -> None:
    events = torch.tensor([0.0, 7.0, torch.inf, 2.0])
    labels = torch.zeros(4, dtype=torch.int64)
    found = coresets.select("forgetting", scores=events, targets=labels, k=2)
    assert found.order.tolist() == [2, 1]
    fault = coresets.select("forgetting", scores=events, targets=labels, k=2, published=True)
    assert fault.order.tolist() == [1, 3]


def test_boundary_distance_is_the_closed_form(data) -> None:
    found = coresets.boundary_distance(data.logits, data.head)
    z, w = data.logits.numpy(), data.head.numpy()
    for i in range(N):
        top = z[i].argmax()
        steps = [
            (z[i, top] - z[i, c]) / np.linalg.norm(w[top] - w[c]) for c in range(3) if c != top
        ]
        assert found[i].item() == pytest.approx(min(steps))
    assert order(unbalanced("deepfool", data)) == torch.argsort(found)[:K].tolist()
    alone = coresets.boundary_distance(torch.ones(2, 1), torch.ones(1, 4))
    assert alone.tolist() == [torch.inf] * 2


def test_deepfool_of_a_linear_model_is_that_distance(data) -> None:
    with torch.random.fork_rng():
        model = torch.nn.Linear(4, 3, bias=False).double()
    model.weight.data.copy_(data.head)
    inputs = data.features.clone()
    found = coresets.deepfool(model, inputs)
    closed = coresets.boundary_distance(data.logits, data.head)
    torch.testing.assert_close(found, closed.square(), rtol=1e-9, atol=0)
    assert torch.equal(inputs, data.features) and not inputs.requires_grad
    assert model.weight.requires_grad and model.training


@pytest.mark.parametrize("classes", [10, 2])
def test_deepfool_of_a_curved_model_crosses_its_boundary(classes) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 12)
        ).double()
    x = made(9).features
    squares = coresets.deepfool(model, x, classes=classes)
    for i in range(9):  # one by one, as the paper has it
        point, first = x[i].clone(), int(model(x[i]).argmax())
        tried = torch.argsort(model(x[i]), descending=True)[1:classes].tolist()
        moved = torch.zeros(4, dtype=torch.float64)
        for _ in range(50):
            leaf = point.clone().requires_grad_()
            z = model(leaf)
            if int(z.argmax()) != first:
                break
            steps = []
            for c in tried:
                (w,) = torch.autograd.grad(z[c] - z[first], leaf, retain_graph=True)
                lead = (z[first] - z[c]).item()
                steps.append((lead / w.norm().item(), lead / w.square().sum().item() * w))
            step = min(steps, key=lambda pair: pair[0])[1]
            moved, point = moved + step, point + step
        assert squares[i].item() == pytest.approx(float(moved.square().sum()), rel=1e-9)
    others = coresets.deepfool(model, x, classes=12 - classes)
    assert not torch.allclose(squares, others), "control: which classes are tried matters"


def test_an_input_that_nothing_moves_is_far_from_every_boundary() -> None:
    """A model that is flat there: a sum of no steps would be the shortest of all."""
    with torch.random.fork_rng():
        model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 2))
    for layer, weight, bias in ((0, [[1.0]], [0.0]), (2, [[1.0], [-1.0]], [-0.1, 0.0])):
        model[layer].weight.data.copy_(torch.tensor(weight))
        model[layer].bias.data.copy_(torch.tensor(bias))
    found = coresets.deepfool(model, torch.tensor([[-1.0], [2.0]]))
    assert found.tolist() == [torch.inf, pytest.approx(1.95**2)]
    alone = coresets.deepfool(torch.nn.Sequential(torch.nn.Flatten()), torch.ones(2, 1))
    assert alone.tolist() == [torch.inf] * 2, "of one class there is no boundary"
    with pytest.raises(TypeError, match=r"inputs must be a floating tensor, got torch\.int64"):
        coresets.deepfool(model, torch.ones(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="classes must be at least 2"):
        coresets.deepfool(model, torch.ones(2, 1), classes=1)


def test_cal_takes_the_most_contrasting(data, form) -> None:
    p = brute.softmax(data.logits.numpy())
    contrast = brute.contrast(data.features.numpy(), p, 10)
    ranking = np.argsort(-np.array(contrast)).tolist()
    assert order(unbalanced("cal", data)) == ranking[:K]
    fault = unbalanced(coresets.CAL(published=True), data)
    assert order(fault) == ranking[::-1][:K]


def test_cal_leaves_out_the_sample_itself_and_not_its_double() -> None:
    # 0 and 1 are alike in features and not in prediction: each is the other's neighbour.
    h = torch.tensor([[0.0], [0.0], [9.0], [9.1]])
    z = torch.tensor([[4.0, 0.0], [0.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    found = coresets.select(coresets.CAL(1), features=h, logits=z, k=2, balance=False)
    assert found.order.tolist() == [0, 1]


def test_craig_is_facility_location_with_counts(data, form) -> None:
    between = brute.distances(brute.gradients(data))
    found = unbalanced("craig", data)
    value = brute.facility(between.max() - between)
    assert brute.is_greedy(order(found), N, value)
    nearest = found.indices.numpy()[between[:, found.indices].argmin(axis=1)]
    counts = np.bincount(nearest, minlength=N)[found.indices]
    assert found.weights.tolist() == counts.tolist(), "one each, and not one more"
    assert found.weights.sum().item() == N


def test_craig_weighs_the_samples_that_it_chose(data) -> None:
    """A class whose samples come in another order keeps its answer, weights and all."""
    mixed = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    balanced = chosen("craig", data, k=5)
    moved = chosen("craig", data.rows(mixed), k=5)
    there = dict(zip(mixed[moved.indices].tolist(), moved.weights.tolist(), strict=True))
    assert there == dict(zip(balanced.indices.tolist(), balanced.weights.tolist(), strict=True))
    sizes = torch.bincount(data.targets)
    parts = torch.zeros(3).index_add(0, data.targets[balanced.indices], balanced.weights)
    assert parts.tolist() == sizes.tolist()


def test_gradmatch_is_matching_pursuit(data, form) -> None:
    k, lam = 8, 0.3
    found, weights = brute.pursuit(brute.gradients(data), k, lam)
    got = unbalanced(coresets.GradMatch(lam), data, k)
    assert order(got) == found
    by_index = dict(zip(got.indices.tolist(), got.weights.tolist(), strict=True))
    assert [by_index[i] for i in found] == pytest.approx(weights.tolist(), rel=1e-5, abs=1e-6)


def test_gradmatch_lets_a_weight_fall_to_zero_and_come_back() -> None:
    """On many small problems, against every active set."""
    falls = 0
    for seed in range(20):
        data = made(10, classes=2, width=1, seed=seed)
        g = brute.gradients(data)
        got = unbalanced(coresets.GradMatch(1e-3), data, 8)
        columns = g[got.indices].T
        want = brute.nonnegative(columns, g.sum(axis=0), 1e-3)
        assert got.weights.tolist() == pytest.approx(want.tolist(), rel=1e-4, abs=1e-4)
        falls += int((got.weights == 0).sum())
    assert falls > 10, "control: weights do fall to zero here"


@pytest.mark.parametrize(("k", "rounds"), [(12, 15), (20, 3), (17, 4), (12, 1)])
def test_glister_renews_the_gradient_of_the_validation_loss(data, k, rounds) -> None:
    judges = made(25, seed=9)
    held = coresets.Embedding(judges.features, judges.logits, judges.targets)
    method = coresets.Glister(lr=0.05, rounds=rounds)
    found = order(unbalanced(method, data, k, validation=held))
    g = brute.gradients(data)
    assert found == brute.glister(g, judges, k, 0.05, rounds)
    stale = coresets.Glister(lr=0.05, rounds=rounds, published=True)
    once = order(unbalanced(stale, data, k, validation=held))
    assert once == brute.glister(g, judges, k, 0.05, 1)
    assert (found == once) == (rounds == 1), "control: the fault is seen"


def test_glister_judges_a_class_by_its_own_validation(data) -> None:
    judges = made(25, seed=9)
    held = coresets.Embedding(judges.features, judges.logits, judges.targets)
    balanced = chosen(coresets.Glister(lr=0.05), data, k=12, validation=held)
    for label in range(3):
        members = (data.targets == label).nonzero()[:, 0]
        own = judges.rows((judges.targets == label).nonzero()[:, 0])
        mine = [i for i in order(balanced) if data.targets[i] == label]
        g = brute.gradients(data.rows(members))
        want = brute.glister(g, own, len(mine), 0.05, 15)
        assert mine == members[want].tolist()
    none = held.targets.clamp(max=1)
    with pytest.raises(ValueError, match="got none of class 2"):
        one = coresets.Embedding(held.features, held.logits, none)
        chosen("glister", data, k=12, validation=one)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 0.3), (0.0, 1.0), (1.0, 0.0)])
def test_graph_cut_is_greedy_on_its_function(data, form, a, b) -> None:
    value = brute.graph_cut(brute.cosines(brute.gradients(data)), a, b)
    found = order(unbalanced(coresets.GraphCut(a, b), data))
    assert brute.is_greedy(found, N, value)
    assert not brute.is_greedy(found[::-1], N, value), "control"
    by_features = coresets.GraphCut(a, b, similarity="features")
    value = brute.graph_cut(brute.cosines(data.features.numpy()), a, b)
    assert brute.is_greedy(order(unbalanced(by_features, data)), N, value)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, 1.0)])
def test_a_vector_of_length_0_is_half_like_all_and_itself(data, form, a, b) -> None:
    features = data.features.clone()
    features[23] = 0
    similar = np.full((N, N), 0.5)
    others = [i for i in range(N) if i != 23]
    similar[np.ix_(others, others)] = brute.cosines(features[others].numpy())
    method = coresets.GraphCut(a, b, similarity="features")
    found = order(unbalanced(method, data._replace(features=features)))
    assert brute.is_greedy(found, N, brute.graph_cut(similar, a, b))
    assert (found[0] == 23) == (a == 0), "its own half counts for it, and nothing else does"


def test_facility_location_is_greedy_on_its_function(data, form) -> None:
    value = brute.facility(brute.cosines(brute.gradients(data)))
    found = order(unbalanced("facility_location", data))
    assert brute.is_greedy(found, N, value)
    assert not brute.is_greedy([*found[1:], found[0]], N, value), "control"


@pytest.mark.parametrize("seed", range(4))
def test_greedy_and_farthest_first_are_within_their_factors_of_the_best(seed) -> None:
    data, k = made(10, seed=seed), 4
    every = [list(chosen) for chosen in itertools.combinations(range(10), k)]
    value = brute.facility(brute.cosines(brute.gradients(data)))
    found = order(unbalanced("facility_location", data, k))
    assert value(found) >= (1 - 1 / np.e) * max(value(chosen) for chosen in every)
    between = brute.distances(data.features.numpy())

    def radius(chosen: list[int]) -> float:
        return float(between[:, chosen].min(axis=1).max())

    assert radius(order(unbalanced("k_center", data, k))) <= 2 * min(map(radius, every)) + 1e-12


@pytest.mark.parametrize("name", ["facility_location", "craig"])
def test_the_order_of_the_data_is_worth_no_more_than_a_tie(data, name) -> None:
    g = brute.gradients(data)
    between = brute.distances(g)
    value = brute.facility(
        between.max() - between if name == "craig" else brute.cosines(brute.gradients(data))
    )
    mixed = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    moved = mixed[unbalanced(name, data.rows(mixed), 20).indices].tolist()
    assert value(moved) == pytest.approx(value(order(unbalanced(name, data, 20))), rel=1e-3)


def test_influence_is_the_norm_of_a_dense_solve(data) -> None:
    moved = brute.kronecker(data, 0.01)
    ranking = np.argsort(-np.linalg.norm(moved, axis=1)).tolist()
    assert order(unbalanced("influence", data)) == ranking[:K]
    # The matrix is that of all samples also where the choice goes class by class.
    balanced = order(chosen("influence", data, k=K))
    for label in range(3):
        mine = [i for i in balanced if data.targets[i] == label]
        assert mine == [i for i in ranking if data.targets[i] == label][: len(mine)]


def test_dp_prunes_by_greed_and_then_swaps(data, form) -> None:
    s = brute.kronecker(data, 0.01)
    m = N - K

    def length(pruned: list[int]) -> float:
        return float(np.linalg.norm(s[pruned].sum(axis=0)))

    greedy_only = brute.greedy(N, m, lambda pruned: -length(pruned), [])
    kept = order(unbalanced(coresets.DatasetPruning(sweeps=0), data))
    assert sorted(set(range(N)) - set(kept)) == sorted(greedy_only)
    swapped = order(unbalanced("dp", data))
    pruned = sorted(set(range(N)) - set(swapped))
    assert length(pruned) < length(greedy_only), "the data has exchanges to find"
    best = min(
        length([*(i for i in pruned if i != out), come]) for out in pruned for come in swapped
    )
    assert best >= length(pruned) * (1 - 1e-6), "no exchange is left"
    rng = np.random.default_rng(0)
    chance = [length(rng.permutation(N)[:m].tolist()) for _ in range(200)]
    assert length(pruned) < min(chance)


def test_dq_bins_are_graph_cuts_of_what_is_left(data, form) -> None:
    bins = brute.bins(data.features.numpy(), [13, 13, 14])
    method = coresets.DatasetQuantization(3)
    rank = torch.arange(N)
    found = method.binned(coresets.Samples(rank, features=data.features))
    assert [part.tolist() for part in found] == bins
    picked = order(unbalanced(method, data))
    assert [sum(i in part for i in picked) for part in bins] == [4, 4, 4]
    other = order(unbalanced(method, data, seed=1))
    assert picked != other, "which of a bin is a draw"


def test_strata_are_filled_from_the_smallest_on() -> None:
    scores = torch.tensor([0.0] * 2 + [0.5] * 10 + [1.0] * 30 + [9.0] * 8)
    method = coresets.Stratified(beta=0.16, strata=10)
    found = coresets.select(method, scores=scores, k=20, balance=False)
    counts = [int((scores[found.indices] == value).sum()) for value in (0.0, 0.5, 1.0, 9.0)]
    assert counts == [2, 9, 9, 0]
    with pytest.raises(ValueError, match=r"at most the 42 samples that beta=0\.16 leaves"):
        coresets.select(method, scores=scores, k=43, balance=False)
    infinite = torch.where(scores == 9, torch.inf, scores)
    found = coresets.select("stratified", scores=infinite, k=20, balance=False)
    assert torch.isinf(infinite[found.indices]).sum() == 6


@pytest.mark.parametrize(("k", "beta", "strata"), [(12, 0.0, 50), (12, 0.3, 5), (25, 0.3, 8)])
def test_strata_are_those_of_the_algorithm(k, beta, strata) -> None:
    data = made(N)
    scores = data.scores.square()  # uneven strata
    found = coresets.select(
        coresets.Stratified(beta, strata), scores=scores, k=k, balance=False, seed=2
    )
    kept = np.sort(scores.numpy())[: N - int(beta * N)]
    places = ((scores - kept[0]) / (kept[-1] - kept[0]) * strata).clamp(max=strata - 1).long()
    want = brute.strata(scores.numpy(), k, beta, strata)
    mine = torch.bincount(places[found.indices], minlength=strata)
    assert mine.tolist() == [want.get(place, 0) for place in range(strata)]
    assert float(scores[found.indices].max()) <= kept[-1], "none of the hardest"
    # Within a stratum the draw decides, and no score.
    drawn = np.argsort(oracle.order(range(N), range(N), 2, 0))
    for place, count in want.items():
        members = [i for i in drawn if places[i] == place and scores[i] <= kept[-1]]
        assert set(members[:count]) <= set(found.indices.tolist())


def test_strata_of_each_class_are_by_its_own_size() -> None:
    """The known fault: one class's size, the last one's, says how many are left out of all."""
    scores = torch.arange(60.0) % 20
    targets = torch.tensor([0] * 40 + [1] * 18 + [2] * 2)
    right, faulty = (
        coresets.select(
            coresets.Stratified(beta, strata=4), scores=scores, targets=targets, k=30
        ).indices
        for beta in (0.25, 0.0)  # of the last class's two nobody is left out
    )
    for label, share in ((0, 20), (1, 9), (2, 1)):
        own = scores[targets == label].numpy()
        least_left_out = np.sort(own)[::-1][: int(0.25 * len(own))].min(initial=np.inf)
        mine, theirs = (scores[found[targets[found] == label]] for found in (right, faulty))
        assert len(mine) == len(theirs) == share
        assert float(mine.max()) < least_left_out
        if label == 0:
            assert float(theirs.max()) >= least_left_out, "control"


@pytest.mark.parametrize("name", ["graphcut", "k_center", "herding"])
def test_by_the_block_is_the_same_as_whole(name, monkeypatch) -> None:
    data = made(700, classes=4, width=5)
    whole = unbalanced(name, data, 150)
    monkeypatch.setattr(pairs, "SMALL", 0)
    monkeypatch.setattr(pairs, "ENTRIES", 4096)
    monkeypatch.setattr(greedy, "CANDIDATES", 40)
    assert torch.equal(unbalanced(name, data, 150).order, whole.order)


def test_a_balanced_order_begins_balanced(data) -> None:
    targets = torch.arange(3).repeat_interleave(torch.tensor([20, 10, 10]))
    found = chosen("herding", data._replace(targets=targets), k=16)
    assert torch.bincount(targets[found.order[:8]]).tolist() == [4, 2, 2]


def test_scores_of_several_runs_take_the_place_of_one(data) -> None:
    runs = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 2.0, 0.0])]
    mean = pe.scores.mean(runs)
    assert mean.tolist() == [3.0, 2.0, 1.5]
    found = coresets.select("el2n", scores=mean, k=1, balance=False)
    assert found.order.tolist() == [0]

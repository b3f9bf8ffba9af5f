# SPDX-License-Identifier: Apache-2.0
"""Each fault of the public codes in its faulty form: the product is not it, and the two differ."""

from __future__ import annotations

import _brute as brute
import numpy as np
import pytest
import torch
from _data import Data, chosen, made

import prune_engine as pe
from prune_engine import coresets

N, K = 40, 12
# What a mean over batches of 16 makes of gradients: those of the last 8 samples are twice as large.
SCALE = np.where(np.arange(N) < 32, 1 / 16, 1 / 8)


@pytest.fixture(scope="module")
def data() -> Data:
    return made(N)


def order(name: str | coresets.Method, data: Data, k: int = K, **options) -> list[int]:
    return chosen(name, data, k=k, balance=False, **options).order.tolist()


def scaled(data: Data) -> np.ndarray:
    return brute.gradients(data) * SCALE[:, None]


def nearness(vectors: np.ndarray) -> np.ndarray:
    between = brute.distances(vectors)
    return between.max() - between


def test_a_share_of_a_batch_would_change_craig(data) -> None:
    found = order("craig", data)
    assert brute.is_greedy(found, N, brute.facility(nearness(brute.gradients(data))))
    assert not brute.is_greedy(found, N, brute.facility(nearness(scaled(data)))), "the fault"


def test_a_share_of_a_batch_would_change_gradmatch(data) -> None:
    found = order(coresets.GradMatch(0.3), data, 6)
    assert found == brute.pursuit(brute.gradients(data), 6, 0.3)[0]
    assert found != brute.pursuit(scaled(data), 6, 0.3)[0], "the fault"


def test_a_share_of_a_batch_would_change_glister(data) -> None:
    found = order(coresets.Glister(lr=0.05), data)
    assert found == brute.glister(brute.gradients(data), data, K, 0.05, 15)
    assert found != brute.glister(scaled(data), data, K, 0.05, 15), "the fault"


def test_a_share_of_a_batch_changes_no_cosine(data) -> None:
    """Why the graph cut's row of the tables is not touched by it."""
    np.testing.assert_allclose(brute.cosines(scaled(data)), brute.cosines(brute.gradients(data)))


def test_squared_distances_would_be_another_facility_location(data) -> None:
    found = order("craig", data)
    between = brute.distances(brute.gradients(data))
    assert not brute.is_greedy(found, N, brute.facility((between**2).max() - between**2))


def test_craig_chooses_the_samples_that_it_computed(data) -> None:
    """The fault: positions in a shuffled order are read as positions in the sorted one."""
    value = brute.facility(nearness(brute.gradients(data)))
    found = order("craig", data)
    shuffled = np.random.default_rng(0).permutation(N)
    read_as_sorted = [int(np.flatnonzero(shuffled == i)[0]) for i in found]
    assert not brute.is_greedy(read_as_sorted, N, value), "the fault"
    assert value(found) > value(read_as_sorted)


def test_weights_of_doubles_are_counted_once_and_all() -> None:
    """The faults: one too many each, and a double found again by its row in place of its index."""
    single = made(8)
    data = single.rows(torch.arange(8).repeat(3))
    found = chosen("craig", data, k=10, balance=False)
    weights = dict(zip(found.indices.tolist(), found.weights.tolist(), strict=True))
    assert sum(weights.values()) == 24 and min(weights.values()) >= 1
    between = brute.distances(brute.gradients(data)).round(9)
    want = dict.fromkeys(sorted(weights), 0.0)
    for i in range(24):
        want[i if i in want else min(want, key=lambda j: (between[i, j], j))] += 1
    assert weights == want
    again = {int(between[i, sorted(want)].argmin()) for i in want}
    assert len(again) < len(want), "by their rows, two of the chosen are one"


def test_gradmatch_matches_the_sum_and_not_the_mean(data) -> None:
    g = brute.gradients(data)
    found = chosen(coresets.GradMatch(0.3), data, k=6, balance=False)
    mine = found.weights[torch.searchsorted(found.indices, found.order)]
    right = brute.pursuit(g, 6, 0.3)[1]
    fault = brute.pursuit(g, 6, 0.3, target=g.mean(axis=0))[1]
    np.testing.assert_allclose(mine.numpy(), right, rtol=1e-5, atol=1e-6)
    assert np.abs(fault - right).max() > 0.1


def test_glister_steps_by_the_sum_and_not_the_mean(data) -> None:
    g = brute.gradients(data)
    found = order(coresets.Glister(lr=0.5, rounds=3), data)
    assert found == brute.glister(g, data, K, 0.5, 3)
    assert found != brute.glister(g, data, K, 0.5, 3, share=1 / (K / 3)), "the fault"


def test_divergences_by_a_quotient_would_be_nan(data) -> None:
    sure = data._replace(logits=data.logits.float() * 1e4)
    p = torch.softmax(sure.logits, dim=1)
    quotients = (p[:, None] * (p[:, None] / p[None]).log()).sum(dim=2)
    assert bool(quotients.isnan().any()), "the fault: of 0 / 0"
    found = order("contextual_diversity", sure)
    wide = brute.softmax(sure.logits.double().numpy() / 100)  # whose chances float64 has
    assert len(set(wide[found].argmax(axis=1).tolist())) == 3
    assert len(set(found)) == K


def test_contrast_by_a_quotient_would_be_nan(data) -> None:
    sure = data._replace(logits=data.logits.float() * 1e3)
    p = torch.softmax(sure.logits, dim=1)
    assert bool((p.log() * p).isnan().any()), "the fault: 0 times the logarithm of 0"
    logs = torch.log_softmax(sure.logits.double(), dim=1).numpy()
    between = brute.distances(data.features.numpy())
    np.fill_diagonal(between, np.inf)
    near = np.argsort(between, axis=1, kind="stable")[:, :10]
    want = [
        np.mean([(np.exp(logs[j]) * (logs[j] - logs[i])).sum() for j in near[i]]) for i in range(N)
    ]
    assert order("cal", sure) == np.argsort(-np.array(want))[:K].tolist()


def test_a_double_would_hide_the_neighbour_behind_it() -> None:
    """The fault: the first column of sorted distances is left out as the sample itself."""
    h = torch.tensor([[0.0], [0.0], [0.3], [9.0], [9.1], [9.3]])
    z = torch.tensor([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.9, 0.0]])
    p, between = brute.softmax(z.double().numpy()), brute.distances(h.double().numpy())

    def first(columns: np.ndarray) -> int:
        return int(np.argmax([brute.divergence(p[j], p[i]) for i, j in enumerate(columns)]))

    fault = np.argsort(between, axis=1, kind="stable")[:, 1]
    assert fault[1] == 1, "which is its own neighbour then"
    np.fill_diagonal(between, np.inf)
    right = np.argsort(between, axis=1, kind="stable")[:, 0]
    own = [brute.divergence(p[j], p[i]) for i, j in enumerate(right)]
    found = coresets.select(coresets.CAL(1), features=h, logits=z, k=6, balance=False)
    assert found.order.tolist() == np.argsort(-np.array(own), kind="stable").tolist()
    assert first(right) == 0
    by_fault = [brute.divergence(p[j], p[i]) for i, j in enumerate(fault)]
    assert found.order.tolist() != np.argsort(-np.array(by_fault), kind="stable").tolist()


def test_bins_by_the_sums_of_all_would_be_other_bins(data) -> None:
    samples = coresets.Samples(torch.arange(N), features=data.features)
    found = [part.tolist() for part in coresets.DatasetQuantization(4).binned(samples)]
    sizes = [10, 10, 10, 10]
    assert found == brute.bins(data.features.numpy(), sizes)
    assert found != brute.bins(data.features.numpy(), sizes, stale=True), "the fault"


def test_margins_are_of_logits_and_not_of_chances() -> None:
    """The fault of two codes: a sure sample's chances are all but 1 and 0, however sure it is."""
    memory = coresets.TrainingDynamics(window=2).memory(pe.epoch.ScoreBuffer(2), seed=0)
    z, y = torch.tensor([[40.0, 0.0], [80.0, 0.0]]), torch.tensor([0, 0])
    memory.record(torch.arange(2), z, y)
    assert memory.scores("aum").tolist() == [-40.0, -80.0]
    p = torch.softmax(z, dim=1)
    assert (p[:, 0] - p[:, 1]).tolist() == [1.0, 1.0], "the fault"


def test_the_sure_are_not_the_least_sure(data) -> None:
    """The fault: without classes, the negated doubt is sorted the wrong way round."""
    p = brute.softmax(data.logits.numpy())
    doubt = 1 - p.max(axis=1)
    fault = np.argsort(-doubt)[::-1][:K].tolist()
    found = order("least_confidence", data)
    assert not set(found) & set(fault)
    logit = np.argsort(data.logits.numpy().max(axis=1))[:K].tolist()
    assert found != logit, "nor by the largest logit"

# SPDX-License-Identifier: Apache-2.0
"""float32 inputs are chosen from as float64 ones are: sure samples, far features, large data."""

from __future__ import annotations

import _brute as brute
import numpy as np
import pytest
import torch
from _data import Data, chosen, made

from prune_engine import coresets
from prune_engine.coresets import method, pairs

N, K = 60, 20


def narrow(data: Data) -> Data:
    return Data(*(x.float() if x.is_floating_point() else x for x in data))


def wide(data: Data) -> Data:
    return Data(*(x.double() if x.is_floating_point() else x for x in data))


def order(name: str | coresets.Method, data: Data) -> list[int]:
    return chosen(name, data, k=K, balance=False).order.tolist()


def sure(gap: float) -> Data:
    """Return float32 data of a trained model: each target is likelier by a gap, or by more."""
    data = narrow(made(N, classes=4))
    lead = gap + 4 * torch.rand(N, 1, generator=torch.Generator().manual_seed(1))
    raised = data.logits.amax(dim=1, keepdim=True) + lead
    return data._replace(logits=data.logits.scatter(1, data.targets[:, None], raised))


def exact(data: Data) -> np.ndarray:
    """Return dense gradients of sure samples without a difference from 1."""
    logs = torch.log_softmax(data.logits.double(), dim=1)
    errors = logs.exp().scatter(1, data.targets[:, None], 0.0)
    errors = errors.scatter(1, data.targets[:, None], -errors.sum(dim=1, keepdim=True)).numpy()
    h = np.hstack([data.features.double().numpy(), np.ones((len(errors), 1))])
    return np.einsum("nc,nd->ncd", errors, h).reshape(len(errors), -1)


def blunt(data: Data) -> np.ndarray:
    """Return them as p - 1 makes them in float32, where p is 1."""
    p = torch.softmax(data.logits, dim=1)
    errors = p.scatter_add(1, data.targets[:, None], torch.full((N, 1), -1.0)).double().numpy()
    h = np.hstack([data.features.double().numpy(), np.ones((len(errors), 1))])
    return np.einsum("nc,nd->ncd", errors, h).reshape(len(errors), -1)


@pytest.mark.parametrize("gap", [20.0, 60.0])
def test_a_sure_samples_error_keeps_its_direction(gap) -> None:
    """At a gap of 60 its square is no float32 any more; the cosine has no need of one."""
    data = sure(gap)
    samples = coresets.Samples(torch.arange(N), data.features, data.logits, data.targets)
    errors = samples.errors()
    assert bool((errors.gather(1, data.targets[:, None]) < 0).all()), "p - 1 would be 0"
    torch.testing.assert_close(errors.sum(dim=1), torch.zeros(N), atol=1e-12, rtol=0)
    found = order("graphcut", data)
    assert brute.is_greedy(found, N, rounded(brute.graph_cut(brute.cosines(exact(data)), 1, 1)))
    lengths = np.linalg.norm(blunt(data), axis=1)
    faulty = brute.graph_cut(brute.cosines(blunt(data)[lengths > 0]), 1, 1)
    some = [int(i) for i in np.flatnonzero(lengths > 0)]
    again = [some.index(i) for i in found if i in some]
    assert not brute.is_greedy(again, len(some), rounded(faulty)), "control"


def rounded(value):
    """Return a function to about float32, so that what rounding alone decides is a tie."""
    return lambda chosen: float(f"{value(chosen):.6g}")


def test_small_distances_beside_a_large_one_are_not_rounded_away() -> None:
    data = sure(10)
    features, logits = data.features.clone(), data.logits.clone()
    features[7] *= 300  # whose distance from all others bounds all distances
    logits[7] = 0
    data = data._replace(features=features, logits=logits)
    assert order("craig", data) == order("craig", wide(data))
    between = torch.from_numpy(brute.distances(brute.gradients(wide(data)))).float()
    bound = 2 * between.max()
    off = (bound - (bound - between) - between).abs()
    near = between[between > 0].quantile(0.1)
    assert float(off.max()) > float(near) / 10, "control: a bound less a distance forgets the small"


@pytest.mark.parametrize("name", ["k_center", "herding", "cal"])
@pytest.mark.parametrize("large", [False, True])
def test_features_far_from_0_are_as_good_as_near_ones(name, large, monkeypatch) -> None:
    if large:
        monkeypatch.setattr(pairs, "SMALL", 0)
    data = narrow(made(N))
    far = data._replace(features=data.features + 2**18)  # whose mean is itself no float32
    assert order(name, far) == order(name, wide(far))
    rows = coresets.Samples(torch.arange(N), features=far.features)
    naive = pairs.Distances(pairs.feature_products(rows.features)).block(slice(0, N), slice(0, N))
    right = torch.cdist(far.features.double(), far.features.double())
    assert float((naive - right).abs().max()) > 0.1, "control: products of far features are coarse"


@pytest.mark.parametrize("name", ["least_confidence", "entropy", "margin", "el2n", "grand"])
def test_a_large_data_set_is_scored_a_part_at_a_time(name, monkeypatch) -> None:
    data = narrow(made(N))
    kind, sizes = coresets.TABLE[name], []
    score = kind.score

    def watched(self, samples: coresets.Samples) -> torch.Tensor:
        sizes.append(len(samples))
        return score(self, samples)

    whole = order(name, data)
    monkeypatch.setattr(method, "TOGETHER", 16)
    monkeypatch.setattr(kind, "score", watched)
    assert order(name, data) == whole
    assert sizes == [16, 16, 16, 12]


def test_influences_are_the_same_by_parts(monkeypatch) -> None:
    data = made(N)
    whole = [order(name, data) for name in ("influence", "dp")]
    monkeypatch.setattr(pairs, "ENTRIES", 64)
    assert [order(name, data) for name in ("influence", "dp")] == whole


@pytest.mark.parametrize(
    "name", ["herding", "k_center", "contextual_diversity", "cal", "craig", "graphcut", "dq", "dp"]
)
def test_beyond_a_class_of_imagenet_no_matrix_of_pairs_is_made(name, monkeypatch) -> None:
    n, entries, seen = 400, 2048, []
    for kind in (pairs.Products, pairs.Divergences):
        block = kind.block

        def watched(self, rows, columns, block=block):
            found = block(self, rows, columns)
            seen.append(found.numel())
            return found

        monkeypatch.setattr(kind, "block", watched)
    data = made(n)
    chosen(name, data, k=90, balance=False)
    assert max(seen, default=0) == n * n or name in ("cal", "craig"), "control: it is, of a few"
    seen.clear()
    monkeypatch.setattr(pairs, "SMALL", 0)
    monkeypatch.setattr(pairs, "ENTRIES", entries)
    monkeypatch.setattr("prune_engine.coresets.greedy.CANDIDATES", 30)
    chosen(name, data, k=90, balance=False)
    assert max(seen, default=0) <= 16 * n < n * n

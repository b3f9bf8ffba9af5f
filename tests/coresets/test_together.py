# SPDX-License-Identifier: Apache-2.0
"""Classes that are chosen from at the same time: the same samples, in fewer launches."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from _data import Data, chosen, made
from torch.utils._python_dispatch import TorchDispatchMode

import prune_engine as pe
from prune_engine.coresets import pairs
from prune_engine.coresets.lots import TOGETHER, lots

NAMES = ["graphcut", "k_center", "contextual_diversity", "herding"]
SIZES = [50, 3, 17, 1, 29]
K = 40


def uneven(dtype: torch.dtype) -> Data:
    """Return classes of other sizes each, one of them of doubles alone."""
    data = made(sum(SIZES), len(SIZES))
    targets = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    rows = torch.arange(len(targets))
    rows[53:70] = 53
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))
    data = data.rows(rows)._replace(targets=targets).rows(order)
    return Data(*(each.to(dtype) if each.is_floating_point() else each for each in data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("together", [2, 3, 100])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_samples_come_in_the_same_order(name, together, dtype):
    data = uneven(dtype)
    alone = chosen(name, data, k=K, together=1)
    found = chosen(name, data, k=K, together=together)
    for field in ("indices", "weights", "order"):
        assert torch.equal(getattr(found, field), getattr(alone, field)), field
    other = chosen(
        name, data._replace(features=-data.features.roll(1), logits=data.logits.roll(1)), k=K
    )
    assert not torch.equal(other.order, alone.order), "control: other samples are told apart"


class Counted(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_of_all_classes_is_one_launch(name):
    data = uneven(torch.float64)
    counts = {}
    for together in (1, 100):
        with Counted() as counted:
            chosen(name, data, k=K, together=together)
        counts[together] = counted.calls["argmin" if name == "herding" else "argmax"]
    first = int(name in ("k_center", "contextual_diversity"))  # drawn
    quotas = [len(c) for c in _by_class(chosen(name, data, k=K), data)]
    assert counts[100] == max(quotas) - first
    assert counts[1] == sum(quotas) - first * len(quotas), "control: each by itself"


def _by_class(found: pe.coresets.Coreset, data: Data) -> list[torch.Tensor]:
    labels = data.targets[found.indices]
    return [found.indices[labels == label] for label in labels.unique()]


@pytest.mark.parametrize("name", NAMES)
def test_progress_counts_every_choice_once(name):
    seen: list[tuple[int, int]] = []
    chosen(name, uneven(torch.float64), k=K, together=3, progress=lambda *now: seen.append(now))
    assert seen[-1] == (K, K)
    assert all(a[0] <= b[0] for a, b in pairwise(seen))


def test_what_progress_raises_ends_a_choice_of_several(monkeypatch):
    def stop(done: int, k: int) -> None:
        if done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen("graphcut", uneven(torch.float64), k=K, together=100, progress=stop)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_whose_matrix_is_not_kept_is_chosen_from_alone(monkeypatch, name):
    data = uneven(torch.float64)
    want = chosen(name, data, k=K, together=1)
    monkeypatch.setattr(pairs, "SMALL", 20)
    assert torch.equal(chosen(name, data, k=K, together=100).order, want.order)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_a_number_of_classes_below_one_is_refused_by_name(wrong):
    with pytest.raises((TypeError, ValueError), match="together must be"):
        chosen("graphcut", uneven(torch.float64), k=K, together=wrong)


def test_other_methods_choose_as_ever():
    data = uneven(torch.float64)
    for name in ("facility_location", "craig", "random"):
        want = chosen(name, data, k=K)
        assert torch.equal(chosen(name, data, k=K, together=100).order, want.order)


def test_a_lot_has_room_for_its_matrices_padded_to_the_largest():
    imagenet = [1300] * 1000
    found = list(lots(imagenet, [780] * 1000, 0))
    assert [label for lot in found for label in lot] == list(range(1000))
    largest = max(len(lot) for lot in found)
    assert 4 * 1300**2 * largest <= TOGETHER < 4 * 1300**2 * (largest + 1)
    assert list(lots([10, 4000, 10, 10], [1, 1, 0, 1], 0)) == [[0, 1, 3]]
    many = list(lots([10] * 40 + [4000], [1] * 41, 0))  # 41 of 4,000 would be 2.6 GiB
    assert many == [list(range(40)), [40]]
    assert list(lots([10, 5000, 10], [1, 1, 1], 0)) == [[0], [1], [2]], "not kept: by itself"
    assert list(lots([10] * 5, [1] * 5, 2)) == [[0, 1], [2, 3], [4]]
    assert list(lots([10] * 3, [0] * 3, 0)) == []

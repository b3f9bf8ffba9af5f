# SPDX-License-Identifier: Apache-2.0
"""The submodular methods choose what apricot chooses, where it is installed."""

from __future__ import annotations

import importlib

import _brute as brute
import pytest
from _data import chosen, made

from prune_engine import coresets


@pytest.mark.extra("apricot")
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("GraphCutSelection", coresets.GraphCut()),
        ("FacilityLocationSelection", coresets.FacilityLocation()),
    ],
)
def test_apricot_finds_no_better_subset(kind: str, method: coresets.Method) -> None:
    data = made(150)
    similar = brute.cosines(brute.gradients(data))
    library = getattr(importlib.import_module("apricot"), kind)
    theirs = library(40, metric="precomputed", optimizer="naive").fit(similar).ranking.tolist()
    ours = chosen(method, data, k=40, balance=False).order.tolist()
    graph_cut = isinstance(method, coresets.GraphCut)
    value = brute.graph_cut(similar, 1.0, 1.0) if graph_cut else brute.facility(similar)
    assert value(ours) == pytest.approx(value(theirs), rel=1e-3)
    assert len(set(ours) & set(theirs)) >= 36, "but for ties"
    worse = chosen("random", data, k=40, balance=False).order.tolist()
    assert value(worse) < value(ours) - 0.1, "control"

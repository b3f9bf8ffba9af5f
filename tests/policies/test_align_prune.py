# SPDX-License-Identifier: Apache-2.0
"""AlignPrune, which needs a clean reference, does what every policy must."""

from __future__ import annotations

import pytest
from _conformance import Conformance

from prune_engine.policies import AlignPrune, Policy

VARIANTS = [AlignPrune(0.5, delta=1.0, window=3), AlignPrune(0.3, delta=0.9, window=2)]


@pytest.fixture(params=VARIANTS, ids=lambda policy: f"window {policy.window}")
def policy(request: pytest.FixtureRequest) -> Policy:
    return request.param


class TestAlignPrune(Conformance):
    POLICIES = VARIANTS

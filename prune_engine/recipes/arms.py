# SPDX-License-Identifier: Apache-2.0
"""The policies that ``prune-engine train`` knows: as they come, or made to save a stated share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from prune_engine.bands import decimal_fraction
from prune_engine.policies import (
    IES,
    KAKURENBO,
    RS2,
    UCB,
    Budget,
    EpsilonGreedy,
    InfoBatch,
    InfoBatchQuantile,
    KeepAll,
    OrderDP,
    Policy,
    ProgressiveDropout,
    Proportional,
    RandomSubset,
    RePB,
    SeTa,
)
from prune_engine.recipes.results import FULL, RANDOM

TARGET_SAVINGS = 0.4  # what the papers save


@dataclass(frozen=True)
class Choice:
    """What the command line says of a policy.

    Args:
        prune_ratio: share of the low samples that is dropped, in [0, 1).
        delta: share of the epochs before annealing, in (0, 1].
        sampling: ``"bernoulli"`` or ``"fixed"``.
        target_savings: share of all samples of the run that is to be saved, in (0, 1); None: what
            the policy saves as it comes.
    """

    prune_ratio: float = 0.5
    delta: float = 0.875
    sampling: str = "bernoulli"
    target_savings: float | None = None


def _as_is(choice: Choice) -> dict[str, Callable[[], Policy]]:
    ratio, delta, sampling = choice.prune_ratio, choice.delta, choice.sampling
    keep = float(1 - decimal_fraction(ratio))
    return {
        "infobatch": lambda: InfoBatch(ratio, delta, sampling=sampling),
        "infobatch_quantile": lambda: InfoBatchQuantile(delta=delta, sampling=sampling),
        "budget": lambda: Budget(min(TARGET_SAVINGS, ratio), ratio, delta),
        "proportional": lambda: Proportional(ratio, delta=delta),
        "ucb": lambda: UCB(keep),
        "epsilon_greedy": lambda: EpsilonGreedy(keep),
        "orderdp": lambda: OrderDP(keep, pool_of(keep)),
        "rs2": lambda: RS2(keep),
        "repb": lambda: RePB(ratio),
        "seta": lambda: SeTa(delta=delta),
        "kakurenbo": KAKURENBO,
        "ies": IES,
        "progressive_dropout": ProgressiveDropout,
        "random": lambda: RandomSubset(ratio, delta=delta, sampling=sampling),
        "random_rescale": lambda: RandomSubset(ratio, True, delta, sampling),
        "random_static": lambda: RandomSubset(ratio, delta=delta, sampling=sampling, static=True),
        "full": KeepAll,
    }


POLICIES = tuple(_as_is(Choice()))
# In the order of the table. InfoBatch's mean rule saves what the scores let it save: `budget` is
# the same rule with a stated saving, and stands for it.
EQUAL = (
    *("budget", "infobatch_quantile", "proportional", "ucb", "epsilon_greedy"),
    *(RANDOM, "random_static"),
)
EQUAL_NO_RESCALE = "random_no_rescale"


def pool_of(keep: float) -> float:
    """Return the pool that OrderDP draws for a share: a fifth of all more than it keeps.

    A larger one gains more where easy samples are the many, and loses more to wrong labels.

    Args:
        keep: in (0, 1).

    Returns:
        In [0.5, 1].

    Example:
        >>> pool_of(0.3), pool_of(0.6)
        (0.5, 0.8)
    """
    return min(1.0, max(0.5, round(keep + 0.2, 9)))


def arm_name(policy: str) -> str:
    """Return what the table calls a policy.

    Args:
        policy: a name of ``POLICIES``.

    Returns:
        ``"random"`` is kept for the control of equal savings.

    Example:
        >>> arm_name("random"), arm_name("ucb")
        ('random_no_rescale', 'ucb')
    """
    return EQUAL_NO_RESCALE if policy == "random" else policy


def make(policy: str, choice: Choice, num_epochs: int) -> Policy:
    """Make a policy from the command line's words.

    Args:
        policy: a name of ``POLICIES``.
        choice: its parameters.
        num_epochs: I.

    Returns:
        The policy.

    Raises:
        ValueError: no parameters save the target.

    Example:
        >>> make("ucb", Choice(prune_ratio=0.3), 30).keep
        0.7
    """
    if choice.target_savings is None or policy == FULL:
        return _as_is(choice)[policy]()
    name = {"random": EQUAL_NO_RESCALE, "random_rescale": RANDOM}.get(policy, policy)
    return equal(name, choice.target_savings, choice.delta, num_epochs, choice.sampling)


def equal(
    arm: str, target: float, delta: float, num_epochs: int, sampling: str = "bernoulli"
) -> Policy:
    """Make a policy that saves a share of all samples of a run.

    Of I epochs P = ceil(delta I) prune, where the policy anneals; the first of them has no scores,
    where it needs any. What the others must save is the target, times I, over their number.

    Args:
        arm: a name of ``EQUAL``, or ``"random_no_rescale"``.
        target: in (0, 1).
        delta: in (0, 1].
        num_epochs: I.
        sampling: ``"bernoulli"`` or ``"fixed"``, where the policy draws.

    Returns:
        The policy.

    Raises:
        ValueError: it cannot save that much, or its saving cannot be set.

    Example:
        >>> equal("ucb", 0.4, 0.875, 10).keep
        0.5555555555555556
    """
    if not 0 < target < 1:
        raise ValueError(f"target_savings: expected a number in (0, 1), got {target!r}")
    pruned = math.ceil(decimal_fraction(delta) * num_epochs)

    def share(epochs: int, most: float = 1.0) -> float:
        needed = decimal_fraction(target) * num_epochs / max(1, epochs)
        if epochs < 1 or needed >= Fraction(most):
            raise ValueError(
                f"target_savings: {arm} cannot save {target} of {num_epochs} epochs in {epochs}"
            )
        return float(needed)

    if arm == "budget":
        saved = share(pruned - 1, 0.95)
        return Budget(saved, min(0.95, max(0.5, saved / 0.8)), delta)
    if arm == "infobatch_quantile":
        plain = InfoBatchQuantile()
        most = plain.expected_savings / (1 - min(plain.keep))
        scale = share(pruned - 1, most) / plain.expected_savings
        keep = tuple(1 - scale * (1 - kept) for kept in plain.keep)
        return InfoBatchQuantile(plain.percentiles, keep, delta, sampling)
    if arm == "proportional":
        return Proportional(share(pruned - 1), delta=delta)
    if arm == "ucb":
        return UCB(1 - share(num_epochs - 1))
    if arm == "orderdp":
        keep = 1 - share(num_epochs)  # prunes from the first epoch on
        return OrderDP(keep, pool_of(keep))
    if arm == "rs2":
        return RS2(1 - share(num_epochs))
    if arm == "epsilon_greedy":
        return EpsilonGreedy(1 - share(num_epochs - 1))
    if arm == RANDOM:
        return RandomSubset(share(pruned), True, delta, sampling)
    if arm in ("random_static", EQUAL_NO_RESCALE):
        return RandomSubset(share(num_epochs), sampling=sampling, static=arm == "random_static")
    raise ValueError(f"target_savings: the saving of {arm} cannot be set; take budget")

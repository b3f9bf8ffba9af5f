# SPDX-License-Identifier: Apache-2.0
"""Which trainings a study needs, which of them can start, and what its rows say so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from prune_engine.plain import store_plain
from prune_engine.recipes import models
from prune_engine.recipes.results import FULL, FULL_CUT
from prune_engine.recipes.study.regimes import REGIMES, Regime
from prune_engine.recipes.study.rules import RULES, rule_named

RANDOM, RESCALED = "random", "random_rescaled"
CONTROLS = (RANDOM, RESCALED)
RATE, TEST = "rate", "test"
RATE_SEEDS = (100, 101)  # of no training that is tested
RATES = {"mlp": (0.0125, 0.025, 0.05, 0.1)}
MODELS = (*models.IMAGE_MODELS, models.CHARACTERS)

Row = dict[str, Any]


@dataclass(frozen=True)
class StudyOptions:
    """One call of ``prune-engine study``.

    Args:
        out: the folder of the study; what is there is continued.
        data_root: the folder of the data sets.
        model: a name of ``MODELS``.
        regimes: names of ``regimes.REGIMES``; none: all that the model takes.
        rules: names of ``rules.RULES``, or calls (see ``rules.worded``); none: all that a regime
            takes.
        savings: shares of a run's samples, in (0, 1).
        seeds: trainings of each arm that are tested, with the seeds 0, 1, ...
        images: to train, before a regime takes its share.
        epochs: of a training, times the regime's.
        batch_size: of a training.
        rates: peaks of the schedule, of which every arm gets its best.
        workers: trainings at a time, a process each.
        minutes: start no training later; None: go on to the end.
    """

    out: Path
    data_root: str | None = None
    model: str = "mlp"
    regimes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    savings: tuple[float, ...] = (0.4, 0.7)
    seeds: int = 8
    images: int = 10_000
    epochs: int = 10
    batch_size: int = 64
    rates: tuple[float, ...] = ()
    workers: int = 1
    minutes: float | None = None

    def __post_init__(self) -> None:
        store_plain(self)
        if self.model not in MODELS:
            names = ", ".join(MODELS)
            raise ValueError(f"model: expected one of {names}, got {self.model!r}")
        if not self.regimes:
            able = [name for name, each in REGIMES.items() if fits(each, self.model)]
            object.__setattr__(self, "regimes", tuple(able))
        if not self.rates:
            object.__setattr__(self, "rates", RATES.get(self.model, (0.025, 0.05, 0.1, 0.2)))
        for name in ("regimes", "savings", "rates"):
            found = getattr(self, name)
            if not found or len(set(found)) != len(found):
                raise ValueError(f"{name}: expected different ones, at least one, got {found}")
        for regime in self.regimes:
            if regime not in REGIMES:
                names = ", ".join(REGIMES)
                raise ValueError(f"regimes: expected of {names}, got {regime!r}")
            if not fits(REGIMES[regime], self.model):
                able = REGIMES[regime].model or f"any of {', '.join(models.IMAGE_MODELS)}"
                raise ValueError(f"regimes: {regime} is for {able}, got model {self.model!r}")
        if not self.rules:
            object.__setattr__(self, "rules", tuple(rule for rule in RULES if self._used(rule)))
        for rule in self.rules:
            if not self._used(rule):
                kind = "rewards" if rule_named(rule).rewarded else "labels"
                raise ValueError(
                    f"rules: {rule} is for regimes of {kind}, got {', '.join(self.regimes)}"
                )
        if len(set(self.rules)) != len(self.rules):
            raise ValueError(f"rules: expected different ones, got {self.rules}")
        for saving in self.savings:
            if not 0 < saving < 1:
                raise ValueError(f"savings: expected numbers in (0, 1), got {saving}")
        for rate in self.rates:
            if not 0 < rate < math.inf:
                raise ValueError(f"rates: expected more than 0 and finite, got {rate}")
        for name in ("seeds", "images", "epochs", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.seeds > min(RATE_SEEDS):
            raise ValueError(f"seeds: expected at most {min(RATE_SEEDS)}, got {self.seeds}")
        if self.minutes is not None and not self.minutes >= 0:
            raise ValueError(f"minutes: expected at least 0, got {self.minutes}")

    def _used(self, rule: str) -> bool:
        """Say whether one of the regimes takes a rule."""
        return any(takes(REGIMES[regime], rule) for regime in self.regimes)

    def settings(self) -> dict[str, Any]:
        """What decides a row, beside the row's own words: one folder has one of each."""
        names = ("model", "images", "epochs", "batch_size")
        return {**{name: getattr(self, name) for name in names}, "rates": list(self.rates)}

    def asked(self) -> dict[str, Any]:
        """What was asked of the study, which may grow from call to call."""
        names = ("regimes", "rules", "savings")
        return {**{name: list(getattr(self, name)) for name in names}, "seeds": self.seeds}


def fits(regime: Regime, model: str) -> bool:
    """Say whether a model takes what a regime is made of."""
    if model == models.CHARACTERS:
        return regime.model == model
    return regime.model in (None, model)


def takes(regime: Regime, rule: str) -> bool:
    """Say whether a rule has in a regime what it decides by."""
    return rule_named(rule).rewarded in (None, regime.rewarded)


@dataclass(frozen=True)
class Training:
    """One training of a study.

    Args:
        regime: of ``REGIMES``.
        phase: ``"rate"`` measures on images held out, ``"test"`` on the test images.
        arm: a rule, a control, ``"full"`` or ``"full_cut"``.
        of: the rule whose own saving a control has; None: the stated one.
        saving: as stated; None: none is.
        seed: of the training.
        rate: peak of the schedule.
        samples: what a control of a rule's own saving trains; None: it follows from the saving.
    """

    regime: str
    phase: str
    arm: str
    of: str | None
    saving: float | None
    seed: int
    rate: float
    samples: int | None = field(default=None, compare=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from the others of its regime."""
        return (self.phase, self.arm, self.of, self.saving, self.seed, self.rate)


def key_of(row: Row) -> tuple[Any, ...]:
    """Return the key of the training that a row is of."""
    return tuple(row[name] for name in ("phase", "arm", "of", "saving", "seed", "rate"))


class Found:
    """The rows of one regime, and what follows from them.

    Args:
        regime: its name.
        rows: in any order.
        options: of the study.
    """

    def __init__(self, regime: str, rows: Iterable[Row], options: StudyOptions) -> None:
        self.regime, self.options = regime, options
        self.rules = [rule for rule in options.rules if takes(REGIMES[regime], rule)]
        self.rows: dict[tuple[Any, ...], Row] = {}
        self._tested: dict[tuple[Any, ...], dict[int, Row]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Take in a row."""
        self.rows[key_of(row)] = row
        if row["phase"] == TEST:
            arm = (row["arm"], row["saving"], row["of"])
            self._tested.setdefault(arm, {})[row["seed"]] = row

    def get(self, training: Training) -> Row | None:
        """The row of a training, if it is there."""
        return self.rows.get(training.key)

    def tunings(self, arm: str, saving: float | None) -> list[Training]:
        """The trainings that choose an arm's rate."""
        return [
            Training(self.regime, RATE, arm, None, saving, seed, rate)
            for rate in self.options.rates
            for seed in RATE_SEEDS
        ]

    def held_out(self, arm: str, saving: float | None) -> dict[float, float] | None:
        """Mean accuracy on the images held out, by rate; None while one is missing."""
        rows = [(each.rate, self.get(each)) for each in self.tunings(arm, saving)]
        by_rate: dict[float, list[float]] = {}
        for rate, row in rows:
            if row is None:
                return None
            by_rate.setdefault(rate, []).append(row["accuracy"])
        return {rate: fmean(values) for rate, values in by_rate.items()}

    def rate(self, arm: str, saving: float | None) -> float | None:
        """The rate that is best on the images held out, the smaller of two that are; or None."""
        found = self.held_out(arm, saving)
        return None if found is None else max(sorted(found), key=lambda rate: found[rate])

    def control(self, saving: float | None, of: str | None = None) -> str | None:
        """The better of the two controls on the test: the higher bar, which favours no rule.

        Args:
            saving: as stated; None: that of a rule.
            of: the rule.

        Returns:
            The one with weights where both are alike; None while one is missing.
        """
        best: dict[str, float] = {}
        for arm in reversed(CONTROLS):
            rows = self.tested(arm, saving, of)
            if not rows:
                return None
            best[arm] = fmean(row["accuracy"] for row in rows.values())
        return max(best, key=lambda arm: best[arm])

    def nearest(self, saved: float) -> float:
        """The stated saving that is nearest to what a rule saves by itself."""
        return min(self.options.savings, key=lambda saving: abs(saving - saved))

    def tested(self, arm: str, saving: float | None, of: str | None = None) -> dict[int, Row]:
        """The tested rows of an arm, by seed."""
        return self._tested.get((arm, saving, of), {})

    def pending(self) -> Iterable[Training]:
        """Yield the trainings that are missing and may start, those that choose rates first."""
        arms = list(self.arms())
        for arm, saving in arms:
            yield from (each for each in self.tunings(arm, saving) if self.get(each) is None)
        rates = {arm: self.rate(*arm) for arm in arms}
        for seed in range(self.options.seeds):
            for (arm, saving), rate in rates.items():
                if rate is not None:
                    test = Training(self.regime, TEST, arm, None, saving, seed, rate)
                    yield from self._missing(test)
            for rule in self.rules:
                yield from self._own_controls(rule, seed)

    def _missing(self, training: Training) -> list[Training]:
        return [] if self.get(training) is not None else [training]

    def _own_controls(self, rule: str, seed: int) -> Iterable[Training]:
        """Yield the controls of a rule that saves what it saves, once its own row is there."""
        row = None if rule_named(rule).settable else self.tested(rule, None).get(seed)
        if row is None:
            return
        nearest = self.nearest(row["saved"])
        for arm in (FULL_CUT, *CONTROLS):
            # Their rates are those of the nearest stated saving: nearer to none is full training's.
            near_full = row["saved"] < nearest / 2
            rate = self.rate(FULL, None) if near_full else self.rate(arm, nearest)
            if rate is not None:
                yield from self._missing(
                    Training(self.regime, TEST, arm, rule, None, seed, rate, samples=row["samples"])
                )

    def arms(self) -> Iterable[tuple[str, float | None]]:
        """Yield the arms with a rate of their own, and what they are to save."""
        yield FULL, None
        for saving in self.options.savings:
            for arm in (FULL_CUT, *CONTROLS):
                yield arm, saving
            yield from ((rule, saving) for rule in self.rules if rule_named(rule).settable)
        yield from ((rule, None) for rule in self.rules if not rule_named(rule).settable)


def count(found: Sequence[Found]) -> tuple[int, int]:
    """Return how many trainings are done, and how many are known to be missing."""
    done = sum(len(each.rows) for each in found)
    return done, sum(1 for each in found for _ in each.pending())

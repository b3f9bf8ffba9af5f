# SPDX-License-Identifier: Apache-2.0
"""What a study found: differences to the better random control, paired by seed."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from prune_engine.recipes.in_batch import UNIFORM
from prune_engine.recipes.results import FULL, FULL_CUT, lay_out, spread
from prune_engine.recipes.study.anew import EVERY
from prune_engine.recipes.study.design import CONTROLS, RESCALED, Found, Row
from prune_engine.recipes.study.regimes import REGIMES
from prune_engine.recipes.study.rewards import BASE, PASSES, ROLLOUTS
from prune_engine.recipes.study.rules import RULES, rule_named

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """An arm against its control in one regime, in points of accuracy.

    Args:
        regime: of ``REGIMES``.
        arm: a rule, the other control, ``"full"`` or ``"full_cut"``.
        saving: as stated; None: what the rule saves by itself.
        control: which of the two controls it is compared with.
        n: seeds that both have.
        mean: of the arm minus its control.
        half: of the 95% interval; nan for one seed.
        p: of Student's t, two-sided; nan for one seed.
        saved: share of the samples that the arm saved.
        time: its processor seconds over those of full training in the same piece of the study;
            nan where none was trained there: another machine, or a busier one, says nothing.
        diverged: trainings that ended without a finite loss, or no better than chance.
        sure: whether p stands after Holm's correction over all rules of the study.
    """

    regime: str
    arm: str
    saving: float | None
    control: str
    n: int
    mean: float
    half: float
    p: float
    saved: float
    time: float
    diverged: int
    sure: bool = False


def student(values: Sequence[float]) -> tuple[float, float]:
    """Return half of the 95% interval of a mean, and p of its being 0.

    Args:
        values: one or more.

    Returns:
        Both nan for one value.

    Raises:
        ImportError: SciPy is not installed.

    Example:
        >>> [round(value, 3) for value in student([1.0, 2.0, 3.0])]
        [2.484, 0.074]
    """
    try:
        stats: Any = importlib.import_module("scipy.stats")
    except ImportError as error:
        raise ImportError(
            "the intervals of a study come with SciPy, which is not installed: "
            "pip install 'prune_engine[train]'"
        ) from error
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean, deviation = spread(values)
    standard = deviation / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * standard
    if standard == 0:
        return half, 1.0 if mean == 0 else 0.0
    return half, float(2 * stats.t.sf(abs(mean) / standard, n - 1))


def holm(values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Say which of several p stand (Holm 1979): the k-th smallest against level / (m - k + 1).

    Args:
        values: p of each test.
        level: of the family.

    Returns:
        One for each, in order.

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [False, True, False]
    """
    stands = [False] * len(values)
    for rank, place in enumerate(sorted(range(len(values)), key=lambda each: values[each])):
        if values[place] > level / (len(values) - rank):
            break
        stands[place] = True
    return stands


def differences(found: Iterable[Found]) -> list[Difference]:
    """Return every arm against the better control of its saving.

    The control of a saving is the one of the two that is better on the test: the higher bar, which
    can only count against a rule. Both have their rows. That of a choice within each batch is the
    uniform one, which takes as many steps.

    Args:
        found: of a study.

    Returns:
        In the order of the study; those of rules are marked where they are sure.
    """
    made: list[Difference] = []
    for each in found:
        for arm, saving in each.arms():
            settings = each.options.savings if arm == FULL else (saving,)
            for stated in settings:
                made += _difference(each, arm, saving, stated)
        for rule in each.rules:
            if not rule_named(rule).settable:
                made += [one for arm in (FULL_CUT, *CONTROLS) for one in _own(each, rule, arm)]
    tested = [k for k, one in enumerate(made) if _counts(one)]
    for place, stands in zip(tested, holm([made[k].p for k in tested]), strict=True):
        made[place] = replace(made[place], sure=stands)
    return made


def _counts(one: Difference) -> bool:
    """Say whether a difference is one of the study's tests: of a rule, and of more than a seed."""
    references = (FULL, FULL_CUT, UNIFORM, *CONTROLS)
    return one.arm not in references and ":" not in one.arm and one.n > 1


def _within(arm: str) -> bool:
    """Say whether an arm is a choice within each batch."""
    return arm in RULES and RULES[arm].within is not None


def _difference(
    found: Found, arm: str, saving: float | None, stated: float | None
) -> list[Difference]:
    """An arm against the control of a stated saving, or a rule against its own."""
    if stated is None:
        control = found.control(None, arm)
        if control is None:
            return []
        rows, others = found.tested(arm, None), found.tested(control, None, arm)
    else:
        control = UNIFORM if _within(arm) and arm != UNIFORM else found.control(stated)
        if control is None or arm == control:
            return []
        rows, others = found.tested(arm, saving), found.tested(control, stated)
    return _compared(found, arm, stated, control, rows, others)


def _own(found: Found, rule: str, arm: str) -> list[Difference]:
    """A control of a rule's own saving against the other one of it."""
    control = found.control(None, rule)
    if control is None or arm == control:
        return []
    own, others = found.tested(arm, None, rule), found.tested(control, None, rule)
    return _compared(found, f"{arm}:{rule}", None, control, own, others)


def _compared(
    found: Found,
    arm: str,
    saving: float | None,
    control: str,
    rows: dict[int, Row],
    others: dict[int, Row],
) -> list[Difference]:
    seeds = sorted(rows.keys() & others.keys())
    if not seeds:
        return []
    gaps = [100 * (rows[seed]["accuracy"] - others[seed]["accuracy"]) for seed in seeds]
    half, p = student(gaps)
    return [
        Difference(
            found.regime,
            arm,
            saving,
            control,
            len(seeds),
            fmean(gaps),
            half,
            p,
            fmean(rows[seed]["saved"] for seed in seeds),
            _relative_time(rows.values(), found.tested(FULL, None).values()),
            sum(_diverged(found.regime, rows[seed]) for seed in seeds),
        )
    ]


def _relative_time(rows: Iterable[Row], full: Iterable[Row]) -> float:
    """Processor seconds of rows over those of full training, piece by piece."""
    costs: dict[int, list[float]] = {}
    for row in full:
        costs.setdefault(row["piece"], []).append(row["cpu_seconds"])
    both = [row for row in rows if row["piece"] in costs]
    cost = sum(fmean(costs[row["piece"]]) for row in both)
    return sum(row["cpu_seconds"] for row in both) / cost if cost else math.nan


def _diverged(regime: str, row: Row) -> bool:
    """Say whether a training ended without a finite loss, or hardly better than chance."""
    return row["diverged"] or row["accuracy"] < 1.5 / REGIMES[regime].classes


def render(found: Sequence[Found]) -> str:
    """Return the tables of a study, in Markdown.

    Args:
        found: of a study, regime by regime.

    Returns:
        Two tables for each stated saving, of epochs and of batches, one for rules that save what
        they save, and one of time.
    """
    made = differences(found)
    savings = found[0].options.savings
    parts = [_stated(found, made, saving) for saving in savings]
    parts += [_within_batches(found, made, saving) for saving in savings]
    parts += [_by_itself(found, made), _time(found, made)]
    return "\n\n".join(part for part in parts if part)


def _cell(one: Difference | None, seeds: int = 0) -> str:
    """Return the words of a difference, with its seeds where they are fewer than others'."""
    if one is None:
        return "-"
    half = "" if math.isnan(one.half) else f" ± {one.half:.2f}"
    text = f"{one.mean:+.2f}{half}"
    text = f"**{text}**" if one.sure else text
    text += f" ({one.diverged} diverged)" if one.diverged else ""
    return text + (f", n = {one.n}" if one.n < seeds else "")


def _rows(
    found: Sequence[Found], made: Sequence[Difference], saving: float | None, arms: Iterable[str]
) -> list[list[str]]:
    lookup = {(one.regime, one.arm): one for one in made if one.saving == saving}
    regimes = [each.regime for each in found]
    stated = [one for one in made if one.saving is not None]
    most = {
        regime: max((one.n for one in stated if one.regime == regime), default=0)
        if saving is not None
        else 0
        for regime in regimes
    }
    lines = [
        [arm, *(_cell(lookup.get((regime, arm)), most[regime]) for regime in regimes)]
        for arm in arms
    ]
    return [line for line in lines if set(line[1:]) != {"-"}]


def _stated(found: Sequence[Found], made: Sequence[Difference], saving: float) -> str:
    options = found[0].options
    base: list[str] = ["the control: accuracy %"]
    seeds: list[str] = ["seeds"]
    for each in found:
        control = each.control(saving)
        rows = {} if control is None else each.tested(control, saving)
        mean = 100 * fmean(row["accuracy"] for row in rows.values()) if rows else math.nan
        words = {RESCALED: "rescaled"}.get(control or "", "not rescaled")
        base.append(f"{mean:.2f}, {words}" if rows else "-")
        seeds.append(str(len(rows)))
    arms = [FULL, FULL_CUT, *CONTROLS]
    arms += [rule for rule in options.rules if rule_named(rule).settable and not _within(rule)]
    body = [base, *_rows(found, made, saving, arms), seeds]
    if not any(cell not in ("-", "0") for line in body for cell in line[1:]):
        return ""
    head = [f"{100 * saving:.0f}% saved", *(each.regime for each in found)]
    return f"### {100 * saving:.0f}% of the samples saved\n\n" + lay_out(head, body, markdown=True)


def _within_batches(found: Sequence[Found], made: Sequence[Difference], saving: float) -> str:
    """The choices within batches, against the uniform one; that one against random epochs."""
    rules = [rule for rule in found[0].options.rules if _within(rule)]
    body = _rows(found, made, saving, rules)
    if not body:
        return ""
    head = [f"{100 * saving:.0f}% within each batch", *(each.regime for each in found)]
    return (
        f"### {100 * saving:.0f}% of each batch left out\n\n`{UNIFORM}` is against the control "
        f"above, the others against `{UNIFORM}`. All take the steps of full training, and all but "
        "it pass every sample forward once more.\n\n" + lay_out(head, body, markdown=True)
    )


def _by_itself(found: Sequence[Found], made: Sequence[Difference]) -> str:
    options = found[0].options
    own = [rule for rule in options.rules if not rule_named(rule).settable]
    body: list[list[str]] = []
    for rule in own:
        lookup = {one.regime: one for one in made if one.arm == rule and one.saving is None}
        cells = [
            f"{_cell(lookup[each.regime])} at {100 * lookup[each.regime].saved:.0f}%"
            if each.regime in lookup
            else "-"
            for each in found
        ]
        body.append([rule, *cells])
        body += _rows(found, made, None, [f"{arm}:{rule}" for arm in (FULL_CUT, *CONTROLS)])
    seeds = [max((len(each.tested(rule, None)) for rule in own), default=0) for each in found]
    body.append(["seeds", *(str(count) for count in seeds)])
    if not any(seeds):
        return ""
    head = ["rule", *(each.regime for each in found)]
    return "### What saves what it saves\n\n" + lay_out(head, body, markdown=True)


def guide(found: Sequence[Found]) -> str:
    """Return, regime by regime, what beat a random subset for sure and what lost to it.

    Args:
        found: of a study.

    Returns:
        A table in Markdown: what full training has over the control, and the rules whose
        difference stands after Holm's correction, the best first; of the others no word.
    """
    made = differences(found)
    savings = found[0].options.savings
    head = ["regime"]
    for saving in savings:
        at = f"at {100 * saving:.0f}%"
        head += [f"all data {at}", f"better {at}", f"worse {at}"]
    body: list[list[str]] = []
    for each in found:
        line = [REGIMES[each.regime].summary]
        for saving in savings:
            of = [one for one in made if (one.regime, one.saving) == (each.regime, saving)]
            of = [one for one in of if not _within(one.arm)]
            of.sort(key=lambda one: -one.mean)
            full = [one for one in of if one.arm == FULL]
            line.append(f"{full[0].mean:+.1f} ± {full[0].half:.1f}" if full else "-")
            for sign in (1, -1):
                sure = [one for one in of if one.sure and sign * one.mean > 0]
                line.append(", ".join(f"`{one.arm}` {one.mean:+.1f}" for one in sure) or "none")
        body.append(line)
    return lay_out(head, body, markdown=True)


def brief(found: Sequence[Found], rules: Sequence[str], saving: float) -> str:
    """Return a small table: a few rules in every regime, at one saving.

    Args:
        found: of a study.
        rules: which.
        saving: a stated one.

    Returns:
        Markdown: the control's accuracy, then differences to it.
    """
    made = differences(found)
    head = [f"{100 * saving:.0f}% saved", *(each.regime.replace("_", " ") for each in found)]
    control: list[str] = ["random: accuracy %"]
    for each in found:
        arm = each.control(saving)
        rows = {} if arm is None else each.tested(arm, saving)
        control.append(f"{100 * fmean(row['accuracy'] for row in rows.values()):.1f}")
    body = [control]
    for arm in (FULL, *rules):
        lookup = {one.regime: one for one in made if (one.arm, one.saving) == (arm, saving)}
        cells = [lookup[each.regime] for each in found]
        name = "all data" if arm == FULL else f"`{arm}`"
        body.append([name, *(_short(one) for one in cells)])
    return lay_out(head, body, markdown=True)


def _short(one: Difference) -> str:
    """Return a difference with one digit."""
    text = f"{one.mean:+.1f} ± {one.half:.1f}"
    return f"**{text}**" if one.sure else text


def _time(found: Sequence[Found], made: Sequence[Difference]) -> str:
    options = found[0].options
    body: list[list[str]] = []
    for arm in (FULL_CUT, *CONTROLS, *options.rules):
        line = [arm]
        for saving in (*options.savings, None):
            of = [one for one in made if (one.arm, one.saving) == (arm, saving)]
            of = [one for one in of if not math.isnan(one.time)]
            if not of:
                line.append("-")
                continue
            saved, time = fmean(one.saved for one in of), fmean(one.time for one in of)
            line.append(f"{100 * saved:.1f} / {100 * (1 - time):.1f}")
        body.append(line)
    if not any(cell != "-" for line in body for cell in line[1:]):
        return ""
    stated = [f"{100 * saving:.0f}% stated" for saving in options.savings]
    head = ["samples / processor time saved, %", *stated, "its own"]
    return "### Samples and time\n\n" + lay_out(head, body, markdown=True)


def summary(found: Sequence[Found]) -> str:
    """Return what the study trained, a line for each regime.

    Args:
        found: of a study.

    Returns:
        A table in Markdown.
    """
    body = [[each.regime, REGIMES[each.regime].summary, str(len(each.rows))] for each in found]
    return lay_out(["regime", "what it is", "trainings"], body, markdown=True)


def page(found: Sequence[Found], title: str) -> str:
    """Return the page of a study.

    Args:
        found: of the study.
        title: its first line.

    Returns:
        Markdown: how it was made, its regimes, and its tables.
    """
    options = found[0].options
    rates = ", ".join(f"{rate:g}" for rate in options.rates)
    said = (
        f"{options.model}, {options.images:,} samples (times a regime's share), {options.epochs} "
        f"epochs, batch {options.batch_size}, SGD with Nesterov momentum 0.9, one-cycle schedule; "
        "accuracy after the last epoch. Every arm has, in every regime and at every saving, the "
        f"peak rate that was best of {rates} on samples held out, with two other seeds. A cell is "
        "the difference to the random control of equal samples, in points, with its 95% interval "
        "of Student's t, paired by seed; bold where it stands after Holm's correction over all "
        "rules and regimes of the page. The control is the better of two, with and without "
        "weights: the higher bar. A training has diverged where it ends without a finite loss, or "
        "no better than chance."
    )
    said += "".join(f" {words}" for words in _notes(found))
    return f"# {title}\n\n{said}\n\n{summary(found)}\n\n{render(found)}\n"


def _notes(found: Sequence[Found]) -> list[str]:
    """What must be said where some rules or regimes are in a study."""
    notes: list[str] = []
    if any(REGIMES[each.regime].rewarded for each in found):
        notes.append(
            f"Of a regime of rewards a sample is a prompt that was rolled out: {ROLLOUTS} answers "
            "are drawn from the model, and it learns from which of them were right (GRPO). All "
            f"arms begin with a base model, which has seen {100 * BASE:.0f}% of the images with "
            f"their labels, {PASSES} times; that is in no column. The "
            "score of every rule is the spread of a prompt's rewards (`pe.scores.reward_spread`), "
            "accuracy that of the likeliest answer."
        )
    if any(rule.startswith("reselect_") for rule in found[0].options.rules):
        notes.append(
            f"`reselect_*` pass all samples forward every {EVERY} epochs to choose anew: a row's "
            "`forwards` and the time count that, the samples saved do not."
        )
    return notes

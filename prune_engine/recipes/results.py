# SPDX-License-Identifier: Apache-2.0
"""The table of a run and what may be said about it; every word comes from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = 1  # of every line and file of a run
FULL, FULL_CUT, RANDOM = "full", "full_cut", "random"
FULL_FORWARDS = "full_forwards"  # full training with as many forward passes as the policy
CUT = (FULL_CUT, FULL_FORWARDS)
ACCURACY, PERPLEXITY = "accuracy", "perplexity"  # the larger the better, the smaller the better
SUBSET, RANDOM_SUBSET, BUDGET = "subset", "random_subset", "budget"  # of a chosen file
# What a policy is compared with, in words.
WHAT = {
    RANDOM: "the random control at equal savings",
    FULL: "full training",
    FULL_CUT: "full training cut to the same number of samples",
    FULL_FORWARDS: "full training with as many forward passes",
    RANDOM_SUBSET: "a random subset of the same size and classes",
    BUDGET: "budget, which saves as much epoch by epoch",
}
ALL = "all"  # every policy at equal savings: none is the one that is compared

# Student's t, two-sided 95%, by degrees of freedom: the smallest samples need the widest bounds.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

FOOTNOTE = (
    "Wall time is training alone: loading, augmentation, forward, backward, optimiser, scoring and "
    "planning. Reading the files and evaluation are outside it. The test is that of the last "
    "epoch, never the best one. Savings are against `full` of the same seeds; "
    "`wall / samples saved` is 1 where every sample saved is time saved."
)


@dataclass(frozen=True)
class RunResult:
    """One training, from its rows.

    Args:
        arm: name of the arm.
        seed: of the training.
        accuracy: on the test split after the last epoch, in [0, 1]; or what ``metric`` says.
        samples: samples trained.
        dsi: data saving index, 1 - sum n_i / (I n_1) over the epochs of the full schedule, those
            after an early end included.
        wall: seconds of training, evaluation excluded.
        engine: of these, seconds inside the engine.
        eval: seconds of evaluation.
        epochs: epochs run, the last one perhaps in part.
        num_epochs: I.
        dsi_run: the same over the epochs that were run.
        metric: ``"accuracy"`` or ``"perplexity"``.
        forwards: samples passed forward in training; more than were trained where batches are
            chosen from.
    """

    arm: str
    seed: int
    accuracy: float
    samples: int
    dsi: float
    wall: float
    engine: float
    eval: float
    epochs: int
    num_epochs: int
    dsi_run: float = 0.0
    metric: str = ACCURACY
    forwards: int = 0

    @property
    def shown(self) -> float:
        """The test figure in the units of the table."""
        return 100 * self.accuracy if self.metric == ACCURACY else self.accuracy

    @staticmethod
    def of(rows: Sequence[dict[str, Any]]) -> RunResult:
        """Add up the rows of one training."""
        first, last = rows[0], rows[-1]
        # A cut epoch trains less than it planned; elsewhere the plan counts, dropped tail and all.
        cut = last["planned"] - last["served"] if last["arm"] in CUT else 0
        planned = sum(row["planned"] for row in rows) - cut
        nominal = first.get("nominal", first["num_samples"])
        metric, tested = metric_of(last)
        return RunResult(
            arm=first["arm"],
            seed=first["seed"],
            accuracy=tested,
            samples=sum(row["served"] for row in rows),
            dsi=1.0 - planned / (first["num_epochs"] * nominal),
            wall=sum(row["seconds"] for row in rows),
            engine=sum(row["engine_seconds"] for row in rows),
            eval=sum(row["eval_seconds"] for row in rows),
            epochs=len(rows),
            num_epochs=first["num_epochs"],
            dsi_run=1.0 - planned / (len(rows) * nominal),
            metric=metric,
            forwards=sum(row.get("forwards", row["served"]) for row in rows),
        )


def metric_of(row: dict[str, Any]) -> tuple[str, float]:
    """Return the name and the value of the test figure in a row.

    Args:
        row: a line of ``metrics.jsonl``.

    Returns:
        ``"accuracy"`` with a share in [0, 1], or ``"perplexity"``; nan where nothing was tested.

    Example:
        >>> metric_of({"test_perplexity": 4.5})
        ('perplexity', 4.5)
    """
    name = PERPLEXITY if f"test_{PERPLEXITY}" in row else ACCURACY
    tested = row[f"test_{name}"]
    return name, math.nan if tested is None else float(tested)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value).

    Example:
        >>> spread([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def lay_out(head: Sequence[str], body: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """Lay out a table, as Markdown or with aligned columns for a terminal.

    Args:
        head: words above the columns.
        body: the words of each row.
        markdown: with pipes.

    Returns:
        One line per row under a header; no trailing newline.

    Example:
        >>> print(lay_out(["arm", "n"], [["full", "3"]], markdown=False))
        arm   n
        ----  -
        full  3
    """
    if markdown:
        rule = ["---"] + ["---:"] * (len(head) - 1)
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])
    widths = [max(len(row[k]) for row in [head, *body]) for k in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in [head, *body])
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def across(reports: Sequence[tuple[str, Report]], markdown: bool) -> str:
    """Return one table across runs.

    Args:
        reports: name of each run, and what it found.
        markdown: with pipes.

    Returns:
        A line per run and arm. Runs of another test figure leave the other's column empty.

    Example:
        >>> print(across([], False))
        run  arm
        ---  ---
    """
    heads: dict[str, None] = dict.fromkeys(("run", "arm"))
    for _, report in reports:
        heads |= dict.fromkeys(report.header())
    rows: list[list[str]] = []
    for name, report in reports:
        for cells in report.cells():
            row = {"run": name, **dict(zip(report.header(), cells, strict=True))}
            rows.append([row.get(head, "") for head in heads])
    return lay_out(list(heads), rows, markdown=markdown)


def _known(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Gap:
    """A policy's test figure less another arm's, of the same seeds.

    Args:
        policy: its name.
        other: the other arm's.
        mean: of the gaps; nan where nothing was tested.
        bound: half of the 95% interval of the mean; 0 of one seed.
        n: seeds.
        metric: ``"accuracy"`` or ``"perplexity"``.
    """

    policy: str
    other: str
    mean: float
    bound: float
    n: int
    metric: str = ACCURACY

    @property
    def better(self) -> float:
        """How much better the policy is, whichever way the metric goes."""
        return self.mean if self.metric == ACCURACY else -self.mean

    @property
    def verdict(self) -> str:
        """``"better"``, ``"worse"``, ``"open"``, or ``"alone"`` of one seed."""
        if self.n == 1:
            return "alone"
        if self.better > self.bound:
            return "better"
        return "worse" if self.better < -self.bound else "open"

    @property
    def words(self) -> str:
        """The mean with its sign."""
        return f"{self.mean:+.{self._digits}f}"

    @property
    def interval(self) -> str:
        """The bound."""
        return f"{self.bound:.{self._digits}f}"

    @property
    def _digits(self) -> int:
        return 2 if self.metric == ACCURACY else 3


@dataclass(frozen=True)
class Report:
    """All trainings of a run.

    Args:
        runs: in the order they were run.
        policy: name of the arm that is compared with the others, or ``"all"``.
        selections: files that a subset's seeds trained on; 0 where there is no subset.
    """

    runs: tuple[RunResult, ...]
    policy: str
    selections: int = 0

    @property
    def arms(self) -> list[str]:
        """Arms in the order of the table: full, its shortened form, the control, the policy."""
        present = {run.arm for run in self.runs}
        first = [name for name in (FULL, *CUT, RANDOM) if name in present]
        return first + sorted(present - set(first))

    @property
    def metric(self) -> str:
        """What the test measures."""
        return self.runs[0].metric if self.runs else ACCURACY

    @property
    def _batches(self) -> bool:
        """Whether a policy may end a run early, so that there are two savings to tell apart."""
        return self.policy.startswith("bpas")

    @property
    def _chosen(self) -> bool:
        """Whether an arm passed more samples forward than it trained."""
        return any(run.forwards > run.samples for run in self.runs)

    def of(self, arm: str) -> list[RunResult]:
        """The trainings of an arm, by seed."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)

    def summary(self) -> dict[str, Any]:
        """Everything the table shows, as plain numbers, with every seed's own."""
        return {
            "schema": SCHEMA,
            "policy": self.policy,
            "arms": {arm: self._arm(arm) for arm in self.arms},
            "sentences": self.sentences(),
        }

    def _arm(self, arm: str) -> dict[str, Any]:
        runs = self.of(arm)
        tested, deviation = spread([run.shown for run in runs])
        wall, engine = sum(run.wall for run in runs), sum(run.engine for run in runs)
        saved, wall_saved = self._saved(arm)
        return {
            "n": len(runs),
            f"{self.metric}_mean": _known(tested),
            f"{self.metric}_std": _known(deviation),
            "samples": sum(run.samples for run in runs) / len(runs),
            "forwards": sum(run.forwards for run in runs) / len(runs),
            "saved": saved,
            "dsi": spread([run.dsi for run in runs])[0],
            "dsi_run": spread([run.dsi_run for run in runs])[0],
            "wall_seconds": wall / len(runs),
            "wall_saved": wall_saved,
            "wall_per_sample_saved": wall_saved / saved if saved and wall_saved else None,
            "engine_seconds": engine / len(runs),
            "engine_share": engine / wall if wall else 0.0,
            "eval_seconds": spread([run.eval for run in runs])[0],
            "seeds": {
                str(run.seed): {
                    self.metric: _known(run.shown),
                    "samples": run.samples,
                    "forwards": run.forwards,
                    "dsi": run.dsi,
                    "wall_seconds": run.wall,
                    "engine_seconds": run.engine,
                }
                for run in runs
            },
        }

    def _saved(self, arm: str) -> tuple[float | None, float | None]:
        """Shares of samples and of seconds saved, against full training of the same seeds."""
        full = {run.seed: run for run in self.of(FULL)}
        pairs = [(run, full[run.seed]) for run in self.of(arm) if run.seed in full]
        if arm == FULL or not pairs:
            return None, None
        samples = 1 - sum(run.samples for run, _ in pairs) / sum(base.samples for _, base in pairs)
        wall = 1 - sum(run.wall for run, _ in pairs) / sum(base.wall for _, base in pairs)
        return samples, wall

    def table(self, *, markdown: bool) -> str:
        """The table, as Markdown or with aligned columns for a terminal.

        Args:
            markdown: with pipes.

        Returns:
            One line per arm under a header; no trailing newline.
        """
        return lay_out(self.header(), self.cells(), markdown=markdown)

    def header(self) -> list[str]:
        """The words above the columns."""
        return [
            "arm",
            "test accuracy %" if self.metric == ACCURACY else "test perplexity",
            "n",
            "samples trained",
            *(["passed forward"] if self._chosen else []),
            "saved %",
            "DSI %",
            *(["DSI % of epochs run"] if self._batches else []),
            "wall s",
            "wall saved %",
            "wall / samples saved",
            "engine s",
            "engine % of wall",
        ]

    def cells(self) -> list[list[str]]:
        """The words of the table, a list for each arm."""
        return [self._cells(arm) for arm in self.arms]

    def _cells(self, arm: str) -> list[str]:
        a = self._arm(arm)

        def percent(value: float | None) -> str:
            return "-" if value is None else f"{100 * value:.1f}"

        ratio = a["wall_per_sample_saved"]
        digits = 2 if self.metric == ACCURACY else 3
        mean = a[f"{self.metric}_mean"]
        tested = "not tested" if mean is None else f"{mean:.{digits}f}"
        if a["n"] > 1 and mean is not None:
            tested += f" ± {a[f'{self.metric}_std']:.{digits}f}"
        return [
            arm,
            tested,
            str(a["n"]),
            f"{a['samples']:,.0f}",
            *([f"{a['forwards']:,.0f}"] if self._chosen else []),
            percent(a["saved"]),
            percent(a["dsi"]),
            *([percent(None if arm in CUT else a["dsi_run"])] if self._batches else []),
            f"{a['wall_seconds']:.2f}",
            percent(a["wall_saved"]),
            "-" if ratio is None else f"{ratio:.2f}",
            f"{a['engine_seconds']:.3f}",
            f"{100 * a['engine_share']:.2f}",
        ]

    def sentences(self) -> list[str]:
        """What the numbers allow to be said, a loss as plainly as a win.

        Returns:
            One sentence per comparison, then the cost of the engine.
        """
        said = [self._verdict(other, WHAT[other], policy) for policy, other in self._pairs()]
        if self.policy == ALL or self.policy not in self.arms:
            return said
        numbers = self._arm(self.policy)
        if self.selections == 1 < numbers["n"]:
            said.append(
                "All seeds trained on one selection: the intervals hold the chance of the "
                "trainings, and not that of choosing."
            )
        if numbers["saved"] is not None and self.policy != FULL:
            ratio = numbers["wall_per_sample_saved"]
            tail = "" if ratio is None else f": {ratio:.2f} of what the samples promise"
            said.append(
                f"{self.policy} trained {100 * numbers['saved']:.1f}% fewer samples and took "
                f"{100 * numbers['wall_saved']:.1f}% less wall time{tail}."
            )
        said.append(
            f"The engine took {numbers['engine_seconds']:.3f} s per training, "
            f"{100 * numbers['engine_share']:.2f}% of its wall time."
        )
        return said

    def _pairs(self) -> list[tuple[str, str]]:
        """Which arm is compared with which: (policy, other)."""
        if self.policy == ALL:
            return [(arm, RANDOM) for arm in self.arms if arm not in (FULL, RANDOM)]
        if self.policy not in self.arms:
            return []
        others = [RANDOM, FULL, FULL_CUT, FULL_FORWARDS]
        others += [RANDOM_SUBSET, BUDGET] if self.policy == SUBSET else []
        return [(self.policy, arm) for arm in others if arm in self.arms and arm != self.policy]

    def gaps(self) -> list[Gap]:
        """Return what each comparison came to, those of untested trainings left out."""
        found = [self._gap(policy, other) for policy, other in self._pairs()]
        return [gap for gap in found if gap is not None and not math.isnan(gap.mean)]

    def _gap(self, policy: str, other: str) -> Gap | None:
        """Return the gap, paired by seed; None without a seed of both."""
        base = {run.seed: run for run in self.of(other)}
        gaps = [run.shown - base[run.seed].shown for run in self.of(policy) if run.seed in base]
        if not gaps:
            return None
        mean, deviation = spread(gaps)
        n = len(gaps)
        bound = T95.get(n - 1, 2.262) * deviation / math.sqrt(n) if n > 1 else 0.0
        return Gap(policy, other, mean, bound, n, self.metric)

    def _verdict(self, other: str, what: str, policy: str) -> str:
        gap = self._gap(policy, other)
        if gap is None:
            return f"{policy} was not compared with {what}."
        if math.isnan(gap.mean):
            return f"Nothing was tested, so {policy} was not compared with {what}."
        words = f"{gap.words} {'points' if self.metric == ACCURACY else 'in perplexity'}"
        if gap.n == 1:
            return f"One seed says nothing about {what}: {policy} {words}."
        undecided = "neither beat nor lost to" if other == FULL else "did not beat"
        verb = {"better": "beat", "worse": "lost to", "open": undecided}[gap.verdict]
        return (
            f"{policy} {verb} {what}: {words}, paired over {gap.n} seeds "
            f"(95% interval ± {gap.interval})."
        )

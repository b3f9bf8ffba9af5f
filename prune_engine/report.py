# SPDX-License-Identifier: Apache-2.0
"""The table of a run and what may be said about it; every word comes from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = 1  # of every line and file of a run
FULL, FULL_CUT, RANDOM = "full", "full_cut", "random"
ALL = "all"  # every policy at equal savings: none is the one that is compared

# Student's t, two-sided 95%, by degrees of freedom: the smallest samples need the widest bounds.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

FOOTNOTE = (
    "Wall time is training alone: loading, augmentation, forward, backward, optimiser, scoring and "
    "planning. Reading the files and evaluation are outside it. Accuracy is that of the last "
    "epoch, never the best one. Savings are against `full` of the same seeds; "
    "`wall / samples saved` is 1 where every sample saved is time saved."
)


@dataclass(frozen=True)
class RunResult:
    """One training, from its rows.

    Args:
        arm: name of the arm.
        seed: of the training.
        accuracy: on the test split after the last epoch, in [0, 1].
        samples: samples trained.
        dsi: data saving index, 1 - sum n_i / (I N) over the epochs of the full schedule.
        wall: seconds of training, evaluation excluded.
        engine: of these, seconds inside the engine.
        eval: seconds of evaluation.
        epochs: epochs run, the last one perhaps in part.
        num_epochs: I.
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

    @staticmethod
    def of(rows: Sequence[dict[str, Any]]) -> RunResult:
        """Add up the rows of one training."""
        first, last = rows[0], rows[-1]
        # A cut epoch trains less than it planned; elsewhere the plan counts, dropped tail and all.
        cut = last["planned"] - last["served"] if last["arm"] == FULL_CUT else 0
        planned = sum(row["planned"] for row in rows) - cut
        return RunResult(
            arm=first["arm"],
            seed=first["seed"],
            accuracy=last["test_accuracy"],
            samples=sum(row["served"] for row in rows),
            dsi=1.0 - planned / (first["num_epochs"] * first["num_samples"]),
            wall=sum(row["seconds"] for row in rows),
            engine=sum(row["engine_seconds"] for row in rows),
            eval=sum(row["eval_seconds"] for row in rows),
            epochs=len(rows),
            num_epochs=first["num_epochs"],
        )


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


@dataclass(frozen=True)
class Report:
    """All trainings of a run.

    Args:
        runs: in the order they were run.
        policy: name of the arm that is compared with the others, or ``"all"``.
    """

    runs: tuple[RunResult, ...]
    policy: str

    @property
    def arms(self) -> list[str]:
        """Arms in the order of the table: full, its shortened form, the control, the policy."""
        present = {run.arm for run in self.runs}
        first = [name for name in (FULL, FULL_CUT, RANDOM) if name in present]
        return first + sorted(present - set(first))

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
        accuracy, deviation = spread([100 * run.accuracy for run in runs])
        wall, engine = sum(run.wall for run in runs), sum(run.engine for run in runs)
        saved, wall_saved = self._saved(arm)
        return {
            "n": len(runs),
            "accuracy_mean": accuracy,
            "accuracy_std": deviation,
            "samples": sum(run.samples for run in runs) / len(runs),
            "saved": saved,
            "dsi": spread([run.dsi for run in runs])[0],
            "wall_seconds": wall / len(runs),
            "wall_saved": wall_saved,
            "wall_per_sample_saved": wall_saved / saved if saved and wall_saved else None,
            "engine_seconds": engine / len(runs),
            "engine_share": engine / wall if wall else 0.0,
            "eval_seconds": spread([run.eval for run in runs])[0],
            "seeds": {
                str(run.seed): {
                    "accuracy": 100 * run.accuracy,
                    "samples": run.samples,
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
        head = (
            "arm",
            "test accuracy %",
            "n",
            "samples trained",
            "saved %",
            "DSI %",
            "wall s",
            "wall saved %",
            "wall / samples saved",
            "engine s",
            "engine % of wall",
        )
        body = [self._cells(arm) for arm in self.arms]
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

    def _cells(self, arm: str) -> list[str]:
        a = self._arm(arm)

        def percent(value: float | None) -> str:
            return "-" if value is None else f"{100 * value:.1f}"

        ratio = a["wall_per_sample_saved"]
        return [
            arm,
            f"{a['accuracy_mean']:.2f}" + (f" ± {a['accuracy_std']:.2f}" if a["n"] > 1 else ""),
            str(a["n"]),
            f"{a['samples']:,.0f}",
            percent(a["saved"]),
            percent(a["dsi"]),
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
        said: list[str] = []
        if self.policy == ALL:
            arms = [arm for arm in self.arms if arm not in (FULL, RANDOM)]
            return [
                self._verdict(RANDOM, "the random control at equal savings", arm) for arm in arms
            ]
        if self.policy not in self.arms:
            return said
        others = {
            RANDOM: "the random control at equal savings",
            FULL: "full training",
            FULL_CUT: "full training cut to the same number of samples",
        }
        said += [
            self._verdict(arm, what, self.policy)
            for arm, what in others.items()
            if arm in self.arms and arm != self.policy
        ]
        numbers = self._arm(self.policy)
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

    def _verdict(self, other: str, what: str, policy: str) -> str:
        base = {run.seed: run for run in self.of(other)}
        gaps = [
            100 * (run.accuracy - base[run.seed].accuracy)
            for run in self.of(policy)
            if run.seed in base
        ]
        if not gaps:
            return f"{policy} was not compared with {what}."
        mean, deviation = spread(gaps)
        n = len(gaps)
        if n == 1:
            return f"One seed says nothing about {what}: {policy} {mean:+.2f} points."
        bound = T95.get(n - 1, 2.262) * deviation / math.sqrt(n)
        if mean > bound:
            verb = "beat"
        elif mean < -bound:
            verb = "lost to"
        else:
            verb = "neither beat nor lost to" if other == FULL else "did not beat"
        return (
            f"{policy} {verb} {what}: {mean:+.2f} points, paired over {n} seeds "
            f"(95% interval ± {bound:.2f})."
        )

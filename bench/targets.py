# SPDX-License-Identifier: Apache-2.0
"""What the design calls fast on a CPU, and whether a run reached it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import bench_plan
from bench_memory import BOUNDED
from data import IMAGENET_22K
from harness import spread
from tables import NS, find_row, markdown, number, per_unit, ratio

Json = dict[str, Any]
MEMORY_SLACK = 1.05
STEP_SLACK = 0.01  # of a training step


@dataclass(frozen=True)
class Target:
    """A row's median wall time must be <= `limit`, or `versus` / row >= `limit`.

    Attributes:
        table: the table.
        items: samples, kept samples or batch size of the table; None means every one.
        row: (name, threads).
        limit: in the table's unit, or the least ratio where `versus` is given.
        versus: the slower row's name.
        n: only at this N; None means every one.
        facts: only where the section's facts have these values.
    """

    table: str
    row: tuple[str, int]
    limit: float
    versus: str | None = None
    n: int | None = None
    items: int | None = None
    facts: Mapping[str, int] = field(default_factory=dict[str, int])


_ORDER = ("pe plan, whole order", 2)
_SELECT = ("pe percentiles", 2)
_OBSERVE = ("engine.observe(losses, indices)", 1)
_STD, _FUSED = ("pe activation_std", 2), ("pe relu_moments, in place", 2)
_READ = "read of the same bytes"
_FLOAT32, _BFLOAT16 = {"element_bytes": 4}, {"element_bytes": 2}

TARGETS = (
    Target("plan", ("pe plan", 2), 15, n=IMAGENET_22K),
    Target("plan", _ORDER, 45, n=IMAGENET_22K),
    Target("plan", _ORDER, 100, "published planner", n=IMAGENET_22K),
    Target("plan", _ORDER, 40, "np.argsort", n=IMAGENET_22K),
    Target("plan", _ORDER, 20, "vectorised torch planner", n=IMAGENET_22K),
    *(
        Target("plan", (bench_plan.WHOLE.format(name), 2), 1 / 8, "np.mean", n=IMAGENET_22K)
        for name in ("InfoBatch", "Proportional", "OrderDP")
    ),
    Target("observe_warm", _OBSERVE, 1 / 2.5, "losses.mean() (no pruning)"),
    Target("observe", _OBSERVE, 2, "published update", items=256),
    Target("select", _SELECT, 10, "np.percentile", n=IMAGENET_22K),
    Target("select", _SELECT, 2, "np.partition", n=IMAGENET_22K),
    Target("sampler", ("engine.sampler()", 1), 15),
    Target("activation_std", _STD, 1 / 1.3, _READ, facts=_FLOAT32),
    Target("activation_std", _STD, 4, "torch.std loop", facts=_FLOAT32),
    Target("activation_std", _STD, 1 / 1.6, _READ, facts=_BFLOAT16),
    Target("activation_std", _STD, 20, "torch.std loop", facts=_BFLOAT16),
    Target("activation_std", _FUSED, 1 / 1.15, "torch.relu_ (no statistics)", facts=_FLOAT32),
    Target("activation_std", _FUSED, 1 / 1.15, "torch.relu_ (no statistics)", facts=_BFLOAT16),
)


def _judge(section: Json, target: Target) -> list[str] | None:
    """One line of the report; None if the run does not hold the row."""
    row = find_row(section, *target.row)
    name = f"{section['table']} N = {section['n']:,}: {target.row[0]} [{target.row[1]}t]"
    unit = section["unit"]
    if target.versus is None:
        time = spread(per_unit(row, "wall_ns")) if row else None
        cp = spread(per_unit(row, "cp_ns")) if row else None
        if time is None:
            return None
        value = time.median / NS[unit]
        by_cp = f"{number(cp.median / NS[unit])} {unit}" if cp else "-"
        met = value <= target.limit
        return [name, f"<= {target.limit:g} {unit}", f"{number(value)} {unit}", by_cp, _word(met)]
    slower = find_row(section, target.versus)
    wall, cp = (ratio(section, slower, row, clock) for clock in ("wall_ns", "cp_ns"))
    if wall is None:
        return None
    by_cp = f"{number(cp.median)}x" if cp else "-"
    met = wall.median >= target.limit
    wanted = f"{target.versus} >= {target.limit:.3g}x"
    return [name, wanted, f"{number(wall.median)}x", by_cp, _word(met)]


def _judge_step(section: Json) -> list[list[str]]:
    """What monitors add to a training step, by the time inside what they change.

    Whole steps of one row differ from each other by more than the target: their ratio decides
    nothing.
    """
    plain = find_row(section, section["versus"])
    step = spread(per_unit(plain, "wall_ns")) if plain else None
    of, facts, lines = "inside_us of ", section["facts"], list[list[str]]()
    for name in (key.removeprefix(of) for key in facts if key.startswith(of)):
        if step and name != section["versus"]:
            added = (facts[of + name] - facts[of + section["versus"]]) * 1e3 / step.median
            wanted = f"adds <= {STEP_SLACK:.0%} of a step"
            met = _word(added <= STEP_SLACK)
            lines.append([f"{section['table']}: {name}", wanted, f"{added:.2%}", "-", met])
    return lines


def _word(met: bool) -> str:
    return "met" if met else "MISSED"


def judge(run: Json) -> tuple[str, bool]:
    """Compares a run with the targets.

    Returns:
        A Markdown table, and whether at least one target was judged and all judged were met.
    """
    lines: list[list[str]] = []
    for section in run["sections"]:
        for target in TARGETS:
            fits = target.table == section["table"]
            fits = fits and target.n in (None, section["n"])
            fits = fits and target.items in (None, section["items"])
            fits = fits and target.facts.items() <= section["facts"].items()
            line = _judge(section, target) if fits else None
            if line is not None:
                lines.append(line)
        lines += _judge_step(section)
    for m in run["memory"]:
        if m["kind"] == BOUNDED and m["n"] >= 1_000_000:
            met = m["peak_bytes"] <= MEMORY_SLACK * m["bound_bytes"]
            wanted = f"<= {MEMORY_SLACK} (9 N + 4 kept)"
            share = f"{m['peak_bytes'] / m['bound_bytes']:.2f}"
            lines.append([f"memory N = {m['n']:,}: {m['kind']}", wanted, share, "-", _word(met)])
    header = ["row", "target", "wall", "cp", "verdict"]
    return markdown(header, lines) + "\n", bool(lines) and all(x[-1] == "met" for x in lines)

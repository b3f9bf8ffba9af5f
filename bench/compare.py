# SPDX-License-Identifier: Apache-2.0
"""Runs the comparison and prints it.

python bench/compare.py run --out bench/results/cpu.json
python bench/compare.py table bench/results/cpu.json [--into bench/results/cpu.md]
python bench/compare.py check bench/results/cpu.json
python bench/compare.py diff bench/results/old.json bench/results/new.json
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Before the first `import torch`: a spinning OpenMP barrier collapses when a core is taken away.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import bench_activation_std
import bench_cross_entropy_observe
import bench_memory
import bench_observe
import bench_observe_warm
import bench_order
import bench_pick
import bench_plan
import bench_sampler
import bench_select
import bench_training_step
import data
import environment
import harness
import tables
import targets

FORMAT = 1
LARGE = 4_000_000
# table: (rounds up to LARGE samples, rounds above)
ROUNDS = {
    "plan": (31, 21),
    "order": (15, 9),
    "observe": (31, 31),
    "sampler": (15, 15),
    "select": (25, 9),
    "cross_entropy": (9, 9),
    "pick": (15, 9),
}
LOGITS = ("cross_entropy", "cross_entropy_memory")  # a run of their own, for torch.compile is slow
PICK = bench_pick.TABLE  # ... and so is this, for its N are batches
WARM = bench_observe_warm.TABLE  # knows no N: once in a run
# If none is named:
TABLES = (*(name for name in ROUNDS if name not in (*LOGITS, PICK)), WARM, "memory")
# These know no N, so they are runs of their own.
ACTIVATIONS, STEP = bench_activation_std.TABLE, bench_training_step.TABLE
ACTIVATION_ROUNDS, STEP_ROUNDS, WARM_ROUNDS = 15, 15, 101
BEGIN, END = "<!-- table -->", "<!-- /table -->"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_section(module: Any, made: Any, n: int, rounds: int, flush: harness.ColdCaches) -> Any:
    """Times one table.

    Args:
        module: a bench_*.py with TABLE, UNIT, VERSUS, RELATIVE_TO, ALTERNATIVES.
        made: its data.
        n: number of samples, for the heading.
        rounds: rounds of the interleaved run.
        flush: called before each call.

    Returns:
        The section as plain JSON values.
    """
    before = os.getloadavg()[0]
    limits = harness.read_limits() if flush.mib else ()  # which would empty the caches as well
    rows = harness.interleave(
        (*module.ALTERNATIVES, *limits), made, rounds=rounds, flush=flush, seed=n
    )
    return {
        "table": module.TABLE,
        "n": n,
        "items": made.items,
        "unit": module.UNIT,
        "versus": module.VERSUS,
        "relative_to": module.RELATIVE_TO,
        "facts": made.facts(),
        "flush_mib": flush.mib,
        "load": [before, os.getloadavg()[0]],
        "rows": [
            {
                "name": r.name, "threads": r.threads, "inner": r.inner, "bytes": r.bytes_moved,
                "wall_ns": r.wall_ns, "cp_ns": r.cp_ns,
            }
            for r in rows
        ],
    }  # fmt: skip


def _jobs(names: Sequence[str], n: int) -> list[tuple[Any, Any]]:
    """(module, how to make its data) for each timed table; observe once per batch size."""
    jobs: list[tuple[Any, Any]] = []
    if "plan" in names:
        jobs.append((bench_plan, lambda: bench_plan.PlanData(n)))
    if "order" in names:
        jobs.append((bench_order, lambda: bench_order.OrderData(n)))
    if "observe" in names:
        for batch in bench_observe.BATCHES:
            jobs.append((bench_observe, lambda b=batch: bench_observe.ObserveData(n, b)))
    if "sampler" in names:
        jobs.append((bench_sampler, lambda: bench_sampler.SamplerData(n)))
    if "cross_entropy" in names:
        module = bench_cross_entropy_observe
        for batch, classes in module.SHAPES:
            for dtype in module.DTYPES:
                make = lambda b=batch, c=classes, d=dtype: module.LogitData(n, b, c, d)  # noqa: E731
                jobs.append((module, make))
    if "select" in names:
        jobs.append((bench_select, lambda: bench_select.SelectData(n)))
    if PICK in names:
        jobs.append((bench_pick, lambda: bench_pick.PickData(n)))
    return jobs


def run(arguments: argparse.Namespace) -> int:
    """Measures every asked table at every asked N and writes the JSON."""
    started = time.monotonic()
    flush = harness.ColdCaches(arguments.flush_mib)
    document: dict[str, Any] = {
        "format": FORMAT,
        "command": arguments.command_line,
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": 0.0,
        "environment": environment.describe(),
        "sections": [],
        "memory": [],
    }
    for n in arguments.samples:
        for module, make in _jobs(arguments.tables, n):
            _say(f"{module.TABLE}, N = {n:,} ({time.monotonic() - started:.0f} s)")
            rounds = arguments.rounds or ROUNDS[module.TABLE][n > LARGE]
            made = make()
            document["sections"].append(run_section(module, made, n, rounds, flush))
            del made
            gc.collect()
    if WARM in arguments.tables:
        _say(f"{WARM} ({time.monotonic() - started:.0f} s)")
        made = bench_observe_warm.WarmData()
        rounds = arguments.rounds or WARM_ROUNDS
        none = harness.ColdCaches(0)
        section = run_section(bench_observe_warm, made, made.num_samples, rounds, none)
        document["sections"].append(section)
    for dtype in bench_activation_std.DTYPES if ACTIVATIONS in arguments.tables else ():
        _say(f"{ACTIVATIONS}, {dtype} ({time.monotonic() - started:.0f} s)")
        made = bench_activation_std.ActivationData(dtype)
        rounds = arguments.rounds or ACTIVATION_ROUNDS
        section = run_section(bench_activation_std, made, made.items, rounds, flush)
        document["sections"].append(section)
        del made
        gc.collect()
    if STEP in arguments.tables:
        _say(f"{STEP} ({time.monotonic() - started:.0f} s)")
        made = bench_training_step.StepData()
        rounds = arguments.rounds or STEP_ROUNDS
        section = run_section(bench_training_step, made, made.items, rounds, flush)
        document["sections"].append(section)
        del made
        gc.collect()
    # The processes of this table need the memory, and nothing is timed in them.
    flush = harness.ColdCaches(0)
    for n in arguments.samples if "memory" in arguments.tables else ():
        for kind in bench_memory.KINDS:
            _say(f"memory, N = {n:,}: {kind} ({time.monotonic() - started:.0f} s)")
            document["memory"].append(bench_memory.measure(kind, n))
    if "cross_entropy_memory" in arguments.tables:
        module = bench_cross_entropy_observe
        document["logit_memory"] = [
            module.peak(kind, batch, classes, dtype)
            for batch, classes in module.MEMORY_SHAPES
            for dtype in module.DTYPES
            for kind in module.MEMORY_KINDS
        ]
    document["seconds"] = round(time.monotonic() - started, 1)
    arguments.out.write_text(to_json(document))
    _say(f"{arguments.out} written after {document['seconds']:.0f} s")
    return 0


def to_json(document: dict[str, Any]) -> str:
    """Indented JSON with each list of numbers on one line."""
    text = json.dumps(document, indent=1)
    flat = re.sub(r"\[[-+.\deE,\snul]*\]", lambda m: re.sub(r"\s+", " ", m.group()), text)
    return flat.replace("[ ", "[").replace(" ]", "]") + "\n"


def load(path: Path) -> dict[str, Any]:
    """Reads a run.

    Raises:
        ValueError: the file is of another format.
    """
    document: dict[str, Any] = json.loads(path.read_text())
    if document.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {document.get('format')!r}")
    return document


def insert(page: str, text: str, mark: str = "table") -> str:
    """Puts `text` between the two markers of a page.

    Raises:
        ValueError: the page does not have both markers, in order.
    """
    begin, end = (marker.replace("table", mark) for marker in (BEGIN, END))
    head, found_begin, rest = page.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"page: expected {begin} and then {end}")
    return f"{head}{begin}\n{text.rstrip()}\n{end}{tail}"


def table(arguments: argparse.Namespace) -> int:
    """Prints the tables of a run, or puts them into a page."""
    text = tables.document(load(arguments.file))
    if arguments.into is None:
        print(text, end="")
    else:
        arguments.into.write_text(insert(arguments.into.read_text(), text, arguments.mark))
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Prints the design's targets beside a run; 1 if one was missed."""
    text, met = targets.judge(load(arguments.file))
    print(text, end="")
    return 0 if met else 1


def diff(arguments: argparse.Namespace) -> int:
    """Prints what changed between two runs."""
    print(tables.difference(load(arguments.old), load(arguments.new)), end="")
    return 0


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench/compare.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run", help="measure and write the JSON")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--samples", type=int, nargs="+", default=list(data.SAMPLES))
    one.add_argument(
        "--tables",
        nargs="+",
        choices=(*TABLES, *LOGITS, PICK, ACTIVATIONS, STEP),
        default=list(TABLES),
    )
    one.add_argument("--rounds", type=int, help="for every table (default: 9 to 31, by table)")
    one.add_argument("--flush-mib", type=int, default=harness.default_flush_mib())
    one.set_defaults(action=run, command_line=" ".join(("python bench/compare.py", *argv)))
    two = commands.add_parser("table", help="print the Markdown tables of a run")
    two.add_argument("file", type=Path)
    two.add_argument("--into", type=Path, help="a page with the two table markers")
    two.add_argument("--mark", default="table", help="the word in those markers")
    two.set_defaults(action=table)
    three = commands.add_parser("check", help="compare a run with the design's targets")
    three.add_argument("file", type=Path)
    three.set_defaults(action=check)
    four = commands.add_parser("diff", help="compare two runs")
    four.add_argument("old", type=Path)
    four.add_argument("new", type=Path)
    four.set_defaults(action=diff)
    arguments = parser.parse_args(argv)
    status: int = arguments.action(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

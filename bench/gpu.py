# SPDX-License-Identifier: Apache-2.0
"""Measures the operators on a GPU beside what torch offers, and writes one JSON file.

python bench/gpu.py run [--into bench/README.md]          # bench/results/<gpu>-<date>.json
python bench/gpu.py table bench/results/FILE.json [--into bench/README.md]

Times are those of CUDA events around a call, with the L2 cache overwritten before each, in rounds
that take the alternatives in a fresh random order. Bytes count each array once.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import compare
import environment
import torch
from gpu_model import LOGITS, activation_work, loss_work, resnet_work
from gpu_work import Row, Work, observe_work, plan_work, select_work

import prune_engine as pe

FORMAT = 1
SAMPLES = (1_281_167, 14_197_122, 100_000_000)  # ImageNet-1k, ImageNet-22k, and beyond
BATCHES = (256, 1024, 4096, 16_384, 65_536)
IMAGES, SIDE = 256, 224
ROUNDS, MIN_ROUNDS = 31, 3
SECONDS_PER_ROW = 1.0  # slow rows take part in fewer rounds
BEGIN, END = "<!-- gpu table -->", "<!-- /gpu table -->"


class Clock:
    """Times calls on a device: by events on CUDA, by the wall elsewhere (to test this program)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        mib = 256 if device.type == "cuda" else 1
        self._flush = torch.zeros(mib << 20, dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], object]) -> float:
        """Seconds of one call with a cold L2."""
        self._flush.add_(1)
        if self.device.type != "cuda":
            began = time.perf_counter()
            call()
            return time.perf_counter() - began
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def measure(clock: Clock, work: Sequence[Work], rounds: int) -> list[Row]:
    """Times every alternative in interleaved rounds; slow ones take part in fewer."""
    shuffler = random.Random(0)
    left: dict[int, int] = {}
    for number, (row, call) in enumerate(work):
        try:
            call()
            warm = clock(call)
        except RuntimeError as error:
            row.refused = str(error).splitlines()[0]
            continue
        left[number] = max(MIN_ROUNDS, min(rounds, int(SECONDS_PER_ROW / max(warm, 1e-6))))
    while left:
        turn = list(left)
        shuffler.shuffle(turn)
        for number in turn:
            row, call = work[number]
            row.times_us.append(clock(call) * 1e6 / row.per_call)
            left[number] -= 1
            if left[number] == 0:
                del left[number]
    return [row for row, _ in work]


def version_of(program: str | None, pattern: str, *options: str) -> str:
    """What a program says of its version; "none" where there is no such program."""
    path = shutil.which(program) if program else None
    if path is None:
        return "none"
    text = subprocess.run([path, *options], capture_output=True, text=True).stdout
    found = re.search(pattern, text)
    return found.group(1) if found else text.strip()


def describe(device: torch.device) -> dict[str, Any]:
    """GPU, driver and versions, beside what every run writes down."""
    facts: dict[str, Any] = dict(environment.describe())
    facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    query = ("--query-gpu=driver_version", "--format=csv,noheader")
    facts["driver"] = version_of("nvidia-smi", r"(\S+)", *query)
    facts["nvcc"] = version_of("nvcc", r"release (\S+),", "--version")
    try:
        import triton

        facts["triton"] = str(triton.__version__)
    except ImportError:
        facts["triton"] = "none"
    facts["backend"] = pe.backends.resolve("auto", device.type)
    return facts


def run(
    device: torch.device,
    samples: Sequence[int] = SAMPLES,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    logits: Sequence[tuple[int, int]] = LOGITS,
    images: int = IMAGES,
    side: int = SIDE,
    save: Callable[[dict[str, Any]], object] = lambda document: None,
) -> dict[str, Any]:
    """Measures everything.

    Args:
        device: a GPU, or the CPU to test this program.
        samples: sizes of the data set.
        batches: batch sizes of observe.
        rounds: at most; slow rows take part in fewer.
        logits: (batch, classes) of the losses.
        images: a batch of the activations.
        side: of an image, in pixels.
        save: is given the document after each table, so that what ends the program ends no more.

    Returns:
        The document: plain JSON values.
    """
    began = time.monotonic()
    clock = Clock(device)
    document: dict[str, Any] = {"format": FORMAT, "kind": "gpu", "environment": describe(device)}
    document["started"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    rows: list[Row] = []
    jobs: list[Callable[[], list[Work]]] = [
        *(lambda n=n: plan_work(n, device) for n in samples),
        *(lambda n=n: select_work(n, device) for n in samples),
        *(lambda b=b: observe_work(samples[0], b, device) for b in batches),
        *(lambda b=b, c=c: loss_work(b, c, device) for b, c in logits),
        lambda: activation_work(images, side, device),
    ]
    if device.type == "cuda":
        jobs.append(lambda: resnet_work(device))
    for job in jobs:
        try:
            work = job()
        except ImportError as error:  # torchvision is not needed for anything else
            print(f"left out: {error}", file=sys.stderr)
            continue
        rows += measure(clock, work, rounds)
        print(
            f"{rows[-1].table} {rows[-1].n:,} ({time.monotonic() - began:.0f} s)", file=sys.stderr
        )
        copies = [row for row in rows if row.name.startswith("copy")]
        copy_rate = max(row.bytes / row.percentile(0.5) for row in copies)  # bytes per microsecond
        document["copy_gb_per_s"] = copy_rate / 1e3
        document["rows"] = [summary(row, copy_rate) for row in rows]
        document["seconds"] = round(time.monotonic() - began, 1)
        save(document)
    return document


def summary(row: Row, copy_rate: float) -> dict[str, Any]:
    """A row with its percentiles and its share of the measured copy bandwidth."""
    out = asdict(row)
    out["times_us"] = [round(value, 3) for value in row.times_us]
    if row.times_us:
        for name, share in (("p20", 0.2), ("p50", 0.5), ("p80", 0.8)):
            out[f"{name}_us"] = round(row.percentile(share), 3)
        out["share_of_copy"] = round(row.bytes / row.percentile(0.5) / copy_rate, 4)
    return out


def markdown(document: dict[str, Any]) -> str:
    """The run as one table per heading."""
    facts = document["environment"]
    lines = [
        f"{facts['device']}, driver {facts['driver']}, torch {facts['torch']}, nvcc "
        f"{facts['nvcc']}, commit {facts['commit']}, {document['started']}; copy "
        f"{document['copy_gb_per_s']:,.0f} GB/s."
    ]
    heading = None
    for row in document["rows"]:
        if (row["table"], row["n"]) != heading:
            heading = (row["table"], row["n"])
            lines += ["", f"### {row['table']}, {row['n']:,}", ""]
            lines += ["| | p50 us | p20 | p80 | of copy |", "| --- | ---: | ---: | ---: | ---: |"]
        if row["refused"]:
            lines.append(f"| {row['name']} | refused: {row['refused']} | | | |")
            continue
        share = f"{row['share_of_copy']:.0%}" if row["bytes"] else ""
        times = " | ".join(f"{row[name]:,.1f}" for name in ("p50_us", "p20_us", "p80_us"))
        lines.append(f"| {row['name']} | {times} | {share} |")
    return "\n".join(lines) + "\n"


def into_page(page: str, text: str) -> str:
    """Put the table between its markers, which are added at the end of a page without them."""
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n## On a GPU\n\n{BEGIN}\n{END}\n"
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{text.rstrip()}\n{END}{tail}"


def show(document: dict[str, Any], page: Path | None) -> None:
    """Print the table, or put it into a page."""
    text = markdown(document)
    if page is None:
        print(text, end="")
    else:
        page.write_text(into_page(page.read_text(encoding="utf-8"), text), encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench/gpu.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="measure and write the JSON")
    one.add_argument("--out", type=Path, help="default: bench/results/<gpu>-<date>.json")
    one.add_argument("--samples", type=int, nargs="+", default=list(SAMPLES))
    one.add_argument("--rounds", type=int, default=ROUNDS)
    one.add_argument("--into", type=Path, help="a page to put the table into")
    two = commands.add_parser("table", help="print the Markdown table of a run")
    two.add_argument("file", type=Path)
    two.add_argument("--into", type=Path, help="a page to put it into")
    arguments = parser.parse_args(argv)
    if arguments.command == "table":
        document = json.loads(arguments.file.read_text(encoding="utf-8"))
        show(document, arguments.into)
        return 0
    if not torch.cuda.is_available():
        print("bench/gpu.py needs a GPU, and torch finds none", file=sys.stderr)
        return 1

    def save(document: dict[str, Any]) -> Path:
        name = re.sub(r"[^a-z0-9]+", "-", document["environment"]["device"].lower()).strip("-")
        default = Path(__file__).parent / f"results/{name}-{document['started'][:10]}.json"
        out = arguments.out or default
        out.write_text(compare.to_json(document), encoding="utf-8")
        return out

    device = torch.device("cuda", 0)
    document = run(device, arguments.samples, BATCHES, arguments.rounds, save=save)
    print(save(document))
    show(document, arguments.into)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

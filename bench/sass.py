# SPDX-License-Identifier: Apache-2.0
"""What the machine code of two builds says of each kernel that changed, beside what was predicted.

``python bench/sass.py OLD NEW --into bench/results`` reads two libraries by NVIDIA's disassembler
(``tests/_sass.py``) and writes ``sass.md``, for people, and ``sass.json``, the instructions an item
of every kernel that streams, for ``floors.py``. No GPU takes part.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ARCH = "sm_90"  # of the table; all are in the JSON
SAMPLES = 16  # of a thread in plan, select and their kin
MULTIPLY = re.compile(r"\bU?IMAD\.(?:WIDE|HI)\b")
REDUCTION = re.compile(r"\b(?:REDG?|ATOMG?)\.")
JUMP = re.compile(r"\bBRA\b")


def disassembler() -> Any:
    """The tests' reader of machine code, as a module."""
    found = importlib.util.spec_from_file_location("_sass", ROOT / "tests" / "_sass.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


READER = disassembler()
Kernels = Sequence[Any]  # of one architecture
Figure = Callable[[Kernels], float | str | None]


def find(kernels: Kernels, name: str, instance: str = "") -> Any:
    """The first kernel of that name whose mangled name goes on with ``instance``; None: none."""
    found = (k for k in kernels if k.name == name and f"{name}{instance}" in k.symbol)
    return next(found, None)


def dtype_of(body: Sequence[str]) -> str:
    """What a loop over logits or activations reads, by how it unpacks it."""
    text = "\n".join(body)
    if "HADD2.F32" in text:
        return "half"
    return "bfloat16" if "0x10000" in text or "PRMT" in text else "float"


def loads(body: Sequence[str]) -> int:
    """The 16-byte loads of a trip."""
    return sum(map(READER.is_wide_load, body))


def trip(kernel: Any) -> list[str] | None:
    """The loop over bfloat16 that takes the most loads a trip."""
    bodies = [body for body in kernel.streams() if dtype_of(body) == "bfloat16"]
    return max(bodies, key=loads, default=None)


def per_logit(name: str, instance: str, counted: re.Pattern[str] | None = None) -> Figure:
    """Instructions a bfloat16 logit, or those of one kind, without the loop's own branch."""

    def figure(kernels: Kernels) -> float | None:
        kernel = find(kernels, name, instance)
        body = kernel and trip(kernel)
        if not body:
            return None
        number = len(body) if counted is None else sum(map(bool, map(counted.search, body[:-1])))
        return number / (8 * loads(body))

    return figure


def executed(name: str, instance: str, items: float, dtype: str = "", also: str = "") -> Figure:
    """Instructions an item on the shortest way round a kernel's first loop past all it must pass.

    That is its loads, and what it adds to shared memory. ``items`` are of one 16-byte load;
    ``dtype`` chooses among loops; ``also`` is passed as well.
    """
    via = re.compile(rf"{READER.WIDE_LOAD.pattern}|\b(?:ATOMS|STS)\b{also and '|' + also}")

    def figure(kernels: Kernels) -> float | None:
        kernel = find(kernels, name, instance)
        for first, last, body in kernel.loops() if kernel else ():
            if body in kernel.streams() and (not dtype or dtype_of(body) == dtype):
                way = kernel.way(first, last, via)
                return len(way) / (items * loads(way))
        return None

    return figure


def straight(name: str, instance: str, items: float) -> Figure:
    """Instructions an item of a thread that takes ``items``: past all loads, draws and stores."""
    via = re.compile(f"{READER.WIDE_LOAD.pattern}|{MULTIPLY.pattern}|{READER.WIDE_STORE.pattern}")

    def figure(kernels: Kernels) -> float | None:
        kernel = find(kernels, name, instance)
        return len(kernel.way(0, None, via)) / items if kernel else None

    return figure


def in_flight(name: str, instance: str) -> Figure:
    """16-byte loads before the first use of one: the fewest of a kernel's groups."""

    def figure(kernels: Kernels) -> float | None:
        kernel = find(kernels, name, instance)
        return min(kernel.in_flight()) if kernel else None

    return figure


def hidden(kernels: Kernels) -> float | None:
    """Multiplications of the generator while the loads of plan are in flight."""
    groups = find(kernels, "plan_kernel").groups()
    return sum(bool(MULTIPLY.search(text)) for text in groups[0])


def reductions(kernels: Kernels) -> float:
    """Global reductions in the histogram's loop, which takes 16 samples of a thread a trip."""
    body = find(kernels, "histogram_kernel").streams()[0]
    return sum(bool(REDUCTION.search(text)) for text in body)


def per_position(kernels: Kernels) -> float:
    """Instructions a position of the whole order, with eight rounds."""
    kernel = find(kernels, "order_kernel", "ILi8E") or find(kernels, "order_kernel")
    bodies = [body for _, _, body in kernel.loops()]
    multiplies = [sum(bool(MULTIPLY.search(text)) for text in body) for body in bodies]
    pairs = [len(body) for body, number in zip(bodies, multiplies, strict=True) if number == 1]
    outer = min(len(body) for body in bodies if any("STG" in text for text in body))
    return outer + 3 * min((size for size in pairs if size < 40), default=0)


def fenced(kernels: Kernels) -> str:
    """Whether the last block's fence lies before its barrier."""
    kernel = find(kernels, "moments_kernel")
    return "yes" if READER.ACQUIRED.search(kernel.code) else "no"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        kernel: as the documentation calls it.
        what: is counted.
        figure: counts it.
        predicted: of the change, before it was made.
    """

    kernel: str
    what: str
    figure: Figure
    predicted: str


LOSS, GRAD = "cross_entropy_observe_kernel", "cross_entropy_grad_kernel"
EXP = r"\bMUFU\.EX2\b"
BF16 = "I13__nv_bfloat16E"
ROWS = (
    Row(
        "cross_entropy_grad, bfloat16",
        "16-byte stores",
        lambda kernels: find(kernels, GRAD, BF16).wide_stores,
        "1 in place of four of 4 bytes: 130-190 us to 110",
    ),
    Row("", "instructions a logit, the loop's whole text", per_logit(GRAD, BF16), "half"),
    Row(
        "",
        "... that are executed",
        executed(GRAD, BF16, 8, also=EXP),
        "22 to 11: 68 us of issue to 34",
    ),
    Row(
        "cross_entropy_observe, bfloat16",
        "instructions a logit, the loop's whole text",
        per_logit(LOSS, "IfLb0E"),
        "at most 16: 140-170 us to 65-75, then 50",
    ),
    Row("", "branches a logit", per_logit(LOSS, "IfLb0E", JUMP), "none but one a trip"),
    Row("", "loads in flight", lambda k: loads(trip(find(k, LOSS, "IfLb0E"))), "2"),
    Row("... with all sums", "instructions a logit", per_logit(LOSS, "IfLb1E"), "at most 30"),
    Row(
        "plan", "multiplications while its loads are in flight", hidden, "40: the comment's promise"
    ),
    Row("", "instructions", lambda k: len(find(k, "plan_kernel").instructions), "fewer"),
    Row(
        "plan, fixed counts",
        "global reductions for 16 samples of a thread",
        reductions,
        "none: 180-250 us to 80",
    ),
    Row(
        "select, scores",
        "16-byte loads before the first use",
        in_flight("digit_kernel", "IfLb1E"),
        "4: 75-95 us to 60",
    ),
    Row("select, records", "the same", in_flight("digit_kernel", "IlLb1E"), "8"),
    Row("top, scores", "the same, of the ties", in_flight("tie_kernel", "IfE"), "4"),
    Row("top, records", "the same", in_flight("tie_kernel", "IlE"), "8"),
    Row(
        "select, scores",
        "instructions a sample",
        executed("digit_kernel", "IfLb1E", 4),
        "none was made",
    ),
    Row("order", "instructions a position", per_position, "10 to 15% fewer: 80-100 us to 68-90"),
    Row(
        "mean_threshold",
        "instructions, each once",
        lambda k: len(find(k, "mean_threshold_kernel").instructions),
        "a warp-wide search in place of a loop of 49 x 32; that loop had gone with the exact sums",
    ),
    Row("moments and kin", "the last block's fence before its barrier", fenced, "yes"),
)

# Instructions an item on the way that is taken nearly always, by what floors.py calls them.
RATES: dict[str, Figure] = {
    "plan": straight("plan_kernel", "", SAMPLES),
    "histogram": executed("histogram_kernel", "", 2),
    "refine": executed("refine_kernel", "", SAMPLES),
    "decide": straight("decide_kernel", "", SAMPLES),
    "order": per_position,
    "audit": executed("audit_kernel", "", 2),
    "digit": executed("digit_kernel", "IfLb1E", 4),
    "later digit": executed("digit_kernel", "IfLb0E", 4),
    "digit of records": executed("digit_kernel", "IlLb1E", 2),
    "later digit of records": executed("digit_kernel", "IlLb0E", 2),
    "mask": straight("mask_kernel", "IfE", 4),
    "observe": straight("observe_kernel", "IfLb0E", 1),
    "cross_entropy_observe": executed(LOSS, "IfLb0E", 8, "bfloat16"),
    "cross_entropy_grad": executed(GRAD, BF16, 8, also=EXP),
    "moments": executed("moments_kernel", "", 8, "bfloat16"),
    "relu_moments": executed("relu_moments_kernel", BF16, 8),
    "gelu_moments": executed("gelu_moments_kernel", "I13__nv_bfloat16Lb0E", 8),
}


def read(library: Path, *archs: str) -> dict[str, Kernels]:
    """The kernels of a library, by architecture; default all of them."""
    found: dict[str, list[Any]] = {}
    for kernel in READER.kernels(library, *archs):
        found.setdefault(kernel.arch, []).append(kernel)
    return found


def rates(kernels: Kernels) -> dict[str, float]:
    """Instructions an item of the kernels of one architecture."""
    found = {name: figure(kernels) for name, figure in RATES.items()}
    return {name: round(float(value), 2) for name, value in found.items() if value is not None}


def cell(value: float | str | None) -> str:
    """A figure for people.

    Example:
        >>> [cell(v) for v in (None, "yes", 4.0, 12.34, 65536)]
        ['', 'yes', '4', '12.3', '65,536']
    """
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,.0f}" if value == int(value) else f"{value:.1f}"


def markdown(old: dict[str, Kernels], new: dict[str, Kernels]) -> str:
    """The table, and the registers of what changed."""
    archs = sorted(new, key=lambda arch: int(arch.removeprefix("sm_")))
    others = [arch for arch in archs if arch != ARCH]
    head = ["kernel", "what", "predicted", f"before, {ARCH}", f"after, {ARCH}", *others]
    lines = [
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        "# Kernels by their machine code",
        "",
        "Made by `python bench/sass.py OLD NEW --into bench/results` from two builds; nothing here",
        "ran on a GPU. Microseconds are predictions for an H200 at a copy of 4.3 TB/s",
        "(`bench/gpu/predictions.py`); a sitting on one decides.",
        "",
        f"| {' | '.join(head)} |",
        f"| --- | --- | --- |{' ---: |' * (len(head) - 3)}",
    ]
    for row in ROWS:
        cells = [row.kernel, row.what, row.predicted]
        cells += [cell(row.figure(old[ARCH]))]
        cells += [cell(row.figure(new[arch])) for arch in (ARCH, *others)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sass.py", description=__doc__)
    parser.add_argument("old", type=Path, help="a library as it was")
    parser.add_argument("new", type=Path, help="a library as it is")
    parser.add_argument("--into", type=Path, help="folder for sass.md and sass.json")
    arguments = parser.parse_args(argv)
    old, new = read(arguments.old, ARCH), read(arguments.new)
    text = markdown(old, new)
    if arguments.into is None:
        print(text, end="")
        return 0
    figures = {arch: rates(kernels) for arch, kernels in sorted(new.items())}
    (arguments.into / "sass.md").write_text(text, encoding="utf-8")
    (arguments.into / "sass.json").write_text(
        json.dumps({"instructions an item": figures}, indent=1) + "\n", encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

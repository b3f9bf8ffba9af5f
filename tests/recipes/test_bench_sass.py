# SPDX-License-Identifier: Apache-2.0
"""The reader of machine code, on a few made-up instructions; real ones: ops/test_cuda_build.py."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _sass
import pytest

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())

# A loop that loads two vectors, uses the second, may skip a long stretch, and adds up.
LOOP = (
    "MOV R1, R2",
    "LDG.E.128 R4, desc[UR4][R2.64]",  # 0x10, where the loop begins
    "IADD3 R3, R3, 0x1, RZ",
    "LDG.E.128 R8, desc[UR4][R2.64+0x10]",
    "IMAD.WIDE.U32 R20, R21, R22, RZ",
    "FADD R1, R9, R1",  # 0x50: the first use
    "@P0 BRA 0x90",
    "MUFU.EX2 R1, R1",
    "FMUL R1, R1, R1",
    "ATOMS.ADD R1, [R3], R4",  # 0x90
    "@!P1 BRA 0x10",
    "EXIT",
)


def kernel(lines: tuple[str, ...]) -> _sass.Kernel:
    code = "\n".join(f"        /*{16 * k:04x}*/    {line} ;" for k, line in enumerate(lines))
    return _sass.Kernel("made_up_kernel", "1a14made_up_kernel", "sm_90", 8, 0, 0, code)


def test_a_loop_is_from_its_first_instruction_to_its_branch_back() -> None:
    ((first, last, body),) = kernel(LOOP).loops()
    assert (first, last, len(body)) == (0x10, 0xA0, 10)
    assert kernel(LOOP).streams() == [body]
    narrow = tuple(line.replace(".128", ".64") for line in LOOP)
    assert kernel(narrow).streams() == [], "control: no 16-byte load"


def test_loads_in_flight_are_those_before_the_first_use_of_one() -> None:
    assert kernel(LOOP).in_flight() == [2]
    sooner = tuple(line.replace("IADD3 R3, R3", "IADD3 R3, R5") for line in LOOP)
    assert kernel(sooner).in_flight() == [1, 1]


def test_what_is_issued_meanwhile_is_part_of_the_group() -> None:
    (group,) = kernel(LOOP).groups()
    assert [line for line in group if line.startswith("IMAD")] == [LOOP[4]]


def test_a_branch_that_goes_with_the_loads_is_followed() -> None:
    lines = (
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "BRA 0x30",
        "FADD R1, R4, R4",
        "NOP",
        "FADD R1, R5, R5",
    )
    (group,) = kernel((*lines, "EXIT")).groups()
    assert group == [lines[0], lines[1], lines[3]]


def test_the_shortest_way_passes_what_it_must_and_nothing_it_may_skip() -> None:
    made = kernel(LOOP)
    past_loads = made.way(0x10, 0xA0, _sass.WIDE_LOAD)
    assert len(past_loads) == 8 and "MUFU.EX2 R1, R1" not in past_loads
    with_exp = made.way(0x10, 0xA0, re.compile(r"LDG\.E\.128|MUFU"))
    assert len(with_exp) == 10, "control: with the stretch it is the whole loop"


def test_a_way_without_an_end_goes_to_where_the_thread_ends() -> None:
    assert kernel(LOOP).way(0, None, _sass.WIDE_LOAD)[-1] == "EXIT"


@pytest.fixture
def sass() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        yield importlib.import_module("sass")


def test_figures_are_of_an_item(sass: Any) -> None:
    made = [kernel(LOOP)]
    assert sass.executed("made_up_kernel", "", 4)(made) == 1.0
    assert sass.executed("made_up_kernel", "", 4, also=sass.EXP)(made) == 1.25
    assert sass.in_flight("made_up_kernel", "")(made) == 2
    assert sass.executed("no_kernel", "", 4)(made) is None


def test_a_page_has_a_line_for_each_figure_and_every_architecture(
    sass: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (sass.Row("made up", "loads", sass.in_flight("made_up_kernel", ""), "2"),)
    monkeypatch.setattr(sass, "ROWS", rows)
    one, two = [kernel(LOOP)], [kernel(tuple(line.replace("R3, R3", "R3, R5") for line in LOOP))]
    text = sass.markdown({"sm_90": two}, {"sm_100": one, "sm_90": one, "sm_80": two})
    assert "| kernel | what | predicted | before, sm_90 | after, sm_90 | sm_80 | sm_100 |" in text
    assert "| made up | loads | 2 | 1 | 2 | 1 | 2 |" in text

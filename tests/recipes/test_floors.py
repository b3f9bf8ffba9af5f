# SPDX-License-Identifier: Apache-2.0
"""The model beside every measured GPU number: what memory and issue allow."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
N22 = 14_197_122


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        names = ("floors", "gpu.operators", "gpu.place", "gpu.benchmark", "gpu.tables")
        yield SimpleNamespace(
            **{name.rpartition(".")[2]: importlib.import_module(name) for name in names}
        )


@pytest.fixture
def machine(bench: Any) -> Any:
    return bench.floors.Machine(100, 4, 1.0, 1e6, "sm_90")


RATES = {"plan": 16.0, "histogram": 1.0, "refine": 2.0, "decide": 4.0}


def test_memory_is_bytes_over_the_copy_and_issue_instructions_over_what_begins(
    bench: Any, machine: Any
) -> None:
    found = bench.floors.bound("plan", 9 * 3_200_000, machine, RATES)
    # 100,000 warps of items, 16 instructions each, 400 a cycle, 1000 cycles a microsecond.
    assert found == bench.floors.Bound(memory=28.8, issue=4.0)
    assert found.least == 28.8


@pytest.mark.parametrize(
    ("change", "memory", "issue"),
    [
        ({"multiprocessors": 200}, 1, 0.5),
        ({"issue": 1}, 1, 4),
        ({"gigahertz": 2.0}, 1, 0.5),
        ({"copy": 2e6}, 0.5, 1),
    ],
    ids=str,
)
def test_each_part_of_a_machine_counts(
    bench: Any, machine: Any, change: dict[str, Any], memory: float, issue: float
) -> None:
    other = bench.floors.Machine(**{**vars(machine), **change})
    one, two = (bench.floors.bound("plan", 9e6, each, RATES) for each in (machine, other))
    assert two.memory == pytest.approx(memory * one.memory)
    assert two.issue == pytest.approx(issue * one.issue)


def test_several_kernels_add_up_and_what_is_read_again_is_moved_again(
    bench: Any, machine: Any
) -> None:
    one = bench.floors.bound("plan", 9e6, machine, RATES)
    three = bench.floors.bound("plan, fixed counts", 9e6, machine, RATES)
    assert three.memory == pytest.approx(12 / 9 * one.memory)
    assert three.issue == pytest.approx(7 / 16 * one.issue)


def test_without_a_model_a_size_or_its_instructions_there_is_no_bound(
    bench: Any, machine: Any
) -> None:
    bound = bench.floors.bound
    assert bound("torch.sort", 9e6, machine, RATES) is None
    assert bound("plan", 0, machine, RATES) is None
    assert bound("audit", 9e6, machine, RATES) is None
    assert bound("plan", 9e6, machine, RATES) is not None, "control"


def test_an_architecture_that_was_not_read_has_no_instructions(bench: Any) -> None:
    unread = bench.floors.Machine(1, 1, 1.0, 1.0, "sm_1")
    assert bench.floors.bound("plan", 9e6, unread) is None


def test_every_model_is_of_a_row_that_is_measured_and_its_bytes_are_the_rows(bench: Any) -> None:
    floors = bench.floors
    sizes: dict[str, set[int]] = {}
    for job in bench.benchmark.jobs(bench.place.TOY):
        if job.table.split()[0] in ("epoch", "select", "observe", "logits", "activations"):
            for work in job.make():
                sizes.setdefault(work.name, set()).add(work.bytes)
    assert set(floors.WORKS) <= set(sizes)
    n = bench.place.TOY.n
    for name, items in (("plan", n), ("audit", n), ("percentiles", n), ("top half", n)):
        assert floors.WORKS[name].counted * items in sizes[name], name
    assert all(work.moved >= work.counted for work in floors.WORKS.values())


def test_what_is_committed_has_every_kernel_of_a_model_for_four_architectures(bench: Any) -> None:
    floors = bench.floors
    wanted = {kernel for work in floors.WORKS.values() for kernel in work.kernels}
    for arch in ("sm_80", "sm_90", "sm_100", "sm_120"):
        assert wanted <= set(floors.instructions(arch)), arch


def test_at_full_size_a_bound_is_of_microseconds(bench: Any, capsys: Any) -> None:
    floors = bench.floors
    for name, size in floors.SIZES.items():
        found = floors.bound(name, size)
        assert found is not None, name
        assert 0.1 < found.least < 5000, name
    assert floors.main([]) == 0
    assert "| plan |" in capsys.readouterr().out


def test_the_tables_print_it_beside_what_was_measured(bench: Any) -> None:
    row = {
        "part": "benchmark", "table": "epoch", "n": N22, "name": "plan, fixed counts",
        "bytes": 9 * N22, "p50_us": 90.0, "p20_us": 90.0, "p80_us": 90.0,
    }  # fmt: skip
    found = bench.floors.bound(row["name"], row["bytes"])
    columns = bench.tables.TIMES
    assert columns["issue"](row, None) == bench.tables.number(found.issue)
    assert columns["moved"](row, None) == bench.tables.number(found.memory)
    slower = bench.floors.H200.copy / 2
    assert columns["moved"](row, slower) == bench.tables.number(2 * found.memory)
    triton = {**row, "table": "triton epoch"}
    assert columns["issue"](triton, None) == columns["moved"](triton, None) == ""

# SPDX-License-Identifier: Apache-2.0
"""The sitting on a GPU, whole and at toy size on the CPU: nothing in it is first tried on a GPU.

The reference stands in for the CUDA kernels, and stand-ins for the programs of NVIDIA.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _stand_ins
import pytest
import torch

from prune_engine.backends import surroundings

pytestmark = pytest.mark.full("sits, whole or in part")

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
SITTING = ROOT / "bench/sitting.py"
# What stands for the project's own tests: one that fails, one that breaks its process, and others.
TESTS = """
import os, time
import pytest

pytestmark = pytest.mark.cuda
def test_good_33(): pass
def test_warns_1025(): __import__("warnings").warn("of a newer torch")
def test_bad_views(): assert 1 == 2, "two is not one"
def test_dies(): os._exit(3) if os.environ.get("SANITIZE") != "1" else None
def test_after_that_views(): pass
def test_a_compiled_step(): pass
@pytest.mark.triton
def test_of_the_other_backend(): pass
@pytest.mark.distributed
def test_ranks(): pass
@pytest.mark.skip
def test_left_out(): pass
"""
INI = "[pytest]\nmarkers =\n cuda\n triton\n distributed\nfilterwarnings = error\n"


@pytest.fixture(scope="module")
def tests_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    (folder / "deeper").mkdir()
    (folder / "pytest.ini").write_text(INI, encoding="utf-8")
    (folder / "deeper/test_kernels.py").write_text(TESTS, encoding="utf-8")
    (folder / "test_other.py").write_text("raise ImportError('not to be read')", encoding="utf-8")
    (folder / "_overrun.py").write_text("raise SystemExit('only under a tool')", encoding="utf-8")
    return folder


def environ(programs: Path | None = None, **more: str) -> dict[str, str]:
    """Variables of a call; without the stand-ins there is none of NVIDIA's programs."""
    here = {name: value for name, value in os.environ.items() if name != "OUT"}
    path = [str(programs)] if programs else []
    return here | {"PATH": os.pathsep.join([*path, here["PATH"]]), "OMP_NUM_THREADS": "1", **more}


def sit(*words: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SITTING), *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def document(folder: Path, number: int) -> dict[str, Any]:
    return json.loads((folder / f"call-{number}.json").read_text(encoding="utf-8"))


def rows(found: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found["rows"] if row["part"] == part}


class Whole:
    """The three calls, each made once, when it is first asked for, in any order."""

    def __init__(self, folder: Path, tests: Path) -> None:
        self.programs, self.record = _stand_ins.make(folder)
        self.folder = folder / "out"
        env = environ(self.programs, OUT=str(self.folder))
        common = ("--size", "toy", "--tests", tests)
        old = folder / "old.so"
        shutil.copyfile(surroundings.LIBRARY, old)
        more: dict[int, tuple[object, ...]] = {
            1: (),
            2: ("--first", "initcheck"),
            3: ("--old", old),
        }
        self.done = functools.cache(lambda n: sit(n, *common, *more[n], env=env))

    def document(self, number: int) -> dict[str, Any]:
        """What a call put down."""
        self.done(number)
        return document(self.folder, number)

    def asked(self, program: str) -> list[tuple[list[str], dict[str, str]]]:
        """What the first two calls asked of a program: words and variables."""
        for number in (1, 2):
            self.done(number)
        return _stand_ins.calls(self.record, program)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tests_folder: Path) -> Iterator[Whole]:
    yield Whole(tmp_path_factory.mktemp("whole"), tests_folder)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_call_is_whole_and_its_table_comes_last(whole: Whole, number: int) -> None:
    done, found = whole.done(number), whole.document(number)
    assert found["ended"] == "whole", done.stderr
    assert done.stdout.startswith(f"call {number}: device cpu")
    assert len(done.stdout) < 12_000
    page = (whole.folder / f"call-{number}.md").read_text(encoding="utf-8")
    for row in found["rows"]:
        assert f"| {row['name'].replace('|', '/')} |" in page
    facts = found["facts"]
    assert facts["library_sha256"] and facts["library_build"] and facts["torch"]
    assert {"at the start", "at the end"} <= set(rows(found, "machine"))


def test_clocks_are_read_and_never_set(whole: Whole) -> None:
    asked = whole.asked("nvidia-smi")
    assert len(asked) >= 6, "at the start, under load, at the end"
    for words, _ in asked:
        assert [word.partition("=")[0] for word in words] == ["--query-gpu", "--format"]
    read = rows(whole.document(1), "machine")
    assert any(name.startswith("under load") for name in read)
    assert read["at the start"]["read"]["clocks.sm"] == "345 MHz"
    assert read["at the start"]["read"]["power.limit"] == "700 W"


def test_the_benchmark_has_every_row(whole: Whole) -> None:
    found = rows(whole.document(1), "benchmark")
    ours = "plan|plan, fixed counts|compact|order, all|audit|percentiles|top half|observe|moments"
    ours += "|engine.observe, backward|activation_std|cross_entropy_observe|cross_entropy_grad"
    rivals = "sort quantile kthvalue randperm argsort nonzero relu_ mean"
    steps = {"plain", "with observe", "with BPAS", "with BPAS, fuse=True"}
    assert set(found) >= {*ours.split("|"), *(f"torch.{name}" for name in rivals.split()), *steps}
    assert {"copy", "torch.topk, half"} <= set(found)
    for row in found.values():
        assert row["p20_us"] <= row["p50_us"] <= row["p80_us"]


def test_tests_are_counted_past_what_ends_their_process(whole: Whole) -> None:
    found = {row["table"]: row for row in whole.document(1)["rows"] if row["name"] == "all"}
    total = found["compiled kernels"]
    assert (total["passed"], total["failed"], total["skipped"]) == (3, 2, 1)
    assert "of 6, 0 not reached" in total["note"]
    faults = {row["name"].rpartition("::")[2]: row["fault"] for row in whole_faults(whole, 1)}
    assert set(faults) == {"test_bad_views", "test_dies"}
    assert "two is not one" in faults["test_bad_views"]
    assert "3" in faults["test_dies"]
    assert whole.done(1).returncode == 1


def whole_faults(whole: Whole, number: int) -> list[dict[str, Any]]:
    return [row for row in whole.document(number)["rows"] if row.get("fault")]


def test_ncu_counts_each_operator_and_leaves_the_clocks(whole: Whole) -> None:
    ((words, _),) = whole.asked("ncu")
    assert words[words.index("--clock-control") + 1] == "none"
    assert words[words.index("--profile-from-start") + 1] == "off"
    metrics = words[words.index("--metrics") + 1]
    for metric in ("time_duration", "dram__bytes_read", "dram__bytes_write", "sectors", "issue"):
        assert metric in metrics
    assert str(ROOT / "bench/once.py") in words
    found = [row for row in whole.document(2)["rows"] if row["part"] == "counters"]
    assert [(row["table"], row["name"].partition(" ")[0]) for row in found] == [
        ("observe", "observe_kernel"),
        ("observe_mean", "observe_kernel"),
        ("plan", "plan_kernel"),
        ("plan", "offsets_kernel"),
        ("plan, fixed counts", "cut_kernel"),
    ]
    assert {(row["us"], row["DRAM MB"]) for row in found} == {(35.0, 120.0)}


def test_the_sanitizer_begins_with_the_planted_fault_and_then_where_it_is_told(
    whole: Whole,
) -> None:
    called = whole.asked("compute-sanitizer")
    tools = [words[words.index("--tool") + 1] for words, _ in called]
    assert tools == ["memcheck", "initcheck", "synccheck", "memcheck", "racecheck"]
    assert called[0][0][-1].endswith("_overrun.py")
    for words, variables in called:
        assert words[words.index("--error-exitcode") + 1] == "9"
        assert variables == {"SANITIZE": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        assert ("kns=prune_engine" in words) == ("initcheck" not in words)
    found = rows(whole.document(2), "sanitizer")
    assert found["a planted fault, memcheck"]["note"] == "seen"
    for tool in tools:
        # A test that fails under a tool is no fault of memory, and no silence either.
        assert (found[tool]["tests"], found[tool]["faults"]) == (4, 0)
        assert "test_bad_views" in found[tool]["fault"]


def test_the_third_call_has_all_its_parts(whole: Whole) -> None:
    found = whole.document(3)
    captured = rows(found, "capture")
    assert len(captured) >= 18 and {row["result"] for row in captured.values()} == {"ok"}
    compiled = rows(found, "compile")
    assert {row["skipped"] for row in compiled.values()} == {"0"}
    assert {row["result"] for row in compiled.values()} == {"as eager"}
    trained = rows(found, "training")
    assert trained["every sample"]["samples"] > trained["InfoBatch"]["samples"] > 0
    assert trained["every sample"]["epochs"] == trained["InfoBatch"]["epochs"]
    compared = rows(found, "versions")
    assert compared["plan"]["old/new"] > 0
    tests = {row["table"]: row["passed"] for row in found["rows"] if row["name"] == "all"}
    assert tests == {"NCCL": 1, "Triton and torch.compile": 2}
    assert [row for row in found["rows"] if row.get("table") == "reference epoch"]
    assert whole.done(3).returncode == 0, whole.done(3).stdout


def test_without_nvidias_programs_a_call_says_what_it_left_out(
    tmp_path: Path, tests_folder: Path
) -> None:
    if any(map(shutil.which, ("ncu", "compute-sanitizer"))):
        pytest.skip("they are here")
    done = sit(2, "--size", "toy", "--out", tmp_path, "--tests", tests_folder, env=environ())
    assert done.returncode == 0
    assert "left out: ncu is not on PATH" in done.stdout
    assert "left out: compute-sanitizer is not on PATH" in done.stdout


def test_faults_that_the_tools_meet_are_told(tmp_path: Path, tests_folder: Path) -> None:
    programs, record = _stand_ins.make(tmp_path, unknown="lts__t_sectors.sum", faulty="racecheck")
    env = environ(programs)
    words = (2, "--size", "toy", "--out", tmp_path, "--tests", tests_folder)
    done = sit(*words, env=env)
    assert done.returncode == 1
    found = document(tmp_path, 2)
    assert rows(found, "sanitizer")["racecheck"]["fault"].startswith("1 reports")
    asked = [words[words.index("--metrics") + 1] for words, _ in _stand_ins.calls(record, "ncu")]
    assert len(asked) == 2 and "lts__t_sectors.sum" not in asked[1], "fewer metrics, not none"
    assert rows(found, "counters")["plan_kernel #3"]["DRAM MB"] == 120.0


def test_control_where_the_planted_fault_is_not_seen_no_tool_runs(
    tmp_path: Path, tests_folder: Path
) -> None:
    programs, record = _stand_ins.make(tmp_path, planted=0)
    words = (2, "--size", "toy", "--out", tmp_path, "--tests", tests_folder, "--only", "sanitizer")
    done = sit(*words, env=environ(programs))
    assert done.returncode == 1
    assert len(_stand_ins.calls(record, "compute-sanitizer")) == 1
    assert "does not see a known fault" in done.stdout


# Sends a signal to the call itself once so many rows have been put down; "late" keeps nothing on
# the disk before the end, which is what the check must notice.
KILLER = """
import os, sys
sys.path.insert(0, {bench!r})
import sitting
from gpu import ledger
put, count = ledger.Ledger.put, [0]
if {late}:
    save = ledger.Ledger.save
    ledger.Ledger.save = lambda self: save(self) if count[0] == 0 else None
def counted(self, *rows):
    count[0] += 1
    put(self, *rows)
    if count[0] == {after}:
        print(len(self.rows), file=sys.stderr, flush=True)
        os.kill(os.getpid(), {number})
ledger.Ledger.put = counted
sys.exit(sitting.main(sys.argv[1:]))
"""


def killed(
    folder: Path, number: signal.Signals, after: int, words: tuple[object, ...], late: bool = False
) -> tuple[int, dict[str, Any], str, int, str]:
    """A call that is ended at a row: status, document, page, rows there were, what it printed."""
    program = KILLER.format(bench=str(ROOT / "bench"), after=after, number=int(number), late=late)
    common = ("--size", "toy", "--out", folder)
    command = [sys.executable, "-c", program, *map(str, (*words, *common))]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True, timeout=300)
    there = int(done.stderr.splitlines()[-1])
    call = int(str(words[0]))
    page = (folder / f"call-{call}.md").read_text(encoding="utf-8")
    return done.returncode, document(folder, call), page, there, done.stdout


def is_kept(found: dict[str, Any], page: str, there: int) -> bool:
    """Whether both files have every row that there was."""
    names = [row["name"] for row in found["rows"]]
    return len(names) == there and all(f"| {name} |" in page for name in names)


BENCHMARK: tuple[object, ...] = (1, "--only", "benchmark")
THIRD: tuple[object, ...] = (3, "--only", "capture", "compile")


@pytest.mark.parametrize(
    ("number", "after", "words"),
    [
        (signal.SIGKILL, 8, BENCHMARK),
        (signal.SIGKILL, 3, (2,)),
        (signal.SIGKILL, 1, BENCHMARK),
        (signal.SIGTERM, 14, BENCHMARK),
        (signal.SIGINT, 22, THIRD),
    ],
    ids=str,
)
def test_a_call_that_is_ended_at_a_row_leaves_a_table_of_what_was_done(
    tmp_path: Path, number: signal.Signals, after: int, words: tuple[object, ...]
) -> None:
    status, found, page, there, printed = killed(tmp_path, number, after, words)
    assert there >= 1
    assert is_kept(found, page, there)
    if number == signal.SIGKILL:
        assert (status, found["ended"]) == (-number, "unfinished")
    else:
        assert (status, found["ended"]) == (128 + number, f"ended by {number.name}")
        assert printed.startswith(f"call {words[0]}: ")
        assert all(row["name"] in printed for row in found["rows"])
    assert not list(tmp_path.glob("*.new"))


def test_control_a_call_that_saves_at_its_end_only_leaves_nothing(tmp_path: Path) -> None:
    _, found, page, there, _ = killed(tmp_path, signal.SIGKILL, 4, BENCHMARK, late=True)
    assert there >= 3
    assert not is_kept(found, page, there)


def test_make_gpu_without_a_gpu_fails_with_one_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    command = ["make", "gpu", f"GPU_PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=environ(), capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode != 0
    assert done.stdout == ""
    assert said == ["the sitting needs a GPU, and torch finds none"]

# SPDX-License-Identifier: Apache-2.0
"""What is timed on a GPU, how, and how it is told; run here on the CPU at a toy size."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prune_engine import backends

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
MODULES = (
    *("child", "clock", "counters", "events", "ledger", "library", "machine", "operators"),
    *("place", "predictions", "rivals", "sanitizer", "session", "steps", "suites", "tables"),
)


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        modules = {name: importlib.import_module(f"gpu.{name}") for name in MODULES}
        yield SimpleNamespace(**modules, floors=importlib.import_module("floors"))


@pytest.fixture
def own_rng() -> Iterator[None]:
    """A net's first weights come from torch's global generator."""
    with torch.random.fork_rng():
        yield


@pytest.mark.usefixtures("own_rng")
def test_resnet_50_has_the_activations_that_are_counted(gpu: Any) -> None:
    shapes = list(gpu.operators.post_relu_shapes(224))
    assert len(shapes) == 49
    assert shapes[0] == (64, 112, 112) and shapes[-1] == (2048, 7, 7)
    assert sum(c * h * w for c, h, w in shapes) == 9_608_704
    net = importlib.import_module("gpu.nets").resnet50(width=4)
    seen: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(lambda m, i, out: seen.append(tuple(out.shape[1:])))
    net(torch.zeros(2, 3, 32, 32))
    assert seen == list(gpu.operators.post_relu_shapes(32, 4))


def test_every_operator_is_called_and_has_the_bits_of_the_reference(gpu: Any) -> None:
    declared = {name for name in vars(backends.Kernels) if name[0] != "_"} - {"CHECKS_ARGUMENTS"}
    called: set[str] = set()

    class Watched:
        def __init__(self, name: str) -> None:
            self._kernels = backends.load(name)

        def __getattr__(self, name: str) -> Any:
            called.add(name)
            return getattr(self._kernels, name)

    sizes = (9000, (6, 50), 1, 32, "cpu")
    pairs = zip(
        *(gpu.operators.all_operators(Watched(name), *sizes) for name in ("reference", "cpu")),
        strict=True,
    )
    exact = "draw plan_top plan compact order audit mean_threshold shuffle percentiles top pick"
    compared = 0
    for want, got in pairs:
        assert want.name == got.name and want.bytes == got.bytes
        results = [work.call() for work in (want, got)]
        if want.name.split(",")[0].split()[0] in exact.split():
            assert torch.equal(*results), want.name
            compared += 1
    assert compared >= 10
    assert called == declared


def test_each_timed_observe_changes_every_record(gpu: Any) -> None:
    kernels = backends.load("cpu")
    made = gpu.operators.Batches(1000, 50, 4, "cpu")
    work = gpu.operators.observe_operator(kernels, made)
    for _ in range(3):
        before = made.records.clone()
        work.prepare()
        work.call()
        assert int((made.records != before).sum()) == 200
    before = made.records.clone()
    work.call()
    assert torch.equal(made.records, before), "control: without news nothing changes"


def test_a_flush_only_reads(gpu: Any) -> None:
    clock = gpu.clock.Clock(gpu.place.TOY)
    flush = clock._flush
    version = flush._version
    assert flush.numel() * flush.element_size() == gpu.place.TOY.flush_mib << 20
    clock(lambda: None)
    assert flush._version == version
    assert gpu.place.FULL.flush_mib >= 4 * 60, "an H200's cache, four times"


def test_what_is_refused_says_why_and_the_others_are_timed(gpu: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu.rivals, "QUANTILE_LIMIT", 999)
    made = gpu.operators.Scored(1000, "cpu")
    rows = [gpu.clock.Row("epoch", 1000, work) for work in gpu.rivals.epoch_rivals(made)]
    begun: list[str] = []
    for _ in gpu.clock.measure(gpu.clock.Clock(gpu.place.TOY), rows, 4, False, begun.append):
        pass
    refused = {row.work.name: row.refused for row in rows if row.refused}
    assert refused == {"torch.quantile": "torch.quantile takes at most 999 elements"}
    assert {len(row.times) for row in rows} == {0, 4}
    assert len(begun) == len(rows) + 4 * (len(rows) - 1), "a hang is known by its row"


@pytest.mark.usefixtures("own_rng")
def test_the_images_are_random(gpu: Any, monkeypatch: Any) -> None:
    seen: list[torch.Tensor] = []
    forward = torch.nn.Conv2d.forward
    monkeypatch.setattr(
        torch.nn.Conv2d, "forward", lambda self, x: (seen.append(x), forward(self, x))[1]
    )
    gpu.steps.resnet_works(gpu.place.TOY)[0].call()
    assert float(seen[0].std()) == pytest.approx(1.0, abs=0.1)


PROGRAM = """
import json, os, sys, time
sys.path.insert(0, {bench!r})
from gpu import events
for key in "abcd":
    if key in events.finished():
        continue
    events.emit("begin", key=key)
    if key == "b":
        events.emit("fault", why="illegal address")
        sys.exit(70)
    if key == "c":
        time.sleep(60)
    events.emit("end", key=key)
"""


def test_a_program_goes_on_past_what_breaks_or_hangs_it(
    gpu: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gpu.child, "WORTH_A_START", 0.0)
    monkeypatch.setattr(gpu.child, "GRACE", 0.2)
    heard: list[Any] = []
    command = [sys.executable, "-c", PROGRAM.format(bench=str(ROOT / "bench"))]
    ending = gpu.child.relay(
        command, limit=40, silence=2.0, hear=heard.append, log=tmp_path / "log", cwd=tmp_path,
        environ={},
    )  # fmt: skip
    assert ending.status == 0
    assert [e["key"] for e in heard if e["kind"] == "end"] == ["a", "d"]
    lost = {e["key"]: e["why"] for e in heard if e["kind"] == "lost"}
    assert lost == {"b": "illegal address", "c": "nothing was heard for 2 s"}


@pytest.mark.full("waits for limits")
def test_a_limit_ends_a_program_with_all_it_started(
    gpu: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gpu.child, "GRACE", 0.2)
    marker = tmp_path / "alive"
    inner = f"import time; time.sleep(3); open({str(marker)!r}, 'w')"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    ending = gpu.child.run(
        [sys.executable, "-c", outer], limit=1.0, log=tmp_path / "log", cwd=tmp_path, environ={}
    )
    assert ending.reason == "its 1 s were over" and ending.status != 0
    again = gpu.child.run(
        [sys.executable, "-c", "import time; time.sleep(4)"],
        limit=10, log=tmp_path / "log", cwd=tmp_path, environ={},
    )  # fmt: skip
    assert again.status == 0 and not marker.exists()


def test_only_files_with_the_marker_are_read(gpu: Any, tmp_path: Path) -> None:
    found = gpu.suites.files(ROOT / "tests")
    assert {"test_cuda.py", "test_triton_device.py", "test_one_rank.py"} <= {p.name for p in found}
    assert Path(__file__) not in found
    assert list((ROOT / "tests").rglob("_overrun.py")), "the planted fault"


def test_a_missing_library_is_built_for_this_gpu_alone(
    gpu: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    answers = [{"gpu": True, "arch": "9.0", "refused": "none", "library": "x", "commit": "c"}]
    answers.append({**answers[0], "refused": ""})
    built: list[Any] = []

    def build(command: list[str], **options: Any) -> Any:
        built.append((command, options["environ"]))
        return gpu.child.Ending(0, "", 1.0)

    monkeypatch.setattr(gpu.library, "probe", lambda session: answers.pop(0))
    monkeypatch.setattr(gpu.library.child, "run", build)
    ledger = gpu.ledger.Ledger(1, tmp_path, {})
    session = gpu.session.Session(ledger, gpu.place.FULL, tmp_path, 100.0)
    gpu.library.prepare(session)
    ((command, variables),) = built
    assert command[1:] == ["setup.py", "--quiet", "build_ext", "--inplace"]
    asked = {name: variables[name] for name in ("PE_CUDA_ARCHS", "PE_HOST", "PE_CUDA")}
    assert asked == {"PE_CUDA_ARCHS": "9.0", "PE_HOST": "0", "PE_CUDA": "1"}
    assert "built here" in ledger.rows[-1]["note"]


@pytest.mark.parametrize("first", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_the_order_of_the_tools_rotates(gpu: Any, first: str) -> None:
    order = gpu.sanitizer.order(first)
    assert order[0] == first and set(order) == set(gpu.sanitizer.TOOLS)
    doubled = 2 * gpu.sanitizer.TOOLS
    place = doubled.index(first)
    assert order == doubled[place : place + 4]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0),
        ("========= Invalid __global__ read of size 4\n========= ERROR SUMMARY: 3 errors\n", 3),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (1 error)\n", 2),
        ("========= Invalid __global__ write of size 4\n=========   at plan\n", 1),
        ("========= COMPUTE-SANITIZER\nInvalid in a test's own words\n", 0),
    ],
)
def test_reports_are_counted_with_and_without_a_summary(gpu: Any, text: str, count: int) -> None:
    assert gpu.sanitizer.reports(text) == count


def a_document(*rows: dict[str, Any]) -> dict[str, Any]:
    facts = {"device": "NVIDIA H200", "torch": "2.11", "commit": "abc", "library_sha256": "1"}
    return {
        "format": 1, "kind": "sitting", "call": 1, "started": "2030-01-02 03:04 UTC",
        "ended": "whole", "seconds": 9.0, "facts": facts, "rows": list(rows),
    }  # fmt: skip


def timed(table: str, n: int, name: str, p50: float, size: int = 0) -> dict[str, Any]:
    row = {"part": "benchmark", "table": table, "n": n, "name": name, "bytes": size}
    return {**row, "p50_us": p50, "p20_us": p50, "p80_us": p50}


def test_prediction_floor_and_measurement_stand_side_by_side(gpu: Any) -> None:
    n = gpu.place.N22
    document = a_document(
        timed("ceiling", 0, "copy", 2000.0, 8_600_000_000),
        timed("epoch", n, "plan", 72.0, 9 * n),
        timed("epoch", n, "order, all", 85.0),
        timed("epoch", n, "torch.argsort", 700.0),
        timed("epoch", n, "compact", 7.0),
    )
    text = gpu.tables.markdown([document])
    assert "a copy at 4.30 TB/s" in text
    issue = gpu.tables.number(gpu.floors.bound("plan", 9 * n).issue)
    assert f"| plan | 34-36 | 29.7 | 29.7 | {issue} | 72 | 72 | 72 | 41% | slower, 2.00x |" in text
    assert "| order, all | 80-100 or 68-90 | 17 |  | 45 | 85 | 85 | 85 |  | as predicted |" in text
    assert "| compact | 14 | 11.9 |  |  | 7 | 7 | 7 |  | faster, 2.00x |" in text
    assert "| torch.argsort |  |  |  |  | 700 | 700 | 700 |  |  |" in text


@pytest.mark.usefixtures("own_rng")
def test_every_prediction_is_of_a_row_that_is_measured(gpu: Any) -> None:
    full, toy = gpu.place.FULL, gpu.place.TOY
    benchmark = importlib.import_module("gpu.benchmark")
    jobs = [*benchmark.jobs(full), *benchmark.other_jobs(full, "triton")]
    tables = {(job.table, job.n) for job in jobs}
    small = [*benchmark.jobs(toy), *benchmark.other_jobs(toy, "reference")]
    names: dict[str, set[str]] = {}
    for job in small:
        kind = job.table.split()[-1] if job.table.startswith("reference") else job.table.split()[0]
        names.setdefault(kind, set()).update(work.name for work in job.make())
    for table, n, name in gpu.predictions.PREDICTIONS:
        assert (table, n) in tables
        kind = table.split()[-1] if table.startswith("triton") else table.split()[0]
        assert name.removesuffix(", in a graph") in names[kind]


def test_a_brief_table_keeps_faults_and_the_most_wanted_rows(gpu: Any) -> None:
    rows = [timed("epoch", 5, f"row {k}", 1.0) for k in range(2000)]
    rows.append({"part": "tests", "table": "t", "name": "late", "fault": "it failed"})
    text = gpu.tables.brief([a_document(*rows)])
    assert len(text) <= gpu.tables.BRIEF
    assert "FAULT tests / t / late: it failed" in text.splitlines()[1]
    assert "row 0 " in text and "row 1999 " not in text
    assert "rows more in the files" in text.splitlines()[-1]
    assert "rows more" not in gpu.tables.brief([a_document(*rows[:3])])


def test_a_row_takes_the_place_of_its_older_self(gpu: Any, tmp_path: Path) -> None:
    ledger = gpu.ledger.Ledger(2, tmp_path, {})
    ledger.put(timed("epoch", 5, "plan", 1.0), timed("epoch", 5, "audit", 2.0))
    ledger.put(timed("epoch", 5, "plan", 3.0))
    saved = gpu.ledger.load(tmp_path / "call-2.json")
    assert [(row["name"], row["p50_us"]) for row in saved["rows"]] == [
        ("plan", 3.0),
        ("audit", 2.0),
    ]
    (tmp_path / "call-3.json").write_text(json.dumps({"kind": "gpu"}), encoding="utf-8")
    with pytest.raises(ValueError, match="expected a sitting"):
        gpu.ledger.load(tmp_path / "call-3.json")


def test_a_place_that_is_full_differs_from_its_toy_in_every_size(gpu: Any) -> None:
    full, toy = gpu.place.FULL, gpu.place.TOY
    assert full.n == 14_197_122
    assert full.logits[0] == (2048, 50_257) and (256, 1000) in full.logits
    for name in ("samples", "batches", "images", "side", "rounds", "trained", "backend"):
        assert getattr(full, name) != getattr(toy, name)
    assert dataclasses.replace(toy, name="x") != toy

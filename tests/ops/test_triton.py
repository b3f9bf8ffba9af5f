# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: its bits, its launches, no look at a device from the host, its refusals."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import prune_engine as pe
from prune_engine import backends
from prune_engine.backends import reference

pytestmark = pytest.mark.triton

TESTS = Path(__file__).resolve().parents[1]
OPS = (
    *("observe", "observe_mean", "mean_threshold", "plan", "compact", "order", "shuffle", "audit"),
    *("draw", "plan_top"),
    *("moments", "activation_std", "relu_moments", "gelu_moments"),
    *("select", "top", "pick"),
    *("cells", "solve_levels", "plan_levels"),
    *("cross_entropy_observe", "cross_entropy_grad"),
)
TIERS = {"short": "triton and not full", "full": "triton and full"}
Outcomes = dict[str, str | None]


@pytest.fixture
def launches() -> Any:
    """Return the recorder of launches, where Triton is."""
    pytest.importorskip("triton")
    import _triton_launches

    return _triton_launches


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcomes]:
    """Return what runs the short or the full tests of triton_parity*.py, each once."""
    pytest.importorskip("triton")
    return functools.cache(lambda tier: interpreted(tier, tmp_path_factory.mktemp("triton")))


def interpreted(tier: str, folder: Path) -> Outcomes:
    """Run them: name of each test -> what it failed with, or None."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", TIERS[tier]]
    run = subprocess.run(
        [*command, f"--junit-xml={report}", *map(str, sorted(TESTS.glob("triton_parity*.py")))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr  # 1: some test failed
    found: Outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        found[case.attrib["name"]] = "\n".join(str(child.text) for child in bad) or None
    return found


@pytest.mark.parametrize("op", OPS)
def test_interpreted_kernels_have_the_bits_of_the_reference(
    op: str, outcomes: Callable[[str], Outcomes]
) -> None:
    found = outcomes("short")
    mine = {name: fault for name, fault in found.items() if name.startswith(f"test_{op}_")}
    assert any("equals_the_reference" in name for name in mine)
    assert {name: fault for name, fault in mine.items() if fault} == {}


@pytest.mark.full("long under the interpreter")
def test_interpreted_kernels_have_them_at_every_size(outcomes: Callable[[str], Outcomes]) -> None:
    found = outcomes("full")
    assert {"observe", "plan", "order"} <= {name.split("_")[1] for name in found}
    assert {name: fault for name, fault in found.items() if fault} == {}


@pytest.mark.parametrize(
    "tier", ["short", pytest.param("full", marks=pytest.mark.full("as it is"))]
)
def test_every_interpreted_test_belongs_to_an_operator(
    tier: str, outcomes: Callable[[str], Outcomes]
) -> None:
    prefixes = tuple(f"test_{op}_" for op in OPS)
    assert [name for name in outcomes(tier) if not name.startswith(prefixes)] == []


def test_operators_launch_as_often_as_they_should_and_never_look_at_a_number(launches: Any) -> None:
    counts = {
        label: len(launches.recorded(label, call)) for label, (call, _) in launches.CALLS.items()
    }
    assert counts == {label: count for label, (_, count) in launches.CALLS.items()}
    assert {label.split("-")[0] for label in counts} == set(OPS)


def test_a_look_at_a_number_is_caught(launches: Any) -> None:
    # What is raised depends on whether this torch has CUDA at all.
    with pytest.raises(RuntimeError, match=r"_local_scalar_dense|not linked with support for cuda"):
        launches.recorded("control", lambda: launches.plan(2)[-1].item())


def test_contraction_is_off_and_the_device_is_the_tensors(launches: Any) -> None:
    options: dict[str, object] = {}

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **given: options.update(given, grid=grid, args=arguments)

    launch = launches.module("launch").launch
    launch(Kernel(), 3, torch.zeros(1), 5, warps=2, BLOCK=16)
    assert options["enable_fp_fusion"] is False
    assert (options["grid"], options["args"], options["num_warps"]) == ((3,), (5,), 2)
    assert options["BLOCK"] == 16


def test_round_keys_and_encoded_numbers(launches: Any) -> None:
    steady = launches.module("arithmetic").steady
    values = (0, 1, 16, 2**32 - 1, 2**39 - 1)
    assert all(code % 2 == 1 and 2**40 < code < 2**41 for code in steady(*values))
    assert [(code >> 1) & (2**39 - 1) for code in steady(*values)] == list(values)
    keys = launches.module("order").round_keys(70_000, 2**63 - 1, 5)
    zero = torch.zeros((), dtype=torch.int64)
    words = [
        word
        for call in (1, 2)
        for word in reference.philox4x32(
            zero + 70_000, zero, zero + call, zero + 5, zero + 2**32 - 1, zero + 2**31 - 1
        )
    ]
    assert keys == steady(*(int(word) for word in words))


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make the backend load anew, with some modules missing."""
    package = "prune_engine.backends.triton"
    for name in list(sys.modules):
        if name == package or name.startswith(f"{package}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(backends, "triton", raising=False)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    backends.load.cache_clear()


def test_without_triton_the_row_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "triton")
    with pytest.raises(RuntimeError, match="triton is not installed; run `pip install triton`"):
        backends.load("triton")
    status = next(row for row in backends.describe() if row.name == "triton")
    assert not status.available
    assert "not installed" in status.reason
    with pytest.raises(RuntimeError, match="not installed"):
        pe.ops.mean_threshold(torch.zeros(10, dtype=torch.int64), backend="triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it can run")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="here it is interpreted")
def test_without_a_device_the_row_says_why() -> None:
    pytest.importorskip("triton")
    with pytest.raises(RuntimeError, match=r"finds no device .*TRITON_INTERPRET=1"):
        backends.load("triton")


def test_the_row_stands_after_cuda_and_is_never_chosen_for_the_cpu() -> None:
    names = [row.name for row in backends.TABLE]
    assert names.index("cuda") < names.index("triton") < names.index("reference")
    assert backends.resolve("auto", "cpu") == "cpu"

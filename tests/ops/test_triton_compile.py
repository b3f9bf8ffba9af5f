# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels as machine code, without a GPU: compiled ahead of time, then read.

A kernel is compiled as its own launch would compile it, for every generation of devices. Read are
ptxas's figures and the instructions, by the cuobjdump in Triton's wheel.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import _triton_launches as launches  # noqa: E402 - only where triton is
from _triton_launches import CALLS, Launch, recorded  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

pytestmark = [pytest.mark.triton, pytest.mark.full("compiles each kernel four times")]

CAPABILITIES = (80, 90, 100, 120)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Those that stream over all samples must load 16 bytes at a time.
WIDE = (
    *("plan_kernel", "compact_kernel", "audit_kernel", "moments_kernel"),
    *("plan_levels_kernel", "cells_kernel"),
)
POINTERS = {
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}

# Triton 3.9's assembler puts 8 bytes a thread on the stack where one more block of threads then
# fits a multiprocessor (80 and 128 registers); those before it keep everything in registers.
STACK_BYTES = 8 if Version(triton.__version__) >= Version("3.9") else 0

RECORDED = [launch for label, (call, _) in CALLS.items() for launch in recorded(label, call)]
LAUNCHES = list({(launch.name, str(launch.constants), str(launch.arguments)): launch
                 for launch in RECORDED}.values())  # fmt: skip


# The last digit differs from the one before in nothing but the numbers of its shifts.
PARAMETERS = [
    pytest.param(
        launch,
        marks=[pytest.mark.slow] * (launch.constants.get("LEVEL") == 2),
        id=f"{launch.label}:{launch.name}",
    )
    for launch in LAUNCHES
]


def compiled(launch: Launch, capability: int, *, aligned: bool = True, **options: Any) -> bytes:
    """Return the cubin of a launch for one generation of devices.

    Args:
        launch: what was launched; its tensors count as aligned to 16 bytes, as torch makes them.
        capability: such as 90.
        aligned: False for tensors that may begin anywhere.
        options: of Triton's compiler.
    """
    signature: dict[str, object] = {}
    constants: dict[tuple[int, ...], object] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    values = iter(launch.arguments)
    for at, param in enumerate(launch.kernel.params):
        if param.is_constexpr:
            signature[param.name] = "constexpr"
            constants[(at,)] = launch.constants[param.name]
            continue
        value = next(values)
        if isinstance(value, torch.Tensor):
            signature[param.name] = POINTERS[value.dtype]
            attributes[(at,)] = [["tt.divisibility", 16]] if aligned else []
        elif isinstance(value, tuple):
            # Every entry must be one that Triton specialises in only one way (arithmetic.steady).
            assert all(entry % 2 == 1 and entry >= 2**32 for entry in value), param.name
            signature[param.name] = ("i64",) * len(value)
        else:
            # A number of unknown value and known width, or each value would compile anew.
            assert param.do_not_specialize and param.annotation_type, param.name
            signature[param.name] = param.annotation_type
    source = ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.warps, "enable_fp_fusion": False, **options}
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options).asm["cubin"]


def dump(cubin: bytes, folder: Path, what: str) -> str:
    """Return what cuobjdump says of a cubin."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [str(TOOLS / "cuobjdump"), what, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def faults(cubin: bytes, folder: Path, *, wide: bool) -> list[str]:
    """Return what is wrong with a kernel's machine code."""
    text = dump(cubin, folder, "-res-usage")
    usage = {key: int(number) for key, number in re.findall(r"\b([A-Z]+):(\d+)", text)}
    assert usage["REG"] > 0
    found: list[str] = []
    spilled = usage["LOCAL"] or usage["STACK"] > STACK_BYTES
    # Without local memory nothing can use it; disassembling takes longer than compiling.
    sass = dump(cubin, folder, "-sass") if spilled or wide else ""
    if spilled:
        found += [f"{key} is {usage[key]}" for key in ("STACK", "LOCAL") if usage[key]]
        found += sorted(set(re.findall(r"\b(?:LDL|STL)\b", sass)))
    if wide and "LDG.E.128" not in sass:
        found.append("no 16-byte load")
    return found


def find(label: str, name: str) -> Launch:
    return next(launch for launch in RECORDED if (launch.label, launch.name) == (label, name))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path) -> Iterator[None]:
    """Compile anew: a cached kernel proves nothing about this source or this compiler."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path / "cache")
        yield


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("launch", PARAMETERS)
def test_a_kernel_keeps_to_its_registers_and_loads_wide(
    launch: Launch, capability: int, tmp_path: Path
) -> None:
    cubin = compiled(launch, capability)
    assert faults(cubin, tmp_path, wide=launch.name in WIDE) == []


def test_a_spill_is_caught(tmp_path: Path) -> None:
    cubin = compiled(find("plan-six-bands", "plan_kernel"), 90, maxnreg=24)
    assert any(fault.startswith("STACK") for fault in faults(cubin, tmp_path, wide=True))


@pytest.mark.parametrize("label", ["plan-mean", "compact", "audit", "moments-float32"])
def test_a_narrow_load_is_caught(label: str, tmp_path: Path) -> None:
    name = f"{label.partition('-')[0]}_kernel"
    cubin = compiled(find(label, name), 90, aligned=False)
    assert faults(cubin, tmp_path, wide=True) == ["no 16-byte load"]


def test_every_kernel_is_compiled() -> None:
    written = {
        name
        for module in launches.MODULES
        for name in vars(launches.module(module))
        if name.endswith("_kernel")
    }
    assert len(written) >= 11
    assert {launch.name for launch in LAUNCHES} == written

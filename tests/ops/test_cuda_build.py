# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the CUDA sources, judged without a GPU: warnings, spills, loads, symbols."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import _sass
import pytest

pytestmark = pytest.mark.full("nvcc compiles, and its machine code is read")

ROOT = Path(__file__).resolve().parents[2]
DECLARED = re.compile(r"__global__[^{;]*?\b(\w+_kernel)\(", re.DOTALL)


@pytest.fixture(scope="session")
def setup_module() -> dict[str, Any]:
    """Run setup.py without building anything."""
    return runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


def toolkit(module: dict[str, Any]) -> Any:
    """Find the toolkit as a build does; without one, these tests say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        found = module["TOOLKIT"]["find_toolkit"]()
    if isinstance(found, str):
        pytest.skip(f"no nvcc here: {found}")
    return found


@pytest.fixture(scope="session")
def library(setup_module: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build everything as a user does, from a copy, with warnings as errors.

    What the tree has compiled comes along, with its times: ninja compiles what is not of these
    sources and these flags.
    """
    toolkit(setup_module)
    copy = tmp_path_factory.mktemp("build")
    for name in ("csrc", "prune_engine"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__py*"))
    for compiled in ROOT.glob("build/native-*"):
        shutil.copytree(compiled, copy / "build" / compiled.name)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "README.md").touch()
    environ = {**os.environ, "PE_CUDA": "1", "PE_WERROR": "1", "PYTHONPATH": ""}
    environ.pop("PE_CUDA_ARCHS", None)
    environ.pop("TORCH_CUDA_ARCH_LIST", None)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "building for the CPU and for CUDA" in done.stdout
    return copy / "prune_engine/_ops.so"


@pytest.fixture(scope="session")
def kernels(library: Path) -> list[_sass.Kernel]:
    return _sass.kernels(library)


def test_machine_code_for_four_generations_and_ptx_for_the_rest(library: Path) -> None:
    assert _sass.architectures(library) == ["sm_100", "sm_120", "sm_80", "sm_90"]
    assert _sass.ptx_architectures(library) == ["sm_80"]


def test_no_kernel_spills_and_streaming_kernels_load_16_bytes(kernels: list[_sass.Kernel]) -> None:
    assert [fault for kernel in kernels for fault in kernel.faults()] == []


def test_a_kernel_for_three_dtypes_loads_16_bytes_of_each(kernels: list[_sass.Kernel]) -> None:
    loads = [k.wide_loads for k in kernels if "cross_entropy_observe_kernelIf" in k.symbol]
    assert len(loads) == 2 * 4
    assert min(loads) >= 3


def test_the_plain_softmax_costs_at_most_16_instructions_a_logit(
    kernels: list[_sass.Kernel],
) -> None:
    plain = [k for k in kernels if "cross_entropy_observe_kernelIfLb0" in k.symbol]
    assert len(plain) == 4
    for kernel in plain:
        # Of bfloat16 and float16 a trip takes two vectors of 8, of float two of 4.
        pairs = [len(body) for body in kernel.streams() if sum(map(_sass.is_wide_load, body)) == 2]
        assert len(pairs) == 3, kernel.arch
        short, *long = sorted(pairs)
        assert short <= 16 * 8 and max(long) <= 16 * 16, f"{kernel.arch}: {pairs}"


MULTIPLY = re.compile(r"\bU?IMAD\.(?:WIDE|HI)\b")  # two of each round of the generator


def test_the_generator_runs_while_a_plans_loads_are_in_flight(kernels: list[_sass.Kernel]) -> None:
    plans = [k for k in kernels if k.name == "plan_kernel"]
    counts = [k for k in kernels if k.name == "histogram_kernel" and k.arch in ("sm_80", "sm_90")]
    assert (len(plans), len(counts)) == (4, 2)
    for kernel in plans + counts:
        (group,) = kernel.groups()
        assert sum(map(_sass.is_wide_load, group)) == 8, kernel.arch
        assert sum(MULTIPLY.search(text) is not None for text in group) >= 36, kernel.arch


def test_an_early_look_at_what_is_loaded_is_caught(
    setup_module: dict[str, Any], tmp_path: Path
) -> None:
    found, flags = toolkit(setup_module), setup_module["NVCC_FLAGS"]
    look = r"\1\n  if (pair[0].x == 7) classes[threadIdx.x] = 7;"
    source = edited(tmp_path, r"(  load_pairs\(records.*;)", look) / "plan.cu"
    kernels = _sass.kernels(compile_one(found, source, tmp_path / "early.o", flags))
    (early,) = (kernel for kernel in kernels if kernel.name == "plan_kernel")
    assert not any(MULTIPLY.search(text) for text in early.groups()[0])


def whole_tiles(kernels: list[_sass.Kernel]) -> dict[str, list[int]]:
    """Of each kernel that reads tiles of scores or records: its groups of loads in flight."""
    tiles = [kernel for kernel in kernels if kernel.name in ("digit_kernel", "tie_kernel")]
    return {f"{k.symbol} {k.arch}": k.in_flight() for k in tiles}


def test_the_loads_of_a_whole_tile_go_out_together(kernels: list[_sass.Kernel]) -> None:
    found = whole_tiles(kernels)
    assert len(found) == (4 + 2) * 4
    for name, groups in found.items():
        assert set(groups) == {4 if "kernelIf" in name else 8}, name  # some have their loop twice


def test_loads_that_go_out_one_by_one_are_caught(
    setup_module: dict[str, Any], tmp_path: Path
) -> None:
    found, flags = toolkit(setup_module), setup_module["NVCC_FLAGS"]
    together = r"(uint4 load\[kLoads\];\n)#pragma unroll\n"
    source = edited(tmp_path, together, r"\1#pragma unroll 1\n") / "top.cu"
    slow = whole_tiles(_sass.kernels(compile_one(found, source, tmp_path / "slow.o", flags)))
    assert len(slow) == 2
    assert all(max(groups) < 4 for groups in slow.values()), slow


def walks(kernel: _sass.Kernel) -> list[int]:
    """Instructions of a pass of the network, by its innermost loops; 8 rounds are 4 pairs."""
    passes = 4 if "ILi0E" in kernel.symbol else 1
    bodies = [body for _, _, body in kernel.loops() if any(map(MULTIPLY.search, body))]
    return [passes * len(body) for body in bodies if len(body) < 120]


def test_a_position_of_the_order_costs_at_most_110_instructions(
    kernels: list[_sass.Kernel],
) -> None:
    orders = [kernel for kernel in kernels if kernel.name == "order_kernel"]
    assert len(orders) == 2 * 4
    for kernel in orders:
        if "ILi8E" in kernel.symbol:
            assert walks(kernel) and max(walks(kernel)) <= 110, kernel.arch
        else:
            assert min(walks(kernel)) > 110, "control: with rounds in a loop it is more"


def test_the_mean_threshold_is_a_straight_line(kernels: list[_sass.Kernel]) -> None:
    means = [kernel for kernel in kernels if kernel.name == "mean_threshold_kernel"]
    assert len(means) == 4
    for kernel in means:
        assert [body for _, _, body in kernel.loops() if len(body) > 1] == [], "it ends in itself"
        assert len(kernel.instructions) <= 500, kernel.arch


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_the_committed_figures_are_of_this_code(kernels: list[_sass.Kernel], arch: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        sass, floors = (importlib.import_module(name) for name in ("sass", "floors"))
    found = sass.rates([kernel for kernel in kernels if kernel.arch == arch])
    # Another compiler's may be a little other; a kernel that was changed is far off.
    assert found == pytest.approx(dict(floors.instructions(arch)), rel=0.15)


def test_a_branch_for_each_logit_is_caught(setup_module: dict[str, Any], tmp_path: Path) -> None:
    found, flags = toolkit(setup_module), setup_module["NVCC_FLAGS"]
    one = "for (int k = 0; k < n; ++k) add_logit<kFull>(row, logit[k], weight[k]);\\n  return;"
    source = edited(tmp_path, r"(?<=Real \(&weight\)\[n\]\) \{\n)", f"#pragma unroll\n{one}\n")
    branchy = _sass.kernels(
        compile_one(found, source / "cross_entropy_observe.cu", tmp_path / "branchy.o", flags)
    )
    (plain,) = (k for k in branchy if "IfLb0" in k.symbol)
    assert max(len(body) for body in plain.streams()) > 16 * 16


def test_every_kernel_of_the_sources_was_judged(kernels: list[_sass.Kernel]) -> None:
    files = [*ROOT.glob("csrc/cuda/*.cu"), ROOT / "csrc/cuda/observe.cuh"]
    sources = [path.read_text(encoding="utf-8") for path in files]
    declared = {name for text in sources for name in DECLARED.findall(text)}
    assert len(declared) >= 10
    for arch in ("sm_80", "sm_90", "sm_100", "sm_120"):
        assert {kernel.name for kernel in kernels if kernel.arch == arch} == declared
    assert declared >= _sass.STREAMING


def test_nothing_was_contracted(kernels: list[_sass.Kernel]) -> None:
    # A fused multiply-add rounds once where the other backends round twice.
    observed = [kernel for kernel in kernels if kernel.name == "observe_kernel"]
    assert len(observed) == 4 * 5, "four dtypes, and the shares of a mean"
    assert [
        k.symbol for k in observed if re.search(r"\b(?:FFMA|DFMA|HFMA2\.(?!MMA))", k.code)
    ] == []
    assert all(re.search(r"\b[FD]MUL\b", kernel.code) for kernel in observed)


def test_it_needs_no_cuda_library_and_its_one_cuda_symbol_is_weak(library: Path) -> None:
    read = ["readelf", "--dynamic", "--dyn-syms", "--wide", str(library)]
    text = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", text)
    assert "libtorch.so" in needed
    assert [name for name in needed if "cuda" in name or "nvidia" in name] == []
    rows = re.findall(r"(\w+)\s+DEFAULT\s+UND\s+(\S*cuda\S*)", text)
    undefined = {name: binding for binding, name in rows}
    assert undefined.pop("aoti_torch_get_current_cuda_stream") == "WEAK"
    assert set(undefined) <= {"aoti_torch_device_type_cuda"}, "a torch without CUDA has this one"


def test_it_loads_on_this_torch_and_serves_the_cpu(library: Path, tmp_path: Path) -> None:
    code = f"""
import torch
torch.ops.load_library({str(library)!r})
one = [0] * 4 + [1 << 21] + [0] * 4
print(torch.ops.prune_engine.mean_threshold(torch.tensor([*one, 2])).item())
print(torch._C._dispatch_has_kernel_for_dispatch_key("prune_engine::plan", "CUDA"))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0.5", "True"]


def compile_one(found: Any, source: Path, target: Path, flags: str) -> Path:
    arch = "-gencode arch=compute_90,code=sm_90"
    command = [found.nvcc, *flags.split(), *arch.split(), "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def edited(folder: Path, pattern: str, replacement: str) -> Path:
    """Copy the sources with something changed in the CUDA ones; return where those are."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    for path in (folder / "csrc/cuda").glob("*.cu*"):
        text = re.sub(pattern, replacement, path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
    return folder / "csrc/cuda"


def test_a_spilled_kernel_is_caught(setup_module: dict[str, Any], tmp_path: Path) -> None:
    found, flags = toolkit(setup_module), f"{setup_module['NVCC_FLAGS']} -maxrregcount=24"
    source = edited(tmp_path, r"__launch_bounds__\(\w+\)", "") / "plan.cu"
    starved = _sass.kernels(compile_one(found, source, tmp_path / "starved.o", flags))
    faults = [fault for kernel in starved for fault in kernel.faults()]
    assert any("spill instructions" in fault for fault in faults)
    assert any("stack" in fault for fault in faults)


@pytest.mark.parametrize("kernel", ["plan", "audit", "compact", "moments", "relu_moments"])
def test_a_scalar_load_is_caught(setup_module: dict[str, Any], tmp_path: Path, kernel: str) -> None:
    found, flags = toolkit(setup_module), setup_module["NVCC_FLAGS"]
    source = edited(tmp_path, r"if \(vector\b( &&[^)]*)?\)", "if (false)") / f"{kernel}.cu"
    scalar = _sass.kernels(compile_one(found, source, tmp_path / "scalar.o", flags))
    faults = [fault for row in scalar for fault in row.faults()]
    assert f"{kernel}_kernel sm_90: no 16-byte load" in faults


def test_a_fence_behind_the_barrier_is_caught(setup_module: dict[str, Any], tmp_path: Path) -> None:
    found, flags = toolkit(setup_module), setup_module["NVCC_FLAGS"]
    late = r"(    // Between the ticket.*?)__threadfence\(\);\n  }\n  __syncthreads\(\);"
    behind = r"\1}\n  __syncthreads();\n  __threadfence();"
    source = edited(tmp_path, f"(?s){late}", behind) / "relu_moments.cu"
    unfenced = _sass.kernels(compile_one(found, source, tmp_path / "late.o", flags))
    faults = {fault for row in unfenced for fault in row.faults()}
    assert faults == {"relu_moments_kernel sm_90: no fence between the ticket and the barrier"}


# Volatile, for ptxas joins two neighbouring loads of 8 bytes again.
WORDS = """{
        const auto* at = reinterpret_cast<const volatile uint32_t*>(
            pairs + j * kPlanThreads + threadIdx.x);
        pair[j] = make_uint4(at[0], at[1], at[2], at[3]);
      }"""


@pytest.mark.parametrize(
    ("name", "pattern", "replacement", "fault"),
    [
        (
            "plan",
            r"(pair\[j\] = __ldcs.*;)",
            rf"if (j != 3) \1 else {WORDS}",
            "plan_kernel sm_90: 7 16-byte loads, expected 8",
        ),
        (
            "fixed",
            r"(pair\[j\] = __ldcs.*;)",
            rf"if (j != 3) \1 else {WORDS}",
            "histogram_kernel sm_90: 7 16-byte loads, expected 8",
        ),
        (
            "plan",
            r"if \(vector\) \{\n    reinterpret_cast<uint4\*>\(out\)",
            "if (false) {\n    reinterpret_cast<uint4*>(out)",
            "plan_kernel sm_90: 0 16-byte stores, expected 1",
        ),
        (
            "cross_entropy_grad",
            r"__stwb\((reinterpret_cast<uint4\*>\(to\)), bits\);",
            r"*\1 = bits;",
            "cross_entropy_grad_kernel sm_90: 0 16-byte stores, expected 1",
        ),
    ],
    ids=["plan-load", "fixed-load", "plan-store", "gradient-store"],
)
def test_one_narrow_access_among_wide_ones_is_caught(
    setup_module: dict[str, Any],
    tmp_path: Path,
    name: str,
    pattern: str,
    replacement: str,
    fault: str,
) -> None:
    found, flags = toolkit(setup_module), setup_module["NVCC_FLAGS"]
    source = edited(tmp_path, pattern, replacement) / f"{name}.cu"
    narrow = _sass.kernels(compile_one(found, source, tmp_path / "narrow.o", flags))
    assert fault in [each for row in narrow for each in row.faults()]

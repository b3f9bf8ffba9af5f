# SPDX-License-Identifier: Apache-2.0
"""Triton's own road to a launch, without a GPU: everything but the launch itself.

The interpreter and the compiler ahead of time leave out what a launch does first: it specialises
the arguments, finds the compiled kernel, and compares the globals with those of the compilation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("the interpreter launches nothing", allow_module_level=True)

import triton.language as tl  # noqa: E402 - only where triton is
from _triton_launches import CALLS, Launch, recorded  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

pytestmark = pytest.mark.triton

KERNELS = {launch.name: launch for call, _ in CALLS.values() for launch in recorded("", call)}
NAN: tl.constexpr = tl.constexpr(float("nan"))


class Driver:
    """Stands for a GPU that no other test uses."""

    def get_current_device(self) -> int:
        return 99

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(driver, "_active", Driver())
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path / "cache")
        yield


def argument(value: Any, number: int) -> Any:
    """Return what a launch passes: an aligned tensor, a steady tuple, or a number."""
    if isinstance(value, torch.Tensor):
        return torch.zeros(64, dtype=value.dtype)
    return value if isinstance(value, tuple) else type(value)(number)


def launched(launch: Launch, number: int) -> object:
    """Do all of a launch but the last step; return the compiled kernel."""
    arguments = [argument(value, number) for value in launch.arguments]
    options = {"num_warps": launch.warps, "enable_fp_fusion": False}
    return launch.kernel.warmup(*arguments, grid=(1,), **launch.constants, **options)


@pytest.mark.parametrize("name", KERNELS)
def test_launches_with_other_numbers_take_the_kernel_of_the_first(name: str) -> None:
    # 1 and multiples of 16 are what Triton compiles anew for, where it may.
    first = launched(KERNELS[name], 3)
    assert launched(KERNELS[name], 1) is first
    assert launched(KERNELS[name], 16) is first


@triton.jit
def kernel_of_a_nan(out):
    tl.store(out, NAN)


def test_a_global_that_differs_from_itself_is_caught() -> None:
    launch = Launch("control", kernel_of_a_nan, 1, (torch.zeros(1),), 1, {})
    with pytest.raises(RuntimeError, match="NAN has changed"):
        launched(launch, 1)


@triton.jit
def kernel_of_a_number(out, number):
    tl.store(out, number)


def test_a_number_that_compiles_anew_is_caught() -> None:
    launch = Launch("control", kernel_of_a_number, 1, (torch.zeros(1), 3), 1, {})
    assert launched(launch, 16) is not launched(launch, 3)

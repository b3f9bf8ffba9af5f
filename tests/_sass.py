# SPDX-License-Identifier: Apache-2.0
"""Read the machine code of a built library: what a GPU would run, judged without one.

``python tests/_sass.py LIBRARY`` prints every kernel and exits with 1 where one is at fault.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Kernels whose time is that of reading something of length N: they must read 16 bytes a load.
STREAMING = {
    *("plan_kernel", "histogram_kernel", "cut_kernel", "compact_kernel", "audit_kernel"),
    *("moments_kernel", "relu_moments_kernel", "gelu_moments_kernel"),
    *("cross_entropy_observe_kernel", "cross_entropy_grad_kernel"),
    *("digit_kernel", "tie_kernel", "mask_kernel", "cells_kernel", "plan_levels_kernel"),
}
# Those with more than one such load in a thread's work, or with 16-byte stores: how many of each.
WIDE = {
    "audit_kernel": (4, 0),
    "cells_kernel": (4, 0),
    "cut_kernel": (16, 0),
    "gelu_moments_kernel": (4, 4),
    "histogram_kernel": (8, 0),
    "moments_kernel": (16, 0),  # four for each of four dtypes
    "plan_kernel": (8, 1),
    "plan_levels_kernel": (8, 1),
    "relu_moments_kernel": (4, 4),
}
WIDE_STORE = re.compile(r"\bSTG\.E(?:\.\w+)*\.128\b")
WIDE_LOAD = re.compile(r"\bLDG\.E(?:\.\w+)*\.128\b")
SPILL = re.compile(r"\b(?:STL|LDL)(?:\.\w+)*\b")
KERNEL = re.compile(r"\d([a-z][a-z_]*_kernel)")


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture.

    Args:
        name: as in the source.
        symbol: mangled, which tells instances of a template apart.
        arch: such as "sm_90".
        registers: per thread.
        stack: bytes per thread.
        local: bytes per thread.
        code: its instructions, as text.
    """

    name: str
    symbol: str
    arch: str
    registers: int
    stack: int
    local: int
    code: str

    @property
    def wide_loads(self) -> int:
        """How many instructions load 16 bytes from global memory."""
        return len(WIDE_LOAD.findall(self.code))

    @property
    def wide_stores(self) -> int:
        """How many instructions store 16 bytes to global memory."""
        return len(WIDE_STORE.findall(self.code))

    @property
    def spills(self) -> int:
        """How many instructions touch local memory."""
        return len(SPILL.findall(self.code))

    def faults(self) -> list[str]:
        """Say what is wrong, one phrase each."""
        found: list[str] = []
        if self.stack or self.local:
            found.append(f"stack {self.stack} and local memory {self.local} bytes, expected 0")
        if self.spills:
            found.append(f"{self.spills} spill instructions, expected none")
        if self.name in STREAMING:
            loads, stores = WIDE.get(self.name, (1, 0))
            if not self.wide_loads:
                found.append("no 16-byte load")
            elif self.wide_loads < loads:
                found.append(f"{self.wide_loads} 16-byte loads, expected {loads}")
            if self.wide_stores < stores:
                found.append(f"{self.wide_stores} 16-byte stores, expected {stores}")
        return [f"{self.name} {self.arch}: {fault}" for fault in found]


def find_cuobjdump() -> str:
    """Find NVIDIA's disassembler: on PATH, beside nvcc, or in triton's wheel."""
    places = ["cuobjdump"]
    if nvcc := shutil.which("nvcc"):
        places.append(str(Path(nvcc).resolve().parent / "cuobjdump"))
    places.append("/usr/local/cuda/bin/cuobjdump")
    spec = importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        places.append(f"{folder}/backends/nvidia/bin/cuobjdump")
    found = [path for place in places if (path := shutil.which(place))]
    if not found:
        raise FileNotFoundError("cuobjdump is neither on PATH, nor beside nvcc, nor in triton")
    return found[0]


def _dump(*options: str) -> str:
    done = subprocess.run([find_cuobjdump(), *options], capture_output=True, text=True, check=True)
    return done.stdout


def architectures(library: Path) -> list[str]:
    """List the architectures that a library has machine code for."""
    return sorted(set(re.findall(r"\.(sm_\w+)\.cubin", _dump("-lelf", str(library)))))


def ptx_architectures(library: Path) -> list[str]:
    """List the architectures that a library has PTX for."""
    return sorted(set(re.findall(r"\.(sm_\w+)\.ptx", _dump("-lptx", str(library)))))


def kernels(library: Path) -> list[Kernel]:
    """Read every kernel of a library or object file, for every architecture."""
    found: list[Kernel] = []
    for arch in architectures(library):
        usage = _dump("-res-usage", "-arch", arch, str(library))
        sass = _dump("-sass", "-arch", arch, str(library))
        code = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function :|\Z)", sass, re.DOTALL))
        resources = re.findall(
            r"Function (\S+):\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage, re.DOTALL
        )
        for symbol, registers, stack, local in resources:
            names = KERNEL.findall(symbol)
            if not names:
                raise ValueError(f"{symbol} is not named like a kernel of this project")
            row = (int(registers), int(stack), int(local))
            found.append(Kernel(names[-1], symbol, arch, *row, code[symbol]))
    return found


def main(library: Path) -> int:
    """Print the kernels and their faults; return the exit status."""
    found = kernels(library)
    faults = [fault for kernel in found for fault in kernel.faults()]
    for kernel in found:
        print(
            f"{kernel.arch:<7} {kernel.name:<22} registers {kernel.registers:>3}  "
            f"stack {kernel.stack}  16-byte loads {kernel.wide_loads}"
        )
    print("\n".join(faults) or f"{len(found)} kernels, none at fault")
    return 1 if faults or not found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

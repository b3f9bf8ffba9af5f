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
from collections import deque
from dataclasses import dataclass
from pathlib import Path

# Kernels whose time is that of reading something of length N: they must read 16 bytes a load.
STREAMING = {
    *("plan_kernel", "histogram_kernel", "refine_kernel", "decide_kernel"),
    *("compact_kernel", "audit_kernel"),
    *("moments_kernel", "relu_moments_kernel", "gelu_moments_kernel"),
    *("cross_entropy_observe_kernel", "cross_entropy_grad_kernel"),
    *("digit_kernel", "tie_kernel", "mask_kernel", "cells_kernel", "plan_levels_kernel"),
}
# Those with more than one such load in a thread's work, or with 16-byte stores: how many of each.
WIDE = {
    "audit_kernel": (4, 0),
    "cells_kernel": (4, 0),
    "cross_entropy_grad_kernel": (1, 1),
    "decide_kernel": (1, 1),
    "gelu_moments_kernel": (4, 4),
    "histogram_kernel": (8, 1),
    "moments_kernel": (16, 0),  # four for each of four dtypes
    "plan_kernel": (8, 1),
    "plan_levels_kernel": (8, 1),
    "relu_moments_kernel": (4, 4),
}
# Those whose last block reads what the others left: where its thread 0 learns that it is the last,
# a fence comes before the barrier behind which all threads read.
LAST_BLOCK = {"moments_kernel", "relu_moments_kernel", "gelu_moments_kernel"}
ACQUIRED = re.compile(r"\bATOMG\.E\.(?:(?!\bBAR\.).)*?\bMEMBAR\b", re.DOTALL)
WIDE_STORE = re.compile(r"\bSTG\.E(?:\.\w+)*\.128\b")
WIDE_LOAD = re.compile(r"\bLDG\.E(?:\.\w+)*\.128\b")
SPILL = re.compile(r"\b(?:STL|LDL)(?:\.\w+)*\b")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);")
BRANCH = re.compile(r"\bBRA(?:\.\w+)*\s+(?:\S+,\s*)?0x([0-9a-f]+)")
REGISTER = re.compile(r"\bR(\d+)\b")
KERNEL = re.compile(r"\d([a-z][a-z_]*_kernel)")


def is_wide_load(instruction: str) -> bool:
    """Tell whether an instruction loads 16 bytes from global memory."""
    return WIDE_LOAD.search(instruction) is not None


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

    @property
    def instructions(self) -> list[tuple[int, str]]:
        """Address and text of each instruction."""
        found = INSTRUCTION.findall(self.code)
        return [(int(at, 16), text.strip()) for at, text in found]

    def loops(self) -> list[tuple[int, int, list[str]]]:
        """Of each loop: the addresses of its first and last instruction, and all of them."""
        listed = self.instructions
        found: set[tuple[int, int]] = set()
        for at, text in listed:
            if (branch := BRANCH.search(text)) and int(branch[1], 16) < at:
                found.add((int(branch[1], 16), at))
        return [
            (first, last, [text for at, text in listed if first <= at <= last])
            for first, last in sorted(found)
        ]

    def streams(self) -> list[list[str]]:
        """The innermost loops that load 16 bytes: their instructions, in the order of the code."""
        wide = [loop for loop in self.loops() if any(map(is_wide_load, loop[2]))]
        return [
            body
            for first, last, body in wide
            if not any(
                first <= begin and end <= last and (begin, end) != (first, last)
                for begin, end, _ in wide
            )
        ]

    def way(self, begin: int, end: int | None, via: re.Pattern[str]) -> list[str]:
        """The least that is executed from an address to another: the shortest way past ``via``.

        Args:
            begin: of the first instruction.
            end: of the last one; None: whichever ends the thread.
            via: instructions that it must pass, in the order of the code, as far as they lie on one
                way; of two branches that exclude each other, it takes the first.
        """
        listed = self.instructions
        index = {at: k for k, (at, _) in enumerate(listed)}
        following = [_following(listed, index, k) for k in range(len(listed))]
        ends = {k for k, (_, text) in enumerate(listed) if re.search(r"\bEXIT\b", text)}
        stops = [
            k for k, (at, text) in enumerate(listed)
            if at > begin and (end is None or at < end) and via.search(text)
        ]  # fmt: skip
        here, found = index[begin], [index[begin]]
        for stop in stops:
            found += (leg := _shortest(following, here, {stop}))
            here = leg[-1] if leg else here
        found += _shortest(following, here, ends if end is None else {index[end]})
        return [listed[k][1] for k in found]

    def groups(self) -> list[list[str]]:
        """What is issued from a 16-byte load up to the first use of one that is in flight.

        A branch that is taken wherever the loads before it were issued is followed.
        """
        listed = self.instructions
        index = {at: k for k, (at, _) in enumerate(listed)}
        found: list[list[str]] = []
        pending: set[str] = set()
        group: list[str] = []
        guard, k, resume = "", 0, 0
        while k < len(listed):
            at, text = listed[k]
            _, _, sources = text.partition(",")
            if pending.intersection(REGISTER.findall(sources)):
                found.append(group)
                pending, group, k, resume = set(), [], resume or k, 0
                continue
            if is_wide_load(text):
                first = int(REGISTER.findall(text)[0])
                pending.update(str(first + part) for part in range(4))
                guard = text.partition(" ")[0] if text.startswith("@") else ""
            if pending:
                group.append(text)
            branch = BRANCH.search(text)
            k += 1
            if pending and branch and text.startswith(f"{guard} BRA".strip()):
                target = int(branch[1], 16)
                if target > at and not resume:
                    resume, k = k, index[target]
        return [*found, group] if group else found

    def in_flight(self) -> list[int]:
        """How many 16-byte loads are issued before the first use of one, group after group."""
        return [sum(map(is_wide_load, group)) for group in self.groups()]

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
        if self.name in LAST_BLOCK and not ACQUIRED.search(self.code):
            found.append("no fence between the ticket and the barrier")
        return [f"{self.name} {self.arch}: {fault}" for fault in found]


def _following(listed: list[tuple[int, str]], index: dict[int, int], k: int) -> list[int]:
    """Which instructions may come after one."""
    _, text = listed[k]
    found = [index[int(branch[1], 16)]] if (branch := BRANCH.search(text)) else []
    always = not text.startswith("@") and "!U" not in text and " UP" not in text
    ends = re.match(r"(?:BRA|EXIT|RET)\b", text) and always
    return found if ends or k + 1 == len(listed) else [*found, k + 1]


def _shortest(following: list[list[int]], here: int, goals: set[int]) -> list[int]:
    """The shortest way to one of some instructions, without the first; empty: there is none."""
    came = {here: here}
    queue = deque([here])
    while queue:
        k = queue.popleft()
        if k in goals and k != here:
            way = [k]
            while came[way[-1]] != here:
                way.append(came[way[-1]])
            return way[::-1]
        for after in following[k]:
            if after not in came:
                came[after] = k
                queue.append(after)
    return []


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


def kernels(library: Path, *archs: str) -> list[Kernel]:
    """Read every kernel of a library or object file, for some architectures or for all."""
    found: list[Kernel] = []
    for arch in archs or architectures(library):
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

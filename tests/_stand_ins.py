# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for programs that a machine without a GPU lacks; they record how they are called."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Each runs the program behind its options, as the real one does.
_HEAD = """#!{python}
import json, os, subprocess, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open({record!r}, "a") as file:
    kept = ("SANITIZE", "PYTORCH_NO_CUDA_MEMORY_CACHING")
    here = {{key: os.environ[key] for key in kept if key in os.environ}}
    file.write(json.dumps([name, words, here]) + "\\n")
"""
_SMI = """
print("NVIDIA Stand-in, 580.1, 345 MHz, 1980 MHz, 3201 MHz, 90 W, 700 W, 31, 0x0, 0 MiB, 0 %, P0")
"""
# The second operator's kernel is launched twice; values have thousands separators, as ncu's have.
_NCU = """
log = words[words.index("--log-file") + 1]
program = words[words.index({python!r}):]
names = words[words.index("--metrics") + 1].split(",")
if {unknown!r} in names:
    sys.exit("==ERROR== Failed to find metric " + {unknown!r})
status = subprocess.run(program).returncode
launches = ["spin_kernel(long)", "observe_kernel(X)", "spin_kernel(long)", "observe_kernel(Y)",
            "spin_kernel(long)", "plan_kernel(X)",
            "prune_engine::offsets_kernel(Y)", "spin_kernel(long)", "cut_kernel(X)"]
with open(log, "w") as file:
    file.write("==PROF== Connected\\n")
    file.write('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\\n')
    for number, launch in enumerate(launches):
        for metric in names:
            value = {{"gpu__time_duration.sum": "35,000", "dram__bytes_read.sum": "100,000,000",
                      "dram__bytes_write.sum": "20,000,000"}}.get(metric, "8")
            file.write(f'"{{number}}","{{launch}}","{{metric}}","u","{{value}}"\\n')
sys.exit(status)
"""
_SANITIZER = """
program = words[words.index({python!r}):]
if "_overrun.py" in program[1]:
    print("========= Invalid __global__ read of size 16 bytes")
    print("========= ERROR SUMMARY: 1 error")
    sys.exit({planted})
status = subprocess.run(program).returncode
tool = words[words.index("--tool") + 1]
if tool == {faulty!r}:
    print("========= Error: Race reported between Write access and Read access")
    print("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)")
    sys.exit(9)
print("========= ERROR SUMMARY: 0 errors")
sys.exit(status)
"""


def make(
    folder: Path, *, unknown: str = "", planted: int = 9, faulty: str = ""
) -> tuple[Path, Path]:
    """Write nvidia-smi, ncu and compute-sanitizer into a folder.

    Args:
        folder: gets ``bin`` and the record.
        unknown: a metric that this ncu does not know.
        planted: the exit status for the planted fault.
        faulty: the tool that finds a fault in the tests.

    Returns:
        The folder for PATH, and the record of all calls.
    """
    record, programs = folder / "record", folder / "bin"
    programs.mkdir()
    filled = {"python": sys.executable, "record": str(record), "unknown": unknown or "no metric"}
    filled |= {"planted": planted, "faulty": faulty}
    bodies = {"nvidia-smi": _SMI, "ncu": _NCU, "compute-sanitizer": _SANITIZER}
    for name, body in bodies.items():
        text = _HEAD.format(**filled) + (body.format(**filled) if name != "nvidia-smi" else body)
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    record.touch()
    return programs, record


def calls(record: Path, name: str) -> list[tuple[list[str], dict[str, str]]]:
    """The words and variables of each call of one program."""
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return [(words, variables) for called, words, variables in lines if called == name]

# SPDX-License-Identifier: Apache-2.0
"""The machine as it is found: driver, clocks, power, temperature. Nothing is set."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

FIELDS = (
    *("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem"),
    *("power.draw", "power.limit", "temperature.gpu", "clocks_throttle_reasons.active"),
    *("memory.used", "utilization.gpu", "pstate"),
)


def look(moment: str) -> list[dict[str, Any]]:
    """One row of what nvidia-smi says; it is asked for what it knows and told nothing."""
    row = {"part": "machine", "name": moment}
    program = shutil.which("nvidia-smi")
    if program is None:
        return [{**row, "value": "nvidia-smi is not on PATH"}]
    words = [program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [{**row, "value": f"nvidia-smi: {error}"}]
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        return [{**row, "value": f"nvidia-smi ended with {done.returncode}: {said}"}]
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    read = dict(zip(FIELDS, values, strict=False))
    text = ", ".join(f"{name} {value}" for name, value in read.items())
    return [{**row, "value": text, "read": read}]

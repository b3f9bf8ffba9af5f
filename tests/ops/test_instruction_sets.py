# SPDX-License-Identifier: Apache-2.0
"""What is written by hand for some processors gives the bits of what every processor runs."""

from __future__ import annotations

import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import _plan_bits
import pytest
import torch

from prune_engine import backends

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "setup.py"
PLANS = ("plan", "plan_levels", "plan_top", "compact")
CXX = shutil.which(os.environ.get("CXX", "g++"))

pytestmark = [
    pytest.mark.full("compiles"),
    pytest.mark.skipif(
        CXX is None or platform.machine() != "x86_64" or not SETUP.is_file(),
        reason="needs a compiler, an x86-64 processor and the sources",
    ),
]

# Exits with 0 where every copy equals the plain one, and differs in another epoch.
DRAWS = """
#include "cpu/keep_draws.h"
#include <cstdio>
#include <initializer_list>
using namespace prune_engine;

int main() {
  struct { const char* name; bool has; void (*draw)(const KeepBlock&, uint16_t*); } copies[] = {
      {"sse2", true, draw_groups_sse2},
      {"avx2", has_avx2(), draw_groups_avx2},
      {"avx512", has_avx512(), draw_groups_avx512}};
  static uint16_t plain[kPlanBlock], copy[kPlanBlock];
  int status = 0;
  for (const auto& each : copies) {
    std::printf("%s %s\\n", each.name, each.has ? "here" : "absent");
    if (!each.has) continue;
    const int64_t high = int64_t{1} << 35;  // where the counter's second word begins to count
    for (int64_t begin : {int64_t{0}, int64_t{4096} * 77, high - 4096, high})
      for (uint64_t seed : {uint64_t{0}, ~uint64_t{0} >> 1, uint64_t{0x123456789abcdef}}) {
        draw_groups(keep_block(begin, seed, 2147483646), plain);
        each.draw(keep_block(begin, seed, 2147483646), copy);
        if (std::memcmp(plain, copy, sizeof plain) != 0) status = 1;
        each.draw(keep_block(begin, seed, 2147483645), copy);
        if (std::memcmp(plain, copy, sizeof plain) == 0) status = 2;
      }
  }
  return status;
}
"""


def compile_it(*arguments: str | Path) -> None:
    command = [CXX, "-std=c++17", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", *arguments]
    subprocess.run([str(part) for part in command], check=True)


def test_every_copy_draws_the_same(tmp_path: Path) -> None:
    (tmp_path / "draws.cpp").write_text(DRAWS)
    compile_it("-O2", tmp_path / "draws.cpp", "-o", tmp_path / "draws")
    done = subprocess.run([tmp_path / "draws"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "sse2 here" in done.stdout.splitlines()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan's operators without a line that is written for one processor."""
    build = runpy.run_path(str(SETUP))
    library = tmp_path_factory.mktemp("plain") / "plain.so"
    sources = [ROOT / "csrc" / name for name in ("ops.cpp", "check.cpp")]
    sources += [ROOT / "csrc/cpu" / f"{name}.cpp" for name in PLANS]
    target = f"-DTORCH_TARGET_VERSION={build['TORCH_TARGET']}"
    torch_folder = Path(torch.__file__).parent / "lib"
    headers = ["-isystem", build["torch_include"]()]
    linked = ["-Wl,--no-as-needed", f"-L{torch_folder}", "-ltorch", "-o", library]
    compile_it("-O0", "-shared", "-fPIC", "-DPE_X86=0", target, *headers, *sources, *linked)
    return library


def digests_of(library: Path, *epoch: str) -> dict[str, str]:
    """Run the cases in a process that knows no other library of these operators."""
    command = [sys.executable, _plan_bits.__file__, str(library), *epoch]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_plans_have_the_bits_of_the_plain_loops(plain: Path) -> None:
    backends.load("cpu")
    here = _plan_bits.digests()
    assert digests_of(plain) == here
    other = digests_of(plain, "5")
    drawn = [name for name in here if name.startswith("200000") and "from 8300" in name]
    assert drawn
    assert all(other[name] != here[name] for name in drawn), "control: another epoch"

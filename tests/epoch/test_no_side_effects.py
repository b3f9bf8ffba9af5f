# SPDX-License-Identifier: Apache-2.0
"""Importing and using the library changes nothing that it does not own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _assertions import assert_bitwise, global_rng_untouched
from _runs import epochs, infobatch

USE = """
import prune_engine as pe
engine = pe.PruneEngine(200, pe.InfoBatch(), num_epochs=3)
for epoch in engine.epochs():
    for index in engine.sampler():
        engine.observe(torch.ones(1, requires_grad=True), torch.tensor([index])).backward()
state = engine.state_dict()
engine.load_state_dict(state)
"""
WORLD = """
import os, random, signal, sys, threading, warnings
import numpy as np
import torch
import torch.utils.data
def world():
    return {
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": repr(np.random.get_state()),
        "python rng": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": (torch.is_grad_enabled(), torch.is_anomaly_enabled()),
        "print": repr(torch._tensor_str.PRINT_OPTS),
        "precision": torch.get_float32_matmul_precision(),
        "numpy errors": np.geterr(),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "hooks": (sys.excepthook, sys.displayhook, sys.path[:]),
        "environment": dict(os.environ),
        "python threads": threading.active_count(),
        "folder": os.getcwd(),
    }
# What torch sets up on first use is torch's (an optimizer loads its compiler): let it come first.
weight = torch.nn.Parameter(torch.ones(2))
weight.sum().backward()
torch.optim.SGD([weight]).step()
before = world()
"""
AFTER = """
after = world()
changed = [name for name in before if before[name] != after[name]]
print(",".join(changed))
"""


def changes(code: str, folder: Path) -> str:
    """Run code in a fresh process in a folder; return what of the process it changed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-B", "-c", WORLD + code + AFTER],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing is printed"
    return done.stdout.strip()


def test_a_process_is_as_it_was_after_import_and_use(tmp_path):
    assert changes(USE, tmp_path) == ""
    assert list(tmp_path.iterdir()) == [], "no files"


def test_control_a_change_is_seen(tmp_path):
    code = (
        "torch.manual_seed(3)\ntorch.set_num_threads(torch.get_num_threads() + 1)\n"
        "os.environ['LEAK'] = '1'\nrandom.random()"
    )
    assert changes(code, tmp_path) == "torch rng,python rng,threads,environment"


def test_no_global_generator_is_read_or_moved():
    with global_rng_untouched():
        first = epochs(infobatch(), 3)
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        assert epochs(infobatch(), 3) == first, "nor does it matter where they are"


def test_deterministic_mode_changes_nothing():
    want = infobatch()
    order = epochs(want, 3)
    torch.use_deterministic_algorithms(True)
    try:
        for backend in ("cpu", "reference"):
            engine = infobatch(backend=backend)
            assert epochs(engine, 3) == order
            assert_bitwise(engine.scores(), want.scores(), "scores")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(dtype):
    want = epochs(infobatch(), 3)
    torch.set_default_dtype(dtype)
    try:
        engine = infobatch()
        assert epochs(engine, 3) == want
    finally:
        torch.set_default_dtype(torch.float32)
    assert engine.plan.weights.dtype == engine.scores().dtype == torch.float32


def test_inference_and_no_grad_modes_work():
    want = epochs(infobatch(), 3)
    with torch.no_grad():
        assert epochs(infobatch(), 3) == want
    with torch.inference_mode():
        assert epochs(infobatch(), 3) == want


def test_the_environment_has_no_switches(monkeypatch):
    # What a run does is in its arguments, not in who started it.
    want = epochs(infobatch(), 2)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "3")
    assert epochs(infobatch(), 2) == want
    assert os.environ["RANK"] == "3"

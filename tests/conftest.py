# SPDX-License-Identifier: Apache-2.0
"""What every test gets: derandomised hypothesis, an RNG-leak guard, the backends."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import _assertions
import _emulated
import pytest
import torch
from hypothesis import HealthCheck, settings

import prune_engine as pe

# Derandomised: a red run is red for everybody. HYPOTHESIS_PROFILE=default searches at random.
settings.register_profile(
    "ci",
    derandomize=True,
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs an extra that is not installed."""
    for mark in item.iter_markers("extra"):
        for module in mark.args:
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"needs {module}, of an extra")


# Few tests in each, and long: a worker that came to one last would keep the other waiting.
BEGUN_FIRST = (
    "test_sitting.py",
    "test_triton.py",
    "test_bench.py",
    "test_faults.py",
    "test_host_workers.py",
    "test_pick_emulated.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; the others keep their order."""
    items.sort(key=lambda item: item.path.name not in BEGUN_FIRST)


@pytest.fixture(autouse=True)
def rng_guard() -> Iterator[None]:
    """Fail a test after which a global random generator is not where it was."""
    with _assertions.global_rng_untouched():
        yield


@pytest.fixture(scope="session", params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    """Name each backend that this machine must have; an unbuilt cpu backend fails, not skips."""
    name: str = request.param
    pe.ops.mean_threshold(torch.zeros(10, dtype=torch.int64), backend=name)  # raises if missing
    return name


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny batches on several threads wait for each other, on a busy machine for seconds."""
    with _assertions.num_threads(1):
        yield


@pytest.fixture(scope="session")
def num_threads() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context manager that sets torch's thread count and restores it."""
    return _assertions.num_threads


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> _emulated.Emulated:
    """Compile the CUDA kernels for the emulator, once for all tests of all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return _emulated.compile_once(folder, _emulated.small_grids)


@pytest.fixture(params=["ascending", "descending"])
def ordered(
    emulated: _emulated.Emulated, request: pytest.FixtureRequest
) -> Iterator[_emulated.Emulated]:
    """Run every test with the emulator's threads in both orders."""
    if request.param == "ascending":
        yield emulated
    else:
        with emulated.descending():
            yield emulated

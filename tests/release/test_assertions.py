# SPDX-License-Identifier: Apache-2.0
"""Negative controls of the helpers that all other tests lean on."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from _assertions import (
    MAX_Z,
    assert_bitwise,
    chi_square_z,
    correlation_z,
    global_rng_untouched,
    independence_z,
    num_threads,
)

pytest_plugins = "pytester"


def test_equal_values_pass_across_containers():
    tensor = torch.tensor([0.5, float("nan"), -0.0])
    assert_bitwise(tensor, tensor.numpy(), "tensor and array")
    assert_bitwise(tensor, [0.5, float("nan"), -0.0], "tensor and list")
    assert_bitwise(torch.tensor([1.5], dtype=torch.bfloat16), [1.5], "bfloat16 and list")
    assert_bitwise(torch.empty(0, dtype=torch.int32), [], "both empty")
    assert assert_bitwise(7, 7, "scalars") is None


@pytest.mark.parametrize(
    ("got", "want", "message"),
    [
        ([1, 2, 3, 9], [1, 5, 3, 4], "x: 2 of 4 elements differ, first at index 1: .*2.*5"),
        (torch.tensor([0.0]), torch.tensor([-0.0]), "1 of 1 elements differ"),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), "1 of 1 elements differ"),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 5]], r"first at index \(1, 1\)"),
        (torch.tensor([1]), torch.tensor([1], dtype=torch.int32), "dtype torch.int64"),
        (torch.tensor([1.0]).bfloat16(), torch.tensor([1.0]), "dtype torch.bfloat16"),
        (torch.tensor([1]), [1, 2], "shape"),
        (torch.tensor([]), [1.0], "shape"),
        (torch.tensor([1.0]), [float("nan")], "1 of 1"),
    ],
)
def test_unequal_values_fail_and_say_where(got, want, message):
    with pytest.raises(AssertionError, match=message):
        assert_bitwise(got, want, "x")


def test_statistics_accept_noise_and_reject_structure():
    noise = np.random.default_rng(0)
    counts = noise.multinomial(60_000, [1 / 60] * 60)
    assert abs(chi_square_z(counts, [1000.0] * 60, 59)) < MAX_Z
    assert chi_square_z(counts + np.arange(60) * 4, [1118.0] * 60, 59) > MAX_Z
    first, second = noise.random(20_000) < 0.5, noise.random(20_000) < 0.5
    assert abs(independence_z(first, second)) < MAX_Z
    assert independence_z(first, second | first) > MAX_Z
    assert abs(correlation_z(noise.random(9999), noise.random(9999))) < MAX_Z
    assert correlation_z(np.arange(9999), np.arange(9999) ** 2) > MAX_Z


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("torch", lambda: torch.rand(1)),
        ("numpy", lambda: np.random.random()),  # noqa: NPY002
        ("random", random.random),
    ],
)
def test_rng_guard_names_the_generator_that_moved(name, leak):
    with pytest.raises(AssertionError, match=f"changed: {name}"), global_rng_untouched():
        leak()
    with global_rng_untouched():
        np.random.default_rng(0).random()
        torch.rand(1, generator=torch.Generator())


def test_rng_guard_is_on_for_every_test(pytester):
    here = Path(__file__).parents[1]
    pytester.syspathinsert(here)
    pytester.makeconftest((here / "conftest.py").read_text())
    pytester.makepyfile(
        """
        import torch
        def test_leaks(): assert torch.rand(1) is not None
        def test_behaves(): assert torch.rand(1, generator=torch.Generator()) is not None
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", "ignore")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*global random state was changed: torch*"])


def test_num_threads_restores_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), num_threads(1):
        assert torch.get_num_threads() == 1
        _ = 1 / 0
    assert torch.get_num_threads() == before

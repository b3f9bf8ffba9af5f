# SPDX-License-Identifier: Apache-2.0
"""bench/gpu.py works: run here on the CPU at a toy size, which checks everything but the times."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")
        patch.syspath_prepend(str(ROOT / "bench"))
        yield importlib.import_module("gpu")


@pytest.fixture(scope="module")
def document(gpu: Any) -> dict[str, Any]:
    return gpu.run(torch.device("cpu"), (5000,), (256,), 3, ((8, 300),), images=2, side=32)


def test_every_alternative_is_measured_or_says_why_not(document: dict[str, Any]) -> None:
    assert [*dict.fromkeys(row["table"] for row in document["rows"])] == [
        "plan", "select", "observe", "cross_entropy, 300 classes", "activation_std"
    ]  # fmt: skip
    for row in document["rows"]:
        assert row["refused"] or row["p20_us"] <= row["p50_us"] <= row["p80_us"]
    names = {row["name"] for row in document["rows"]}
    rivals = "sort argsort quantile kthvalue randperm nonzero relu_".split()
    ours = {"plan", "compact", "observe", "percentiles", "top half", "activation_std"}
    ours |= {"relu_moments, in place", "cross_entropy_observe"}
    assert names >= ours | {f"torch.{name}" for name in rivals}
    facts = document["environment"]
    assert {"device", "driver", "torch", "triton", "nvcc", "commit", "backend"} <= set(facts)


def test_resnet_50_has_the_activations_that_are_counted(gpu: Any) -> None:
    work = importlib.import_module("gpu_model")
    shapes = list(work.post_relu_shapes(224))
    assert len(shapes) == 49
    assert shapes[0] == (64, 112, 112) and shapes[-1] == (2048, 7, 7)
    assert sum(c * h * w for c, h, w in shapes) == 9_608_704


def test_quantile_is_not_asked_for_what_it_refuses(gpu: Any, monkeypatch: Any) -> None:
    work = importlib.import_module("gpu_work")
    monkeypatch.setattr(work, "QUANTILE_LIMIT", 999)
    made = [
        item for item in work.plan_work(1000, torch.device("cpu")) if "quantile" in item[0].name
    ]
    (row,) = gpu.measure(gpu.Clock(torch.device("cpu")), made, 2)
    assert row.refused == "torch.quantile takes at most 999 elements"
    assert row.times_us == []


def test_the_run_is_written_and_shown(gpu: Any, document: dict[str, Any], tmp_path: Path) -> None:
    again = json.loads(importlib.import_module("compare").to_json(document))
    text = gpu.markdown(again)
    assert "### plan, 5,000" in text
    assert text.count("\n| ") == len(document["rows"]) + 2 * 5
    page = tmp_path / "page.md"
    page.write_text("# Page\n\nBefore.\n", encoding="utf-8")
    gpu.show(again, page)
    once = page.read_text(encoding="utf-8")
    gpu.show(again, page)
    assert page.read_text(encoding="utf-8") == once
    assert once.startswith("# Page\n\nBefore.\n")
    assert text.rstrip() in once


def test_what_was_measured_before_an_end_is_saved(gpu: Any, monkeypatch: Any) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "select_work", stop)
    saved: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        gpu.run(torch.device("cpu"), (1000,), (), 1, save=saved.append)
    assert len(saved) == 1
    assert "### plan, 1,000" in gpu.markdown(saved[0])


def test_without_a_gpu_it_measures_nothing(gpu: Any, capsys: Any, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    out = tmp_path / "run.json"
    assert gpu.main(["run", "--out", str(out)]) == 1
    assert "needs a GPU" in capsys.readouterr().err
    assert not out.exists()

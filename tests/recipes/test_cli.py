# SPDX-License-Identifier: Apache-2.0
"""The command line, as a user calls it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import prune_engine as pe
from prune_engine.cli import main
from prune_engine.recipes import selftest

TRAIN = ["train", "--limit", "400", "--epochs", "4", "--batch-size", "16"]


def picture(path: Path) -> np.ndarray:
    from matplotlib.image import imread  # of the extra that draws

    return imread(path)


@pytest.mark.full("trains")
@pytest.mark.extra("sklearn", "matplotlib")
def test_a_comparison_prints_its_table_and_draws_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = [*TRAIN, "--compare", "--seeds", "2", "--pictures"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    for arm in ("full", "full_cut", "random", "infobatch"):
        assert f"\n{arm} " in printed.out
        assert f"{arm:<14} seed 1  epoch " in printed.out
    assert "the random control at equal savings: " in printed.out
    assert printed.err == ""  # no bar where stderr is not a terminal
    table = (out / "table.md").read_text()
    assert table.count("\n| ") == 6
    for name in ("pruned.png", "accuracy.png", "losses.png"):
        pixels = picture(out / name)
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20

    for name in ("table.md", "summary.json", "pruned.png"):
        (out / name).unlink()
    assert main(["report", str(out), "--pictures"]) == 0
    assert (out / "table.md").read_text() == table
    assert (out / "pruned.png").stat().st_size > 10_000


@pytest.mark.full("trains")
@pytest.mark.extra("sklearn", "matplotlib")
def test_the_demo_trains_as_the_makefile_calls_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = (Path(__file__).parents[2] / "Makefile").read_text().partition("\ndemo:")[2]
    words = shlex.split(recipe.splitlines()[1])
    assert words[0].endswith("/prune-engine")
    words[words.index("--out") + 1] = str(tmp_path)
    assert main(words[1:]) == 0
    printed = capsys.readouterr().out
    for arm in ("full", "full_cut", "random", "infobatch"):
        assert f"\n{arm} " in printed
    assert json.loads((tmp_path / "summary.json").read_text())
    page = tmp_path / "report.html"
    assert printed.endswith(f"report: {page}\n"), "its last line is where to look"
    assert page.stat().st_size > 30_000


@pytest.mark.full("trains")
@pytest.mark.extra("sklearn", "matplotlib")
def test_batch_pruning_draws_the_batches_kept_under_each_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranges = ["--delta-range", "0.1:0.2", "--delta-range", "1e-2:0.1"]
    arguments = [*TRAIN, "--policy", "bpas", *ranges, "--layers", "[13]", "--pictures"]
    arguments += ["--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "\nbpas_0.01_0.1 " in capsys.readouterr().out
    pixels = picture(tmp_path / "batches.png")
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20
    assert not (tmp_path / "losses.png").exists()


@pytest.mark.extra("sklearn")
@pytest.mark.parametrize("policy", ["random", "random_rescale", "full"])
def test_every_policy_trains_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    arguments = [*TRAIN, "--policy", policy, "--seed", "7", "--no-pictures"]
    assert main([*arguments, "--amp", "--resident", "--out", str(tmp_path)]) == 0
    assert "seed 7  epoch   4/4" in capsys.readouterr().out
    assert not (tmp_path / "pruned.png").exists()


@pytest.mark.extra("sklearn", "matplotlib")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "cifar10"], "--data-root"),
        (["train", "--data", "fashion_mnist", "--data-root", "no-such-folder"], "no-such-folder"),
        (["train", "--policy", "full", "--compare"], "drop --compare"),
        (["train", "--prune-ratio", "1.5"], "prune_ratio must be in [0, 1), got 1.5"),
        (["train", "--seeds", "0"], "--seeds"),
        (["train", "--policy", "bpas", "--layers", "none"], "layers must match a module"),
        (["train", "--policy", "bpas", "--target-savings", "1"], "target_savings: expected a"),
        (["train", "--noise-floor", "2"], "noise_floor: expected with policy bpas only"),
        (["train", "--threads", "0"], "--threads"),
        (["train", "--resident", "--num-workers", "1"], "num_workers: expected 0"),
        (["train", "--lr", "-1"], "lr: expected more than 0"),
        (["train", "--lr", "inf"], "lr: expected more than 0 and finite"),
        (["train", "--weight-decay", "nan"], "weight_decay: expected at least 0"),
        (["train", "--weight-decay", "-0.1"], "weight_decay: expected at least 0"),
        (["train", "--prune-ratio", "nan"], "prune_ratio must be in [0, 1), got nan"),
        (["train", "--policy", "ucb", "--prune-ratio", "nan"], "prune_ratio must be in [0, 1)"),
        (["train", "--delta", "nan"], "delta must be in (0, 1], got nan"),
        (["train", "--target-savings", "nan"], "target_savings: expected a number in (0, 1)"),
        (["train", "--label-smoothing", "nan"], "label_smoothing: expected [0, 1)"),
        (["train", "--policy", "bpas", "--noise-floor", "nan"], "noise_floor must be a positive"),
        (["train", "--policy", "bpas", "--delta-range", "nan:1"], "delta_start must be a positive"),
        (["train", "--policy", "bpas", "--layers", "["], "layers must be a pattern, got '['"),
        (["train", "--num-workers", "-1"], "num_workers: expected at least 0"),
        (["train", "--seed", "-1"], "seed must be in 0..2^63-1, got -1"),
        (["train", "--epochs", "0"], "epochs: expected at least 1"),
        (["train", "--limit", "0"], "limit: expected at least 1"),
        (["train", "--out", "/dev/null/run", "--epochs", "1"], "/dev/null"),
        (["bench", "--device", "nowhere"], "--device nowhere"),
        (["train", "--device", "nowhere"], "--device nowhere"),
        (["train", "--device", "meta"], "--device meta --backend auto"),
        (["train", "--backend", "fast"], "'auto' or one of"),
        (["report", "no-such-run"], "config.json"),
        (["inspect", "no-such-state.pt"], "no-such-state.pt"),
        (["bench", "--samples", "0"], "samples: expected at least 1"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"prune-engine {arguments[0]}: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.extra("sklearn", "matplotlib")
@pytest.mark.parametrize(
    ("module", "message"), [("matplotlib.figure", "Matplotlib"), ("sklearn.datasets", "scikit")]
)
def test_a_missing_extra_is_named_before_anything_is_trained(
    module: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    assert main([*TRAIN, "--pictures", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "prune_engine[train]" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.extra("sklearn")
def test_threads_are_put_back_after_a_training(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    arguments = [*TRAIN, "--epochs", "1", "--no-pictures", "--out", str(tmp_path)]
    assert main([*arguments, "--threads", "1"]) == 0
    assert torch.get_num_threads() == before
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["hardware"]["torch_threads"] == 1


def test_info_names_versions_devices_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", "--check"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"] == metadata.version("torch")
    assert {row["name"] for row in facts["backends"]} == {
        status.name for status in pe.backends.describe()
    }
    assert facts["check"]
    assert all(check["ok"] for check in facts["check"])
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for row in facts["backends"]:
        assert f"  {row['name']} " in text


def test_info_fails_when_the_check_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = selftest.Check("cpu on cpu: plan", False, ": 1 of 2 elements differ")
    monkeypatch.setattr(selftest, "check", lambda: [fault])
    assert main(["info", "--check"]) == 1
    assert "FAULT cpu on cpu: plan: 1 of 2" in capsys.readouterr().out


def test_inspect_says_what_a_state_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = pe.PruneEngine(100, pe.InfoBatch(), num_epochs=9, seed=5)
    indices = torch.tensor(list(engine.sampler()))
    engine.observe(indices.float(), indices)
    engine.end_epoch()
    for saved in (engine.state_dict(), {"model": {}, "pruning": engine.state_dict()}):
        torch.save(saved, tmp_path / "state.pt")
        assert main(["inspect", str(tmp_path / "state.pt"), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["num_samples"], facts["seed"], facts["epoch"]) == (100, 5, 1)
        assert facts["policy"]["policy"] == "InfoBatch"
        assert facts["seen"] == 100
        assert facts["planned"] == engine.plan.num_kept < 100
        assert facts["score_quantiles"]["0"] == 0.0
        assert facts["score_quantiles"]["0.5"] == 50.0
        assert facts["score_quantiles"]["1"] == 99.0
    assert main(["inspect", str(tmp_path / "state.pt")]) == 0
    assert "epochs_ended" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [{"model": {}}, [1, 2], {"num_samples": 1, "policy": {}, "buffer": {}}, Path("code"), None],
)
def test_inspect_refuses_what_is_no_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object
) -> None:
    file = tmp_path / "state.pt"
    if content is None:
        file.write_bytes(b"not a file of torch")
    else:
        torch.save(content, file)
    assert main(["inspect", str(file)]) == 2
    assert "inspect: error: state: " in capsys.readouterr().err


def test_bench_times_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--samples", "5000", "--batch-size", "8", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["operation"], row["backend"]) for row in rows} == {
        (operation, backend)
        for operation in ("observe, B = 8", "plan, N = 5,000")
        for backend in ("cpu", "reference")
    }
    assert all(0 < row["p20_us"] <= row["median_us"] <= row["p80_us"] for row in rows)
    assert main(["bench", "--samples", "5000"]) == 0
    assert "observe, B = 256" in capsys.readouterr().out


def test_the_module_is_a_command() -> None:
    command = [sys.executable, "-W", "error", "-m", "prune_engine", "bench", "--samples", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "plan, N = 10" in done.stdout


# --- a policy written on the command line -------------------------------------------------------

OWN = """
from dataclasses import dataclass

from prune_engine.policies import Policy, TopRule

raise_ = None


@dataclass(frozen=True)
class Mine(Policy):
    keep: float = 0.5

    def __post_init__(self):
        if not 0 < self.keep < 1:
            raise ValueError(f"keep must be in (0, 1), got {self.keep}")

    def rule(self, buffer, progress, memory=None):
        return TopRule(int(self.keep * buffer.num_samples))


class Bare(Policy):
    def rule(self, buffer, progress, memory=None):
        return TopRule(1)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module of policies into the current folder; return its name."""
    name = f"policies_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.extra("sklearn")
def test_a_policy_of_any_module_is_trained_and_named_in_the_folder(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spec = f"{own}:Mine(keep=0.25)"
    arguments = [*TRAIN, "--policy", spec, "--seed", "7", "--no-pictures"]
    assert main(arguments) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("Mine_keep_0.25")
    assert "Mine_keep_0.25" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}:Mine(keep=2)", "keep must be in (0, 1), got 2"),
        ("{}:Mine(kept=0.5)", "kept"),
        ("{}:Mine(keep=open('x'))", "of literals"),
        ("{}:Mine(**{{}})", "of literals"),
        ("{}:Mine().keep", "expected name(parameter=value"),
        ("{}:Mine(", "of literals"),
        ("{}:Bare", "must be a frozen dataclass"),
        ("{}:dataclass", "must be a Policy"),
        ("{}:Nobody", "cannot be found"),
        ("nowhere_at_all:Mine", "cannot be found"),
        (".nearby:Mine", "cannot be found"),
        ("orderdp(keep=2)", "keep must be in (0, 1)"),
        ("nobody(1)", "expected one of infobatch"),
        ("nobody", "expected one of infobatch"),
    ],
)
def test_a_policy_that_cannot_be_made_is_refused_at_once(
    own: str, spec: str, words: str, capsys: pytest.CaptureFixture[str]
):
    before = list(sys.path)
    assert main(["train", "--policy", spec.format(own)]) == 2
    assert words in capsys.readouterr().err
    assert not Path("runs").exists()
    assert sys.path == before


def test_a_policy_of_the_table_takes_its_parameters():
    from prune_engine.recipes.policy_spec import read_policy

    assert read_policy("orderdp(0.25, pool=0.75)") == pe.policies.OrderDP(0.25, 0.75)
    assert read_policy("infobatch(rescale=False)") == pe.InfoBatch(rescale=False)


@pytest.mark.full("starts a process")
@pytest.mark.extra("sklearn")
def test_a_warning_is_one_line_without_the_source(tmp_path: Path) -> None:
    words = [*TRAIN, "--policy", "ucb", "--out", str(tmp_path / "run")]
    run = (
        "import sys, warnings; from prune_engine.cli import main; shown = warnings.formatwarning\n"
    )
    run += "main(sys.argv[1:]); assert warnings.formatwarning is shown"
    command = [sys.executable, "-W", "default", "-c", run, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("prune-engine train: warning: period=10 is longer than the run")


def test_quantiles_are_those_of_the_samples_that_were_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    engine = pe.PruneEngine(20, pe.KeepAll(), num_epochs=2)
    batch = torch.tensor(list(engine.sampler())[:5])
    engine.observe(torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0]), batch)
    torch.save(engine.state_dict(), tmp_path / "state.pt")
    assert main(["inspect", str(tmp_path / "state.pt"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["seen"], facts["planned"], facts["cursor"]) == (5, 20, 5)
    found = facts["score_quantiles"]
    assert [found[q] for q in ("0", "0.25", "0.5", "0.75", "1")] == [1, 2, 3, 4, 5]

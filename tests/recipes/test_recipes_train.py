# SPDX-License-Identifier: Apache-2.0
"""Every arm goes through one loop, on equal terms, and the same seed gives the same training."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _assertions import assert_bitwise

import prune_engine as pe
from prune_engine.cli import main
from prune_engine.losses.reduce import cross_entropy
from prune_engine.policies import TABLE
from prune_engine.recipes import arms, data, files, models, optimizers, text
from prune_engine.recipes.compare import DEFAULTS, RunOptions, control_ratio, random_like, run
from prune_engine.recipes.train import Arm, ArmResult, train_arm
from prune_engine.recipes.trainer import TrainConfig, make_trainer

TINY = TrainConfig(model="mlp", epochs=5, batch_size=16, lr=0.05)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits() -> data.ImageData:
    pytest.importorskip("sklearn", reason="needs sklearn, of an extra")
    return data.load("digits", limit=600)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (1, 8, 8)),
        ("small_cnn", (1, 28, 28)),
        ("cnn", (1, 28, 28)),
        ("cnn", (3, 32, 32)),
        ("resnet18", (3, 32, 32)),
    ],
)
def test_a_model_depends_on_its_seed_alone(name: str, shape: tuple[int, int, int]) -> None:
    one, two, other = (models.build(name, shape, 10, seed) for seed in (1, 1, 2))
    assert tuple(one(torch.zeros(2, *shape)).shape) == (2, 10)
    weights = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (one, two, other)]
    assert_bitwise(weights[0], weights[1], "same seed")
    assert not torch.equal(weights[0], weights[2])
    if name == "resnet18":
        assert weights[0].numel() == 11_173_962  # the CIFAR form with 10 classes


def test_an_unknown_model_or_too_small_an_image_is_refused() -> None:
    with pytest.raises(
        ValueError, match="expected one of mlp, small_cnn, cnn, resnet18, got 'vgg'"
    ):
        models.build("vgg", (3, 32, 32), 10, 0)
    with pytest.raises(ValueError, match="cnn needs images of 16 x 16"):
        models.build("cnn", (1, 8, 8), 10, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "vgg"),
        ("optimizer", "lion"),
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("label_smoothing", 1.0),
        ("score", "guess"),
    ],
)
def test_a_configuration_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(TINY, **{field: value})


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_without_pytorch_optimizer_the_extra_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    words = f"optimizer {name} needs pytorch-optimizer: pip install 'prune_engine[optimizers]'"
    with pytest.raises(ImportError, match=re.escape(words)):
        optimizers.make_optimizer(name, [], lr=1.0, weight_decay=0.0)
    arguments = ["train", "--optimizer", name, "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    optimizers.require("adamw")  # control: torch's own needs nothing


def test_resident_data_have_no_workers() -> None:
    with pytest.raises(ValueError, match="num_workers: expected 0 for resident data, got 2"):
        replace(TINY, resident=True, num_workers=2)


def test_the_score_of_a_smoothed_loss_is_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 10, generator=generator, requires_grad=True)
    labels = torch.randint(10, (50,), generator=generator)
    losses, score = cross_entropy(logits, labels, label_smoothing=0.1)
    wanted = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(losses, wanted)
    assert score is not None
    torch.testing.assert_close(score, F.cross_entropy(logits, labels, reduction="none"))
    assert losses.requires_grad
    assert not score.requires_grad
    # A confident right answer: its smoothed loss is larger than an unsure one's, its score is not.
    sure = torch.tensor([[4.0, 0, 0, 0], [20.0, 0, 0, 0]])
    losses, score = cross_entropy(sure, torch.tensor([0, 0]), label_smoothing=0.1)
    assert score is not None
    assert losses[0] < losses[1]
    assert score[0] > score[1]


def test_a_cut_training_uses_exactly_its_samples_and_ends_its_schedule(
    digits: data.ImageData,
) -> None:
    seen: list[int] = []
    arm = Arm("full_cut", pe.KeepAll(), samples=85 * 16)
    result = train_arm(digits, TINY, arm, 0, lambda r: seen.append(len(r.rows)))
    assert result.served == 85 * 16
    assert [row["served"] for row in result.rows] == [592, 592, 176]
    assert seen == [1, 2, 3]
    assert result.rows[0]["lr"] > 100 * result.rows[-1]["lr"] > 0
    with pytest.raises(ValueError, match="multiple of batch_size 16, got 100"):
        train_arm(digits, TINY, Arm("full_cut", pe.KeepAll(), samples=100), 0)


def test_a_batch_larger_than_the_data_set_is_refused(digits: data.ImageData) -> None:
    with pytest.raises(ValueError, match="at most the 600 training samples, got 601"):
        make_trainer(digits, replace(TINY, batch_size=601), 0)


def losses_of(result: ArmResult) -> list[float]:
    return [row["train_loss"] for row in result.rows]


def test_the_same_seed_trains_the_same_and_another_does_not(digits: data.ImageData) -> None:
    arm = Arm("infobatch", pe.InfoBatch())
    config = replace(TINY, augment=True, label_smoothing=0.1)
    one, two, other = (train_arm(digits, config, arm, seed) for seed in (3, 3, 4))
    assert losses_of(one) == losses_of(two)
    assert one.histogram == two.histogram
    assert losses_of(one) != losses_of(other)


@pytest.mark.full("trains")
def test_resident_data_train_the_same(digits: data.ImageData) -> None:
    arm = Arm("infobatch", pe.InfoBatch())
    plain = train_arm(digits, TINY, arm, 3)
    resident = train_arm(digits, replace(TINY, resident=True), arm, 3)
    assert losses_of(resident) == losses_of(plain)
    assert resident.histogram == plain.histogram
    augmented = replace(TINY, resident=True, augment=True)
    one, two, other = (train_arm(digits, augmented, arm, seed) for seed in (3, 3, 4))
    assert losses_of(one) == losses_of(two)
    assert losses_of(one) != losses_of(other)
    assert losses_of(one) != losses_of(plain), "the images were moved"


@pytest.mark.parametrize("score", ["el2n", "forgetting"])
def test_another_score_decides_and_the_loss_is_trained(digits: data.ImageData, score: Any) -> None:
    arm = Arm("infobatch", pe.InfoBatch())
    by_loss = train_arm(digits, TINY, arm, 3)
    result = train_arm(digits, replace(TINY, score=score), arm, 3)
    # Nothing is decided in the first epoch, and both train on the same loss.
    assert losses_of(result)[0] == pytest.approx(losses_of(by_loss)[0], rel=1e-3)
    assert result.served < 5 * 592
    assert result.histogram is not None and by_loss.histogram is not None
    assert result.histogram["mean_before"] != pytest.approx(by_loss.histogram["mean_before"])
    largest = max(
        e
        for e, n in zip(result.histogram["edges"][1:], result.histogram["before"], strict=True)
        if n
    )
    bound = 2**0.5 if score == "el2n" else 3.0  # at most sqrt(2), and one event an epoch
    assert largest <= bound + 1e-3


def test_the_rate_is_divided_by_the_largest_weight_of_each_epoch(
    digits: data.ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def spy(optimizer: torch.optim.SGD, closure: None = None) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    heavy = Arm("random", pe.RandomSubset(0.75, rescale=True, delta=0.6))  # 4, 4, 4 and 1, 1
    plain = train_arm(digits, TINY, heavy, 0)
    as_scheduled, rates = rates, []
    scaled = train_arm(digits, replace(TINY, scale_lr=True), heavy, 0)
    early = sum(row["served"] for row in plain.rows[:3]) // TINY.batch_size
    assert rates[:early] == [rate / 4 for rate in as_scheduled[:early]]
    assert rates[early:] == as_scheduled[early:], "unweighted epochs have the schedule's"
    assert max(row["effective_lr"] for row in plain.rows) > 3 * TINY.lr, "control"
    assert [row["effective_lr"] for row in scaled.rows] == [
        pytest.approx(row["effective_lr"] / 4 if row["epoch"] < 3 else row["effective_lr"])
        for row in plain.rows
    ]
    assert max(row["effective_lr"] for row in scaled.rows) <= TINY.lr
    full = Arm("full", pe.KeepAll())
    assert losses_of(train_arm(digits, replace(TINY, scale_lr=True), full, 0)) == losses_of(
        train_arm(digits, TINY, full, 0)
    )


@pytest.mark.extra("sklearn")
def test_a_rate_above_the_peak_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    run(options(tmp_path), said.append)
    found = [line for line in said if "above the schedule's peak of 0.05" in line]
    assert len(found) == 1
    assert len(said) == 5, "a line for each epoch"
    assert "infobatch: weights train samples at up to 0.1," in found[0]
    scaled, quiet = (
        replace(options(tmp_path / "b"), train=replace(TINY, scale_lr=True)),
        list[str](),
    )
    run(scaled, quiet.append)
    assert len(quiet) == 5
    assert not any("above" in line for line in quiet), "control: scaled, none is"


def test_arms_differ_in_their_policy_alone(digits: data.ImageData) -> None:
    full = train_arm(digits, TINY, Arm("full", pe.KeepAll()), 0)
    same = train_arm(digits, TINY, Arm("infobatch", pe.InfoBatch(prune_ratio=0.0)), 0)
    pruned = train_arm(digits, TINY, Arm("infobatch", pe.InfoBatch()), 0)
    assert losses_of(full) == losses_of(same)  # pruning nothing is full training
    assert losses_of(full)[0] == losses_of(pruned)[0]  # nothing is known in the first epoch
    assert losses_of(full)[1:] != losses_of(pruned)[1:]
    assert full.histogram is None
    assert [row["saved"] for row in full.rows] == [0] * 5
    assert pruned.served < full.served


def test_rescaling_restores_the_mean_of_the_losses(digits: data.ImageData) -> None:
    result = train_arm(digits, TINY, Arm("infobatch", pe.InfoBatch()), 0)
    histogram = result.histogram
    assert histogram is not None
    assert sum(histogram["after"]) < sum(histogram["before"]) <= 600
    gap = histogram["mean_after"] - histogram["mean_before"]
    assert gap > 0  # low losses were dropped
    assert abs(histogram["mean_rescaled"] - histogram["mean_before"]) < gap / 3
    assert len(histogram["edges"]) == len(histogram["before"]) + 1


@pytest.mark.parametrize("share", [0.55, 0.7, 0.95])
def test_the_control_trains_as_many_samples_as_the_policy(
    digits: data.ImageData, share: float
) -> None:
    epochs, batch = 8, 16
    samples = int(share * 600 * epochs) // batch * batch
    ratio = control_ratio(600, batch, epochs, 0.875, samples)
    policy = pe.RandomSubset(ratio, rescale=True, delta=0.875)
    result = train_arm(digits, replace(TINY, epochs=epochs), Arm("random", policy), 0)
    # Binomial draws and left-out tails: sqrt(7 (600 r (1 - r) + 16^2 / 12)) is at most 37.
    assert abs(result.served - samples) < 3 * 37


def test_a_saving_that_no_random_ratio_reaches_is_refused() -> None:
    assert control_ratio(100, 10, 10, 0.5, samples=1000) == 0.0
    with pytest.raises(ValueError, match="cannot be reached"):
        control_ratio(100, 1, 10, 0.5, samples=400)


def options(out: Path, **more: object) -> RunOptions:
    return RunOptions(data="digits", out=out, train=TINY, limit=600, **more)  # type: ignore[arg-type]


def test_full_training_and_the_policy_take_turns_to_be_first(tmp_path: Path) -> None:
    compared = options(tmp_path, compare=True, seeds=(0, 1))
    assert compared.names(0) == ["full", "infobatch", "random", "full_cut"]
    assert compared.names(1) == ["infobatch", "full", "full_cut", "random"]
    assert options(tmp_path).names(0) == ["infobatch"]
    own_control = options(tmp_path, compare=True, policy="random_rescale")
    assert own_control.names(0) == ["full", "random_rescale", "full_cut"]
    plain = options(tmp_path, policy="random")
    assert plain.arm().policy == pe.RandomSubset(0.5, rescale=False, delta=0.875)


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="policy"):
        options(tmp_path, policy="best")
    with pytest.raises(ValueError, match="drop --compare"):
        options(tmp_path, policy="full", compare=True)
    with pytest.raises(ValueError, match="seeds"):
        options(tmp_path, seeds=(1, 1))


@pytest.mark.extra("sklearn")
def test_a_comparison_is_on_equal_samples_and_leaves_its_files(tmp_path: Path) -> None:
    stale = tmp_path / "infobatch-seed1" / "metrics.jsonl"
    files.write_rows(stale, [{"schema": 99}])
    said: list[str] = []
    words = {"compare": True, "seeds": (0, 1), "policy": "infobatch"}
    found = run(options(tmp_path, **words), said.append)
    assert found is not None
    report = found.report
    assert report.arms == ["full", "full_cut", "random", "infobatch"]
    for seed in (0, 1):
        samples = {arm: report.of(arm)[seed].samples for arm in report.arms}
        assert samples["full"] == 5 * 592
        assert samples["full_cut"] == samples["infobatch"] < samples["full"]
        assert abs(samples["random"] - samples["infobatch"]) < 100
    assert files.load_run(tmp_path).report == report
    config = files.load_run(tmp_path).config
    assert len(config["runs"]) == 8
    assert config["versions"]["torch"] == metadata.version("torch")
    assert config["arguments"]["train"]["batch_size"] == 16
    trained = 0
    for name in config["runs"]:
        lines = files.read_rows(tmp_path / name / "metrics.jsonl")
        assert [line["epoch"] for line in lines] == list(range(len(lines)))
        assert all(0 <= line["engine_seconds"] < line["seconds"] for line in lines)
        trained += len(lines)
        assert (tmp_path / name / "losses.json").is_file() == name.startswith(("info", "random"))
    assert len(said) == trained


@pytest.mark.full("trains")
@pytest.mark.extra("sklearn")
def test_a_comparison_whose_last_epochs_keep_everything_has_its_controls(tmp_path: Path) -> None:
    # As the main job: annealed epochs alone train more samples than one batch, or few ones, have.
    given = options(tmp_path, compare=True, policy="infobatch")
    long = replace(given, train=replace(TINY, epochs=16))
    found = run(long, lambda line: None)
    assert found is not None
    assert set(found.report.arms) == {"full", "full_cut", "random", "infobatch"}


def test_a_control_weighs_where_its_policy_does_and_anneals_where_it_does(
    digits: data.ImageData,
) -> None:
    def control(policy: pe.policies.Policy) -> tuple[bool, float]:
        like = random_like(policy, TINY, digits, 2000)
        return like.rescale, like.delta

    assert control(pe.InfoBatch(0.5, 0.8)) == (True, 0.8)
    assert control(pe.InfoBatch(0.5, 0.8, rescale=False)) == (False, 0.8)
    assert control(pe.policies.OrderDP(0.5, 0.7)) == (False, 1.0)
    assert control(pe.policies.RS2(0.5)) == control(pe.UCB(0.5)) == (False, 1.0)
    assert control(pe.RandomSubset(0.5, True, 0.9)) == (True, 0.9)
    assert control(pe.KeepAll()) == control(pe.RandomBatches(16)) == (False, 1.0)


def test_every_policy_of_the_command_makes_an_arm(tmp_path: Path) -> None:
    for policy in arms.POLICIES:
        arm = options(tmp_path, policy=policy, prune_ratio=0.3).arm()
        assert arm.policy.describe()["policy"]
    assert options(tmp_path, policy="ucb", prune_ratio=0.3).arm().policy == pe.UCB(0.7)
    quantile = options(tmp_path, policy="infobatch_quantile", sampling="fixed").arm()
    assert quantile.policy == pe.InfoBatchQuantile(sampling="fixed")
    batchwise = {"bpas", "random_batches"}  # their sizes come from the training: compare.py
    assert {name for name in TABLE if name != "full"} - batchwise <= set(arms.POLICIES)


@pytest.mark.parametrize(
    "policy", ["budget", "infobatch_quantile", "ucb", "random", "random_rescale"]
)
def test_a_policy_is_made_to_save_the_target(
    tmp_path: Path, digits: data.ImageData, policy: str
) -> None:
    config = replace(TINY, epochs=10)
    chosen = RunOptions("digits", tmp_path, config, policy, target_savings=0.3, limit=600)
    result = train_arm(digits, config, chosen.arm(), 0)
    planned = sum(row["planned"] for row in result.rows)
    assert abs(1 - planned / 6000 - 0.3) < 5 * (0.25 / 6000) ** 0.5


@pytest.mark.parametrize(
    ("policy", "target", "message"),
    [
        ("infobatch", 0.4, "saving of infobatch cannot be set; take budget"),
        ("budget", 0.8, "budget cannot save 0.8 of 5 epochs in 4"),
        ("infobatch_quantile", 0.55, "infobatch_quantile cannot save 0.55"),
        ("ucb", 1.0, r"target_savings: expected a number in \(0, 1\), got 1.0"),
    ],
)
def test_a_target_that_cannot_be_met_is_refused(
    tmp_path: Path, policy: str, target: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        options(tmp_path, policy=policy, target_savings=target).arm()


@pytest.mark.full("trains")
@pytest.mark.extra("sklearn")
@pytest.mark.filterwarnings("ignore:period=10 is longer than the run:UserWarning")
def test_all_policies_are_compared_at_equal_savings(tmp_path: Path) -> None:
    chosen = options(tmp_path, policy="all", compare=True, seeds=(0, 1), target_savings=0.3)
    assert chosen.names(1) == [*chosen.names(0)[1:], "full"], "each is first in turn"
    found = run(chosen, lambda line: None)
    assert found is not None
    report = found.report
    assert report.arms[:3] == ["full", "full_cut", "random"]
    assert set(report.arms[3:]) == set(arms.EQUAL) - {"random"}
    full = report.of("full")[0].samples
    for arm in report.arms[1:]:
        saved = [1 - result.samples / full for result in report.of(arm)]
        # Batches that are not full are left out: up to 15 of 600 samples an epoch.
        assert all(abs(share - 0.3) < 0.05 for share in saved), arm
    assert len(report.sentences()) == len(report.arms) - 2
    assert all("the random control at equal savings" in line for line in report.sentences())


@pytest.mark.extra("sklearn")
def test_all_is_a_comparison_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="all is a comparison; add --compare"):
        options(tmp_path, policy="all")
    with pytest.raises(ValueError, match=r"cannot save 0\.9"):
        run(options(tmp_path, policy="all", compare=True, target_savings=0.9), lambda line: None)
    assert not (tmp_path / "config.json").exists()


def test_the_defaults_cover_every_data_set() -> None:
    assert set(DEFAULTS) == set(data.DATA_SETS)
    for name, config in DEFAULTS.items():
        assert config.augment == name.startswith("cifar")
        assert (config.model in models.TEXT_MODELS) == (name in text.TEXTS)


@pytest.mark.full("trains")
@pytest.mark.extra("sklearn")
def test_batch_pruning_is_compared_on_equal_batches(tmp_path: Path) -> None:
    config = replace(TINY, epochs=8)
    ranges = ((0.1, 0.2), (50.0, 50.0))
    chosen = RunOptions("digits", tmp_path, config, "bpas", limit=600, delta_ranges=ranges)
    compared = replace(chosen, compare=True)
    assert compared.names(0) == ["full", "bpas", "random", "full_cut", "bpas_50_50"]
    found = run(compared, lambda line: None)
    assert found is not None
    report = found.report
    runs = {arm: report.of(arm)[0] for arm in report.arms}
    assert runs["bpas"].samples == runs["random"].samples == runs["full_cut"].samples
    assert 0.1 < runs["bpas"].dsi < 0.7
    early = runs["bpas_50_50"]  # everything is stable after the second epoch
    assert (early.epochs, early.dsi, early.dsi_run) == (2, 1 - 2 / 8, 0.0)
    assert report.summary()["arms"]["bpas_50_50"]["dsi_run"] == 0.0
    assert "DSI % of epochs run" in report.table(markdown=True)
    rows = [files.read_rows(tmp_path / f"{arm}-seed0" / "metrics.jsonl") for arm in report.arms]
    counts = {row[0]["arm"]: [line["batches"] for line in row] for row in rows}
    assert counts["bpas"] == counts["random"]
    assert counts["bpas"][0] == 37 > counts["bpas"][-1]
    assert set(counts["full"]) == {None}


@pytest.mark.full("trains")
@pytest.mark.extra("sklearn")
def test_batch_pruning_in_words_of_its_own_has_the_control_of_its_batches(tmp_path: Path) -> None:
    words = "bpas(batch_size=16, drop_last=True, shuffle_batches=True, target_dsi=0.3)"
    chosen = options(tmp_path, policy=words, compare=True)
    found = run(replace(chosen, train=replace(TINY, epochs=6)), lambda line: None)
    assert found is not None
    counts = {name: [row["batches"] for row in rows] for name, rows in found.rows.items()}
    (policy,) = [name for name in counts if name.startswith("bpas")]
    assert counts["random-seed0"] == counts[policy]
    assert counts[policy][-1] < counts[policy][0], "control: it dropped some"


def test_a_call_is_no_arm_that_the_comparison_has_already(tmp_path: Path) -> None:
    names = options(tmp_path, policy="random()", compare=True).names(0)
    assert names == ["full", "random_no_rescale", "random", "full_cut"]
    assert options(tmp_path, policy="full()").names(0) == ["full"], "control: alone it is one"
    with pytest.raises(ValueError, match="full is what the others are compared with"):
        options(tmp_path, policy="full()", compare=True)


def test_options_of_batch_pruning_are_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="noise_floor: expected with policy bpas only"):
        options(tmp_path, noise_floor=1.0)
    with pytest.raises(ValueError, match="without delta_ranges, which it replaces"):
        options(tmp_path, policy="bpas", target_savings=0.3, delta_ranges=((1e-3, 1e-2),))

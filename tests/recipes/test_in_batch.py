# SPDX-License-Identifier: Apache-2.0
"""Arms that train a part of each batch: what they choose, what they count, and their controls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from _processes import start_ranks
from torch import Tensor

import prune_engine as pe
from prune_engine.losses import DivBS
from prune_engine.recipes import data, files, in_batch
from prune_engine.recipes.compare import RunOptions, run
from prune_engine.recipes.in_batch import InBatch, SampleChooser, read_arm
from prune_engine.recipes.reference import cross_fitted
from prune_engine.recipes.train import Arm, ArmResult, Keep, train_arm
from prune_engine.recipes.trainer import ImageTrainer, TrainConfig, make_trainer

TINY = TrainConfig(model="mlp", epochs=3, batch_size=16, lr=0.05)
LIMIT, K = 160, 4  # ten batches an epoch


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits() -> data.ImageData:
    pytest.importorskip("sklearn", reason="needs sklearn, of an extra")
    return data.load("digits", limit=LIMIT)


class Batch:
    """One batch that a rule chooses of, beside what it should know of it."""

    def __init__(self, digits: data.ImageData, rule: str, config: TrainConfig = TINY) -> None:
        trainer = make_trainer(digits, config, seed=3)
        assert isinstance(trainer, ImageTrainer)
        self.trainer, self.chooser = trainer, InBatch(rule, K / 16).chooser(trainer)
        assert isinstance(self.chooser, SampleChooser)
        self.engine = pe.PruneEngine(LIMIT, pe.KeepAll(), num_epochs=3, seed=3)
        self.indices = torch.tensor(list(self.engine.sampler())[:16])
        self.images, self.labels = (part[self.indices] for part in trainer.tensors())
        with trainer.scoring():
            self.logits = trainer.logits(self.images)
            self.features = trainer.model[:-1](trainer.normalised(self.images))
        self.losses = F.cross_entropy(self.logits, self.labels, reduction="none")

    def observe(self) -> tuple[Tensor, Tensor]:
        return self.chooser.observe(self.engine, self.images, self.labels, self.indices)

    def places(self, losses: Tensor) -> list[int]:
        """Which of the batch were trained, told by their losses."""
        assert self.losses.unique().numel() == 16
        gaps = (losses[:, None] - self.losses).abs()
        assert gaps.amin(dim=1).max() < 1e-5
        return gaps.argmin(dim=1).tolist()


def test_the_largest_excess_over_the_reference_is_averaged(digits: data.ImageData) -> None:
    batch = Batch(digits, "rho_loss")
    reference = torch.rand(LIMIT, generator=torch.Generator().manual_seed(2)) * 9
    batch.chooser.reference = reference
    loss, losses = batch.observe()
    excess = (batch.losses - reference[batch.indices]).numpy()
    largest = sorted(np.argsort(-excess)[:K].tolist())
    assert batch.places(losses) == largest
    assert largest != sorted(np.argsort(-batch.losses.numpy())[:K].tolist()), "control"
    assert loss.item() == pytest.approx(losses.mean().item())
    # All of the batch is recorded, not just what was trained.
    torch.testing.assert_close(batch.engine.scores()[batch.indices], batch.losses)
    assert batch.engine.cursor == 16


def test_divbs_is_given_the_last_layers_input(digits: data.ImageData) -> None:
    batch = Batch(digits, "divbs")
    loss, losses = batch.observe()
    values = DivBS(K).values(batch.logits, batch.labels, batch.features)
    assert batch.places(losses) == sorted(values.topk(K).indices.tolist())
    without = DivBS(K, bias=False).values(batch.logits, batch.labels, 9 * batch.features.flip(0))
    assert sorted(without.topk(K).indices.tolist()) != batch.places(losses), "control"
    assert loss.item() == pytest.approx(losses.mean().item())


def test_what_is_weighed_is_unbiased_and_the_others_are_averaged(digits: data.ImageData) -> None:
    for rule, weighs in (("importance_sampling", True), ("selective_backprop", False)):
        batch = Batch(digits, rule)
        rule_of: Any = batch.chooser.rule
        if weighs:
            rule_of.tau = torch.full((), 1e9, dtype=torch.float64)  # the choice pays
        else:
            rule_of.history = torch.linspace(0, 5, 1024)
        loss, losses = batch.observe()
        values = batch.losses if weighs else rule_of.history.sort().values
        if not weighs:
            values = torch.searchsorted(values, batch.losses, right=True) / 1024
        fresh = pe.PruneEngine(LIMIT, pe.KeepAll(), num_epochs=3, seed=3)
        chosen, weights, _ = fresh.pick(values, K, floor=0.1 if weighs else 0.0)
        assert batch.places(losses) == chosen.tolist()
        weighed = (weights * losses).sum() / 16
        assert weighed.item() != pytest.approx(losses.mean().item()), "control: they differ"
        assert loss.item() == pytest.approx((weighed if weighs else losses.mean()).item())


def test_importance_is_uniform_until_its_tau_says_that_it_pays(digits: data.ImageData) -> None:
    losses = {}
    for rule in ("importance_sampling", "uniform", "divbs"):
        batch = Batch(digits, rule)
        losses[rule] = batch.places(batch.observe()[1])
    assert losses["importance_sampling"] == losses["uniform"]
    assert losses["divbs"] != losses["uniform"], "control"


def test_who_was_not_passed_forward_is_recorded_with_the_mean(digits: data.ImageData) -> None:
    batch = Batch(digits, "uniform")
    _, losses = batch.observe()
    found, places = batch.engine.scores()[batch.indices], batch.places(losses)
    torch.testing.assert_close(found[places], losses)
    others = [i for i in range(16) if i not in places]
    torch.testing.assert_close(found[others], losses.mean().expand(12))


def test_both_passes_see_the_same_augmented_images(digits: data.ImageData) -> None:
    batch = Batch(digits, "evolved_sampling", replace(TINY, augment=True))
    _, losses = batch.observe()
    recorded = batch.engine.scores()[batch.indices]
    assert ((recorded[:, None] - losses).abs().amin(dim=0) < 1e-5).all()
    assert (batch.losses - recorded).abs().max() > 1e-3, "control: they were moved"


def test_a_layers_statistics_move_in_the_training_pass_alone() -> None:
    images = (torch.arange(32 * 28 * 28) * 40503 % 255).to(torch.uint8).view(32, 1, 28, 28)
    labels = torch.arange(32) % 4
    made = data.ImageData(
        "fashion_mnist", images, labels, images[:2], labels[:2], 4, torch.zeros(1), torch.ones(1)
    )
    for rule, config in (("divbs", TINY), ("uniform", TINY)):
        config = replace(config, model="cnn", epochs=1)
        moved: list[int] = []

        def look(trainer: Any, engine: pe.PruneEngine, to: list[int] = moved) -> None:
            to.append(int(trainer.model[0][1].num_batches_tracked))

        result = train_arm(made, config, read_arm(rule, 0.25), 0, on_end=look)
        assert (moved, result.served) == ([2], 8)


@pytest.mark.parametrize(
    ("rule", "others"), [("evolved_sampling", False), ("importance_sampling", True)]
)
def test_what_is_worth_nothing_is_chosen_only_where_the_chosen_weigh_for_it(
    digits: data.ImageData, rule: str, others: bool
) -> None:
    batch, wanted = Batch(digits, rule), [1, 6, 7, 12]
    worth = torch.zeros(16).index_fill(0, torch.tensor(wanted), 1.0)
    batch.chooser.values = lambda losses, indices: worth
    chosen: set[int] = set()
    for _ in range(12):
        batch.indices = batch.indices.clone()  # another batch, and so another choice
        _, losses = batch.observe()
        chosen |= set(batch.places(losses))
    assert chosen >= set(wanted)
    assert (chosen > set(wanted)) == others


@pytest.mark.parametrize("rule", in_batch.SAMPLES)
def test_rows_count_what_was_passed_backward_and_forward(digits: data.ImageData, rule: str) -> None:
    result = train_arm(digits, TINY, read_arm(rule, K / 16), 0)
    plain = train_arm(digits, TINY, Arm("full", pe.KeepAll()), 0)
    assert (plain.served, plain.forwards) == (3 * 160, 3 * 160)
    reference = (2 * 80, 2 * 80 + 160) if rule == "rho_loss" else (0, 0)
    scored = 0 if rule == "uniform" else 160
    first = (reference[0] + 40, reference[1] + 40 + scored)
    assert [(row["served"], row["forwards"]) for row in result.rows] == [
        first,
        *[(40, 40 + scored)] * 2,
    ]
    assert [row["planned"] for row in result.rows] == [40] * 3
    assert [row["saved"] for row in result.rows] == [120] * 3
    assert all(row["nonfinite"] == 0 for row in result.rows)
    assert result.rows[-1]["train_loss"] < 3


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("rule", "keep"),
    [
        ("selective_backprop", 0.25),
        ("importance_sampling", 0.9),
        ("evolved_sampling", 0.25),
        ("rho_loss", 0.25),
    ],
)
def test_a_training_goes_on_as_it_would_have(
    digits: data.ImageData, rule: str, keep: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, kept = read_arm(rule, keep), Keep(checkpoint=tmp_path / "state.pt")
    longer = replace(TINY, epochs=5)
    whole = train_arm(digits, longer, arm, 0)

    def stop(result: ArmResult) -> None:
        if len(result.rows) == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train_arm(digits, longer, arm, 0, stop, keep=kept)
    saved = (tmp_path / "state.pt").read_bytes()
    resumed = train_arm(digits, longer, arm, 0, keep=kept)
    for field in ("train_loss", "test_accuracy", "served", "forwards"):
        assert [row[field] for row in resumed.rows] == [row[field] for row in whole.rows]

    def forget(chooser: SampleChooser, state: dict[str, Any]) -> None:
        chooser.reference = torch.zeros(LIMIT)

    (tmp_path / "state.pt").write_bytes(saved)
    monkeypatch.setattr(SampleChooser, "load_state_dict", forget)
    other = train_arm(digits, longer, arm, 0, keep=kept)
    losses = [row["train_loss"] for row in other.rows]
    assert losses != [row["train_loss"] for row in whole.rows], "control: what it knew matters"


def test_a_reference_has_not_seen_what_it_scores(digits: data.ImageData) -> None:
    before = cross_fitted(digits, TINY, 0, epochs=2)
    assert (before.served, before.forwards) == (2 * 160, 2 * 160 + 160)
    images = digits.train_images.clone()
    images[6] = 16 - images[6]
    after = cross_fitted(replace(digits, train_images=images), TINY, 0, epochs=2)
    same = (after.losses == before.losses).tolist()
    assert [i for i in range(0, LIMIT, 2) if not same[i]] == [6], "no other even one changed"
    assert not any(same[1::2]), "control: those that its model scores did"


@pytest.mark.extra("sklearn")
def test_a_comparison_has_controls_of_equal_samples_and_of_equal_passes(tmp_path: Path) -> None:
    options = RunOptions(
        "digits", tmp_path, replace(TINY, epochs=2), "divbs(keep=0.25)", compare=True, limit=LIMIT
    )
    found = run(options, lambda line: None)
    assert found is not None
    report = found.report
    name = "divbs_keep_0.25"
    assert options.names(0) == ["full", name, "random", "full_cut", "full_forwards"]
    assert report.arms == ["full", "full_cut", "full_forwards", "random", name]
    cost = {arm: (report.of(arm)[0].samples, report.of(arm)[0].forwards) for arm in report.arms}
    assert cost == {
        "full": (320, 320),
        "full_cut": (80, 80),
        "full_forwards": (400, 400),
        "random": (80, 80),
        name: (80, 400),
    }
    assert report.of(name)[0].dsi == pytest.approx(0.75)
    table = report.table(markdown=False)
    assert "passed forward" in table
    said = report.sentences()
    assert any("full training with as many forward passes" in line for line in said)
    assert files.load_run(tmp_path).report == report
    plain = RunOptions("digits", tmp_path / "b", replace(TINY, epochs=1), limit=LIMIT)
    other = run(plain, lambda line: None)
    assert other is not None and "passed forward" not in other.report.table(markdown=False)


def test_the_command_lines_words_make_choices(tmp_path: Path) -> None:
    def arm(policy: str, **more: Any) -> Arm:
        return RunOptions("digits", tmp_path, TINY, policy, **more).arm()

    assert arm("rho_loss", prune_ratio=0.7).within == InBatch("rho_loss", keep=0.3)
    assert arm("divbs", target_savings=0.4).within == InBatch("divbs", keep=0.6)
    assert arm("rho_loss(0.1, reference_epochs=3)").within == InBatch("rho_loss", 0.1, 3)
    assert arm("infobatch").within is None
    assert RunOptions("digits", tmp_path, TINY, "uniform", compare=True).names(0) == [
        *("full", "uniform", "full_cut")
    ]
    assert RunOptions("gsm8k", tmp_path, TINY, "rho_tokens", compare=True).names(0) == [
        *("full", "rho_tokens", "random", "full_forwards")
    ]
    for text, match in (
        ("divbs(keep=1.5)", "keep must be in"),
        ("divbs(often=2)", "often"),
        ("divbs(keep=open('x'))", "of literals"),
        ("rho_loss(reference_epochs=0)", "reference_epochs"),
    ):
        with pytest.raises(ValueError, match=match):
            arm(text)
    with pytest.raises(ValueError, match="target_savings: expected with a policy's name alone"):
        arm("divbs(keep=0.5)", target_savings=0.5)


def test_a_choice_that_does_not_fit_is_refused(digits: data.ImageData) -> None:
    with pytest.raises(ValueError, match="expected a text for top_tokens"):
        train_arm(digits, TINY, read_arm("top_tokens", 0.5), 0)
    with pytest.raises(ValueError, match="score: expected loss with divbs"):
        train_arm(digits, replace(TINY, score="el2n"), read_arm("divbs", 0.5), 0)
    with pytest.raises(ValueError, match="samples: expected None with a choice within"):
        replace(read_arm("divbs", 0.5), samples=16)
    with pytest.raises(ValueError, match="expected at most 80, half of the data"):
        train_arm(digits, replace(TINY, batch_size=100), read_arm("rho_loss", 0.5), 0)
    with pytest.raises(ValueError, match="rule must be one of"):
        InBatch("best")


@pytest.mark.full("starts workers")
def test_workers_change_nothing_after_a_stop(digits: data.ImageData, tmp_path: Path) -> None:
    config = replace(TINY, augment=True, num_workers=1)
    arm, kept = Arm("infobatch", pe.InfoBatch()), Keep(checkpoint=tmp_path / "state.pt")
    whole = train_arm(digits, config, arm, 0)

    def stop(result: ArmResult) -> None:
        if len(result.rows) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train_arm(digits, config, arm, 0, stop, keep=kept)
    resumed = train_arm(digits, config, arm, 0, keep=kept)
    losses = [row["train_loss"] for row in resumed.rows]
    assert losses == [row["train_loss"] for row in whole.rows]
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert len(saved["extra"]["rows"]) == 3
    plain = train_arm(digits, replace(config, augment=False), arm, 0)
    assert losses != [row["train_loss"] for row in plain.rows], "control: the augmentation is drawn"


RANKED = ("divbs", "rho_loss", "importance_sampling")


def train_on_a_rank(rank: int, size: int, folder: str) -> None:
    """Train some choices on one rank; leave the weights and the rows."""
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    loaded, found = data.load("digits", limit=LIMIT), {}
    for rule in RANKED:
        ended: list[Tensor] = []

        def keep(trainer: Any, engine: pe.PruneEngine, to: list[Tensor] = ended) -> None:
            to.append(torch.cat([each.detach().flatten() for each in trainer.model.parameters()]))

        result = train_arm(loaded, TINY, read_arm(rule, K / 16), 0, on_end=keep)
        counts = [(row["served"], row["forwards"]) for row in result.rows]
        found[rule] = {"weights": ended[0], "counts": counts}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()


@pytest.mark.full("trains on two processes")
@pytest.mark.distributed
def test_ranks_choose_of_their_own_batches_and_train_one_model(
    digits: data.ImageData, tmp_path: Path
) -> None:
    assert start_ranks(train_on_a_rank, 2, str(tmp_path)).join() == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{q}.pt", weights_only=True) for q in range(2))
    for rule in RANKED:
        assert torch.equal(first[rule]["weights"], second[rule]["weights"])
        assert first[rule]["counts"] == second[rule]["counts"]
        # Two of each rank's eight: as many in all as one process chooses of sixteen.
        assert first[rule]["counts"][-1] == (40, 40 + 160)
    # Each rank scores all of the data by both models, which one process does once.
    assert first["rho_loss"]["counts"][0] == (2 * 80 + 40, 2 * 80 + 2 * 160 + 40 + 160)
    assert not torch.equal(first["divbs"]["weights"], first["rho_loss"]["weights"]), "control"


CONTINUED = ("evolved_sampling", "selective_backprop")


def continue_on_a_rank(rank: int, size: int, folder: str) -> None:
    """Train whole, and stopped and continued; then with another part in the place of rank 1's."""
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    loaded, found = data.load("digits", limit=64), {}
    config = replace(TINY, augment=True)

    def losses(rule: str, file: str | None, rows: int = 3) -> list[float]:
        def stop(result: ArmResult) -> None:
            if len(result.rows) > rows:
                raise Stopped

        kept = Keep(checkpoint=None if file is None else Path(folder) / file)
        try:
            ended = train_arm(loaded, config, read_arm(rule, K / 16), 0, stop, keep=kept)
        except Stopped:
            return []
        finally:
            dist.barrier()
        return [row["train_loss"] for row in ended.rows]

    for rule in CONTINUED:
        names = {name: f"{rule}-{name}.pt" for name in ("whole", "generators", "rules")}
        found[rule] = {"whole": losses(rule, None)}
        losses(rule, names["whole"], rows=2)
        if rank == 0:
            for name in ("generators", "rules"):
                saved = torch.load(f"{folder}/{names['whole']}", weights_only=True)
                if name == "generators":
                    saved["extra"][name][1] = saved["extra"][name][0]
                else:
                    (rule_state,) = saved["extra"]["within"][name][1].values()
                    rule_state.copy_(torch.linspace(0, 50, len(rule_state)))
                torch.save(saved, f"{folder}/{names[name]}")
        dist.barrier()
        found[rule] |= {f"of {name}": losses(rule, file) for name, file in names.items()}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()


@pytest.mark.full("trains on two processes")
@pytest.mark.distributed
def test_ranks_go_on_as_they_would_have_each_with_what_it_knew(
    digits: data.ImageData, tmp_path: Path
) -> None:
    assert start_ranks(continue_on_a_rank, 2, str(tmp_path)).join() == [0, 0]
    found = torch.load(tmp_path / "rank0.pt", weights_only=True)
    for rule in CONTINUED:
        whole = found[rule]["whole"]
        assert len(whole) == 3
        assert found[rule]["of whole"] == whole
        for name in ("generators", "rules"):
            other = found[rule][f"of {name}"]
            assert other[:2] == whole[:2]
            assert other[2] != whole[2], f"control: rank 1 went on with its part of {name}"
    kept = Keep(checkpoint=tmp_path / "selective_backprop-whole.pt")
    arm = read_arm("selective_backprop", K / 16)
    with pytest.raises(
        pe.StateMismatchError, match=r"saved by 2 ranks, .* cannot be continued by 1"
    ):
        train_arm(digits.limited(64), replace(TINY, augment=True), arm, 0, keep=kept)

# SPDX-License-Identifier: Apache-2.0
"""A study trains what it says, chooses rates without the test images, resumes, and tells losses."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prune_engine import cli
from prune_engine.recipes import models
from prune_engine.recipes.data import ImageData
from prune_engine.recipes.study import regimes, rules, run, tables
from prune_engine.recipes.study.design import (
    CONTROLS,
    RATE,
    RATE_SEEDS,
    RESCALED,
    TEST,
    Found,
    StudyOptions,
    Training,
)
from prune_engine.recipes.text import TextData

BENCH = Path(__file__).resolve().parents[2] / "bench"
SAVED = {"infobatch": 0.3, "repb": 0.1}


def images(count: int = 1000, classes: int = 5) -> ImageData:
    """Blobs: a class is a bright row, and half of the images are dim."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (count,), generator=generator)
    pixels = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
    bright = torch.where(torch.rand(count, generator=generator) < 0.5, 190, 20)
    pixels[torch.arange(count), 0, labels] += bright[:, None]
    data = pixels.to(torch.uint8)
    moments = torch.tensor([80.0]), torch.tensor([60.0])
    return ImageData("blobs", data, labels, data[:100], labels[:100], classes, *moments)


def changed(change: regimes.Change, count: int = 600) -> ImageData:
    return change(images(), count, torch.Generator().manual_seed(0))


def test_a_long_tail_falls_by_a_hundred_and_noise_changes_a_fifth() -> None:
    sizes = torch.bincount(changed(regimes.long_tail, 300).train_labels, minlength=5)
    expected = [100 ** (-k / 4) for k in range(5)]
    wanted = 300 * torch.tensor(expected) / sum(expected)
    assert ((sizes - wanted).abs() < 1.01).all()
    noisy, clean = changed(regimes.label_noise), changed(regimes.plain)
    assert torch.equal(noisy.train_images, clean.train_images)
    wrong = float((noisy.train_labels != clean.train_labels).float().mean())
    assert abs(wrong - 0.2) < 4 * math.sqrt(0.16 / 600)
    assert not (changed(regimes.plain).train_labels != clean.train_labels).any()  # the control


def test_copies_are_near_and_easy_images_are_the_many() -> None:
    copies = changed(regimes.duplicates)
    six = copies.train_labels.view(-1, regimes.COPIES)
    assert (six == six[:, :1]).all() and len(six) == 100
    pictures = copies.train_images.view(100, 6, -1)
    assert len(pictures.flatten(0, 1).unique(dim=0)) > 550, "near copies, not the same"
    easy = changed(regimes.easy_majority)
    bright = easy.train_images.amax((1, 2, 3)) > 150
    plain = changed(regimes.plain).train_images.amax((1, 2, 3)) > 150
    assert float(bright.float().mean()) > 0.8 > 0.6 > float(plain.float().mean())


@pytest.mark.extra("sklearn")
def test_what_is_held_out_is_never_trained_and_keeps_the_true_labels() -> None:
    tested, held = regimes.prepare("digits", None, 900)
    assert torch.equal(tested.train_images, held.train_images)
    assert len(held.test_images) == regimes.FEW_HELD_OUT and len(tested.test_images) == 360
    trained = {bytes(image.numpy().tobytes()) for image in tested.train_images}
    kept = {bytes(image.numpy().tobytes()) for image in held.test_images}
    assert len(trained & kept) <= 1, "but for two digits that are drawn alike"
    again, _ = regimes.prepare("digits", None, 900)
    assert torch.equal(again.train_labels, tested.train_labels)


def test_peoples_labels_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / regimes.HUMAN_LABELS
    with pytest.raises(FileNotFoundError, match="train-human-labels"):
        regimes.human_labels(str(tmp_path), "worse", 4)
    path.parent.mkdir()
    np.savez(path, worse=np.array([0, 9, 3, 1], dtype=np.uint8))
    assert regimes.human_labels(str(tmp_path), "worse", 4).tolist() == [0, 9, 3, 1]
    for column, count, words in (("aggre", 4, "no column 'aggre'"), ("worse", 5, "expected 5")):
        with pytest.raises(ValueError, match=words):
            regimes.human_labels(str(tmp_path), column, count)


def test_every_position_of_a_text_is_a_sample_but_for_the_padded() -> None:
    rows = torch.arange(1, 21, dtype=torch.uint8).repeat(3, 1)
    rows[2, 15:] = 0
    found = regimes.windows(TextData("tinyshakespeare", rows, rows[:1]))
    assert found.num_samples == 8 + 8 + 3 and found.num_test == 8 and found.shape == (1, 1, 12)
    assert found.train_images[0, 0, 0].tolist() == list(range(1, 13))
    assert found.train_labels[:8].tolist() == list(range(13, 21))
    model = models.build("char_mlp", found.shape, 256, seed=0)
    codes = found.train_images[:2].float()
    assert model(codes).shape == (2, 256) and not torch.equal(model(codes)[0], model(codes)[1])
    with pytest.raises(ValueError, match="char_mlp is for windows of a text"):
        models.build("char_mlp", (1, 8, 8), 10, seed=0)


def scene(saving: float | None, epochs: int = 10) -> rules.Scene:
    data = images(100)
    return rules.Scene(data, data, saving, epochs)


def test_every_rule_saves_what_it_is_told_or_has_controls_of_its_own() -> None:
    for rule in rules.RULES.values():
        if not rule.settable:
            rule.make(scene(None))
            continue
        rule.make(scene(0.4))
    assert rules.RULES["orderdp"].make(scene(0.4)).keep == pytest.approx(0.6)
    late = rules.RULES["proportional"].make(scene(0.4))
    assert late.target_savings == pytest.approx(0.4 * 10 / 9)
    with pytest.raises(ValueError, match="cannot save"):
        rules.RULES["proportional"].make(scene(0.95))
    with pytest.raises(ValueError, match="expected names of saved"):
        rules.worded("orderdp(keep={mine})").make(scene(0.4))
    with pytest.raises(ValueError, match="rules: expected one of orderdp"):
        rules.rule_named("nobody")


def options(out: Path, **changes: Any) -> StudyOptions:
    words: dict[str, Any] = {
        "regimes": ("plain",),
        "rules": ("orderdp", "budget", "infobatch"),
        "rates": (0.1, 0.2),
        "seeds": 3,
    }
    return StudyOptions(out, **{**words, **changes})


def row_of(training: Training) -> dict[str, Any]:
    """A row as if trained: OrderDP gains a point, and 0.2 is the best rate of all but full."""
    best = 0.1 if training.arm == "full" else 0.2
    gain = {"orderdp": 0.01, "full": 0.03, RESCALED: -0.001}.get(training.arm, 0.0)
    noise = 0.0001 * ((training.seed * 7 + len(training.arm)) % 5)
    accuracy = 0.8 + gain + noise - (0 if training.rate == best else 0.1)
    stated = 0.0 if training.saving is None else training.saving
    saved = SAVED.get(training.arm, SAVED.get(training.of or "", stated))
    return {
        **{name: getattr(training, name) for name in run.KEY},
        "accuracy": accuracy,
        "diverged": False,
        "samples": 1000,
        "saved": saved,
        "seconds": 1 - saved,
        "cpu_seconds": 1 - saved,
        "engine_seconds": 0.0,
        "piece": 0,
    }


def finished(given: StudyOptions) -> Found:
    found = Found("plain", (), given)
    while training := next(iter(found.pending()), None):
        assert found.get(training) is None, "nothing is trained twice"
        found.add(row_of(training))
    return found


def test_a_study_trains_each_arm_at_the_rate_that_images_held_out_choose(tmp_path: Path) -> None:
    given = options(tmp_path)
    found = finished(given)
    arms = 1 + 2 * (3 + 2) + 1  # full; cut, two controls and two rules at two savings; infobatch
    assert len(found.rows) == arms * (2 * len(RATE_SEEDS) + 3) + 3 * 3, "and its own controls"
    for row in found.rows.values():
        assert (row["phase"] == RATE) == (row["seed"] in RATE_SEEDS)
        if row["phase"] == TEST:
            assert row["rate"] == (0.1 if row["arm"] == "full" else 0.2)
    assert found.control(0.4) == "random", "the better of the two on the test"
    own = found.tested(RESCALED, None, "infobatch")
    assert set(own) == {0, 1, 2}
    # The test rows have no say in the rates: make them all as bad as can be.
    spoiled = Found("plain", (), given)
    for row in found.rows.values():
        spoiled.add({**row, "accuracy": 0.0} if row["phase"] == TEST else row)
    assert spoiled.rate("orderdp", 0.4) == 0.2 == found.rate("orderdp", 0.4)


def test_a_rule_that_saves_little_is_compared_at_the_rate_of_full_training(tmp_path: Path) -> None:
    given = options(tmp_path, rules=("infobatch", "repb"))
    found = finished(given)
    rates = {
        rule: {row["rate"] for row in found.tested(RESCALED, None, rule).values()} for rule in SAVED
    }
    assert rates == {"infobatch": {0.2}, "repb": {0.1}}


def test_each_regime_gets_the_rules_that_have_there_what_they_decide_by(tmp_path: Path) -> None:
    every = options(tmp_path, regimes=("plain", "grpo"), rules=())
    assert every.rules == tuple(rules.RULES), "none named: all that one of them takes"
    arms = {name: {arm for arm, _ in Found(name, (), every).arms()} for name in every.regimes}
    both = {"full", "full_cut", *CONTROLS, "orderdp", "rs2", "infobatch"}
    assert both <= arms["plain"] & arms["grpo"]
    assert arms["grpo"] - arms["plain"] == {"zero_variance"}
    assert {"divbs", "rcap", "kakurenbo", "reselect_el2n"} <= arms["plain"] - arms["grpo"]
    assert "zero_variance" not in options(tmp_path, rules=()).rules
    assert "grpo" in StudyOptions(tmp_path).regimes, "any model of images takes it"
    # A rule that saves what it saves has its controls there, and nowhere else.
    found = Found("grpo", (), options(tmp_path, regimes=("grpo",), rules=("zero_variance",)))
    while training := next(iter(found.pending()), None):
        found.add(row_of(training))
    assert found.control(None, "zero_variance") == "random"


@pytest.mark.extra("scipy")
def test_a_win_is_sure_after_holm_and_a_tie_is_not(tmp_path: Path) -> None:
    made = {(one.arm, one.saving): one for one in tables.differences([finished(options(tmp_path))])}
    won = made["orderdp", 0.4]
    assert won.sure and won.control == "random" and won.mean == pytest.approx(1.0, abs=0.05)
    assert not made["budget", 0.7].sure and abs(made["budget", 0.7].mean) < 0.1
    assert made["full", 0.4].mean > 2 and not made["full", 0.4].sure, "full is no rule"
    assert made["infobatch", None].saved == 0.3 and made["orderdp", 0.7].time == pytest.approx(0.3)
    busier = finished(options(tmp_path))
    for row in [*busier.tested("orderdp", 0.7).values()]:
        busier.add({**row, "piece": 1, "cpu_seconds": 9.0})
    other = {(one.arm, one.saving): one for one in tables.differences([busier])}
    assert math.isnan(other["orderdp", 0.7].time), "another machine says nothing of time"
    assert other["orderdp", 0.4].time == pytest.approx(0.6), "control: this one does"
    broken = finished(options(tmp_path))
    for row in [*broken.tested("random", 0.4).values()][:1]:
        broken.add({**row, "accuracy": 0.1})
    (low,) = [one for one in tables.differences([broken]) if one.arm == "random"][:1]
    assert low.diverged == 1 and low.control == RESCALED, "a control that fell is not the bar"
    page = tables.render([finished(options(tmp_path))])
    assert "| orderdp | **+1.0" in page and "| infobatch | +0.0" in page


@pytest.mark.extra("scipy")
def test_a_choice_within_batches_is_held_to_the_uniform_one(tmp_path: Path) -> None:
    given = options(tmp_path, rules=("uniform", "divbs", "orderdp"))
    found = finished(given)
    made = {(one.arm, one.saving): one for one in tables.differences([found])}
    assert made["divbs", 0.4].control == "uniform" and made["uniform", 0.4].control == "random"
    page = tables.render([found])
    _, _, batches = page.partition("40% of each batch left out")
    assert "| divbs |" in batches and "| orderdp |" not in batches.partition("### ")[0]
    assert "| divbs |" not in page.partition("of each batch left out")[0]


@pytest.mark.extra("scipy")
def test_a_page_says_what_its_samples_are(tmp_path: Path) -> None:
    pages = {
        regime: tables.page(
            [Found(regime, (), options(tmp_path, regimes=(regime,), rules=made))], ""
        )
        for regime, made in (("plain", ("orderdp", "reselect_el2n")), ("grpo", ("orderdp",)))
    }
    assert "rolled out" in pages["grpo"] and "rolled out" not in pages["plain"]
    assert "`reselect_*`" in pages["plain"] and "`reselect_*`" not in pages["grpo"]


def test_holm_and_students_t_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    for count in (2, 5, 8):
        values = generator.normal(0.3, 1.0, count).tolist()
        half, p = tables.student(values)
        expected = stats.ttest_1samp(values, 0.0)
        low, high = expected.confidence_interval(0.95)
        assert p == pytest.approx(expected.pvalue) and 2 * half == pytest.approx(high - low)
    # Holm 1979 against its own words: reject while p_(k) <= a / (m - k + 1).
    for _ in range(200):
        values = (generator.random(7) ** 4).tolist()
        ordered = sorted(values)
        firm = next((k for k in range(7) if ordered[k] > 0.05 / (7 - k)), 7)
        assert tables.holm(values) == [value in ordered[:firm] for value in values]
    assert tables.holm([0.03, 0.03]) == [False, False] != [p <= 0.05 for p in (0.03, 0.03)]


def test_rows_that_are_not_and_other_settings_are_refused(tmp_path: Path) -> None:
    given = options(tmp_path)
    rows = [row_of(each) for each in list(Found("plain", (), given).pending())[:3]]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file = tmp_path / "plain.jsonl"
    file.write_text(text + '{"phase": "ra')
    assert len(run.read(given)[0].rows) == 3, "a torn last line is one that was not trained"
    file.write_text('{"phase": "rate"}\n' + text)
    with pytest.raises(ValueError, match=r"plain\.jsonl:1: not a row of a study"):
        run.read(given)
    file.write_text(text)
    (tmp_path / run.HEADER).write_text(json.dumps({"settings": given.settings()}))
    run.read(replace(given, seeds=5, rules=("hardest",)))  # more of the same study
    with pytest.raises(ValueError, match="a study with other settings"):
        run.read(replace(given, epochs=4))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.delitem(sys.modules, "study", raising=False)
    yield importlib.import_module("study")
    sys.modules.pop("study")


@pytest.mark.extra("scipy")
def test_the_pages_of_the_studies_are_those_of_their_rows(pages: Any, capsys) -> None:
    if not pages.GUIDE.is_file():
        pytest.skip("a wheel is tested: the tree with the guide is not here")
    assert pages.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.extra("scipy")
def test_what_the_guide_and_the_front_page_say_is_what_the_rows_say(pages: Any) -> None:
    studies = {path.parent.name: path.parent for path in pages.STUDIES.glob("*/study.json")}
    assert {"mlp", "small_cnn"} <= set(studies)
    every = []
    for folder in studies.values():
        every += tables.differences(run.read(run.reopen(folder)))
    # InfoBatch is neither better nor worse for sure; OrderDP loses where labels are wrong alone,
    # and by rewards and in texts, of which the guide speaks apart.
    assert not [one for one in every if one.arm == "infobatch" and one.sure]
    lost = {one.regime for one in every if one.arm == "orderdp" and one.sure and one.mean < 0}
    apart = {"grpo", "tinyshakespeare", "gsm8k"}
    assert lost - apart and lost <= {"label_noise", "cifar10n_aggre", "cifar10n_worse"} | apart
    cnn = {
        (one.regime, one.arm, one.saving): one
        for one in tables.differences(run.read(run.reopen(studies["small_cnn"])))
    }
    for saving in (0.4, 0.7):
        assert (
            cnn["cifar10", "orderdp", saving].mean < 0 > cnn["cifar10", "hardest_late", saving].mean
        )
    assert cnn["cifar10n_worse", "orderdp", 0.7].mean > -6.5
    for regime in ("label_noise", "cifar10n_worse"):  # more from a random part than from all
        assert cnn[regime, "full", 0.4].mean + cnn[regime, "full", 0.4].half < 0
    found = run.read(run.reopen(studies["mlp"]))
    made = {(one.regime, one.arm, one.saving): one for one in tables.differences(found)}
    for regime in ("long_training", "digits"):  # random is as good as all the data
        full = made[regime, "full", 0.7]
        assert full.mean < max(full.half, 0.3)
    for arm in ("hardest", "hardest_late", "ucb", "epsilon_greedy", "rcap"):  # wrong labels
        assert made["label_noise", arm, 0.7].sure and made["label_noise", arm, 0.7].mean < -1
    for regime in ("long_tail", "easy_majority"):  # where it pays
        for arm in ("orderdp", "hardest", "rcap", "epsilon_greedy"):
            one = made[regime, arm, 0.7]
            assert one.sure and one.mean > 1
        assert made[regime, "hardest", 0.7].mean > made[regime, "orderdp", 0.7].mean
    plain = [one for key, one in made.items() if key[0] == "plain" and key[2] == 0.4]
    assert not [one.arm for one in plain if one.sure and one.mean > 0]
    (regime,) = [each for each in found if each.regime == "plain"]
    rate = regime.rate("random_rescaled", 0.7), regime.rate("random", 0.7)
    assert rate[0] <= rate[1] / 4, "weights multiply the learning rate"
    times = [one for one in made.values() if one.arm == "orderdp" and one.saving is not None]
    saved = sum(one.saved for one in times) / len(times)
    assert abs(saved - sum(1 - one.time for one in times) / len(times)) < 0.03


@pytest.mark.extra("scipy")
def test_what_the_guide_says_of_rewards_is_what_the_rows_say(pages: Any) -> None:
    found = run.read(run.reopen(pages.STUDIES / "grpo"))
    made = {(one.arm, one.saving): one for one in tables.differences(found)}
    skipped = made["zero_variance", None]
    assert skipped.n == 16 and round(skipped.saved, 2) == 0.60 and not skipped.sure
    assert (round(skipped.mean, 1), round(skipped.half, 1)) == (0.2, 0.2)
    full, own = (found[0].tested(arm, None) for arm in ("full", "zero_variance"))
    gaps = [100 * (own[seed]["accuracy"] - full[seed]["accuracy"]) for seed in own]
    half, _ = tables.student(gaps)
    assert (round(sum(gaps) / len(gaps), 1), round(half, 1)) == (-0.8, 0.3)
    sure = {key: round(one.mean, 1) for key, one in made.items() if one.sure}
    lost = {("orderdp", 0.4): -1.1, ("hardest_late", 0.4): -0.8, ("proportional", 0.7): -1.6}
    assert sure == lost, "and nothing has won"


@pytest.mark.extra("scipy")
def test_what_the_guide_says_of_texts_is_what_the_rows_say(pages: Any) -> None:
    found = run.read(run.reopen(pages.STUDIES / "char_mlp"))
    made = {(one.regime, one.arm, one.saving): one for one in tables.differences(found)}
    assert {one.regime for one in made.values()} == {"tinyshakespeare", "gsm8k"}
    assert all(one.n == 8 for one in made.values())
    won = {key: round(one.mean, 1) for key, one in made.items() if one.sure and one.mean > 0}
    assert {arm for _, arm, _ in won} == {"rs2"} and sorted(won.values()) == [1.0, 1.4, 1.5]
    for regime in ("tinyshakespeare", "gsm8k"):
        cut, rs2 = (made[regime, arm, 0.7] for arm in ("full_cut", "rs2"))
        assert abs(cut.mean - rs2.mean) < max(cut.half, rs2.half), "no more than cut short"
        for arm in ("orderdp", "hardest_late", "epsilon_greedy"):
            for saving in (0.4, 0.7):
                one = made[regime, arm, saving]
                assert one.sure and -11.5 < one.mean < -1


@pytest.mark.extra("scipy")
def test_what_the_guide_says_of_infobatchs_arms_is_what_the_rows_say(pages: Any) -> None:
    found = run.read(run.reopen(pages.STUDIES / "mlp"))
    arms = ("infobatch(rescale=False)", "infobatch(side='high')")
    made = [one for one in tables.differences(found) if one.arm in arms]
    assert len(made) == 14 and all(one.n == 8 for one in made)
    sure = {(one.regime, one.arm): round(one.mean, 1) for one in made if one.sure}
    assert sure == {("digits", arms[0]): -1.5, ("easy_majority", arms[1]): -0.8}


@pytest.mark.extra("scipy")
def test_what_the_guide_says_of_an_even_beginning_is_what_the_rows_say(pages: Any) -> None:
    made = tables.differences(run.read(run.reopen(pages.STUDIES / "mlp_even")))
    even = [one for one in made if one.arm.startswith("proportional(") and one.saving == 0.7]
    assert len(even) == 4 and all(one.n == 8 and not one.sure for one in even)
    gains = [round(one.mean, 1) for one in even]
    assert (min(gains), max(gains)) == (0.1, 1.3)
    full = {
        one.regime: one
        for one in tables.differences(run.read(run.reopen(pages.STUDIES / "mlp")))
        if one.arm == "proportional" and one.saving == 0.7
    }
    lost = [full[regime] for regime in ("plain", "label_noise")]
    assert all(one.sure for one in lost) and [round(one.mean, 1) for one in lost] == [-0.4, -0.7]
    own = [one for one in made if one.arm == "infobatch(first_epoch='even')"]
    assert {one.regime: one.diverged for one in own if one.diverged} == {"easy_majority": 1}
    assert len(own) == 4 and not [one for one in own if one.sure]


@pytest.mark.extra("scipy")
def test_what_the_guide_says_of_subsets_chosen_anew_is_what_the_rows_say(pages: Any) -> None:
    found = run.read(run.reopen(pages.STUDIES / "mlp"))
    made = {
        (one.regime, one.arm, one.saving): one
        for one in tables.differences(found)
        if one.arm.startswith("reselect_")
    }
    assert len(made) == 7 * 3 * 2 and all(one.n >= 8 for one in made.values())
    assert not [one for one in made.values() if one.sure and one.mean > 0]
    assert not [key for key, one in made.items() if key[1:] == ("reselect_craig", 0.4) and one.sure]
    lost = made["label_noise", "reselect_craig", 0.7]
    assert lost.sure and round(lost.mean, 1) == -1.3
    cut = [one.mean for key, one in made.items() if key[1:] == ("reselect_graphcut", 0.7)]
    assert -9 < min(cut) <= max(cut) < -1
    hardest = [one.mean for one in made.values() if one.arm == "reselect_el2n"]
    assert round(min(hardest)) == -52
    for saving, share in ((0.4, 0.60), (0.7, 0.65)):
        tested = [each.tested("reselect_craig", saving).values() for each in found]
        rows = [row for of in tested for row in of]
        spent = sum(row["engine_seconds"] for row in rows) / sum(row["seconds"] for row in rows)
        assert round(spent, 2) == share
        assert all(row["forwards"] > row["samples"] for row in rows)


@pytest.mark.extra("scipy", "matplotlib")
def test_a_page_that_is_not_of_its_rows_is_told(pages, tmp_path, monkeypatch, capsys) -> None:
    given = options(tmp_path / "studies" / "mlp")
    given.out.mkdir(parents=True)
    rows = [*finished(given).rows.values()]
    (given.out / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    header = {"schema": 1, "settings": given.settings(), "asked": given.asked(), "pieces": []}
    (given.out / run.HEADER).write_text(json.dumps(header))
    assert run.reopen(given.out) == replace(given, minutes=0)
    guide = tmp_path / "README.md"
    guide.write_text(f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n")
    front = tmp_path / "front.md"
    front.write_text(f"{pages.BEGIN}{pages.END}")
    shown = ("mlp", ("orderdp", "budget"), 0.7)
    places = {"STUDIES": tmp_path / "studies", "GUIDE": guide, "ROOT": tmp_path, "FRONT": front}
    for name, value in {**places, "SHOWN": shown}.items():
        monkeypatch.setattr(pages, name, value)
    assert pages.main(["--check"]) == 1 and "old" in guide.read_text()
    assert pages.main([]) == 0 and pages.main(["--check"]) == 0
    drawn = (given.out / "study.svg").read_bytes()
    assert pages.main([]) == 0 and (given.out / "study.svg").read_bytes() == drawn
    text = guide.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "`orderdp` +1.0" in text and "`budget`" not in text
    listed = (tmp_path / "studies" / "README.md").read_text()
    assert f"| [mlp](mlp/study.md) | plain | 10,000 | 3 | {len(rows)} |" in listed
    assert "| `orderdp` | **+1.0 ± 0.0** |" in front.read_text()
    (given.out / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert pages.main(["--check"]) == 1, "a row less is another page"
    given.out.rename(tmp_path / "studies" / "other")
    assert pages.main([]) == 0 and "**other (mlp)**" in guide.read_text(), "told from its model"
    given = replace(given, out=tmp_path / "studies" / "other")
    (given.out / run.HEADER).write_text("{}")
    with pytest.raises(ValueError, match="not the header of a study"):
        run.reopen(given.out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--regimes", "plain", "nowhere"], "regimes: expected of plain"),
        (["--regimes", "plain", "plain"], "regimes: expected different ones"),
        (["--model", "cnn", "--regimes", "digits"], "digits is for mlp, got model 'cnn'"),
        (["--model", "char_mlp", "--regimes", "grpo"], "grpo is for any of mlp, small_cnn"),
        (["--model", "char_mlp", "--regimes", "plain"], "plain is for any of mlp, small_cnn"),
        (["--regimes", "plain", "--rules", "zero_variance"], "zero_variance is for regimes of re"),
        (["--regimes", "grpo", "--rules", "divbs"], "divbs is for regimes of labels, got grpo"),
        (["--rules", "nobody"], "rules: expected one of orderdp"),
        (["--savings", "1.5"], "savings: expected numbers in"),
        (["--seeds", "0"], "seeds: expected at least 1"),
        (["--seeds", "200"], "seeds: expected at most 100"),
        (["--rates", "0"], "rates: expected more than 0"),
        (["--workers", "0"], "workers: expected at least 1"),
        (["--minutes", "-1"], "minutes: expected at least 0"),
        (["--regimes", "plain"], "data_root"),
    ],
)
def test_the_command_says_what_does_not_fit(tmp_path, capsys, words: list[str], said: str) -> None:
    assert cli.main(["study", "--out", str(tmp_path / "s"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))


SMALL = ["--regimes", "digits", "--images", "200", "--epochs", "1", "--seeds", "2"]
SMALL += ["--rates", "0.05", "0.1", "--savings", "0.4", "--batch-size", "32"]
SMALL += ["--rules", "orderdp", "reselect_el2n", "infobatch", "align_prune"]


def what_matters(folder: Path) -> list[tuple[Any, ...]]:
    lines = (folder / "digits.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return sorted(
        (tuple(map(str, (row[name] for name in run.KEY))), row["accuracy"], row["samples"])
        for row in rows
    )


@pytest.mark.full("trains")
@pytest.mark.extra("sklearn", "scipy", "matplotlib")
def test_a_killed_study_goes_on_and_finds_what_one_in_a_piece_finds(tmp_path: Path, capsys) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert cli.main(["study", "--out", str(whole), *SMALL, "--workers", "2", "--pictures"]) == 0
    said = capsys.readouterr().out
    assert "40% of the samples saved" in said and "0 known to be missing" in said
    assert (whole / "study.svg").read_bytes().startswith(b"<?xml")
    command = [sys.executable, "-m", "prune_engine", "study", "--out", str(pieces), *SMALL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with (pieces / "digits.jsonl").open("a") as file:
        file.write('{"phase": "rate", "arm"')  # as a full disk leaves it
    done = len((pieces / "digits.jsonl").read_text().splitlines()) - 1
    assert 5 <= done < len(what_matters(whole))
    deadline = time.monotonic() + 60
    while cli.main(["study", "--out", str(pieces), *SMALL, "--no-pictures"]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.5)  # until the killed one's lock is gone
    assert what_matters(pieces) == what_matters(whole)
    trained = len((pieces / "digits.jsonl").read_text().splitlines())
    assert cli.main(["study", "--out", str(pieces), *SMALL, "--no-pictures"]) == 0
    assert len((pieces / "digits.jsonl").read_text().splitlines()) == trained

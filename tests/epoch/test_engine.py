# SPDX-License-Identifier: Apache-2.0
"""The engine: its loop, reductions, reports, coverage audit and arguments."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from _assertions import assert_bitwise
from _runs import N, batches, epochs, infobatch, losses_at, observe, serve
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe


def test_first_epoch_keeps_everything_and_later_ones_prune_half_of_the_low():
    engine = infobatch(1000)
    first = serve(engine, 50)
    report = engine.end_epoch()
    low = int((engine.scores() < report.next_threshold).sum())
    assert sorted(first) == list(range(1000))
    assert report.next_planned == engine.plan.num_kept == len(engine.plan)
    dropped = 1000 - report.next_planned
    assert abs(dropped - low / 2) < 5 * math.sqrt(low) / 2, "a fair coin per low sample"


def test_only_samples_strictly_below_the_mean_are_dropped():
    engine = infobatch(1000)
    epochs(engine, 1, 50)
    scores, kept = engine.scores(), engine.plan.weight_class != 0
    mean = scores.double().mean()
    assert kept[scores >= mean].all()
    assert not kept[scores < mean].all(), "control: some low samples are dropped"
    assert_bitwise(engine.plan.weights[scores >= mean].unique(), [1.0], "high weights")
    assert_bitwise(engine.plan.weights[scores < mean].unique(), [0.0, 2.0], "low weights")


def test_scores_are_the_last_losses_and_the_pruned_keep_their_old_ones():
    engine = infobatch()
    epochs(engine, 1)
    second = serve(engine)
    scores = engine.scores()
    assert 0 < len(second) < N
    assert_bitwise(scores[second], losses_at(second, 1), "scores of the kept")
    rest = sorted(set(range(N)) - set(second))
    assert_bitwise(scores[rest], losses_at(rest, 0), "scores of the dropped")


def test_scores_of_the_unseen_are_nan():
    engine = infobatch(4, coverage="ignore")
    engine.observe(torch.tensor([2.0]), torch.tensor([1]))
    assert_bitwise(engine.scores(), [math.nan, 2.0, math.nan, math.nan], "scores")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda loss, w: loss.dot(w * (1 / 20))),
        ({"reduction": "sum"}, lambda loss, w: (loss * w).sum()),
        ({"reduction": "none"}, lambda loss, w: loss * w),
        ({"reduction": "weighted_mean"}, lambda loss, w: (loss * w).sum() / w.sum()),
        ({"denom": 40.0}, lambda loss, w: (loss * w).sum() / 40),
        ({"denom": torch.tensor(40.0)}, lambda loss, w: (loss * w).sum() / 40),
    ],
    ids=["mean", "sum", "none", "weighted_mean", "denom", "denom_tensor"],
)
def test_reductions(options, expected):
    engine = infobatch()
    epochs(engine, 1)
    batch = next(batches(engine.sampler(), 20))
    weights = engine.plan.weights[batch]
    assert weights.unique().tolist() == [1.0, 2.0], "control: the weights matter"
    got = observe(engine, batch, **options)
    assert_bitwise(got, expected(losses_at(batch, 1), weights), "loss")


def test_reduction_arguments_are_refused_by_name():
    engine = infobatch()
    with pytest.raises(ValueError, match=r"reduction must be.*'median'"):
        observe(engine, [1], reduction="median")
    with pytest.raises(ValueError, match="denom"):
        observe(engine, [1], reduction="sum", denom=3.0)


def test_backward_is_the_gradient_of_the_weighted_mean():
    engine = infobatch()
    epochs(engine, 1)
    batch = next(batches(engine.sampler(), 16))
    losses = losses_at(batch, 1).requires_grad_()
    engine.observe(losses, torch.tensor(batch)).backward()
    assert_bitwise(losses.grad, engine.plan.weights[batch] / 16, "gradient")


def test_score_is_recorded_in_place_of_the_loss():
    engine = infobatch(3)
    smoothed, plain = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.1, 0.2, 0.3])
    got = engine.observe(smoothed, torch.arange(3), score=plain, reduction="none")
    assert_bitwise(got, smoothed, "loss")
    assert_bitwise(engine.scores(), plain, "scores")


def test_epochs_ends_each_epoch_and_continues_where_the_engine_is():
    engine = infobatch(num_epochs=4)
    seen = []
    for epoch in engine.epochs():
        seen.append((epoch, engine.epoch, engine.plan.epoch))
        serve(engine)
        if epoch == 1:
            engine.end_epoch()  # a body may end its epoch itself
    assert seen == [(e, e, e) for e in range(4)]
    with pytest.raises(pe.PruneEngineError, match="make a new one for another run, fold"):
        next(engine.epochs())
    restored = infobatch(num_epochs=4)
    restored.load_state_dict(engine.state_dict())
    assert list(restored.epochs()) == [], "a script that is started again has nothing to do"
    assert [r.epoch for r in engine.history] == [0, 1, 2, 3]


def test_epochs_needs_a_number_of_epochs():
    engine = pe.PruneEngine(3, pe.KeepAll())
    with pytest.raises(pe.PruneEngineError, match="num_epochs"):
        next(engine.epochs())
    with pytest.raises(pe.PruneEngineError, match="num_epochs"):
        assert engine.progress


def test_reports_add_up():
    engine = infobatch(num_epochs=4)
    orders = []
    for _ in engine.epochs():
        orders.append(serve(engine, 8, align=8))
    sizes = [len(order) for order in orders]
    for report, size in zip(engine.history, sizes, strict=True):
        assert report.served == report.observed == size
        assert report.planned - report.dropped_tail == size
        assert size % 8 == 0
        assert report.missing == report.dropped_tail
        assert (report.extra, report.nonfinite) == (0, 0)
        assert report.saved_fraction == 1 - size / N
        assert report.engine_seconds > 0
    for before, after in zip(engine.history, engine.history[1:], strict=False):
        assert before.next_planned == after.planned
        assert_bitwise([before.next_threshold], [after.threshold], "threshold")
    last = engine.history[-1]
    assert engine.history.samples_trained == last.samples_trained == sum(sizes)
    assert engine.history.nominal_trained == last.nominal_trained == 4 * 96
    assert engine.history.dsi == last.dsi == 1 - sum(sizes) / 384
    assert engine.engine_seconds >= sum(r.engine_seconds for r in engine.history)


class Ticks:
    """A clock by which whoever looks takes a second, and ``Slow`` a thousand."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


TICKS = Ticks()


@dataclass(frozen=True)
class Slow(pe.InfoBatch):
    """Takes its time to decide."""

    def rule(self, *arguments: Any) -> Any:
        TICKS.now += 1000
        return super().rule(*arguments)


@pytest.mark.parametrize("mode", ["epoch", "flow"])
def test_seconds_are_told_by_what_they_were_for_and_once(tmp_path, monkeypatch, mode):
    monkeypatch.setattr("prune_engine.epoch.run.time", TICKS)
    monkeypatch.setattr("prune_engine.engine.perf_counter", TICKS.perf_counter)
    engine = pe.PruneEngine(N, Slow(0.5, delta=0.1), num_epochs=3, mode=mode)
    engine.record(tmp_path / "scores.rec")
    for _ in range(3):
        serve(engine, 10, align=10)
        if mode == "epoch":
            engine.end_epoch()
    parts = engine.part_seconds
    assert set(parts) == {"observe", "order", "audit", "recording", "plan"}
    assert all(0 < seconds < 200 for name, seconds in parts.items() if name != "plan")
    decided = 3 if mode == "flow" else 4  # an end of an epoch plans the next, the last one too
    assert 1000 * decided < parts["plan"] < 1000 * decided + 200
    assert sum(parts.values()) == engine.engine_seconds, "what took place within another is in once"
    assert copy.deepcopy(engine).part_seconds == parts


def test_report_of_scores_is_exact():
    engine = infobatch()
    epochs(engine, 1)
    report = engine.history[0]
    scores = engine.scores().double()
    assert report.num_seen == N
    assert report.score_mean == scores.mean().item()
    assert report.threshold == torch.finfo(torch.float32).min, "nothing seen: nobody is below"
    assert report.next_threshold == engine.plan.threshold.item()


def test_metrics_are_slash_named_floats():
    engine = infobatch()
    assert engine.metrics() == {}
    epochs(engine, 1)
    metrics = engine.metrics()
    assert all(name.startswith("prune/") for name in metrics)
    assert all(type(value) is float for value in metrics.values())
    assert metrics["prune/served"] == N
    assert metrics["prune/saved_fraction"] == 0.0


def test_progress_goes_from_zero_to_one_through_the_data():
    engine = infobatch(num_epochs=2)
    marks = [engine.progress]
    for _ in engine.epochs():
        total = engine.plan.num_kept
        for at, batch in enumerate(batches(engine.sampler(), 10), start=1):
            observe(engine, batch)
            marks.append(engine.progress)
            assert marks[-1] == (engine.epoch + min(1.0, 10 * at / total)) / 2
    assert marks[0] == 0.0
    assert marks[-1] == 1.0
    assert marks == sorted(marks)


# --- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("dataset_or_num_samples", -1, ValueError),
        ("dataset_or_num_samples", True, TypeError),
        ("dataset_or_num_samples", 3.0, TypeError),
        ("dataset_or_num_samples", iter([1]), TypeError),
        ("policy", "infobatch", TypeError),
        ("num_epochs", 0, ValueError),
        ("num_epochs", 2.0, TypeError),
        ("horizon", 1.0, ValueError),
        ("horizon", "half", TypeError),
        ("mode", "steps", ValueError),
        ("mode", "batch", ValueError),
        ("seed", -1, ValueError),
        ("seed", 2**63, ValueError),
        ("seed", 1.5, TypeError),
        ("seed", True, TypeError),
        ("backend", "cudnn", ValueError),
        ("on_nonfinite", "drop", ValueError),
        ("coverage", "off", ValueError),
    ],
)
def test_edge_case_10_constructor_refuses_by_name(argument, value, error):
    given = {"dataset_or_num_samples": 5, "policy": pe.KeepAll(), "num_epochs": 3}
    with pytest.raises(error, match=rf"{argument}\b.*"):
        pe.PruneEngine(**{**given, argument: value})


def test_a_policy_that_anneals_needs_the_length_of_the_run():
    with pytest.raises(ValueError, match="num_epochs"):
        pe.PruneEngine(5, pe.InfoBatch())
    with pytest.raises(ValueError, match="num_epochs must be given for KeepAll"):
        pe.PruneEngine(5, pe.KeepAll(), mode="flow")
    assert pe.PruneEngine(5, pe.InfoBatch(delta=1.0)).num_epochs is None


def test_a_sized_data_set_counts_its_samples():
    assert pe.PruneEngine([5, 6, 7], pe.KeepAll()).num_samples == 3


# --- the same everywhere ------------------------------------------------------------------------


@given(n=st.integers(1, 300), seed=st.integers(0, 2**63 - 1), size=st.integers(1, 64))
def test_a_run_does_not_depend_on_batches_threads_or_backend(n, seed, size):
    want = infobatch(n, seed=seed, backend="reference")
    got = infobatch(n, seed=seed, backend="cpu")
    for _ in range(3):
        a, b = serve(want, n), serve(got, size)
        assert_bitwise(b, a, "order")
        assert want.end_epoch() == got.end_epoch()
        assert_bitwise(got.plan.weight_class, want.plan.weight_class, "weight classes")
        assert_bitwise(got.buffer.score_sum, want.buffer.score_sum, "sum")


def test_control_another_seed_is_another_run():
    first, second = infobatch(seed=1), infobatch(seed=2)
    assert epochs(first, 2) != epochs(second, 2)


def test_the_plan_keeps_its_storage_so_that_a_captured_graph_stays_right():
    engine = infobatch()
    tensors = [engine.buffer.weight_class, engine.buffer.weight_table, engine.buffer.epoch]
    places = [tensor.data_ptr() for tensor in tensors]
    epochs(engine, 3)
    now = [engine.buffer.weight_class, engine.buffer.weight_table, engine.buffer.epoch]
    assert [tensor.data_ptr() for tensor in now] == places
    assert engine.buffer.epoch.item() == 3


@pytest.mark.parametrize("divided", [False, True])
def test_the_device_counts_the_batches_that_are_served(divided):
    engine = infobatch(shard_scores=divided)
    for _ in range(2):
        serve(engine)
        engine.end_epoch()
    assert engine.buffer.step.tolist() == [engine.steps]
    assert engine.steps > 10
    batch = torch.tensor(list(engine.sampler())[:4])
    engine.buffer.observe(torch.ones(4), batch, advance=False)
    assert engine.buffer.step.tolist() == [engine.steps], "a second look at a batch is no step"
    engine.buffer.cross_entropy_observe(torch.ones(4, 3), batch % 3, batch, advance=False)
    assert engine.buffer.step.tolist() == [engine.steps]
    engine.buffer.cross_entropy_observe(torch.ones(4, 3), batch % 3, batch)
    assert engine.buffer.step.tolist() == [engine.steps + 1], "control"

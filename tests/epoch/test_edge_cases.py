# SPDX-License-Identifier: Apache-2.0
"""The twelve numbered edge cases of the semantics, through the public API, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from _assertions import assert_bitwise
from _runs import N, Numbers, batches, epochs, infobatch, losses_at, observe, serve
from hypothesis import given
from hypothesis import strategies as st

import prune_engine as pe

POLICIES = [pe.InfoBatch(delta=1.0), pe.RandomSubset(rescale=True), pe.KeepAll()]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_edge_case_01_no_samples(backend, policy):
    """N = 0: nothing happens, nothing fails."""
    engine = pe.PruneEngine(0, policy, num_epochs=2, backend=backend)
    for _ in engine.epochs():
        assert len(engine.sampler()) == len(engine.plan) == 0
        assert list(engine.sampler(align=8)) == []
        assert engine.plan.indices.shape == engine.plan.weights.shape == (0,)
    assert [report.served for report in engine.history] == [0, 0]
    assert engine.history.dsi == engine.history[0].saved_fraction == 0.0
    assert engine.scores().shape == (0,)
    twin = pe.PruneEngine(0, policy, num_epochs=2, backend=backend)
    twin.load_state_dict(engine.state_dict())
    assert (twin.epoch, twin.progress) == (2, 1.0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "weighted_mean", "none"])
def test_edge_case_01_an_empty_batch(backend, reduction):
    """B = 0: nothing is recorded, and the loss is 0, not nan."""
    engine = infobatch(backend=backend)
    losses = torch.zeros(0, requires_grad=True)
    loss = engine.observe(losses, torch.zeros(0, dtype=torch.int64), reduction=reduction)
    assert_bitwise(loss, torch.zeros(0) if reduction == "none" else torch.tensor(0.0), "loss")
    loss.sum().backward()
    assert losses.grad is not None and losses.grad.shape == (0,)
    assert not engine.buffer.records.any()
    assert math.isnan(torch.zeros(0).mean()), "control: a plain mean is nan"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_edge_case_02_non_finite_losses_pass_through_and_are_counted(backend, bad):
    """Record and sum untouched, counted, the loss unchanged; the last finite score decides."""
    engine = infobatch(backend=backend)
    serve(engine)
    before = engine.buffer.records.clone(), engine.buffer.score_sum.clone()
    got = engine.observe(torch.tensor([bad, 0.5]), torch.tensor([3, 4]), reduction="none")
    assert_bitwise(got[:1], [bad], "the loss, which GradScaler must see")
    assert_bitwise(engine.buffer.records[3], before[0][3], "record")
    assert engine.end_epoch().nonfinite == 1
    assert_bitwise(engine.scores()[3], losses_at([3])[0], "the last finite score")


def test_edge_case_02_raise_says_so_and_records_nothing(backend):
    """on_nonfinite="raise" stops, on the cpu before anything is written."""
    engine = infobatch(backend=backend, on_nonfinite="raise")
    with pytest.raises(pe.NonFiniteLossError, match="finite in float32, got nan for sample 4"):
        engine.observe(torch.tensor([0.5, math.nan]), torch.tensor([3, 4]))
    with pytest.raises(pe.NonFiniteLossError, match="sample 3"):
        engine.observe(torch.ones(1), torch.tensor([3]), score=torch.tensor([math.inf]))
    with pytest.raises(pe.NonFiniteLossError, match=r"got 1e\+300 for sample 7"):
        engine.observe(torch.tensor([2.0, 1e300], dtype=torch.float64), torch.tensor([6, 7]))
    assert not engine.buffer.records.any()
    assert engine.buffer.counters[0] == engine.cursor == 0
    engine.observe(torch.tensor([math.nan]), torch.tensor([3]), score=torch.ones(1))
    assert engine.buffer.records[3] != 0, "what is scored is finite; the loss is the user's"


def test_edge_case_02_the_report_names_float64_beyond_float32(backend):
    """What only rounding made infinite is not recorded, and not silent."""
    engine = infobatch(backend=backend)
    losses = losses_at(range(N)).double()
    losses[4], losses[5], losses[6], losses[7] = 1e39, -1e300, math.inf, 3e38
    engine.observe(losses, torch.arange(N))
    report = engine.end_epoch()
    assert (report.nonfinite, report.num_saturated, report.num_seen) == (3, 2, N - 3)
    assert report.as_dict()["num_saturated"] == 2
    serve(engine)
    assert engine.end_epoch().num_saturated == 0, "control: the next epoch has none"


@pytest.mark.parametrize("index", [-1, N, 2**31, -(2**63), 2**63 - 1])
def test_edge_case_03_index_out_of_range(backend, index):
    """The cpu raises before anything is written."""
    engine = infobatch(backend=backend)
    with pytest.raises(IndexError, match=str(index)):
        engine.observe(torch.ones(3), torch.tensor([1, index, 2]))
    assert not engine.buffer.records.any()
    assert (engine.cursor, engine.steps) == (0, 0)
    assert engine.buffer.counters[0] == 0


@pytest.mark.parametrize("count", [1, 3])
def test_edge_case_03_a_devices_sticky_flag_raises_at_the_end_of_the_epoch(count):
    """A device skips it, keeps the first bad index, and end_epoch raises."""
    engine = infobatch()
    serve(engine)
    engine.buffer.counters[2:4] = torch.tensor([count, -7])  # what a device's kernel leaves
    with pytest.raises(IndexError, match=rf"0\.\.99: {count} .*epoch 0, the smallest -7"):
        engine.end_epoch()
    assert (engine.epoch, len(engine.history)) == (0, 0)
    engine.buffer.reset_counters()
    assert engine.end_epoch().epoch == 0
    assert engine.buffer.counters.tolist() == [0, 0, 0, 2**63 - 1, 0], "each epoch's own flag"


@given(
    indices=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    size=st.integers(1, 40),
    salt=st.integers(0, 2**20),
)
def test_edge_case_04_the_larger_score_of_an_epoch_stays(indices, size, salt):
    """The same sample twice in an epoch: the larger score, in any order and any batches."""
    scores = losses_at([salt + 977 * k for k in range(len(indices))])
    want = {
        i: max(s for j, s in zip(indices, scores.tolist(), strict=True) if j == i) for i in indices
    }
    records = []
    for backend, step in (("cpu", 1), ("cpu", -1), ("reference", 1)):
        buffer = pe.epoch.ScoreBuffer(10, backend=backend)
        given_indices, given_scores = (
            torch.tensor(indices[::step]),
            scores.flip(0) if step < 0 else scores,
        )
        for at in range(0, len(indices), size):
            buffer.observe(given_scores[at : at + size], given_indices[at : at + size])
        records.append(buffer.records)
        assert {i: buffer.scores[i].item() for i in want} == want
    assert_bitwise(records[1], records[0], "records backwards")
    assert_bitwise(records[2], records[0], "records of the reference")


def test_edge_case_04_a_later_epoch_wins_even_with_a_smaller_score(backend):
    """The larger score stays within an epoch; the next epoch's replaces it."""
    engine = infobatch(2, backend=backend)
    engine.observe(torch.tensor([5.0, 1.0]), torch.tensor([0, 1]))
    engine.end_epoch()
    engine.observe(torch.tensor([0.25]), torch.tensor([0]))
    assert engine.scores()[0] == 0.25


def test_edge_case_05_nothing_kept(backend):
    """A plan of length 0, said so, and the run goes on."""
    engine = pe.PruneEngine(
        3, pe.RandomSubset(0.999, sampling="fixed"), num_epochs=2, backend=backend
    )
    assert len(engine.plan) == engine.plan.num_kept == len(engine.sampler()) == 0
    assert list(engine.loader(Numbers(3), 2, generator=torch.Generator())) == []
    report = engine.end_epoch()
    assert (report.planned, report.served, report.next_planned) == (0, 0, 0)
    assert report.saved_fraction == 1.0
    assert engine.plan.weights.tolist() == [0.0] * 3


@pytest.mark.parametrize("sampling", ["bernoulli", "fixed"])
def test_edge_case_06_nothing_seen_keeps_all(backend, sampling):
    """Nothing seen yet: everything is kept with weight 1; so is what alone was not seen."""
    policy = pe.InfoBatch(0.9, delta=1.0, sampling=sampling)
    engine = pe.PruneEngine(N, policy, num_epochs=3, backend=backend, coverage="ignore")
    assert_bitwise(engine.plan.weights, [1.0] * N, "weights of the first epoch")
    seen = list(range(0, N, 2))
    for batch in batches(iter(seen), 10):
        observe(engine, batch)
    engine.end_epoch()
    assert_bitwise(engine.plan.weights[1::2], [1.0] * (N // 2), "weights of the unseen")
    assert (engine.plan.weights[0::2] == 0).any(), "control: of the seen, some are dropped"


@pytest.mark.parametrize(
    ("losses", "indices", "error", "words"),
    [
        ([1.0], torch.tensor([0]), TypeError, "losses must be a tensor, got list"),
        (torch.ones(2, 2), torch.tensor([0, 1]), ValueError, r"losses must be .*\(2, 2\)"),
        (torch.ones(2).int(), torch.tensor([0, 1]), TypeError, "losses must be float.*int32"),
        (torch.ones(2, device="meta"), torch.tensor([0, 1]), ValueError, "losses .*cpu.*meta"),
        (torch.ones(2), torch.tensor([0]), ValueError, r"indices must be .*\(1,\)"),
        (torch.ones(2), torch.tensor([0.0, 1.0]), TypeError, "indices must be int.*float32"),
        (torch.ones(2), torch.tensor([True, False]), TypeError, "indices must be int.*bool"),
        (torch.ones(2), [0, 1], TypeError, "indices must be a tensor, got list"),
    ],
)
def test_edge_case_07_wrong_arguments_are_named(backend, losses, indices, error, words):
    """Wrong dtype, shape or device: the argument, what was expected and what came."""
    engine = infobatch(backend=backend)
    with pytest.raises(error, match=words):
        engine.observe(losses, indices)
    assert not engine.buffer.records.any()
    assert engine.cursor == 0


def test_edge_case_07_what_torch_would_convert_is_converted(backend):
    """Non-contiguous losses and indices, and int32 indices, are taken as they are."""
    plain, other = infobatch(backend=backend), infobatch(backend=backend)
    losses, indices = losses_at(range(20)), torch.arange(20)
    want = plain.observe(losses, indices)
    wide = torch.stack([losses, -losses], dim=1)[:, 0]
    assert not wide.is_contiguous()
    assert_bitwise(other.observe(wide, indices.int()), want, "loss")
    assert_bitwise(other.buffer.records, plain.buffer.records, "records")


def test_edge_case_08_too_many_samples_says_shard():
    """N >= 2^31: an error naming sharding, before any memory is taken."""
    for n in (2**31, 2**40):
        with pytest.raises(ValueError, match=rf"2147483647.*got {n}.*shard"):
            pe.PruneEngine(n, pe.KeepAll())


def test_edge_case_09_a_state_of_another_run_lists_the_differences():
    """A state of another N, policy or seed: all differences, nothing half-loaded (test_state)."""
    engine = infobatch(seed=1)
    epochs(engine, 2)
    records, plan = engine.buffer.records.clone(), engine.plan
    state = pe.PruneEngine(N + 5, pe.RandomSubset(), num_epochs=8, seed=2).state_dict()
    with pytest.raises(pe.StateMismatchError, match=r"num_samples.*policy.*seed"):
        engine.load_state_dict(state)
    assert_bitwise(engine.buffer.records, records, "records")
    assert engine.plan is plan
    assert (engine.epoch, len(engine.history)) == (2, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pe.InfoBatch(prune_ratio=1.0),
        lambda: pe.InfoBatch(delta=0.0),
        lambda: pe.RandomSubset(prune_ratio=-0.01),
        lambda: pe.PruneEngine(5, pe.KeepAll(), seed=-1),
        lambda: pe.PruneEngine(5, pe.KeepAll(), num_epochs=0),
        lambda: infobatch().sampler(align=0),
        lambda: infobatch().sampler(shard=(3, 3)),
        lambda: infobatch().plan.order(range(N, N + 1)),
    ],
)
def test_edge_case_10_out_of_range_is_refused_never_clamped(make):
    """ValueError naming the parameter (policies, engine and sampler test each of theirs)."""
    with pytest.raises((ValueError, IndexError), match=r"must|range"):
        make()


def test_edge_case_11_a_skipped_end_epoch_raises_at_the_next_set_epoch():
    """end_epoch skipped on a rank: the next set_epoch raises instead of diverging."""
    engine = infobatch()
    sampler = engine.sampler()
    sampler.set_epoch(0)
    serve(engine)
    with pytest.raises(pe.PruneEngineError, match=r"set_epoch got 1.*in epoch 0.*end_epoch\(\)"):
        sampler.set_epoch(1)
    engine.end_epoch()
    sampler.set_epoch(1)
    assert sampler.epoch == 1


def test_edge_case_12_a_scalar_loss_says_reduction_none(backend):
    """A scalar loss where [B] is needed."""
    engine = infobatch(backend=backend)
    loss = torch.nn.functional.cross_entropy(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match='reduction="none"'):
        engine.observe(loss, torch.arange(4))
    assert engine.cursor == 0


@pytest.mark.parametrize(
    "options", [{"reduction": "avg"}, {"reduction": "sum", "denom": 3}], ids=str
)
def test_edge_case_10_a_reduction_that_does_not_exist_records_nothing(options):
    engine = infobatch()
    name = "denom" if "denom" in options else "reduction"
    with pytest.raises(ValueError, match=name):
        engine.observe(torch.ones(2), torch.tensor([0, 1]), **options)
    assert not engine.buffer.records.any()
    assert engine.cursor == 0

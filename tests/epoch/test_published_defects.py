# SPDX-License-Identifier: Apache-2.0
"""The nineteen defects of the published InfoBatch package: proof that this library has none.

Where it is cheap, a defect is stated again beside its test, as the control that shows the test
could see it.
"""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import tracemalloc
from itertools import islice

import numpy as np
import pytest
import torch
from _assertions import assert_bitwise, global_rng_untouched
from _runs import N, Numbers, batches, epochs, figures, infobatch, losses_at, observe, serve
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, Subset

import prune_engine as pe


def loader_of(engine: pe.PruneEngine, dataset: Dataset, **options) -> DataLoader:
    return engine.loader(dataset, 10, generator=torch.Generator(), **options)


class Resetting(Sampler[int]):
    """The published shape: iter() returns the sampler itself and starts it again."""

    def __iter__(self):
        self.inner = iter(range(40))
        return self

    def __next__(self):
        return next(self.inner)


def test_d01_epochs_end():
    """Single-process epochs never ended on torch >= 2.6: BatchSampler calls iter() per batch."""
    engine = infobatch()
    count = sum(1 for _ in loader_of(engine, Numbers()))
    assert count == len(loader_of(engine, Numbers())) == 10
    drawn = islice(BatchSampler(Resetting(), 10, drop_last=False), 100)
    assert sum(1 for _ in drawn) == 100, "control: four batches, yet no end in sight"


@pytest.mark.parametrize("num_epochs", [90, 100, 200, 300])
def test_d02_weights_are_reset_at_annealing(num_epochs):
    """Weights were never reset where delta * epochs is no whole number: stale x2 weights."""
    engine = pe.PruneEngine(40, pe.InfoBatch(), num_epochs=num_epochs)
    weights = [(serve(engine), engine.plan.weights)[1] for _ in engine.epochs()]
    first = math.ceil(0.875 * num_epochs)
    assert all(bool((w == 1).all()) for w in weights[first:])
    assert all(bool((w == 2).any()) for w in weights[1:first])
    published = [t for t in range(num_epochs) if t == num_epochs * 0.875 + 1]
    assert bool(published) == (num_epochs == 200), "control: equality with a fraction never holds"


@pytest.mark.parametrize(("num_epochs", "early"), [(90, 1), (100, 1), (200, 0), (300, 1)])
def test_d03_pruning_stops_exactly_at_delta(num_epochs, early):
    """Pruning stopped one epoch early where delta * epochs is no whole number."""
    policy, buffer = pe.InfoBatch(), pe.epoch.ScoreBuffer(1)
    rules = [policy.rule(buffer, pe.policies.Progress(t, t, num_epochs)) for t in range(num_epochs)]
    pruning = sum(len(rule.bands) == 2 for rule in rules)
    assert pruning == math.ceil(num_epochs * 7 / 8)
    published = sum(t + 1 <= num_epochs * 0.875 for t in range(num_epochs))
    assert pruning - published == early, "control"


def test_d04_length_of_the_loader_is_this_epochs():
    """len(dataloader) was the previous epoch's."""
    engine = infobatch()
    loader = loader_of(engine, Numbers())
    lengths, counts = [], []
    for _ in range(4):
        lengths.append(len(loader))
        counts.append(0)
        for *_, indices in loader:
            counts[-1] += 1
            observe(engine, indices.tolist())
        engine.end_epoch()
    assert lengths == counts
    assert counts[1:] != lengths[:-1], "control: the previous length would be wrong"


@pytest.mark.parametrize("workers", [0, 2])
def test_d05_looking_ahead_credits_the_right_samples(workers):
    """One hidden slot for the batch's indices: one batch of look-ahead credited wrong samples."""
    engine, hidden = infobatch(), torch.full((N,), math.nan)
    waiting, slot = None, None
    for batch in loader_of(engine, Numbers(), num_workers=workers):
        slot = batch[2]  # what the published code remembers: the last batch that was drawn
        if waiting is not None:
            engine.observe(losses_at(waiting[2]), waiting[2])
            hidden[slot] = losses_at(waiting[2])
        waiting = batch
    engine.observe(losses_at(waiting[2]), waiting[2])
    assert_bitwise(engine.scores(), losses_at(range(N)), "scores")
    assert (hidden != losses_at(range(N))).all(), "control: every score would be wrong"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_d06_every_loss_dtype(dtype):
    """bf16 and fp16 losses crashed."""
    engine = infobatch()
    epochs(engine, 1)
    batch = list(engine.sampler())
    losses = losses_at(batch).to(dtype).requires_grad_()
    loss = engine.observe(losses, torch.tensor(batch), reduction="none")
    assert loss.dtype == dtype
    loss.sum().backward()
    assert_bitwise(losses.grad, engine.plan.weights[batch].to(dtype), "gradient")
    assert_bitwise(engine.scores()[batch], losses.detach().float(), "scores")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_d07_indices_above_the_losses_precision(dtype):
    """Indices travelled in the dtype of the losses: inexact above 2^24 (fp32) and 256 (bf16)."""
    n = 2**24 + 8
    indices = torch.tensor([257, 2**24 + 1, 2**24 + 3])
    buffer = pe.epoch.ScoreBuffer(n)
    buffer.observe(torch.tensor([1.0, 2.0, 3.0], dtype=dtype), indices)
    assert_bitwise(torch.nonzero(buffer.records)[:, 0], indices, "the samples that were seen")
    assert (indices.to(dtype).long() != indices).any(), "control: the round trip is inexact"


def test_d08_the_callers_tensor_is_not_changed():
    """mul_ on the caller's tensor mutated it and broke autograd for some losses."""
    engine = infobatch()
    epochs(engine, 1)
    batch = next(batches(engine.sampler(), 20))
    logits = torch.linspace(-1, 1, 20, requires_grad=True)
    losses = logits.exp()  # whose gradient needs its own result
    before = losses.detach().clone()
    engine.observe(losses, torch.tensor(batch), reduction="sum").backward()
    assert_bitwise(losses, before, "losses")
    assert_bitwise(logits.grad, before * engine.plan.weights[batch], "gradient")
    broken = logits.exp()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # control
        broken.mul_(engine.plan.weights[batch]).sum().backward()


class Recursing:
    """The published shape: unknown attributes come from the data set, which unpickling lacks."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getattr__(self, name):
        return getattr(self.dataset, name)


def test_d09_pickles_so_that_spawned_workers_start():
    """Pickling recursed: spawn and forkserver workers could not start (see test_dataloader)."""
    wrapped = pe.data.IndexedDataset(Numbers())
    assert pickle.loads(pickle.dumps(wrapped))[4] == (40, 1, 4)
    with pytest.raises(RecursionError):  # control
        pickle.loads(pickle.dumps(Recursing(Numbers())))


def test_d10_a_subset_keeps_data_and_indices_together():
    """Wrapping a Subset swapped data and indices: its __getitems__ was forwarded as it is."""
    subset = Subset(Numbers(), list(range(60, 20, -1)))
    engine = pe.PruneEngine(subset, pe.KeepAll(), num_epochs=1)
    for x, y, indices in loader_of(engine, subset):
        assert_bitwise(x, 10 * (60 - indices), "data")
        assert_bitwise(y, (60 - indices) % 3, "labels")
    fetched = Recursing(subset).__getitems__([0, 1])
    assert [len(item) for item in fetched] == [2, 2], "control: forwarded as it is, no index"


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


def test_d11_custom_collate_and_iterable_data_sets():
    """A custom collate_fn did not work, an IterableDataset failed without a word."""
    engine = infobatch()
    for xs, _, indices in loader_of(engine, Numbers(), collate_fn=lambda b: list(zip(*b))):  # noqa: B905
        assert list(xs) == [10 * i for i in indices]
        observe(engine, indices)
    assert engine.end_epoch().missing == 0
    with pytest.raises(TypeError, match=r"IterableDataset.*stable index"):
        pe.data.IndexedDataset(Stream())
    with pytest.raises(TypeError, match="iterable"):
        pe.PruneEngine(Stream(), pe.KeepAll())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_d12_one_non_finite_loss_changes_nothing_else(bad):
    """One nan loss: nothing was pruned any more; one inf: half of everything else was."""
    engine, clean = infobatch(1000), infobatch(1000)
    for other in (engine, clean):
        losses = losses_at(range(1000))
        serve(other, 100)
        if other is engine:
            losses[3] = bad
            other.observe(losses[3:4], torch.tensor([3]))
        other.end_epoch()
    assert engine.history[0].nonfinite == 1
    assert_bitwise(engine.plan.weight_class, clean.plan.weight_class, "weight classes")
    assert 500 < engine.plan.num_kept < 1000
    scores = losses_at(range(1000)).numpy()
    scores[3] = bad
    low = (scores < scores.mean()).sum()
    assert low in (0, 999), "control: a float mean decides for all or for none"


def test_d13_equal_scores_prune_nobody():
    """The fp32 mean of 14,197,122 equal scores is above the score: epoch 0 pruned half."""
    score, n = 3.0, 14_197_122
    units = n * int(score) << 149 - 4 * 32  # all in the fifth limb
    total = torch.tensor([0, 0, 0, 0, units, 0, 0, 0, 0, n])
    assert pe.ops.mean_threshold(total).item() == score, "nobody is strictly below"
    # Control: a float32 sum is above, even one that was rounded only once, at its end.
    assert np.float32(score * n) / np.float32(n) > score
    engine = infobatch(1000)
    engine.observe(torch.full((1000,), score), torch.arange(1000))
    assert engine.end_epoch().next_planned == 1000


def test_d14_the_seed_decides_and_global_generators_are_left_alone():
    """The global NumPy generator was reseeded; the user's seed had no effect on the selection."""
    with global_rng_untouched():
        runs = [epochs(infobatch(seed=seed), 3) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert set(runs[0][1]) != set(runs[2][1])
    with pytest.raises(AssertionError, match="numpy"), global_rng_untouched():  # control
        np.random.seed(3)  # noqa: NPY002


def test_d15_a_prune_ratio_above_0_9_is_used_or_refused():
    """prune_ratio > 0.9 silently became 0.9."""
    engine = pe.PruneEngine(20_000, pe.InfoBatch(0.99, delta=1.0), num_epochs=3)
    serve(engine, 1000)
    report = engine.end_epoch()
    low = engine.scores() < report.next_threshold
    share = float((engine.plan.weight_class[low] != 0).float().mean())
    assert 0.005 < share < 0.015, "a tenth would be 0.1"
    with pytest.raises(ValueError, match="prune_ratio must be"):
        pe.InfoBatch(prune_ratio=1.0)


PATCHED = """
import torch.utils.data.dataloader as d
from torch.utils.data import BatchSampler, DistributedSampler
kinds = [d.DataLoader, d._BaseDataLoaderIter, d._SingleProcessDataLoaderIter,
         d._MultiProcessingDataLoaderIter, d._DatasetKind, BatchSampler, DistributedSampler]
before = [dict(vars(kind)) for kind in kinds]
import prune_engine as pe
engine = pe.PruneEngine(20, pe.InfoBatch(), num_epochs=2)
for epoch in engine.epochs():
    for x, i in engine.loader(list(range(20)), 5):
        engine.observe(x.float(), i)
assert [dict(vars(kind)) for kind in kinds] == before
d._BaseDataLoaderIter.__next__ = None
print([dict(vars(kind)) for kind in kinds] == before)
"""


def test_d16_no_class_of_torch_is_patched():
    """Importing replaced the iteration of DataLoader for the whole process."""
    done = subprocess.run([sys.executable, "-c", PATCHED], capture_output=True, text=True)
    assert done.stdout == "False\n", f"control: a patch is seen. {done.stderr}"


def test_d17_a_resumed_run_continues():
    """There was no state: a resumed run started again at epoch 0."""
    whole, stopped, resumed = infobatch(), infobatch(), infobatch()
    want = epochs(whole, 5)
    got = epochs(stopped, 2)
    assert resumed.epoch == 0
    resumed.load_state_dict(stopped.state_dict())
    assert got + epochs(resumed, 3) == want
    assert figures(resumed) == figures(whole)


class Calls(TorchDispatchMode):
    """Lists the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def waits(names: list[str]) -> list[str]:
    """Return what reads a number from the device, copies between devices or talks to ranks."""
    words = ("_local_scalar_dense", "_to_copy", "copy_", "nonzero", "is_nonzero", "c10d", "item")
    return [name for name in names if any(word in name for word in words)]


def test_d18_a_step_waits_for_nothing():
    """A step had 2 device-to-host syncs, 2 pageable copies and, under DDP, an all_gather."""
    engine = infobatch()
    epochs(engine, 1)
    batch = torch.tensor(next(batches(engine.sampler(), 32)))
    losses = losses_at(batch, 1).requires_grad_()
    with Calls() as step:
        engine.observe(losses, batch).backward()
    assert waits(step.names) == []
    assert sum("prune_engine" in name for name in step.names) == 1, "one launch"
    with Calls() as control:
        losses.detach().cpu().max().item()
    assert waits(control.names) != [], "control"


def published_plan(scores: np.ndarray, rng: np.random.RandomState) -> list[int]:
    """The published planner's steps: choice without replacement, lists, a shuffle."""
    low = scores < scores.mean()
    kept = np.where(~low)[0].tolist()
    below = np.where(low)[0]
    kept.extend(rng.choice(below, len(below) // 2, replace=False))
    rng.shuffle(kept)
    return kept


def python_peak(work) -> int:
    """Return the most bytes that Python and NumPy held at once during some work."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_d19_planning_is_a_few_operators_whatever_n():
    """Planning took 0.41 s at N = 1.28M, 7.2 s at 14.2M: lists, choice, a shuffle. See bench/."""
    names = []
    for n in (2_000, 200_000):
        engine = infobatch(n)
        engine.observe(losses_at(range(n)), torch.arange(n))
        with Calls() as epoch_end:
            engine.end_epoch()
        names.append(epoch_end.names)
    assert names[0] == names[1], "the work in Python does not grow with N"
    assert python_peak(lambda: engine.plan.indices) < n
    scores, rng = engine.scores().numpy(), np.random.RandomState(0)
    assert python_peak(lambda: published_plan(scores, rng)) > 8 * n, "control"

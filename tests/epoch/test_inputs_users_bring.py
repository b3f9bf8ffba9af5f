# SPDX-License-Identifier: Apache-2.0
"""Inputs that users bring: each row is a call through the public API and what comes of it."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import prune_engine as pe
from prune_engine import cli
from prune_engine.losses import MixedPairs, Pixels, Tokens, mix_targets
from prune_engine.policies import Policy

N = 8
ROWS = TensorDataset(torch.arange(N) * 10)
I4, ONES = torch.arange(4), torch.ones(4)
LOGITS = torch.zeros(4, 3)
Pair = namedtuple("Pair", "x y")


class Refused(NamedTuple):
    """What is expected instead of a value: an error and words of its message."""

    kind: type[Exception]
    words: str


def engine(policy: Policy | None = None, **options: Any) -> pe.PruneEngine:
    options = {"num_epochs": 2, "coverage": "ignore", **options}
    return pe.PruneEngine(options.pop("n", N), policy or pe.KeepAll(), **options)


def observe(losses: Any, indices: Any = I4, **options: Any) -> Any:
    """Return the loss, plain."""
    loss = engine().observe(losses, indices, **options)
    return round(float(loss), 4) if loss.dim() == 0 else loss.tolist()


def entropy(logits: Any = LOGITS, targets: Any = I4 % 3, **options: Any) -> Any:
    return round(engine().cross_entropy_observe(logits, targets, I4, **options).item(), 4)


def items(dataset: Any, **options: Any) -> Any:
    return engine(n=len(dataset)).dataset(dataset)[0]


def in_inference_mode(make: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return make()


def half(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float16)


def many(losses: Tensor, **options: Any) -> float:
    big = engine(n=losses.shape[0])
    return round(big.observe(losses, torch.arange(losses.shape[0]), **options).item(), 2)


def penalty(logits: Tensor) -> Tensor:
    """Return the gradient of a penalty on a gradient."""
    leaf = logits.clone().requires_grad_()
    loss = engine().cross_entropy_observe(leaf, torch.tensor([0, 1, 2, 0]), I4)
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    return torch.autograd.grad(first.square().sum(), leaf)[0]


def true_penalty(logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    loss = nn.functional.cross_entropy(leaf, torch.tensor([0, 1, 2, 0]))
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    return torch.autograd.grad(first.square().sum(), leaf)[0]


def trained_on(targets: Tensor) -> bool:
    leaf = G.clone().requires_grad_()
    engine().cross_entropy_observe(leaf, targets, I4).backward()
    return leaf.grad is not None and bool(leaf.grad.any())


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(N))


def close(one: Tensor, two: Tensor) -> bool:
    return bool(torch.allclose(one, two, atol=1e-6))


def wild(policy: Policy) -> bool:
    """Say whether a bandit's averages are finite after one wild loss."""
    run = engine(policy, num_epochs=9)
    for loss in (1.0, 1e25, 1.0):
        run.observe(torch.tensor([loss, 2.0]), torch.tensor([0, 1]))
        run.end_epoch()
    memory = run.state_dict()["memory"]
    return all(bool(memory[name][:2].isfinite().all()) for name in ("ema", "varema"))


def through_a_file(policy: Policy, tmp: Path, **options: Any) -> dict[str, Any]:
    """Save what was made of NumPy's numbers, load it elsewhere, and describe the policy."""
    made = engine(policy, **options)
    pe.save_state(made, tmp / "run.pt", extra={"best": np.float64(0.5)})
    assert pe.load_state(engine(policy, **options), tmp / "run.pt") == {"best": 0.5}
    return made.policy.describe()


def command(*words: str) -> Any:
    """Return the exit code of a command, without a traceback."""
    try:
        return cli.main(list(words))
    except SystemExit as end:
        return end.code


def twice_fused() -> None:
    model = nn.Sequential(nn.ReLU())
    pe.ActivationMonitor(model, fuse=True)
    pe.ActivationMonitor(model, fuse=True)


def edited(**changes: Any) -> None:
    run = engine(pe.InfoBatch())
    run.load_state_dict({**run.state_dict(), **changes})


def without(name: str) -> None:
    run = engine(pe.InfoBatch())
    state = run.state_dict()
    del state[name]
    run.load_state_dict(state)


def counted(run: pe.PruneEngine) -> int:
    """Train an epoch; return how many samples it saw."""
    for _, indices in run.device_loader(ROWS, 4):
        run.observe(torch.ones(4, requires_grad=True), indices).backward()
    return run.end_epoch().observed


# id -> (the call; it is given a folder of its own, what comes of it)
ROWS_OF_TABLE: dict[str, tuple[Callable[[Path], Any], Any]] = {
    # half precision
    "float16 tokens": (lambda _: many(half(0.3, 32, 4096), reducer=Tokens()), 0.3),
    "float16 pixels": (
        lambda _: many(half(1, 2, 300, 300), reducer=Pixels(torch.ones(2, 300, 300).bool())),
        1.0,
    ),
    "float16 with a denom": (lambda _: many(half(20, 4096), denom=4096), 20.0),
    "float16 by the sum of weights": (
        lambda _: many(half(20, 4096), reduction="weighted_mean"),
        20.0,
    ),
    # derivatives
    "a penalty on the gradient": (lambda _: close(penalty(G), true_penalty(G)), True),
    "forward mode": (
        lambda _: torch.func.jvp(lambda x: engine().observe(x, I4), (ONES,), (ONES,))[1].item(),
        1.0,
    ),
    "torch.func.grad": (
        lambda _: torch.func.grad(lambda x: engine().observe(x, I4))(ONES).tolist(),
        [0.25] * 4,
    ),
    # NumPy's numbers, and what only looks like a number
    "np.float64 ratio": (
        lambda tmp: through_a_file(pe.InfoBatch(np.float64(0.5)), tmp)["prune_ratio"],
        0.5,
    ),
    "np.float32 ratio": (
        lambda tmp: through_a_file(pe.InfoBatch(np.float32(0.1)), tmp)["prune_ratio"],
        0.1,
    ),
    "np.bool_ flag": (
        lambda tmp: through_a_file(pe.BPAS(4, strict=np.bool_(True)), tmp)["strict"],
        True,
    ),
    "np.int64 seed": (lambda _: type(engine(seed=np.int64(3)).state_dict()["seed"]), int),
    "np.int64 number of samples": (lambda _: engine(n=np.int64(5)).num_samples, 5),
    "array of kept counts": (lambda _: pe.RandomBatches(2, kept=np.array([2, 1])).kept, (2, 1)),
    "generator of kept counts": (lambda _: pe.RandomBatches(2, kept=iter([2, 1])).kept, (2, 1)),
    "kept counts as one int": (
        lambda _: pe.RandomBatches(2, kept=3),
        Refused(TypeError, "kept must be ints, got 3"),
    ),
    "ratio as a string": (
        lambda _: pe.InfoBatch("0.5"),
        Refused(TypeError, "prune_ratio must be a number in [0, 1), got '0.5'"),
    ),
    "ratio nan": (
        lambda _: pe.InfoBatch(float("nan")),
        Refused(ValueError, "prune_ratio must be in [0, 1), got nan"),
    ),
    "ratio True": (
        lambda _: pe.InfoBatch(True),
        Refused(TypeError, "prune_ratio must be a number in [0, 1), got True"),
    ),
    "ratio as a tensor": (
        lambda _: pe.InfoBatch(torch.tensor(0.5)),
        Refused(TypeError, "prune_ratio must be a number in [0, 1), got tensor"),
    ),
    "label smoothing np.float32": (lambda _: entropy(label_smoothing=np.float32(0.1)), 1.0986),
    # one wild loss
    "UCB and a loss of 1e25": (lambda _: wild(pe.UCB(0.5, period=1)), True),
    "epsilon-greedy, decay 0": (lambda _: wild(pe.EpsilonGreedy(0.5, period=1, decay=0.0)), True),
    # the engine's arguments
    "policy as a class": (
        lambda _: engine(pe.InfoBatch),
        Refused(TypeError, "policy must be a Policy, such as InfoBatch(), got <class"),
    ),
    "data set as a class": (
        lambda _: engine(n=TensorDataset),
        Refused(TypeError, "got the class TensorDataset"),
    ),
    "data set as a name": (lambda _: engine(n="cifar"), Refused(TypeError, "got 'cifar'")),
    "data set as a loader": (
        lambda _: engine(n=DataLoader(ROWS)),
        Refused(TypeError, "got a DataLoader, whose length counts batches"),
    ),
    "data set as a generator": (
        lambda _: engine(n=iter([1])),
        Refused(TypeError, "have no stable index"),
    ),
    "number of samples as a 0-d array": (
        lambda _: engine(n=np.array(8)),
        Refused(TypeError, "got array(8), which has no length"),
    ),
    "number of samples as a float": (
        lambda _: engine(n=8.0),
        Refused(TypeError, "must be a sized data set or an int, got float"),
    ),
    "negative number of samples": (
        lambda _: engine(n=-1),
        Refused(ValueError, "must be at least 0, got -1"),
    ),
    "no sample": (lambda _: engine(n=0).plan.num_kept, 0),
    "epochs as a float": (
        lambda _: engine(num_epochs=2.0),
        Refused(TypeError, "num_epochs must be a positive int, got 2.0"),
    ),
    "huge seed": (lambda _: engine(seed=2**63), Refused(ValueError, "seed must be in 0..2^63-1")),
    "unknown device": (
        lambda _: engine(device="gpu"),
        Refused(ValueError, "device must name a device of torch, got 'gpu'"),
    ),
    "a word for a flag": (
        lambda _: engine(shard_scores="no"),
        Refused(TypeError, "shard_scores must be a bool, got 'no'"),
    ),
    "a number for a group": (
        lambda _: engine(process_group=3),
        Refused(TypeError, "process_group must be a group of torch.distributed"),
    ),
    # losses and indices
    "loss of the mean": (
        lambda _: observe(torch.tensor(1.0)),
        Refused(ValueError, 'compute the loss with reduction="none"'),
    ),
    "losses as a list": (
        lambda _: observe([1.0, 2.0]),
        Refused(TypeError, "losses must be a tensor, got list"),
    ),
    "losses of ints": (
        lambda _: observe(torch.ones(4, dtype=torch.int64)),
        Refused(TypeError, "losses must be float32"),
    ),
    "losses that are sparse": (
        lambda _: observe(ONES.to_sparse()),
        Refused(TypeError, "losses must be dense"),
    ),
    "losses on another device": (
        lambda _: observe(ONES.to("meta")),
        Refused(ValueError, "losses must be on cpu, got meta"),
    ),
    "losses of nothing": (lambda _: observe(ONES[:0], I4[:0]), 0.0),
    "indices as a list": (
        lambda _: observe(ONES, [0, 1, 2, 3]),
        Refused(TypeError, "indices must be a tensor, got list"),
    ),
    "indices as a list with a reducer": (
        lambda _: observe(torch.ones(4, 2), [0, 1, 2, 3], reducer=Tokens()),
        Refused(TypeError, "indices must be a tensor, got list"),
    ),
    "0-d index with a reducer": (
        lambda _: observe(torch.ones(1, 2), torch.tensor(0), reducer=Tokens()),
        Refused(ValueError, "indices must be a vector, got shape ()"),
    ),
    "indices of floats": (
        lambda _: observe(ONES, I4.float()),
        Refused(TypeError, "indices must be int64 or int32"),
    ),
    "negative index": (lambda _: observe(ONES, I4 - 1), Refused(IndexError, "got -1")),
    "index beyond the end": (lambda _: observe(ONES, I4 + 6), Refused(IndexError, "got 8")),
    "reducer as a class": (
        lambda _: observe(ONES, reducer=Tokens),
        Refused(TypeError, "reducer must be a Reducer"),
    ),
    "pairs without logits": (
        lambda _: observe(ONES, reducer=MixedPairs(None, None, None)),
        Refused(TypeError, "logits must be a tensor, got NoneType"),
    ),
    "denom 0": (lambda _: observe(ONES, denom=0), Refused(ValueError, "denom must be above 0")),
    "labels as a list to mix": (
        lambda _: mix_targets([0, 1], 2, 0.5),
        Refused(TypeError, "targets must be a tensor, got list"),
    ),
    "fewer labels than logits": (
        lambda _: pe.scores.el2n(LOGITS, I4[:2]),
        Refused(ValueError, "targets must be [4], got (2,)"),
    ),
    "soft labels": (
        lambda _: entropy(targets=torch.zeros(4, 3)),
        Refused(ValueError, "targets must be a vector of 4 elements"),
    ),
    "label beyond the classes": (
        lambda _: entropy(targets=I4),
        Refused(IndexError, "targets must be in 0..2 or ignore_index, got 3"),
    ),
    "huge ignore_index": (
        lambda _: entropy(ignore_index=2**63),
        Refused(ValueError, "ignore_index must be in -2^63..2^63-1"),
    ),
    # items and loaders
    "named tuple items": (lambda _: items([Pair(1, 2)]).sample_index, 0),
    "items that are None": (lambda _: items([None]), None),
    "OrderedDict items": (lambda _: type(items([OrderedDict(a=1)])), OrderedDict),
    "data set of a name": (
        lambda _: engine().loader(None, 2),
        Refused(TypeError, "dataset must be map-style"),
    ),
    "iterable data set": (
        lambda _: engine().loader(Stream(), 2),
        Refused(TypeError, "got an IterableDataset"),
    ),
    "batch size None": (
        lambda _: engine().loader(ROWS, None),
        Refused(TypeError, "batch_size must be a positive int, got None"),
    ),
    "batch size None on a device": (
        lambda _: engine().device_loader(ROWS, None),
        Refused(TypeError, "batch_size must be a positive int, got None"),
    ),
    "shuffle": (
        lambda _: engine().loader(ROWS, 2, shuffle=True),
        Refused(TypeError, "the engine decides the order"),
    ),
    "an augmentation that returns numbers": (
        lambda _: next(iter(engine().device_loader(ROWS, 2, augment=lambda *_: [1]))),
        Refused(TypeError, "augment must return tensors, got a int in it"),
    ),
    "a shard as a list": (
        lambda _: engine().sampler(shard=[0, 2]),
        Refused(TypeError, "shard must be 'auto', 'none' or (rank, world size)"),
    ),
    # inference mode
    "engine made in inference mode": (lambda _: counted(in_inference_mode(engine)), N),
    "labels made in inference mode": (
        lambda _: trained_on(in_inference_mode(lambda: torch.tensor([0, 1, 2, 0]))),
        True,
    ),
    "denom made in inference mode": (
        lambda _: observe(ONES * 3, denom=in_inference_mode(lambda: torch.tensor(4.0))),
        3.0,
    ),
    # copies
    "deepcopy of an engine": (lambda _: counted(copy.deepcopy(engine())), N),
    "pickle of an engine": (lambda _: counted(pickle.loads(pickle.dumps(engine()))), N),
    "pickle of divided scores": (
        lambda _: pickle.dumps(engine(shard_scores=True)),
        Refused(pe.PruneEngineError, "take state_dict() on every rank"),
    ),
    "deepcopy of a pass": (
        lambda _: copy.deepcopy(iter(engine().sampler())),
        Refused(TypeError, "state_dict()"),
    ),
    # monitors
    "a cell that is run again": (
        lambda _: twice_fused(),
        Refused(pe.PruneEngineError, "fuse=True already"),
    ),
    "layers of names in a tuple": (
        lambda _: pe.ActivationMonitor(nn.Sequential(nn.ReLU()), ("0",)),
        Refused(TypeError, "layers must be module types where it is a tuple, got '0'"),
    ),
    "a monitor's class": (
        lambda _: engine(pe.BPAS(4)).attach(pe.ActivationMonitor),
        Refused(TypeError, "monitor must have take(), got the class"),
    ),
    "a model's class": (
        lambda _: pe.ActivationMonitor(nn.ReLU),
        Refused(TypeError, "model must be an nn.Module, got type"),
    ),
    # states and files
    "state without a key": (
        lambda _: without("num_epochs"),
        Refused(pe.StateMismatchError, "num_epochs: missing"),
    ),
    "state with a threshold of words": (
        lambda _: edited(threshold=("x",)),
        Refused(pe.StateMismatchError, "threshold[0]: expected float, got 'x'"),
    ),
    "a path for a state": (
        lambda _: engine().load_state_dict("run.pt"),
        Refused(pe.StateMismatchError, "got str: load_state reads files"),
    ),
    "a file of text": (
        lambda tmp: pe.load_state(engine(), write(tmp / "a.pt", "hello")),
        Refused(pe.StateMismatchError, "is torn, or no file of torch.save"),
    ),
    "a folder that is missing": (
        lambda tmp: pe.save_state(engine(), tmp / "no" / "a.pt"),
        Refused(FileNotFoundError, ""),
    ),
    "a function in extra": (
        lambda tmp: pe.save_state(engine(), tmp / "a.pt", extra={"f": print}),
        Refused(ValueError, "extra must be tensors and plain data"),
    ),
    "a model for an engine": (
        lambda tmp: pe.save_state(nn.ReLU(), tmp / "a.pt"),
        Refused(TypeError, "engine must be a PruneEngine, got ReLU()"),
    ),
    "no path": (
        lambda _: pe.save_state(engine(), None),
        Refused(TypeError, "path must be a string or a Path, got None"),
    ),
    # huge ints
    "sample 2^63 - 1": (
        lambda _: pe.ops.moments([ONES], sample=2**63 - 1),
        Refused(ValueError, "sample must be in 1..2147483647"),
    ),
    "sample 2^31 - 1": (lambda _: pe.ops.moments([ONES], sample=2**31 - 1)[0, 0].item(), 4.0),
    "batch of 2^62": (lambda _: len(engine().loader(ROWS, 2**62)), 1),
    # commands
    "state that is no file": (lambda tmp: command("inspect", str(tmp / "no.pt")), 2),
    "ratio nan for a command": (
        lambda tmp: command("train", "--out", str(tmp / "run"), "--prune-ratio", "nan"),
        2,
    ),
}
G = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5], [0.25, 0.75, -2.0], [3.0, 1.0, 0.0]])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# torch itself calls what it has deprecated, in forward mode.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", list(ROWS_OF_TABLE))
def test_an_input_has_its_value_or_its_error(name: str, tmp_path: Path) -> None:
    call, outcome = ROWS_OF_TABLE[name]
    if not isinstance(outcome, Refused):
        assert call(tmp_path) == outcome
        return
    with pytest.raises(outcome.kind) as caught:
        call(tmp_path)
    assert outcome.words in str(caught.value)
    assert type(caught.value) is outcome.kind


def test_the_table_is_long_and_has_both_kinds_of_rows() -> None:
    refused = [outcome for _, outcome in ROWS_OF_TABLE.values() if isinstance(outcome, Refused)]
    assert len(ROWS_OF_TABLE) >= 60
    assert 20 <= len(refused) <= len(ROWS_OF_TABLE) - 20

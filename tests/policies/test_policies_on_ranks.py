# SPDX-License-Identifier: Apache-2.0
"""Every policy on two gloo processes: the same samples on both, and those that one keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from _processes import start_ranks
from _runs import N, batches, losses_at, observe

import prune_engine as pe
from prune_engine.policies import (
    IES,
    KAKURENBO,
    RCAP,
    RS2,
    TABLE,
    AlignPrune,
    OrderDP,
    PerSample,
    ProgressiveDropout,
    Proportional,
    RePB,
    Reselect,
    SeTa,
    Subset,
    ZeroVariance,
)

SIZE, EPOCHS, SEED, WORLD = 10, 7, 4, 2  # a rank's batch


def easiest(epoch: int, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the lower half of the scores, with a weight that only some of them have."""
    chosen = scores.argsort()[: N // 2]
    return chosen, 1 + (chosen % 3).float() / 2


def hers_alone(epoch: int, scores: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Choose another subset on each rank."""
    return torch.arange(10) + dist.get_rank(), None


POLICIES: dict[str, pe.policies.Policy] = {
    "full": pe.KeepAll(),
    "random": pe.RandomSubset(0.4, rescale=True),
    "random fixed": pe.RandomSubset(0.4, sampling="fixed"),
    "rs2": RS2(0.3),
    "subset": Subset(list(range(0, N, 3)), [1.0 + i % 2 for i in range(0, N, 3)]),
    "infobatch": pe.InfoBatch(0.5, delta=1.0),
    "even infobatch": pe.InfoBatch(0.5, delta=1.0, first_epoch="even"),
    "infobatch_quantile": pe.InfoBatchQuantile(delta=1.0),
    "budget": pe.Budget(0.4, delta=1.0),
    "orderdp": OrderDP(0.3, 0.5),
    "proportional": Proportional(0.6, delta=1.0),
    "even proportional": Proportional(0.6, delta=1.0, first_epoch="even", weight_cap=2.0),
    "ucb": pe.UCB(0.4, period=2),
    "epsilon_greedy": pe.EpsilonGreedy(0.4, period=2),
    "repb": RePB(0.6),
    "seta": SeTa(0.2, groups=4, window=2, delta=1.0),
    "even seta": SeTa(0.2, groups=4, window=2, delta=1.0, first_epoch="even"),
    "kakurenbo": KAKURENBO(0.3, 0.6),
    "ies": IES(0.4, again=5),
    "progressive_dropout": ProgressiveDropout(tau=0.8, revision=1.0),
    "random dropout": ProgressiveDropout(tau=None, gamma=0.9, revision=1.0),
    "align prune": AlignPrune(0.5, delta=1.0, window=3),
    "even align prune": AlignPrune(0.5, delta=1.0, window=3, first_epoch="even"),
    "rcap": RCAP(PerSample([i % 3 for i in range(N)]), keep=0.5),
    "even rcap": RCAP(PerSample([i % 3 for i in range(N)]), keep=0.5, first_epoch="even"),
    "zero variance": ZeroVariance(target=0.5),
    "reselect": Reselect(easiest, every=2),
}
WITHOUT_SCORES = {"full", "random", "random fixed", "rs2", "subset", "random dropout"}


def made(policy: pe.policies.Policy, **options: Any) -> pe.PruneEngine:
    return pe.PruneEngine(N, policy, num_epochs=EPOCHS + 1, seed=SEED, **options)


def see(engine: pe.PruneEngine, batch: list[int]) -> None:
    """Observe a batch: its known losses, or for prompts what their rewards say."""
    if not isinstance(engine.policy, ZeroVariance):
        observe(engine, batch)
        return
    indices, losses = torch.tensor(batch), losses_at(batch, engine.epoch)
    spread = torch.where(indices % 3 == 0, 0.0, torch.where(losses < 0.5, -1.0, losses))
    engine.observe(losses, indices, score=spread)


def decided(engine: pe.PruneEngine) -> tuple[list[int], list[float]]:
    return engine.plan.kept.tolist(), engine.plan.weights.tolist()


def work(rank: int, size: int, folder: str) -> None:
    """Run every policy on one rank, and leave what it decided."""
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    found: dict[str, list[Any]] = {}
    for name, policy in POLICIES.items():
        engine = made(policy)
        found[name] = []
        for _ in range(EPOCHS):
            for batch in batches(engine.sampler(align=size * SIZE), SIZE):
                see(engine, batch)
            engine.end_epoch()
            found[name].append(decided(engine))
    apart = made(Reselect(hers_alone))
    for batch in batches(apart.sampler(align=size * SIZE), SIZE):
        see(apart, batch)
    with pytest.raises(ValueError, match="must return the same subset on every rank"):
        apart.end_epoch()
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Any]]]:
    folder: Path = tmp_path_factory.mktemp("policies")
    assert start_ranks(work, WORLD, str(folder)).join() == [0] * WORLD
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def one_process(
    policy: pe.policies.Policy, cut: Callable[[list[int]], list[list[int]]]
) -> list[tuple[list[int], list[float]]]:
    """Decide alone, from batches that are cut of each of all ranks together."""
    engine, plans = made(policy, coverage="ignore"), []
    for _ in range(EPOCHS):
        for both in batches(iter(list(engine.sampler(align=WORLD * SIZE))), WORLD * SIZE):
            for batch in cut(both):
                see(engine, batch)
        engine.end_epoch()
        plans.append(decided(engine))
    return plans


@pytest.mark.full("starts two processes for all policies")
@pytest.mark.distributed
@pytest.mark.parametrize("name", POLICIES)
def test_two_processes_keep_what_one_does(found, name):
    policy = POLICIES[name]
    alone = one_process(policy, lambda both: [both[rank::WORLD] for rank in range(WORLD)])
    assert found[0][name] == found[1][name], "the ranks agree"
    assert found[0][name] == alone, "and decide as one process does"
    assert name == "full" or any(len(kept) < N for kept, _ in alone)
    if name not in WITHOUT_SCORES:
        unmerged = one_process(policy, lambda both: [both[::WORLD]])
        assert unmerged != alone, "control: a rank that knows its own batches alone decides else"
    if name == "repb":
        whole = one_process(policy, lambda both: [both])
        assert whole != alone, "control: its batch is a rank's own, as it says"


def test_every_policy_of_the_table_is_among_them():
    batchwise = {pe.BPAS, pe.RandomBatches}  # of which test_bpas_distributed.py is
    assert {type(policy) for policy in POLICIES.values()} >= set(TABLE.values()) - batchwise

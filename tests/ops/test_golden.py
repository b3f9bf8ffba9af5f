# SPDX-License-Identifier: Apache-2.0
"""The bits that a seed gives, written down: the same on every machine, processor and backend.

A change of one is a major version; before 1.0 any version may bring one, when CHANGELOG.md says so
(CONTRIBUTING.md, Versions). Scores are made of integers and of single IEEE-754 divisions, so that
no library of this machine has a say in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import prune_engine as pe

N = 20_011
BATCH = 512
EPOCHS = 4
POLICIES = {
    "infobatch": pe.InfoBatch(prune_ratio=0.5, delta=0.875),
    "infobatch_fixed": pe.InfoBatch(prune_ratio=0.3, delta=1.0, sampling="fixed"),
    "infobatch_quantile": pe.InfoBatchQuantile(delta=1.0),
    "proportional": pe.policies.Proportional(target_savings=0.6, floor=0.1, delta=1.0),
    "budget": pe.Budget(target_savings=0.4, delta=1.0),
    "random": pe.RandomSubset(prune_ratio=0.5),
    "full": pe.KeepAll(),
}
DIGESTS = {
    "infobatch": "457e769c1038f84c",
    "infobatch_fixed": "5fdf1f8b7e9f93c4",
    "infobatch_quantile": "2e4b550b69392aa3",
    "budget": "970810c3746a2431",
    "proportional": "d1cb4e54ce649990",
    "random": "5b8dee51ec2d4acf",
    "full": "c5ef56d432f9c579",
}
# Of moments in float64, in the order in which the C++ kernels add, whatever vectors there are.
MOMENTS = "69aff37c0eed81a9"


def losses_of(indices: Tensor, epoch: int) -> Tensor:
    """Return losses between 0 and 66 that differ from epoch to epoch."""
    mixed = (indices * 2_654_435_761 + 97 * epoch) % 65_521
    return mixed.to(torch.float32) / float(997 + epoch)


def observed(policy: pe.policies.Policy, seed: int, backend: str, device: str) -> Iterator[Tensor]:
    """Yield all that a run decides: what each step returns, each epoch's state and plan."""
    engine = pe.PruneEngine(N, policy, num_epochs=EPOCHS, seed=seed, device=device, backend=backend)
    for epoch in range(EPOCHS):
        plan = engine.plan
        yield from (plan.kept, plan.weight_class, plan.weights)
        for indices in plan.batches(BATCH, dtype=torch.int64):
            yield indices
            # Made on the CPU: torch's CUDA kernel divides by multiplying with the reciprocal.
            losses = losses_of(indices.cpu(), epoch).to(device)
            yield engine.observe(losses, indices, reduction="none")
        yield from (engine.buffer.records, engine.buffer.score_sum)
        if epoch + 1 < EPOCHS:
            engine.end_epoch()


def digest(tensors: Iterator[Tensor]) -> str:
    """Return one number for the bytes of all."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", POLICIES)
def test_a_seed_gives_the_bits_that_it_always_gave(name: str, backend: str) -> None:
    assert digest(observed(POLICIES[name], 3, backend, "cpu")) == DIGESTS[name]


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_gpu_gives_them_too(name: str, backend: str) -> None:
    assert digest(observed(POLICIES[name], 3, backend, "cuda")) == DIGESTS[name]


def test_measured_moments_have_the_bits_that_they_always_had() -> None:
    x = losses_of(torch.arange(50_021), 0) - 30.0
    layers = [x, x.to(torch.bfloat16), x[:4_096].to(torch.float16), x.double()]
    assert digest(iter([pe.ops.moments(layers, backend="cpu")])) == MOMENTS


def test_control_another_seed_gives_others() -> None:
    policy = POLICIES["infobatch"]
    assert digest(observed(policy, 4, "cpu", "cpu")) != DIGESTS["infobatch"]
    assert len(set(DIGESTS.values())) == len(DIGESTS)

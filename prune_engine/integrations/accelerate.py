# SPDX-License-Identifier: Apache-2.0
"""Accelerate: an engine, a loader and a schedule that an ``Accelerator`` has prepared."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

import prune_engine as pe
from prune_engine.data.sampler import own_order
from prune_engine.epoch.state import check_count, sample_count
from prune_engine.integrations.packages import need
from prune_engine.policies import Policy

_accelerate: Any = need("accelerate", "accelerate")
__all__ = ["nominal_steps", "prepare"]


def nominal_steps(accelerator: Any, dataset: Any, *, num_epochs: int, batch_size: int) -> int:
    """Return the optimizer steps of a run of which nothing is pruned: what to make a schedule for.

    Args:
        accelerator: of the training.
        dataset: sized.
        num_epochs: of the run.
        batch_size: of the loader, as ``prepare`` takes it.

    Returns:
        The steps of each process; they are the same on all.

    Example:
        >>> from accelerate import Accelerator
        >>> nominal_steps(Accelerator(cpu=True), range(100), num_epochs=3, batch_size=8)
        36
    """
    share = batch_size if accelerator.split_batches else batch_size * accelerator.num_processes
    per_step = share * accelerator.gradient_accumulation_steps
    return num_epochs * max(1, sample_count(dataset) // per_step)


def prepare(
    accelerator: Any,
    dataset: Any,
    policy: Policy,
    *,
    num_epochs: int,
    batch_size: int,
    scheduler: Any = None,
    total_steps: int | None = None,
    seed: int = 0,
    engine_options: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[pe.PruneEngine, Any, Any]:
    """Make an engine and its loader, and prepare loader and schedule with an ``Accelerator``.

    Prepare model and optimizer as always, then call this instead of making a loader; the loop goes
    over ``engine.epochs()`` and calls ``accelerator.backward(engine.observe(losses, indices))``.
    ``accelerator.save_state`` and ``load_state`` take the engine and the schedule along: after
    ``load_state`` begin the same loop, and do not skip batches.

    Args:
        accelerator: made before.
        dataset: map-style.
        policy: such as ``InfoBatch()``.
        num_epochs: length of the run.
        batch_size: of each process; with ``split_batches`` of all together.
        scheduler: made for ``total_steps`` steps; None: there is none.
        total_steps: default ``nominal_steps``.
        seed: of the engine.
        engine_options: further arguments of ``PruneEngine``.
        options: for ``DataLoader``.

    Returns:
        The engine, the loader and the schedule, which is stepped after each optimizer step.

    Raises:
        TypeError: an option decides the order.
        ValueError: the Accelerator is configured to do what pruning cannot serve.

    Example:
        >>> from accelerate import Accelerator
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data, accelerator = TensorDataset(torch.arange(20.0)), Accelerator(cpu=True)
        >>> engine, loader, _ = prepare(accelerator, data, pe.KeepAll(), num_epochs=1, batch_size=8)
        >>> for _ in engine.epochs():
        ...     for x, indices in loader:
        ...         loss = engine.observe(x, indices)
        >>> engine.history[0].served
        16
    """
    check_count("batch_size", batch_size, needed=True)
    _refuse(accelerator, dataset, policy, batch_size)
    engine = pe.PruneEngine(
        dataset,
        policy,
        num_epochs=num_epochs,
        seed=seed,
        device=accelerator.device,
        **(engine_options or {}),
    )
    own_order(options, engine.seed)
    processes: int = accelerator.num_processes
    sampler = engine.sampler(
        shard="none",  # Accelerate deals the batches of all ranks out
        batch_size=batch_size // processes if accelerator.split_batches else batch_size,
        accumulate=accelerator.gradient_accumulation_steps,
    )
    plain: DataLoader[Any] = DataLoader(
        engine.dataset(dataset), batch_size, sampler=sampler, **options
    )
    loader = accelerator.prepare(plain)
    accelerator.register_for_checkpointing(engine)
    if scheduler is None:
        return engine, loader, None
    if total_steps is None:
        total_steps = nominal_steps(
            accelerator, dataset, num_epochs=num_epochs, batch_size=batch_size
        )
    return engine, loader, accelerator.prepare(engine.wrap_scheduler(scheduler, total_steps))


def _refuse(accelerator: Any, dataset: Any, policy: Policy, batch_size: int) -> None:
    """Refuse at the start what would train the wrong samples later."""
    processes: int = accelerator.num_processes
    parallel = getattr(accelerator, "parallelism_config", None)
    sizes = [getattr(parallel, f"{name}_size", 1) or 1 for name in ("tp", "cp", "sp")]
    fixed, count = policy.fixed_batch, sample_count(dataset)
    whole = fixed is None or count % fixed == 0 or getattr(policy, "drop_last", False)
    reasons = {
        "dispatch_batches=True hides from the ranks what they train: leave it unset": (
            accelerator.dispatch_batches
        ),
        "use_stateful_dataloader=True would skip a second time after load_state: leave it unset, "
        "the engine knows where it was": getattr(accelerator, "use_stateful_dataloader", False),
        "ranks that share a batch (tensor, context or sequence parallel) are not supported": (
            max(sizes) > 1
        ),
        f"batch_size must be a multiple of the {processes} processes with split_batches=True, got "
        f"{batch_size}": accelerator.split_batches and batch_size % processes,
        f"{count} samples are no whole batches of {fixed}, and Accelerate would pad the last: give "
        f"{type(policy).__name__} drop_last=True": processes > 1 and not whole,
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise ValueError(reason)

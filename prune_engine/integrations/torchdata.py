# SPDX-License-Identifier: Apache-2.0
"""torchdata's ``StatefulDataLoader`` over an engine's order."""

from __future__ import annotations

from typing import Any

import prune_engine as pe
from prune_engine.data.sampler import own_order
from prune_engine.integrations.packages import need

_stateful: Any = need("torchdata.stateful_dataloader", "torchdata")
__all__ = ["loader"]


def loader(
    engine: pe.PruneEngine,
    dataset: Any,
    batch_size: int,
    *,
    accumulate: int = 1,
    **options: Any,
) -> Any:
    """Return a ``StatefulDataLoader`` whose batches end with their indices.

    Save its state beside the engine's, and load both, in either order, before the first pass: it
    goes on without reading anything again. With ``snapshot_every_n_steps`` above 1 the loader
    replays what was read since its last snapshot; the engine knows what of it was trained.

    Args:
        engine: of the run.
        dataset: map-style.
        batch_size: of each rank.
        accumulate: batches of an optimizer step.
        options: for ``StatefulDataLoader``.

    Returns:
        The loader.

    Raises:
        TypeError: an option decides the order.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> engine = pe.PruneEngine(10, pe.KeepAll(), num_epochs=1)
        >>> made = loader(engine, TensorDataset(torch.arange(10.0)), 4)
        >>> [len(indices) for _, indices in made]
        [4, 4]
    """
    own_order(options, engine.seed)
    sampler = engine.sampler(batch_size=batch_size, accumulate=accumulate)
    return _stateful.StatefulDataLoader(
        engine.dataset(dataset), batch_size, sampler=sampler, **options
    )

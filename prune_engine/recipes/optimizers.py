# SPDX-License-Identifier: Apache-2.0
"""The optimisers of the recipes: torch's two, and the layerwise ones that papers of pruning use."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

OWN = ("sgd", "adamw")
LAYERWISE = {"lars": "LARS", "lamb": "Lamb"}  # of pytorch-optimizer
OPTIMIZERS = (*OWN, *LAYERWISE)


def require(name: str) -> None:
    """Refuse an optimiser whose package is missing, before anything is read.

    Args:
        name: one of ``OPTIMIZERS``.

    Raises:
        ImportError: its package is missing; the message names the extra.

    Example:
        >>> require("sgd")
    """
    if name in LAYERWISE:
        _package(name)


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Make an optimiser of all parameters.

    ``"sgd"`` has Nesterov momentum of 0.9; ``"lars"`` (You, Gitman and Ginsburg 2017) has momentum
    of 0.9 and the trust coefficient 0.001, so rates are large, such as the 5.2 of InfoBatch (ICLR
    2024) for batches of 128; ``"lamb"`` (You et al., ICLR 2020) has the weight decay within the
    update, as there, and no bias correction. Both are pytorch-optimizer's.

    Args:
        name: one of ``OPTIMIZERS``.
        parameters: of the model.
        lr: the rate at the start.
        weight_decay: of all parameters; ``"lars"`` leaves vectors out.

    Returns:
        The optimiser.

    Raises:
        ImportError: its package is missing; the message names the extra.

    Example:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> make_optimizer("sgd", [weight], lr=0.1, weight_decay=0.0).defaults["nesterov"]
        True
    """
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
        )
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    kind = getattr(_package(name), LAYERWISE[name])
    # Without the last the rate is divided by 1 - 0.9^t, beside the trust ratio: tenfold at first.
    own = {"weight_decouple": False, "adam_debias": True} if name == "lamb" else {}
    return kind(parameters, lr=lr, weight_decay=weight_decay, **own)


def _package(name: str) -> Any:
    try:
        return importlib.import_module("pytorch_optimizer")
    except ModuleNotFoundError as error:
        if error.name != "pytorch_optimizer":
            raise  # it is there, and lacks something of its own
        raise ImportError(
            f"optimizer {name} needs pytorch-optimizer: pip install 'prune_engine[optimizers]'"
        ) from error

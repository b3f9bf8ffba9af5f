# SPDX-License-Identifier: Apache-2.0
"""What ``engine.pick`` chooses by: rules over the losses of a batch that was passed forward.

Each object makes values of a batch's losses, on its device and without waiting for it; ``pick``
chooses k of the batch by them. It has a state, which belongs in a checkpoint beside the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prune_engine.bands import check_fraction, check_positive
from prune_engine.errors import StateMismatchError
from prune_engine.lasting import lasting
from prune_engine.losses.checks import check_losses, check_number, check_places
from prune_engine.plain import plain


class ImportanceSampling:
    """In proportion to the losses, once that is worth its forward pass; at random until then.

    Katharopoulos and Fleuret (ICML 2018), equations 23 to 26: with p the losses of a batch of B
    over their sum, ``tau = 1 / sqrt(1 - sum (p - 1/B)^2 / sum p^2)`` says how many times larger a
    uniform batch would have to be for the same variance. Where its average (decay 0.9) exceeds
    ``(B + 3 b) / (3 b)`` for a choice of b, the losses are the values; else all are alike, which
    with ``rule="proportional"`` is a random choice. Ours: ``pick`` chooses without replacement.
    The test is made on the device.

    Args:
        k: b, how many are chosen of a batch.
        decay: in [0, 1), of the average.

    Raises:
        TypeError: a number is of the wrong kind.
        ValueError: a number is out of range.

    Example:
        >>> rule = ImportanceSampling(k=2)
        >>> rule.values(torch.ones(8)).tolist() == [1.0] * 8, round(rule.tau.item(), 3)
        (True, 0.1)
    """

    def __init__(self, k: int, *, decay: float = 0.9) -> None:
        self.k = check_number("k", k, 1)
        self.decay = plain(decay)
        check_fraction("decay", self.decay, zero=True, one=False)
        self.tau = torch.zeros((), dtype=torch.float64)

    def values(self, losses: Tensor) -> Tensor:
        """Take a batch in, and return what to pick it by, with ``rule="proportional"``.

        Args:
            losses: [B] floating; what is not finite or below 0 counts as 0.

        Returns:
            float32 [B].
        """
        sizes = check_losses(losses).nan_to_num(0.0, 0.0, 0.0).clamp(min=0)
        wide, count = sizes.to(torch.float64), max(1, sizes.shape[0])
        total = wide.sum()
        share = torch.where(total > 0, wide / total, 1.0 / count)
        # 1 - sum (p - 1/B)^2 / sum p^2 is (1/B) / sum p^2, for p sums to 1.
        tau = (share.square().sum() * count).sqrt()
        self.tau = self.decay * self.tau.to(tau.device) + (1 - self.decay) * tau
        worth = self.tau > (count + 3 * self.k) / (3 * self.k)
        return torch.where(worth, sizes, torch.ones_like(sizes))

    def state_dict(self) -> dict[str, Any]:
        """Return the average on the cpu."""
        return {"tau": self.tau.to("cpu", copy=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state.

        Args:
            state: what ``state_dict`` returned.

        Raises:
            StateMismatchError: it is none.
        """
        self.tau = _restored(state, "tau", self.tau)


class SelectiveBackprop:
    """By how a loss ranks among the last ones: its share of smaller ones, to a power.

    Selective-Backprop (Jiang et al., 2019, arXiv 1910.00762): a sample is trained with probability
    ``CDF(loss)^beta``, the CDF that of the last R losses. Ours: ``pick(rule="proportional")``
    chooses always k, with that probability as the size, where the paper throws a coin each and
    gathers batches; leave its weights out of the loss (``reduction="none"``) to train as published,
    biased towards hard ones.

    Args:
        beta: above 0; the paper's keep a half (1), a third (2), a fourth (3).
        history: R, at least 1.

    Raises:
        TypeError: a number is of the wrong kind.
        ValueError: a number is out of range.

    Example:
        >>> rule = SelectiveBackprop(beta=2.0, history=4)
        >>> rule.values(torch.tensor([4.0, 1.0, 2.0, 3.0])).tolist()
        [1.0, 0.0625, 0.25, 0.5625]
    """

    def __init__(self, beta: float = 1.0, history: int = 1024) -> None:
        self.beta = plain(beta)
        check_positive("beta", self.beta)
        self.history = torch.full((check_number("history", history, 1),), torch.nan)

    def values(self, losses: Tensor) -> Tensor:
        """Take a batch in, and return what to pick it by.

        Args:
            losses: [B] floating.

        Returns:
            float32 [B], nan for a loss that is nan.
        """
        fresh = check_losses(losses)
        size = self.history.shape[0]
        self.history = torch.cat([self.history.to(fresh.device), fresh])[-size:]
        known = self.history.isfinite()
        ascending = torch.where(known, self.history, torch.inf).sort().values
        below = torch.searchsorted(ascending, fresh, right=True).clamp(max=known.sum())
        share = below.to(torch.float64) / known.sum().clamp(min=1)
        return torch.where(fresh.isnan(), torch.nan, share.pow(self.beta)).to(torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the last losses on the cpu."""
        return {"history": self.history.to("cpu", copy=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state.

        Args:
            state: what ``state_dict`` returned.

        Raises:
            StateMismatchError: it is none.
        """
        self.history = _restored(state, "history", self.history)


class EvolvedSampling:
    """By a loss and the average of a sample's losses, which move at two speeds.

    Evolved Sampling (arXiv 2509.23461; its formula as reported): with s a sample's average and l
    its loss, the value is ``beta1 s + (1 - beta1) l``, and then ``s <- beta2 s + (1 - beta2) l``;
    the first loss is the average. Choose with ``rule="proportional"`` of a larger batch. 4 bytes a
    sample; each rank has the averages of what it saw.

    Args:
        num_samples: N.
        beta1: in [0, 1], of the value.
        beta2: in [0, 1), of the average.
        device: where the averages live; default torch's default device.

    Raises:
        TypeError: a number is of the wrong kind.
        ValueError: a number is out of range.

    Example:
        >>> rule = EvolvedSampling(3, beta1=0.5, beta2=0.5)
        >>> indices = torch.tensor([2, 0])
        >>> rule.values(torch.tensor([1.0, 2.0]), indices).tolist()
        [1.0, 2.0]
        >>> rule.values(torch.tensor([3.0, 2.0]), indices).tolist(), rule.average.tolist()[2]
        ([2.0, 2.0], 2.0)
    """

    def __init__(
        self,
        num_samples: int,
        beta1: float = 0.2,
        beta2: float = 0.9,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        count = check_number("num_samples", num_samples, 0)
        self.beta1, self.beta2 = plain(beta1), plain(beta2)
        check_fraction("beta1", self.beta1, zero=True, one=True)
        check_fraction("beta2", self.beta2, zero=True, one=False)
        self.average = lasting(torch.full)((count,), torch.nan, device=device)

    def values(self, losses: Tensor, indices: Tensor) -> Tensor:
        """Take a batch in, and return what to pick it by.

        Args:
            losses: [B] floating; one that is not finite changes no average.
            indices: [B] int64 | int32, of the samples.

        Returns:
            float32 [B].

        Raises:
            ValueError: indices are not as many as losses.
        """
        fresh = check_losses(losses)
        places = check_places(indices, fresh.shape[0]).to(self.average.device, torch.int64)
        before = self.average[places]
        average = torch.where(before.isnan(), fresh, before)
        moved = torch.where(
            fresh.isfinite(), average + (1 - self.beta2) * (fresh - average), before
        )
        self.average.index_copy_(0, places, moved)  # in place: a batch costs no copy of all
        return average + (1 - self.beta1) * (fresh - average)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages on the cpu."""
        return {"average": self.average.to("cpu", copy=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state.

        Args:
            state: what ``state_dict`` returned.

        Raises:
            StateMismatchError: it is none.
        """
        self.average = _restored(state, "average", self.average)


def _restored(state: Mapping[str, Any], name: str, have: Tensor) -> Tensor:
    """Return a tensor of a state on the device of the one that it replaces; refuse another."""
    came = state.get(name)
    if not isinstance(came, Tensor) or came.shape != have.shape or came.dtype != have.dtype:
        got = (
            f"{came.dtype} {tuple(came.shape)}" if isinstance(came, Tensor) else type(came).__name__
        )
        want = f"{have.dtype} {tuple(have.shape)}"
        raise StateMismatchError(f"the state does not fit: {name}: expected {want}, got {got}")
    return lasting(came.to)(have.device, copy=True)

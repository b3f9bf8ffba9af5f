# SPDX-License-Identifier: Apache-2.0
"""timm: ``create_loader`` with an engine's order, and its losses per sample."""

from __future__ import annotations

import copy
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prune_engine as pe
from prune_engine.integrations.packages import need

_data: Any = need("timm.data", "timm")
_losses: Any = need("timm.loss", "timm")
_Mixup: Any = _data.FastCollateMixup
_default_collate: Any = need("torch.utils.data", "").default_collate
__all__ = ["Tap", "per_sample", "wrap"]


class Tap:
    """Knows the indices of each batch that the loader gave out.

    By the target's tensor itself, so that it does not matter how far a script looks ahead.

    Example:
        >>> tap, target = Tap(), torch.tensor([1, 0])
        >>> tap.put(target, torch.tensor([7, 3]))
        >>> tap.take(target)
        tensor([7, 3])
    """

    def __init__(self) -> None:
        self._given: list[tuple[weakref.ref[Tensor], Tensor]] = []

    def put(self, target: Tensor, indices: Tensor) -> None:
        """Note the indices of a batch.

        Args:
            target: its targets, the tensor that the script gets.
            indices: [B].
        """
        self._given = [pair for pair in self._given if pair[0]() is not None]
        self._given.append((weakref.ref(target), indices))

    def take(self, target: Tensor) -> Tensor:
        """Return a batch's indices.

        Args:
            target: as the loader gave it, before any mixup.

        Returns:
            [B] int64.

        Raises:
            PruneEngineError: the loader gave no such tensor.
        """
        for given, indices in self._given:
            if given() is target:
                return indices
        raise pe.PruneEngineError(
            "take() needs the very target that the loader gave: call it before mixup, or anything "
            "else that makes another one"
        )


class _Indexed:
    """A collate function of (image, target) that puts the items' indices at the end."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> Any:
        batch = self.collate([item[:-1] for item in items])
        return (*batch, torch.tensor([item[-1] for item in items]))


class _IndexedMixup(_Mixup):
    """The same for timm's mixup, whose kind its loader looks for to switch it off."""

    def __init__(self, mixup: Any) -> None:
        state: dict[str, Any] = mixup.__dict__
        for name, value in state.items():
            setattr(self, name, value)

    def __call__(self, items: Sequence[Any], *args: Any) -> Any:
        batch = _Mixup.__call__(self, [item[:-1] for item in items], *args)
        return (*batch, torch.tensor([item[-1] for item in items]))


class _Inner:
    """Takes the indices off each batch, for a prefetcher that wants pairs, and keeps them."""

    def __init__(self, loader: Any, waiting: deque[Tensor]) -> None:
        self.loader, self.waiting = loader, waiting

    def __iter__(self) -> Iterator[Any]:
        self.waiting.clear()
        for *pair, indices in self.loader:
            self.waiting.append(indices)
            yield tuple(pair)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


class _Outer:
    """What the script iterates: the prefetcher, or the loader where there is none."""

    def __init__(self, loader: Any, waiting: deque[Tensor], tap: Tap) -> None:
        for name, value in (("loader", loader), ("waiting", waiting), ("tap", tap)):
            object.__setattr__(self, name, value)

    def __iter__(self) -> Iterator[Any]:
        # A prefetcher gives out all that it takes, in order: the first that waits is this one's.
        for images, target in self.loader:
            indices = self.waiting.popleft()
            if len(indices) != len(target):
                raise pe.PruneEngineError(
                    f"a batch has {len(target)} targets of {len(indices)} samples: a mixup of mode "
                    "'half' trains half of them; take 'batch', 'elem' or 'pair'"
                )
            self.tap.put(target, indices)
            yield images, target

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.loader, name, value)  # mixup_enabled


def wrap(
    create_loader: Callable[..., Any],
    dataset: Any,
    engine: pe.PruneEngine,
    *,
    input_size: Any,
    batch_size: int,
    accumulate: int = 1,
    **options: Any,
) -> tuple[Any, Tap]:
    """Call timm's ``create_loader`` for training, and serve the engine's order through it.

    Transforms, collating, mixup and prefetching are timm's own. In the loop ``for images, target
    in loader`` the batch's indices are ``tap.take(target)``, before a mixup of the whole batch
    makes another target.

    Args:
        create_loader: ``timm.data.create_loader``.
        dataset: of timm's kind: map-style, with a ``transform``.
        engine: of the run.
        input_size: as for ``create_loader``.
        batch_size: of each rank.
        accumulate: batches of an optimizer step.
        options: for ``create_loader``.

    Returns:
        The loader and its tap.

    Raises:
        TypeError: the data set has no transform to set.
        ValueError: an option cannot be served; the message says what instead.

    Example:
        >>> from PIL import Image
        >>> from timm.data import create_loader
        >>> class Grey(torch.utils.data.Dataset):
        ...     transform = None
        ...     def __len__(self): return 6
        ...     def __getitem__(self, index): return self.transform(Image.new("RGB", (9, 9))), index
        >>> engine = pe.PruneEngine(6, pe.KeepAll(), num_epochs=1)
        >>> sizes = {"input_size": (3, 8, 8), "batch_size": 2, "num_workers": 0}
        >>> loader, tap = wrap(create_loader, Grey(), engine, device=torch.device("cpu"), **sizes)
        >>> [torch.equal(tap.take(target), target) for _, target in loader]
        [True, True, True]
    """
    if not hasattr(dataset, "transform"):
        raise TypeError(
            "dataset must have a transform, which create_loader sets, got "
            f"{type(dataset).__name__}: without it nothing would be augmented"
        )
    _refuse(options)
    options = {"is_training": True, **options, "distributed": False}  # the engine has the ranks
    collate = options.get("collate_fn")
    if collate is None:
        fast = options.get("use_prefetcher", True)
        collate = _data.loader.fast_collate if fast else _default_collate
    mixes = isinstance(collate, _Mixup)
    options["collate_fn"] = _IndexedMixup(collate) if mixes else _Indexed(collate)
    outer = create_loader(
        engine.dataset(dataset), input_size=input_size, batch_size=batch_size, **options
    )
    prefetches = options.get("use_prefetcher", True)
    loader = outer.loader if prefetches else outer
    loader.batch_sampler.sampler = engine.sampler(batch_size=batch_size, accumulate=accumulate)
    waiting: deque[Tensor] = deque()
    tap, inner = Tap(), _Inner(loader, waiting)
    if prefetches:
        outer.loader = inner
    return _Outer(outer if prefetches else inner, waiting, tap), tap


def _refuse(options: dict[str, Any]) -> None:
    """Refuse what would train samples more than once, or not those of the plan."""
    reasons = {
        "is_training must be True: an evaluation takes create_loader itself": (
            not options.get("is_training", True)
        ),
        "num_aug_repeats trains a sample several times in an epoch: leave it 0": (
            options.get("num_aug_repeats")
        ),
        "num_aug_splits makes several rows of a sample: leave it 0": options.get("num_aug_splits"),
        "use_multi_epochs_loader reads the next epoch before it is decided: leave it False": (
            options.get("use_multi_epochs_loader")
        ),
        "input_size_choices makes batches of its own: leave it None": (
            options.get("input_size_choices")
        ),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise ValueError(reason)


def per_sample(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss of timm's, or a cross-entropy of torch's, with one value per sample.

    Its mean over the batch is the loss itself.

    Args:
        loss: ``SoftTargetCrossEntropy``, ``LabelSmoothingCrossEntropy``, ``BinaryCrossEntropy`` or
            ``torch.nn.CrossEntropyLoss``, averaged over the batch.

    Returns:
        From outputs [B, C] and targets to losses [B].

    Raises:
        TypeError: it is another loss.
        ValueError: it is not averaged over the batch, or weighs classes.

    Example:
        >>> losses = per_sample(nn.CrossEntropyLoss())
        >>> losses(torch.zeros(2, 4), torch.tensor([0, 3])).shape
        torch.Size([2])
    """
    if getattr(loss, "reduction", "mean") != "mean" and not getattr(loss, "sum_classes", False):
        raise ValueError(f"loss must be averaged over the batch, got {loss}")
    if isinstance(loss, _losses.SoftTargetCrossEntropy):
        return lambda outputs, target: -(target * F.log_softmax(outputs, dim=-1)).sum(-1)
    if isinstance(loss, _losses.LabelSmoothingCrossEntropy):
        smoothing = float(loss.smoothing)
        return lambda outputs, target: F.cross_entropy(
            outputs, target, reduction="none", label_smoothing=smoothing
        )
    if isinstance(loss, _losses.BinaryCrossEntropy):
        return _binary(loss)
    if type(loss) is nn.CrossEntropyLoss:
        if loss.weight is not None or loss.ignore_index >= 0:
            raise ValueError("loss must weigh all samples alike: without weight and ignore_index")
        smoothing = loss.label_smoothing
        return lambda outputs, target: F.cross_entropy(
            outputs, target, reduction="none", label_smoothing=smoothing
        )
    raise TypeError(
        "loss must be one of timm's of a single view, or CrossEntropyLoss, got "
        f"{type(loss).__name__}"
    )


def _binary(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Run timm's binary cross-entropy without its reduction over the batch."""
    unreduced = copy.copy(loss)
    unreduced.reduction, unreduced.sum_classes = "none", False

    def losses(outputs: Tensor, target: Tensor) -> Tensor:
        each = unreduced(outputs, target)
        return each.sum(-1) if loss.sum_classes else each.mean(-1)

    return losses

# SPDX-License-Identifier: Apache-2.0
"""One call for every method: checks, classes, quotas, order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from prune_engine import ops
from prune_engine.coresets.cal import CAL
from prune_engine.coresets.contextual_diversity import ContextualDiversity
from prune_engine.coresets.craig import CRAIG
from prune_engine.coresets.deepfool import DeepFool
from prune_engine.coresets.dp import DatasetPruning
from prune_engine.coresets.dq import DatasetQuantization
from prune_engine.coresets.el2n import EL2N
from prune_engine.coresets.embedding import Embedding
from prune_engine.coresets.facility_location import FacilityLocation
from prune_engine.coresets.forgetting import Forgetting
from prune_engine.coresets.glister import Glister
from prune_engine.coresets.gradmatch import GradMatch
from prune_engine.coresets.grand import GraNd
from prune_engine.coresets.graphcut import GraphCut
from prune_engine.coresets.hardest import Hardest
from prune_engine.coresets.herding import Herding
from prune_engine.coresets.influence import Influence
from prune_engine.coresets.k_center import KCenter
from prune_engine.coresets.lots import lots
from prune_engine.coresets.method import Coreset, Method, Pick, Samples, Scored, quiet
from prune_engine.coresets.quotas import quotas
from prune_engine.coresets.random import Random
from prune_engine.coresets.stratified import Stratified
from prune_engine.coresets.together import Together
from prune_engine.coresets.uncertainty import Entropy, LeastConfidence, Margin
from prune_engine.losses.reduce import wide_dtype
from prune_engine.losses.scores import check_classes
from prune_engine.ops.checks import check_int
from prune_engine.ops.to_host import host_ints
from prune_engine.plain import plain

TABLE: dict[str, type[Method]] = {
    "random": Random,
    "herding": Herding,
    "k_center": KCenter,
    "contextual_diversity": ContextualDiversity,
    "least_confidence": LeastConfidence,
    "entropy": Entropy,
    "margin": Margin,
    "forgetting": Forgetting,
    "el2n": EL2N,
    "grand": GraNd,
    "deepfool": DeepFool,
    "cal": CAL,
    "craig": CRAIG,
    "gradmatch": GradMatch,
    "glister": Glister,
    "graphcut": GraphCut,
    "facility_location": FacilityLocation,
    "influence": Influence,
    "dp": DatasetPruning,
    "dq": DatasetQuantization,
    "hardest": Hardest,
    "stratified": Stratified,
}
MOST_CLASSES = 2**24  # where no logits say how many there are
ROWS = 2**14  # that are looked at together for what is not finite


def select(
    method: str | Method,
    *,
    k: int,
    features: Tensor | None = None,
    logits: Tensor | None = None,
    targets: Tensor | None = None,
    scores: Tensor | None = None,
    head: Tensor | None = None,
    validation: Embedding | None = None,
    balance: bool = True,
    seed: int = 0,
    together: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    **parameters: Any,
) -> Coreset:
    """Choose k samples of a data set, once, by one of the published methods.

    Formula, source, cost and needs of each method: the table of `prune_engine/coresets/README.md`,
    and the class of each name in ``TABLE``. Balanced, each class gives in proportion to its size by
    largest remainders, so that exactly k come together (ties to the smaller class), and the method
    chooses within each class. All chance comes from the seed and the samples' positions; between
    equals the smaller index wins. A method that takes the best of one score each takes ``scores=``
    in place of what it would make them of.

    Args:
        method: a name of ``TABLE``, or a method, such as ``GraphCut(b=0.5)``.
        k: how many, in 0..N.
        features: [N, d] floating, what the last layer was given; it may be mapped to a file.
        logits: [N, C] floating.
        targets: [N] integers in 0..C-1.
        scores: [N] floating, low = easy; inf is allowed, nan is not.
        head: [C, d] floating, the weights of the last layer.
        validation: the samples whose loss ``glister`` lowers; default the data set itself.
        balance: choose class by class.
        seed: in 0..2^63-1.
        together: at least 1, how many classes ``graphcut``, ``k_center``,
            ``contextual_diversity`` and ``herding`` choose from at a time, with the same choices:
            on a device one takes as long as its launches, of a class or of many. Default: one on a
            cpu, elsewhere as many as have matrices of 1 GiB together.
        progress: is told (chosen so far, k); what it raises ends the selection.
        parameters: of the method, where a name is given.

    Returns:
        Indices, weights and order, on the device of what was given.

    Raises:
        TypeError: an argument is of another kind, or the method has no such parameter.
        ValueError: an argument does not fit or is missing, or holds what is not finite (the message
            names the sample).
        IndexError: a target is out of range.

    Example:
        >>> h = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> z, y = h.clone(), torch.tensor([0, 0, 1, 1])
        >>> found = select("graphcut", features=h, logits=z, targets=y, k=2)
        >>> len(found), found.weights.tolist()
        (2, [1.0, 1.0])
    """
    chosen_method = _method(method, parameters)
    samples = _checked(features, logits, targets, scores, head, validation, seed)
    n, k = len(samples), _count(k, len(samples))
    if together is not None:
        together = check_int("together", together, 1, MOST_CLASSES)
    _check_needs(chosen_method, method, samples, balance)
    done = 0

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, k)

    if k == 0:
        empty = torch.empty(0, dtype=torch.int64, device=samples.rank.device)
        return Coreset(empty, empty.float(), empty)
    samples = replace(samples, report=quiet if progress is None else report)
    samples = chosen_method.prepare(samples)
    if balance:
        parts = _by_class(samples, chosen_method, k, together)
    else:
        parts = [_checked_pick(chosen_method, chosen_method.pick(samples, k), n, k)]
    return _joined(parts, samples.rank.device)


def _method(method: str | Method, parameters: dict[str, Any]) -> Method:
    """Make the method of a name; refuse one that does not exist."""
    if isinstance(method, Method):
        if parameters:
            names = ", ".join(parameters)
            raise TypeError(f"{names}: a {type(method).__name__} has its parameters already")
        return method
    if method not in TABLE:
        raise ValueError(f"method must be one of {', '.join(TABLE)}, got {method!r}")
    return TABLE[method](**parameters)


def _count(k: int, n: int) -> int:
    k = plain(k)
    if isinstance(k, bool) or not isinstance(k, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"k must be an int, got {k!r}")
    if not 0 <= k <= n:
        raise ValueError(f"k must be in 0..{n}, got {k}")
    return k


def _checked(
    features: Tensor | None,
    logits: Tensor | None,
    targets: Tensor | None,
    scores: Tensor | None,
    head: Tensor | None,
    validation: Embedding | None,
    seed: int,
) -> Samples:
    """Return the arguments as samples, after a look at every number."""
    rows = {"features": features, "logits": logits, "targets": targets, "scores": scores}
    given = {name: value for name, value in rows.items() if value is not None}
    if not given:
        raise ValueError("one of features, logits, targets and scores must be given")
    _check_rows(given)
    n = len(next(iter(given.values())))
    device = next(iter(given.values())).device
    if targets is not None:
        _check_targets(targets, None if logits is None else logits.shape[1])
        targets = targets.to(torch.int64)
    if head is not None:
        _check_head(head, features, logits)
    judges = None if validation is None else _judges(validation, features, logits)
    positions = torch.arange(n, device=device)
    rank = ops.shuffle(positions, n, seed=seed, epoch=0)
    parts = [None if x is None else x.detach() for x in (features, logits, targets, scores, head)]
    return Samples(rank, *parts, validation=judges)


def _check_rows(given: dict[str, Tensor], whose: str = "") -> None:
    """Refuse what is no tensor of its kind, of another length or device, or not finite."""
    first = next(iter(given))
    for key, value in given.items():
        name = whose + key
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        dims, shape = (2, "[N, d]") if key in ("features", "logits") else (1, "[N]")
        if value.dim() != dims or (dims == 2 and not value.shape[1]):
            raise ValueError(f"{name} must be {shape}, got shape {tuple(value.shape)}")
        if len(value) != len(given[first]):
            raise ValueError(
                f"{name} must have as many rows as {first}, {len(given[first])}, got {len(value)}"
            )
        if value.device != given[first].device:
            raise ValueError(
                f"{name} must be on the device of {first}, {given[first].device}, got "
                f"{value.device}"
            )
        if key != "targets":
            _check_finite(name, value, infinite=key == "scores")
        if key in ("features", "logits"):
            _check_sizes(name, value, squared=key == "features")


def _check_finite(name: str, values: Tensor, *, infinite: bool, row_of: str = "sample") -> None:
    """Refuse nan, and inf except where it is allowed, by the first row that has it."""
    if not values.is_floating_point():
        raise TypeError(f"{name} must be floating, got {values.dtype}")
    for start in range(0, len(values), ROWS):
        part = values[start : start + ROWS]
        bad = torch.isnan(part) if infinite else ~torch.isfinite(part)
        bad = bad.flatten(1).any(dim=1) if bad.dim() > 1 else bad
        if bool(bad.any()):
            row = start + int(bad.to(torch.uint8).argmax())
            found = values[row].flatten()
            wrong = found[torch.isnan(found) | torch.isinf(found)][0]
            what = "not be nan" if infinite else "be finite"
            raise ValueError(f"{name} must {what}, got {float(wrong)} at {row_of} {row}")


def _check_sizes(name: str, values: Tensor, *, squared: bool) -> None:
    """Refuse features whose inner products overflow, and logits whose differences do."""
    most, what = torch.finfo(wide_dtype(values.dtype)).max / 4, "differences"
    if squared:
        most, what = (most / 4 / values.shape[1]) ** 0.5, "squares"
    for start in range(0, len(values), ROWS):
        sizes = values[start : start + ROWS].abs().amax(dim=1)
        if bool((sizes > most).any()):
            row = int((sizes > most).to(torch.uint8).argmax())
            raise ValueError(
                f"{name} must be at most {most:.3g} for their {what} to be finite, got "
                f"{float(sizes[row]):.3g} at sample {start + row}"
            )


def _check_targets(targets: Tensor, classes: int | None) -> None:
    """Refuse labels that are none; without logits any class may be the last."""
    check_classes(targets.cpu(), MOST_CLASSES if classes is None else classes)


def _check_head(head: Tensor, features: Tensor | None, logits: Tensor | None) -> None:
    wanted = (
        "C" if logits is None else logits.shape[1],
        "d" if features is None else features.shape[1],
    )
    if not isinstance(head, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"head must be a tensor, got {type(head).__name__}")
    fits = head.dim() == 2 and all(
        isinstance(want, str) or got == want for got, want in zip(head.shape, wanted, strict=True)
    )
    if not fits:
        raise ValueError(f"head must be [{wanted[0]}, {wanted[1]}], got {tuple(head.shape)}")
    _check_finite("head", head, infinite=False, row_of="class")


def _judges(validation: Embedding, features: Tensor | None, logits: Tensor | None) -> Samples:
    """Return the validation samples, which must be made by the same model."""
    if not isinstance(validation, Embedding):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"validation must be an Embedding, got {type(validation).__name__}")
    rows = {
        "features": validation.features,
        "logits": validation.logits,
        "targets": validation.targets,
    }
    _check_rows(rows, "validation.")
    _check_targets(validation.targets, validation.logits.shape[1])
    for name, own in (("features", features), ("logits", logits)):
        if own is not None and own.shape[1] != rows[name].shape[1]:
            raise ValueError(
                f"validation must have {name} of width {own.shape[1]}, got {rows[name].shape[1]}"
            )
        if own is not None and own.device != rows[name].device:
            raise ValueError(
                f"validation must be on the device of {name}, {own.device}, got {rows[name].device}"
            )
    if not len(validation.targets):
        raise ValueError("validation must have samples, got none")
    rank = torch.arange(len(validation.targets), device=validation.targets.device)
    return Samples(rank, rows["features"], rows["logits"], rows["targets"].to(torch.int64))


def _check_needs(method: Method, name: str | Method, samples: Samples, balance: bool) -> None:
    """Refuse a method without what it is made of."""
    word = name if isinstance(name, str) else type(name).__name__
    if balance and samples.targets is None:
        raise ValueError("targets must be given for balance=True; pass balance=False without them")
    if isinstance(method, Scored) and samples.scores is not None:
        return
    missing = [need for need in method.needs if getattr(samples, need) is None]
    if missing:
        instead = ", or scores" if isinstance(method, Scored) and missing != ["scores"] else ""
        raise ValueError(
            f"{' and '.join(missing)} must be given for {word}{instead}: it is made of "
            f"{', '.join(method.needs)}"
        )


def _by_class(samples: Samples, method: Method, k: int, together: int | None) -> list[Pick]:
    """Choose within each class; positions are those of the whole."""
    targets = samples.targets
    assert targets is not None
    ordered = torch.argsort(targets, stable=True)
    sizes = host_ints(torch.bincount(targets))
    counts = quotas(sizes, k)
    ends = list(accumulate(sizes))
    members = [ordered[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    found: list[Pick] = []
    for lot in lots(sizes, counts, _most(method, together, targets.device)):
        parts = [_class_of(samples, label, members[label], sizes) for label in lot]
        asked = [counts[label] for label in lot]
        for label, pick in zip(lot, _picks(method, parts, asked), strict=True):
            pick = _checked_pick(method, pick, sizes[label], counts[label])
            found.append(Pick(members[label][pick.order], pick.weights))
    return found


def _class_of(samples: Samples, label: int, members: Tensor, sizes: list[int]) -> Samples:
    """Return the samples of a class."""
    part = samples.take(members) if len(members) < sum(sizes) else samples
    if samples.validation is None:
        return part
    return replace(part, validation=_judges_of(samples.validation, label))


def _most(method: Method, together: int | None, device: torch.device) -> int:
    """Return how many classes may be chosen from at a time; 0: as many as fit."""
    if not isinstance(method, Together):
        return 1
    return together or (1 if device.type == "cpu" else 0)


def _picks(method: Method, parts: list[Samples], counts: list[int]) -> list[Pick]:
    """Choose from the classes of a lot."""
    if len(parts) > 1 and isinstance(method, Together):
        return method.pick_each(parts, counts)
    return [method.pick(part, k) for part, k in zip(parts, counts, strict=True)]


def _judges_of(validation: Samples, label: int) -> Samples:
    """Return the validation samples of a class; without any, its gradient would be another's."""
    assert validation.targets is not None
    rows = (validation.targets == label).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(f"validation must have samples of every class, got none of class {label}")
    return validation.take(rows)


def _checked_pick(method: Method, pick: Pick, n: int, k: int) -> Pick:
    """Return a pick; refuse what a method of a user's own gets wrong: a number, or one twice."""
    name, order, weights = type(method).__name__, pick.order, pick.weights
    if order.dtype not in (torch.int64, torch.int32) or order.shape != (k,):
        raise ValueError(
            f"{name} must pick {k} different positions, as integers [{k}], got "
            f"{order.dtype} {list(order.shape)}"
        )
    ascending = torch.sort(order).values
    apart = bool((ascending[1:] > ascending[:-1]).all())
    if not apart or int(ascending[0]) < 0 or int(ascending[-1]) >= n:
        raise ValueError(
            f"{name} must pick {k} different positions in 0..{n - 1}, got "
            f"{host_ints(ascending[:9])} and so on"
        )
    if weights is None:
        return Pick(order.to(torch.int64))
    if weights.shape != (k,) or not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError(
            f"{name} must give {k} finite weights of at least 0, one for each pick, got "
            f"{list(weights.shape)}, the least {float(weights.min()) if weights.numel() else None}"
        )
    return Pick(order.to(torch.int64), weights)


def _joined(parts: list[Pick], device: torch.device) -> Coreset:
    """Join the choices of the classes: turn by turn, in proportion to their shares."""
    order = torch.cat([pick.order for pick in parts])
    weights = torch.cat(
        [
            torch.ones(len(pick.order), device=device)
            if pick.weights is None
            else pick.weights.to(torch.float32)
            for pick in parts
        ]
    )
    turns = torch.cat(
        [
            (torch.arange(len(pick.order), dtype=torch.float64, device=device) + 0.5)
            / len(pick.order)
            for pick in parts
        ]
    )
    by_turn = torch.argsort(turns, stable=True)
    ascending = torch.argsort(order)
    return Coreset(order[ascending], weights[ascending], order[by_turn])

# SPDX-License-Identifier: Apache-2.0
"""Features, logits and targets of a whole data set, by one model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn
from torch.utils.data import RandomSampler, SequentialSampler

from prune_engine.coresets.modes import evaluating
from prune_engine.files import NO_SYNC, naming, write_bytes

FORMAT = 2
NOTE = "embedding.json"
ARRAYS = ("features", "logits", "targets", "seen")
# Samples whose logits are made once more of their features, and how far bfloat16 may put them off.
HEAD_ROWS, HEAD_ROUNDING = 64, 0.03


@dataclass(frozen=True)
class Embedding:
    """What ``select`` is given of a data set.

    Attributes:
        features: [N, d], what the last linear layer was given; float32, or mapped to a file.
        logits: [N, C] float32, likewise.
        targets: int64 [N].
        head: [C, d], the weights of that layer; None where the logits are not what it makes of the
            features.

    Example:
        >>> Embedding(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2)).features.shape[1]
        3
    """

    features: Tensor
    logits: Tensor
    targets: Tensor
    head: Tensor | None = None


def embed(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    num_samples: int | None = None,
    layer: nn.Module | None = None,
    folder: str | Path | None = None,
    device: torch.device | str | None = None,
    amp: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Embedding:
    """Run a model over a data set and keep what its last linear layer is given and gives.

    The model is taken as in evaluation and left as it was; the features are caught by a hook on the
    last ``nn.Linear``, which goes again. Batches are (inputs, targets, indices), as an
    ``IndexedDataset`` makes them, in any order; or (inputs, targets) in the order of the data set.
    With a folder the arrays are files that are mapped and not held, with their room on the disk
    taken beforehand, and a call that was broken off goes on where it stopped: batches whose samples
    are all there are not run again, but their targets must be those that were kept.

    Args:
        model: from inputs to logits [B, C].
        loader: of the whole data set, each sample once, without augmentation.
        num_samples: N; default the length of ``loader.dataset``.
        layer: whose input the features are, where it is not the last ``nn.Linear`` that the model
            holds (``model.modules()`` in order; a part for other uses may come after the head).
        folder: for the files; it is made.
        device: where the model runs; default where its first parameter is.
        amp: bfloat16 autocast.
        progress: is told (samples so far, N); what it raises ends the run.

    Returns:
        float32 features and logits, int64 targets, on the cpu, in the order of the data set.

    Raises:
        TypeError: a batch is something else, or its targets are no integers.
        ValueError: the loader shuffles and gives no indices, a sample came twice or never, the
            model has no linear layer, or the folder holds the work of another model, layer,
            precision or data set.
        IndexError: an index is out of range.
        OSError: the disk has no room for the files.

    Example:
        >>> with torch.random.fork_rng():
        ...     model = nn.Linear(3, 2)
        >>> made = embed(model, [(torch.ones(2, 3), torch.tensor([0, 1]))], num_samples=2)
        >>> tuple(made.features.shape), made.targets.tolist()
        ((2, 3), [0, 1])
    """
    n = _length(loader, num_samples)
    source = _last_linear(model) if layer is None else layer
    where = torch.device(device) if device is not None else _home(model)
    about = {"layer": _name_of(model, source), "amp": amp}
    store = _Store(n, None if folder is None else Path(folder), model, about)
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught[:] = [inputs[0].detach()]

    hook = source.register_forward_pre_hook(catch)
    start = 0
    try:
        with evaluating(model), torch.inference_mode():
            for batch in loader:
                inputs, targets, indices = _parts(batch)
                if indices is None:
                    _refuse_shuffled(loader)
                    indices = torch.arange(start, start + len(targets))
                start += len(targets)
                indices = indices.cpu().to(torch.int64)
                if not store.lacks(indices, targets):
                    continue
                caught.clear()
                with torch.autocast(where.type, torch.bfloat16, enabled=amp):
                    logits = model(inputs.to(where))
                if not caught:
                    raise ValueError(
                        "layer must be a part of the model that its forward pass calls"
                    )
                store.put(indices, caught[0], logits, targets)
                if progress is not None:
                    progress(store.count, n)
    finally:
        hook.remove()
        store.flush()
    return store.finished(source)


class _Store:
    """The arrays, held or mapped, and which samples are in them."""

    def __init__(
        self, n: int, folder: Path | None, model: nn.Module, about: dict[str, Any]
    ) -> None:
        self.n, self.folder, self.count = n, folder, 0
        digest = _digest(model) if folder else ""
        self.about = {"format": FORMAT, "num_samples": n, "model": digest, **about}
        self.arrays: dict[str, Any] = {}
        self.resumed: Any = np.zeros(n, dtype=bool)  # by an earlier call
        if folder is not None and (folder / NOTE).is_file():
            self._resume(folder)

    def _resume(self, folder: Path) -> None:
        """Go on with the arrays of an earlier call of the same model on as many samples."""
        try:
            saved: Any = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"folder: {folder / NOTE}: not a JSON object ({error})") from error
        if saved != self.about:
            raise ValueError(
                f"folder: {folder} holds the work of another model, layer or data set: expected "
                f"{self.about}, got {saved}"
            )
        for name in ARRAYS:
            self.arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
        self.count = int(self.arrays["seen"].sum())
        self.resumed = self.arrays["seen"].astype(bool)

    def lacks(self, indices: Tensor, targets: Tensor) -> bool:
        """Say whether any of these samples is still to be run; refuse another data set's."""
        if targets.shape != indices.shape or indices.dim() != 1:
            raise ValueError(
                f"loader must give one target and one index a sample, got targets "
                f"{list(targets.shape)} and indices {list(indices.shape)}"
            )
        if targets.is_floating_point() or targets.is_complex():
            raise TypeError(f"loader must give targets that are integers, got {targets.dtype}")
        if not len(indices):
            return False
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= self.n:
            wrong = low if low < 0 else high
            raise IndexError(f"loader must give indices in 0..{self.n - 1}, got {wrong}")
        done = self.resumed[indices.numpy()]
        if done.any():
            stored = self.arrays["targets"][indices.numpy()[done]]
            if bool((stored != targets.cpu().numpy()[done]).any()):
                raise ValueError(
                    f"folder: {self.folder} holds the work of another data set: its targets are "
                    "not those of the loader"
                )
        # What this call has done and is given again is no saving, and is refused by put().
        return not bool(done.all())

    def put(self, indices: Tensor, features: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Keep a batch."""
        b = len(indices)
        features = features.flatten(1) if features.dim() > 1 else features
        if features.shape[:1] != (b,) or logits.dim() != 2 or len(logits) != b:
            raise ValueError(
                f"model must give features and logits of each of {b} samples, got "
                f"{tuple(features.shape)} and {tuple(logits.shape)}"
            )
        if not self.arrays:
            self._make(features.shape[1], logits.shape[1])
        rows = indices.numpy()
        seen = self.arrays["seen"]
        # What an earlier call has done may come again beside what it has not.
        again = seen[rows].astype(bool) & ~self.resumed[rows]
        if len(np.unique(rows)) != b or bool(again.any()):
            raise ValueError(f"loader must give each sample once, got one twice among {rows[:9]}")
        self.arrays["features"][rows] = features.float().cpu().numpy()
        self.arrays["logits"][rows] = logits.float().cpu().numpy()
        self.arrays["targets"][rows] = targets.cpu().numpy()
        self.count += int((seen[rows] == 0).sum())
        seen[rows] = 1

    def _make(self, width: int, classes: int) -> None:
        """Make the arrays; the note comes last, for it says that they are there."""
        shapes = {"features": (self.n, width), "logits": (self.n, classes)}
        kinds = {"targets": np.int64, "seen": np.uint8}
        for name in ARRAYS:
            shape, kind = shapes.get(name, (self.n,)), kinds.get(name, np.float32)
            if self.folder is None:
                self.arrays[name] = np.zeros(shape, kind)
                continue
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"{name}.npy"
            self.arrays[name] = open_memmap(file, "w+", kind, shape)
            _take_room(file)
        if self.folder is not None:
            write_bytes(self.folder / NOTE, (json.dumps(self.about) + "\n").encode())

    def flush(self) -> None:
        """Write what is mapped: the samples first, then that they are there."""
        for name in ARRAYS if self.folder is not None else ():
            if name in self.arrays:
                self.arrays[name].flush()

    def finished(self, source: nn.Module) -> Embedding:
        """Return the arrays as tensors; refuse them while a sample is missing."""
        if self.count != self.n or not self.arrays:
            seen = self.arrays["seen"] if self.arrays else np.zeros(self.n)
            missing = int(np.argmin(seen)) if self.n else 0
            raise ValueError(
                f"loader must give each of {self.n} samples, got {self.count}; sample {missing} "
                "never came"
            )
        features, logits, targets = (torch.as_tensor(self.arrays[name]) for name in ARRAYS[:3])
        return Embedding(features, logits, targets, _head(source, features, logits))


def _take_room(file: Path) -> None:
    """Take a mapped file's room on the disk now: a full one would end the process at a write."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with naming(file), file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, os.fstat(opened.fileno()).st_size)
    except OSError as error:
        if error.errno not in NO_SYNC:  # what cannot be done there ends nothing
            file.unlink(missing_ok=True)
            raise


def _digest(model: nn.Module) -> str:
    """Return a fingerprint of a model's weights."""
    digest = hashlib.sha256()
    state = {name: x for name, x in model.state_dict().items() if isinstance(x, Tensor)}
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _length(loader: Iterable[Any], num_samples: int | None) -> int:
    dataset = getattr(loader, "dataset", None)
    if num_samples is None:
        if dataset is None or not hasattr(dataset, "__len__"):
            raise ValueError(
                "num_samples must be given for a loader without a data set of a length"
            )
        num_samples = len(dataset)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    return num_samples


def _refuse_shuffled(loader: Iterable[Any]) -> None:
    """Without indices only the data set's own order says which sample is which."""
    sampler = getattr(loader, "sampler", None)
    if sampler is not None and not isinstance(sampler, SequentialSampler):
        kind = "shuffle=True" if isinstance(sampler, RandomSampler) else type(sampler).__name__
        raise ValueError(
            f"loader must go through the data set in order, got {kind}: pass shuffle=False, or "
            "wrap the data set in pe.data.IndexedDataset"
        )


def _parts(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return inputs, targets and, where the batch has them, indices."""
    if isinstance(batch, tuple | list):
        parts = list(cast("list[Any]", batch))
        if len(parts) in (2, 3) and all(isinstance(part, Tensor) for part in parts):
            return parts[0], parts[1], parts[2] if len(parts) == 3 else None
    raise TypeError(
        "loader must give batches (inputs, targets) or (inputs, targets, indices) of tensors, got "
        f"{type(cast('object', batch)).__name__}"
    )


def _last_linear(model: nn.Module) -> nn.Linear:
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError("model must have an nn.Linear, or layer must be given; got neither")
    return found[-1]


def _home(model: nn.Module) -> torch.device:
    first = next(iter(model.parameters()), None)
    return torch.device("cpu") if first is None else first.device


def _name_of(model: nn.Module, layer: nn.Module) -> str:
    """Return the name of a part of a model; no name where it is none."""
    parts: list[tuple[str, nn.Module]] = list(model.named_modules())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return next((name for name, module in parts if module is layer), "")


def _head(source: nn.Module, features: Tensor, logits: Tensor) -> Tensor | None:
    """Return a layer's weights where they make the logits of the features, but for rounding."""
    weight, bias = getattr(source, "weight", None), getattr(source, "bias", None)
    if not isinstance(weight, Tensor) or weight.shape != (logits.shape[1], features.shape[1]):
        return None
    head = weight.detach().float().cpu().clone()
    made = features[:HEAD_ROWS] @ head.T
    if isinstance(bias, Tensor):
        made = made + bias.detach().float().cpu()
    wanted = logits[:HEAD_ROWS]
    off = (made - wanted).abs().max()
    return head if bool(off <= HEAD_ROUNDING * wanted.abs().max()) else None

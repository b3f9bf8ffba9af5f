# SPDX-License-Identifier: Apache-2.0
"""Watch a model's activations: (count, mean, M2) of each chosen layer's output, on the device."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, cast

from torch import Tensor, nn

from prune_engine import ops
from prune_engine.errors import PruneEngineError
from prune_engine.ops.checks import check_sample
from prune_engine.plain import plain
from prune_engine.policies.batches.outputs import Outputs

Layers = (
    type[nn.Module] | tuple[type[nn.Module], ...] | str | Callable[[str, nn.Module], bool] | None
)

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Mish,
)
CONVOLUTIONS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

# Whole names of modules, as in model.named_modules(); a prefix such as "module." may come first.
PRESETS: dict[str, str] = {
    "resnet_stages": r"(.*\.)?layer\d+",
    "cvt_stages": r"(.*\.)?(stage\d+|stages\.\d+)",
    "gpt2_blocks": r"(.*\.)?h\.\d+",
}


class ActivationMonitor:
    """Measure the outputs of a model's layers while it trains, for ``BPAS``.

    Every output is reduced to (count, mean, M2). In the first pass that happens at the moment it is
    made. Outputs that autograd then kept for the backward pass, and that nothing changed in place,
    are measured together in later passes, by ``take``: one launch for 96 of them. All others are
    measured when they are made. So no activation lives longer than it would, an in-place operation
    that comes after changes nothing, and gradient checkpointing frees what it frees. An output that
    is changed, or let go, only in a later pass gives its batch nan, with a RuntimeWarning.

    Outputs count only between the start and the end of the model's own forward pass in training
    mode, so evaluation and the recomputation of a checkpoint are not seen. B-PAS (ICLR 2026): X(b)
    is the mean over the layers of the std of a layer's output.

    Make it before ``torch.compile`` traces the model. A ReLU that is a function and not a module
    cannot be seen: name the blocks that end in it.

    Args:
        model: what is called in the loop; a wrapper (DDP, ``torch.compile``) or what is in it.
        layers: module types, a pattern that a module's whole name matches, or
            ``callable(name, module) -> bool``. Default: the outputs of all activation modules;
            in a model with convolutions those that still have positions, [B, C, ...]: the post-ReLU
            outputs of the convolution layers.
        preset: instead of ``layers``: ``"resnet_stages"`` (layer1..4, as in the published code),
            ``"cvt_stages"`` or ``"gpt2_blocks"``.
        fuse: compute the statistics while the activation is written, in place of the chosen
            ``nn.ReLU`` and ``nn.GELU`` modules; other chosen layers, and those with hooks of their
            own, are hooked.
        sample: use every k-th block of an output only.
        backend: which kernels.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: nothing matches, an unknown preset, or an argument out of range.
        PruneEngineError: ``fuse``, and the model is fused already: the message names the layers of
            the monitor that did it. (A notebook's cell that is run again: ``remove()`` it before.)

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Tanh(), nn.ReLU(), nn.Tanh(), nn.ReLU())
        >>> monitor = ActivationMonitor(model)
        >>> _ = model(torch.ones(4, 2))
        >>> monitor.take().shape, monitor.names
        (torch.Size([2, 3]), ('1', '3'))
        >>> monitor.remove()
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = None,
        *,
        preset: str | None = None,
        fuse: bool = False,
        sample: int = 1,
        backend: str = "auto",
    ) -> None:
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        sample, backend, fuse = check_sample(sample), plain(backend), plain(fuse)
        if not isinstance(fuse, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"fuse must be a bool, got {fuse!r}")
        self.sample = sample
        self.backend = backend
        self._model = model
        self.spatial = layers is None and preset is None and _convolves(model)
        chosen = _choose(model, layers, preset)
        if fuse:
            _refuse_fused(model)
        self.names = tuple(chosen)
        self._outputs = Outputs(sample, backend)
        self._open = False
        self._swapped: list[tuple[nn.Module, str, nn.Module]] = []
        self._handles: list[Any] = []
        self._handles.append(model.register_forward_pre_hook(self._begin))
        fused = self._swap(chosen) if fuse else set[nn.Module]()
        for module in dict.fromkeys(chosen.values()):
            if module not in fused:
                self._handles.append(module.register_forward_hook(self._see))
        self._handles.append(model.register_forward_hook(self._end, always_call=True))

    def take(self) -> Tensor:
        """Return what the last forward pass in training mode left, and forget it.

        Returns:
            float64 [L, 3] = (count, mean, M2), in the order in which the layers ran.

        Raises:
            PruneEngineError: there was no such pass since the last call, or no layer ran in it.
        """
        moments = self._outputs.take()
        if moments is None:
            raise PruneEngineError(
                "the monitor saw no activation since the last observe(): call the monitored model "
                "in training mode before each observe(), and make the monitor before "
                "torch.compile traces the model"
            )
        return moments

    def remove(self) -> None:
        """Take every hook and every fused activation out of the model; idempotent."""
        while self._handles:
            self._handles.pop().remove()
        while self._swapped:
            parent, name, module = self._swapped.pop()
            setattr(parent, name, module)
        self._outputs.begin()
        self._open = False

    def __enter__(self) -> ActivationMonitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    # Hooks ------------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            self._open = True
            self._outputs.begin()

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._open = False

    def _see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._open:
            tensor = _tensor_of(output)
            if tensor.dim() > 2 or not self.spatial:
                self._outputs.see(module, tensor)

    @property
    def watching(self) -> bool:
        """Whether a forward pass in training mode is under way."""
        return self._open

    def note(self, moments: Tensor) -> None:
        """Add one layer's moments, as a fused activation does.

        Args:
            moments: float64 [3] = (count, mean, M2).
        """
        self._outputs.note(moments)

    def _swap(self, chosen: dict[str, nn.Module]) -> set[nn.Module]:
        """Put fused activations in the place of those that have one; return what was replaced."""
        # What has hooks is called as it is: in its place nothing would call them.
        wanted = {m for m in chosen.values() if type(m) in (nn.ReLU, nn.GELU) and not _hooked(m)}
        made: dict[nn.Module, FusedActivation] = {}
        for path, child in _modules(self._model, duplicates=True):
            if path and child in wanted:
                above, _, name = path.rpartition(".")
                parent = self._model.get_submodule(above)
                self._swapped.append((parent, name, child))
                fused = made.setdefault(child, FusedActivation(child, self))
                setattr(parent, name, fused.train(child.training))
        return set(made)


class FusedActivation(nn.Module):
    """A ReLU or GELU that measures its output while it writes it.

    Args:
        plain: the ``nn.ReLU`` or ``nn.GELU`` it stands for.
        monitor: who takes the moments.

    Example:
        >>> model = nn.Sequential(nn.Tanh(), nn.ReLU())
        >>> with ActivationMonitor(model, fuse=True):
        ...     type(model[1]).__name__
        'FusedActivation'
    """

    def __init__(self, plain: nn.Module, monitor: ActivationMonitor) -> None:
        super().__init__()
        # In a list, so that neither becomes a child: the state dict stays what it was.
        self._plain = [plain]
        self._monitor = [monitor]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation; in training, note (count, mean, M2) of the result."""
        plain, monitor = self._plain[0], self._monitor[0]
        # The fused pass reads everything: a sample saves nothing in it.
        if not monitor.watching or (monitor.spatial and x.dim() < 3):
            return plain(x)
        if isinstance(plain, nn.ReLU):
            y, moments = ops.relu_moments(x, inplace=plain.inplace, backend=monitor.backend)
        else:
            approximate = cast(nn.GELU, plain).approximate
            y, moments = ops.gelu_moments(x, approximate=approximate, backend=monitor.backend)
        monitor.note(moments)
        return y

    @property
    def stands_for(self) -> nn.Module:
        """The module whose place it has."""
        return self._plain[0]

    @property
    def monitor(self) -> ActivationMonitor:
        """Who put it there."""
        return self._monitor[0]

    def extra_repr(self) -> str:
        """Name the activation."""
        return repr(self._plain[0])


def _modules(model: nn.Module, *, duplicates: bool = False) -> list[tuple[str, nn.Module]]:
    named: Any = model.named_modules  # its stub is partly unknown
    return list(named(remove_duplicate=not duplicates))


def _convolves(model: nn.Module) -> bool:
    return any(isinstance(module, CONVOLUTIONS) for module in model.modules())


def _choose(model: nn.Module, layers: Layers, preset: str | None) -> dict[str, nn.Module]:
    """Return the modules to watch by their names; a module with two names has the first."""
    if layers is not None and preset is not None:
        raise ValueError(f"preset must not be given together with layers, got {preset!r}")
    if preset is not None and not (isinstance(preset, str) and preset in PRESETS):  # pyright: ignore[reportUnnecessaryIsInstance]
        words = " or ".join(map(repr, PRESETS))
        raise ValueError(f"preset must be {words}, got {preset!r}")
    if layers is None:
        layers = ACTIVATIONS if preset is None else PRESETS[preset]
    chosen = {name: module for name, module in _modules(model) if _fits(layers, name, module)}
    if not chosen:
        what = f"preset {preset!r}" if preset else f"layers={layers!r}"
        raise ValueError(
            f"layers must match a module of the model, got {what}, which matches none of "
            f"{_some_names(model)}"
        )
    return chosen


def _refuse_fused(model: nn.Module) -> None:
    """Refuse to fuse anew what another monitor has fused, as a notebook's cell run again does."""
    for name, module in _modules(model):
        if isinstance(module, FusedActivation):
            first = module.monitor
            raise PruneEngineError(
                f"the model has a monitor with fuse=True already, ActivationMonitor of "
                f"{', '.join(first.names)} (it has fused {name!r}): call its remove() first, or "
                "use it in a with block"
            )


def _hooked(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def _fits(layers: Any, name: str, module: nn.Module) -> bool:
    if isinstance(layers, str):
        try:
            return re.fullmatch(layers, name) is not None
        except re.error as error:
            raise ValueError(f"layers must be a pattern, got {layers!r}: {error}") from error
    if isinstance(module, FusedActivation):  # another monitor's, seen as what it stands for
        module = module.stands_for
    if isinstance(layers, tuple):
        kinds = cast("tuple[object, ...]", layers)
        if wrong := [kind for kind in kinds if not isinstance(kind, type)]:
            raise TypeError(f"layers must be module types where it is a tuple, got {wrong[0]!r}")
    if isinstance(layers, type | tuple):
        return isinstance(module, layers)
    if callable(layers):
        return bool(layers(name, module))
    raise TypeError(
        "layers must be module types, a pattern or callable(name, module), got "
        f"{type(layers).__name__}"
    )


def _some_names(model: nn.Module) -> str:
    names = [name for name, _ in _modules(model) if name]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _tensor_of(output: Any) -> Tensor:
    """Take the activation out of what a module returned: a tensor, or the first in a sequence."""
    if isinstance(output, Tensor):
        return output
    kind = type(output).__name__
    parts = cast("Sequence[object]", output) if isinstance(output, Sequence) else ()
    first = parts[0] if parts else None
    if isinstance(first, Tensor):
        return first  # a transformer block returns its hidden states first
    raise TypeError(f"layers must name modules that return a tensor first, got {kind}")

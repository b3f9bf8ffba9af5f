# SPDX-License-Identifier: Apache-2.0
"""Where the work is done, and how much of it: a GPU at full size, or a toy of it on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

N1, N22, N100 = 1_281_167, 14_197_122, 100_000_000  # ImageNet-1k, ImageNet-22k, and beyond


@dataclass(frozen=True)
class Place:
    """A device, the backend that serves it there, and the sizes of all work.

    Args:
        name: of the size, for a command line.
        device: a torch device.
        backend: a name of ``backends.TABLE``.
        samples: sizes of the data set; the first is that of ncu and of the step.
        batches: of observe.
        logits: (batch, classes) of the losses.
        images: a batch of the activations.
        side: of an image, in pixels.
        width: of a ResNet-50's first stage.
        rounds: of the benchmark, at most.
        steps: calls of observe in one timed call.
        turns: of an older library and this one, in processes of their own.
        trained: (training images, test images, seconds of training) of the small net.
        flush_mib: read before each timed call, more than any cache holds.
        copied_mib: of the copy whose rate is the ceiling.
        compiler: backend and mode of ``torch.compile``.
    """

    name: str
    device: str
    backend: str
    samples: tuple[int, ...]
    batches: tuple[int, ...]
    logits: tuple[tuple[int, int], ...]
    images: int
    side: int
    width: int
    rounds: int
    steps: int
    turns: int
    trained: tuple[int, int, float]
    flush_mib: int
    copied_mib: int
    compiler: tuple[str, str | None]

    @property
    def n(self) -> int:
        """The size at which each operator is called once."""
        return self.samples[0]

    @property
    def on_gpu(self) -> bool:
        """Whether there are events, graphs and a device to wait for."""
        return self.device == "cuda"

    def kernels(self, backend: str | None = None) -> Any:
        """The bare operators (``backends.Kernels``)."""
        from prune_engine import backends

        return backends.load(backend or self.backend)


FULL = Place(
    name="full",
    device="cuda",
    backend="cuda",
    samples=(N22, N1, N100),
    batches=(256, 1024, 4096, 16_384, 65_536),
    logits=((2048, 50_257), (256, 1000), (4096, 1000), (512, 262_144)),
    images=256,
    side=224,
    width=64,
    rounds=15,
    steps=32,
    turns=2,
    trained=(50_000, 10_000, 22.0),
    flush_mib=1024,
    copied_mib=4096,
    compiler=("inductor", "reduce-overhead"),
)
# The reference stands in for cuda, so that every line but the kernels' own is tried without a GPU.
TOY = Place(
    name="toy",
    device="cpu",
    backend="reference",
    samples=(5000,),
    batches=(64,),
    logits=((8, 300),),
    images=2,
    side=32,
    width=4,
    rounds=2,
    steps=2,
    turns=1,
    trained=(256, 64, 0.3),
    flush_mib=1,
    copied_mib=1,
    compiler=("aot_eager", None),
)
PLACES = {place.name: place for place in (FULL, TOY)}

# SPDX-License-Identifier: Apache-2.0
"""One batch's X(b): the mean over 17 layers of the std of each, of a ResNet-18's post-ReLU outputs.

Three ways: a pass of its own, inside the ReLU (in place, as the model's own), and a sample of one
block in eight. The images are smooth noise with a colour of their own, the weights untrained: what
counts is that neighbours, channels and images differ as they do in a network.
"""

from __future__ import annotations

from typing import Any

import harness
import pytest
import torch
import torch.nn.functional as F
from harness import Alternative
from torch import Tensor, nn

import prune_engine as pe
from prune_engine.recipes import models

TABLE = "activation_std"
VERSUS = "torch.std loop"
RELATIVE_TO = "read of the same bytes"
UNIT = "ms"
BATCH = 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYERS = 17


def post_relu_outputs(batch: int) -> list[Tensor]:
    """The outputs of every ReLU of the recipe's ResNet-18 for one batch of 32 x 32 images."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(batch, 3, 6, 6, generator=generator)
    colour = torch.randn(batch, 3, 1, 1, generator=generator)
    images = F.interpolate(small, size=(32, 32), mode="bilinear") + colour
    model = models.build("resnet18", (3, 32, 32), 10, seed=0)
    found: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _m, _i, output: found.append(output.clone()))
    with torch.no_grad():
        model(images)
    if len(found) != LAYERS:
        raise RuntimeError(f"the recipe's ResNet-18 has {len(found)} ReLUs, not {LAYERS}")
    return found


def exact(tensors: list[Tensor]) -> float:
    """X(b) in float64 and two passes."""
    return float(torch.stack([tensor.double().std() for tensor in tensors]).mean())


class ActivationData:
    """The activations of one batch, in one dtype."""

    def __init__(self, dtype: str, batch: int = BATCH) -> None:
        """Runs the model once and measures what each way gets wrong."""
        self.dtype = dtype
        self.tensors = [tensor.to(DTYPES[dtype]) for tensor in post_relu_outputs(batch)]
        self.items = self.num_samples = sum(tensor.numel() for tensor in self.tensors)
        self.num_bytes = self.items * self.tensors[0].element_size()
        self.other = torch.ones(self.num_bytes // 4)
        self.out = torch.zeros(1, dtype=torch.float64)
        want = exact(self.tensors)
        moments = [pe.ops.relu_moments(tensor)[1] for tensor in self.tensors]
        fused = torch.stack([(m[2] / (m[0] - 1)).sqrt() for m in moments]).mean()
        self.errors = {
            "error_pe": abs(self.measure(1) / want - 1),
            "error_fused": abs(float(fused) / want - 1),
            "error_sample_8": abs(self.measure(8) / want - 1),
            "error_torch_std": abs(float(torch_loop(self, None)) / want - 1),
        }

    def measure(self, sample: int) -> float:
        """X(b) by the operator."""
        pe.ops.activation_std(self.tensors, self.out, 0, sample=sample)
        return float(self.out)

    def facts(self) -> dict[str, Any]:
        """What the reader of the table needs to know about the data."""
        facts: dict[str, Any] = {"layers": len(self.tensors), "batch": BATCH}
        facts["element_bytes"] = self.tensors[0].element_size()
        return facts | {name: float(f"{error:.2g}") for name, error in self.errors.items()}


def torch_loop(data: ActivationData, _argument: object) -> Tensor:
    return torch.stack([tensor.std() for tensor in data.tensors]).mean()


def _var_mean(data: ActivationData, _argument: object) -> Tensor:
    return torch.stack([torch.var_mean(tensor)[0].sqrt() for tensor in data.tensors]).mean()


def _ours(data: ActivationData, _argument: object) -> object:
    return pe.ops.activation_std(data.tensors, data.out, 0)


def _sampled(data: ActivationData, _argument: object) -> object:
    return pe.ops.activation_std(data.tensors, data.out, 0, sample=8)


def _plain_relu(data: ActivationData, _argument: object) -> object:
    return [torch.relu_(tensor) for tensor in data.tensors]


def _fused_relu(data: ActivationData, _argument: object) -> object:
    return [pe.ops.relu_moments(tensor, inplace=True)[1] for tensor in data.tensors]


def _relu_then_std(data: ActivationData, _argument: object) -> object:
    return _plain_relu(data, None), _ours(data, None)


def _plain_gelu(data: ActivationData, _argument: object) -> object:
    return [F.gelu(tensor) for tensor in data.tensors]


def _fused_gelu(data: ActivationData, _argument: object) -> object:
    return [pe.ops.gelu_moments(tensor)[1] for tensor in data.tensors]


def _read(data: ActivationData, _argument: object) -> object:
    return torch.dot(data.other, data.other)


def _bytes(data: ActivationData) -> int:
    return data.num_bytes


def _both(data: ActivationData) -> int:
    return 2 * data.num_bytes


ALTERNATIVES = (
    Alternative("pe activation_std", _ours, threads=1, bytes_moved=_bytes),
    Alternative("pe activation_std", _ours, threads=2, bytes_moved=_bytes),
    Alternative("pe activation_std, sample=8", _sampled, threads=2,
                bytes_moved=lambda d: d.num_bytes // 8),
    Alternative(VERSUS, torch_loop, threads=2, every=2, bytes_moved=_bytes),
    Alternative("torch.var_mean loop", _var_mean, threads=2, every=2, bytes_moved=_bytes),
    Alternative("torch.relu_ (no statistics)", _plain_relu, threads=2, bytes_moved=_both),
    Alternative("pe relu_moments, in place", _fused_relu, threads=2, bytes_moved=_both),
    Alternative("torch.relu_, pe activation_std", _relu_then_std, threads=2,
                bytes_moved=lambda d: 3 * d.num_bytes),
    Alternative("torch gelu (no statistics)", _plain_gelu, threads=2, every=2, bytes_moved=_both),
    Alternative("pe gelu_moments", _fused_gelu, threads=2, every=2, bytes_moved=_both),
    Alternative(RELATIVE_TO, _read, threads=2, bytes_moved=_bytes),
    Alternative(RELATIVE_TO, _read, threads=1, bytes_moved=_bytes),
)  # fmt: skip


@pytest.fixture(scope="module", params=DTYPES)
def data(request: pytest.FixtureRequest) -> ActivationData:
    """The data, made once for all rows of a dtype."""
    return ActivationData(request.param)


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=str)
def test_activation_std(benchmark: Any, data: ActivationData, alternative: Alternative) -> None:
    """Times one row under pytest-benchmark."""
    harness.run_under_pytest(benchmark, TABLE, alternative, data)

# SPDX-License-Identifier: Apache-2.0
"""Activations for the tests of their statistics, and a float64 two-pass answer in NumPy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn.functional import gelu as torch_gelu

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHAPES = (
    (1,),
    (2,),
    (7, 3),
    (2, 3, 5, 4),
    (3, 64, 8, 8),
    (4, 7, 129),
    (5000,),
    (2, 4096),
    (40_000,),
)
LAYOUTS = ("contiguous", "channels_last", "permuted", "offset", "strided", "expanded")
ACCURACY = 1e-6  # SEMANTICS 3.9

shapes = st.sampled_from(SHAPES)
dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(LAYOUTS)


def activation(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    layout: str = "contiguous",
    salt: int = 0,
) -> torch.Tensor:
    """Draw normal values; bfloat16 and float16 round them, so the tensor itself is the truth."""
    rng = torch.Generator().manual_seed(salt)
    values = torch.randn(shape, generator=rng, dtype=torch.float64) * std + mean
    return laid_out(values.to(dtype), layout)


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return equal values in another layout."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "permuted" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "offset":  # no 16-byte alignment
        room = tensor.new_empty(tensor.numel() + 3)
        return room[3:].view(tensor.shape).copy_(tensor)
    if layout == "strided":
        room = tensor.new_full((*tensor.shape, 2), torch.nan)
        room[..., 0] = tensor
        return room[..., 0]
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape)
    return tensor


def two_pass(tensor: torch.Tensor) -> tuple[float, float, float]:
    """Count, mean and sum of squared deviations, by NumPy in long doubles."""
    values = tensor.detach().to(torch.float64).numpy().astype(np.longdouble).ravel()
    if values.size == 0:
        return 0.0, 0.0, 0.0
    deviations = values - values[0]
    mean = deviations.mean()
    return float(values.size), float(values[0] + mean), float(((deviations - mean) ** 2).sum())


def assert_moments(got: torch.Tensor, want: tuple[float, float, float], label: str = "") -> None:
    """Fail unless the count is equal, the std within 1e-6 and the mean within 1e-6 of the scale."""
    count, mean, squares = got.tolist()
    assert got.dtype == torch.float64, label
    assert count == want[0], f"{label}: count {count}, expected {want[0]}"
    scale = max(abs(want[1]), np.sqrt(want[2] / max(want[0], 1.0)), 1e-300)
    assert abs(mean - want[1]) <= ACCURACY * scale, f"{label}: mean {mean}, expected {want[1]}"
    std, right = np.sqrt(squares), np.sqrt(want[2])
    assert abs(std - right) <= ACCURACY * right, f"{label}: root {std}, expected {right}"


# Of the argument's size (at least 1): both are float32 inside, where 1 + erf cancels, and round
# once to the dtype.
GELU_TOLERANCE = {
    torch.float64: 1e-15,
    torch.float32: 5e-7,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-10,
}


def assert_gelu(y: torch.Tensor, x: torch.Tensor, approximate: str) -> None:
    """Fail unless y is torch's GELU of x within a rounding."""
    want = torch_gelu(x, approximate=approximate)
    assert y.dtype == want.dtype
    allowed = GELU_TOLERANCE[want.dtype] * x.double().abs().clamp(min=1.0)
    worst = ((y.double() - want.double()).abs() / allowed).amax() if y.numel() else 0.0
    assert float(worst) <= 1.0, f"{worst} times what is allowed"

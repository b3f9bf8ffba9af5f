# SPDX-License-Identifier: Apache-2.0
"""A number of each sample as a parameter of a policy: compared, hashed and told by its digest."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class PerSample:
    """Numbers that a frozen policy can hold: labels, or the indices and weights of a subset.

    A tensor as a field would leave a policy without a hash and its state without an answer to
    "are you the same". This copies the numbers, never to change them, and is equal to, hashes as
    and describes itself by the SHA-256 of them.

    Args:
        values: [M] integers or floats: a tensor, an array or a list.

    Raises:
        TypeError: they are neither integers nor floats.
        ValueError: they are not a vector, or one is not finite.

    Example:
        >>> PerSample([0, 1, 1]) == PerSample(torch.tensor([0, 1, 1]))
        True
    """

    __slots__ = ("_array", "_digest")

    def __init__(self, values: Any) -> None:
        came = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        array: NDArray[Any] = np.asarray(came)
        if array.ndim != 1:
            raise ValueError(f"values must be a vector, got shape {array.shape}")
        if array.dtype.kind not in "iuf":
            raise TypeError(f"values must be integers or floats, got {array.dtype}")
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        if not np.isfinite(array).all():
            raise ValueError("values must be finite, got some that are not")
        array.setflags(write=False)
        self._array = array
        self._digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes())

    def __len__(self) -> int:
        """Return how many there are."""
        return self._array.shape[0]

    def __eq__(self, other: object) -> bool:
        """Say whether another holds the same numbers."""
        return isinstance(other, PerSample) and self.describe() == other.describe()

    def __hash__(self) -> int:
        """Hash by the digest."""
        return hash(self.describe())

    def __repr__(self) -> str:
        """Return the number and the beginning of the digest."""
        return f"PerSample({len(self)} of {self._array.dtype}, {self.describe()[7:15]})"

    def __deepcopy__(self, memo: dict[int, Any]) -> PerSample:
        """Return itself, for it never changes."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by its numbers."""
        return PerSample, (self._array,)

    def describe(self) -> str:
        """Return the digest as text, which a state is compared by."""
        return f"sha256:{self._digest.hexdigest()}"

    def on(self, device: torch.device) -> Tensor:
        """Return a copy of the numbers as a tensor.

        Args:
            device: where.

        Returns:
            int64 or float32 [M].
        """
        copied: Any = np.array(self._array)
        return torch.from_numpy(copied).to(device)  # pyright: ignore[reportUnknownMemberType]

    @property
    def array(self) -> NDArray[Any]:
        """The numbers, which cannot be written to."""
        return self._array

    @property
    def integral(self) -> bool:
        """Whether they are integers."""
        return self._array.dtype.kind == "i"

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest; (0, 0) of none."""
        return (float(self._array.min()), float(self._array.max())) if len(self) else (0.0, 0.0)

    def distinct(self) -> bool:
        """Say whether no number comes twice."""
        return len(np.unique(self._array)) == len(self)

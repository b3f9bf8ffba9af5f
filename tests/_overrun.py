# SPDX-License-Identifier: Apache-2.0
"""Make a kernel read past an allocation: what ``make sanitize`` must see before its silence counts.

``compact`` trusts the length of its tensors, and this one's is a lie.
"""

from __future__ import annotations

import torch

from prune_engine import backends

PLANNED, CLAIMED = 4096, 3 * 4096


class Claim:
    """Memory of a tensor, said to be longer than it is."""

    def __init__(self, tensor: torch.Tensor, size: int) -> None:
        """Claim ``size`` bytes."""
        self.__cuda_array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 2,
        }


if __name__ == "__main__":
    classes = torch.ones(PLANNED, dtype=torch.uint8, device="cuda")
    claimed = torch.as_tensor(Claim(classes, CLAIMED), device="cuda")
    offsets = torch.arange(0, CLAIMED + 1, 4096, device="cuda")
    backends.load("cuda").compact(claimed, offsets, CLAIMED)
    torch.cuda.synchronize()

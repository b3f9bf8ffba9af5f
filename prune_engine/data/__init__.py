# SPDX-License-Identifier: Apache-2.0
"""What feeds a training loop: data sets with indices, samplers, loaders, fixed subsets."""

from prune_engine.data.dataset import IndexedDataset
from prune_engine.data.device_loader import DeviceLoader
from prune_engine.data.sampler import PruneSampler
from prune_engine.data.subset import load_subset, save_subset, select_subset

__all__ = [
    "DeviceLoader",
    "IndexedDataset",
    "PruneSampler",
    "load_subset",
    "save_subset",
    "select_subset",
]

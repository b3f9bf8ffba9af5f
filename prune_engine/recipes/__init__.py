# SPDX-License-Identifier: Apache-2.0
"""What ``prune-engine`` runs: data, models, one training loop, comparisons and diagnostics.

| module | holds |
|---|---|
| ``data``, ``formats`` | data sets from plain files, as tensors in memory |
| ``augment`` | crop and flip of a whole batch |
| ``models`` | MLP, small CNN, CIFAR ResNet-18 |
| ``text`` | bytes of real text, and a small GPT-2 over them |
| ``trainer``, ``train`` | one training, and the loop that every arm goes through |
| ``compare`` | the arms of a run and their order |
| ``files``, ``pictures``, ``report`` | what a run leaves on disk; ``report`` is its page |
| ``environment``, ``diagnostics``, ``inspection`` | what ``info``, ``bench``, ``inspect`` say |
| ``terminal`` | samples in plain letters |
| ``selftest`` | every operator against the reference (``info --check``) |
"""

# SPDX-License-Identifier: Apache-2.0
"""What feeds a training loop: data sets with indices, samplers, loaders, fixed subsets."""

# SPDX-License-Identifier: Apache-2.0
"""What is done in a sitting on a GPU, one concern a file; ``bench/sitting.py`` is its door."""

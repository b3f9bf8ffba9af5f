# SPDX-License-Identifier: Apache-2.0
# What csrc/host.cpp binds; prune_engine/host.py is the documented way in.
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def mean_threshold(scores: NDArray[np.float32], num_threads: int) -> float: ...
def plan(
    scores: NDArray[np.float32],
    threshold: float,
    cut: int,
    keep_num: int,
    keep_den: int,
    seed: int,
    epoch: int,
    num_threads: int,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]: ...
def order(
    kept: NDArray[np.int32],
    positions: NDArray[np.int64] | None,
    start: int,
    step: int,
    count: int,
    seed: int,
    epoch: int,
    num_threads: int,
) -> NDArray[np.int32]: ...
def keep_draw(indices: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.uint16]: ...
def keep(
    indices: NDArray[np.int64], low: NDArray[np.bool_] | None, cut: int, seed: int, epoch: int
) -> NDArray[np.bool_]: ...
def bijection(positions: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]: ...
def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...

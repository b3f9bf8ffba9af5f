# SPDX-License-Identifier: Apache-2.0
"""Fixed counts in Triton: of a band's n samples floor(n * num / den) stay, with no host sync.

1. Histogram of the draws per band. 2. Per band the smallest draw that can stay, its cut, and how
many of those with exactly that draw do, its quota. 3. Classes: above the cut stays; ties at the cut
are counted. 4. Ties are settled in the order of the index: the first ``quota`` stay.
"""

# Triton is not typed: the kernels are checked by compiling them (tests/ops/test_triton_compile.py).
# pyright: reportInvalidTypeForm=false, reportMissingTypeStubs=false
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_engine.backends.triton.arithmetic import (
    bits_to_key,
    block_draws,
    seed_words,
    steady,
    steady_value,
)
from prune_engine.backends.triton.launch import blocks_of, launch
from prune_engine.bands import PLAN_BLOCK

NUM_DRAWS = 65536
CHUNK = 4096  # of the histogram at a time
TILE = 1024  # samples at a time


@triton.jit
def band_tile(record, thresholds, unseen_band, BANDS: tl.constexpr):
    """The band (int32) in whose draw each sample competes, or -1."""
    key = record.to(tl.uint32)
    band = tl.zeros(record.shape, tl.int32)
    for t in tl.static_range(BANDS - 1):
        threshold = bits_to_key(tl.load(thresholds + t).to(tl.uint32, bitcast=True))
        band = tl.where(key >= threshold, t + 1, band)  # they ascend
    return tl.where(record == 0, unseen_band.to(tl.int32), band)


@triton.jit(do_not_specialize=["num_samples", "epoch", "unseen_band"])
def count_draws_kernel(
    records,
    thresholds,
    histogram,
    key,
    num_samples: tl.int64,
    epoch: tl.int64,
    unseen_band: tl.int32,
    BANDS: tl.constexpr,
    NUM_DRAWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count one block's draws into histogram [BANDS, NUM_DRAWS]."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    mask = start + tl.arange(0, BLOCK) < num_samples
    record = tl.load(records + start + tl.arange(0, BLOCK), mask, other=0)
    band = band_tile(record, thresholds, unseen_band, BANDS)
    draw = block_draws(start, key, epoch, BLOCK)
    # The mask is made of the slot: as a tile of booleans it would pass from the layout of the
    # records to that of the draws through local memory.
    slot = tl.where(mask & (band >= 0), band, -1) * NUM_DRAWS + draw
    one = tl.full((BLOCK,), 1, tl.int32)
    tl.atomic_add(histogram + slot, one, mask=slot >= 0, sem="relaxed")


@triton.jit(do_not_specialize=["keep_den"])
def quota_kernel(
    histogram,
    cuts,
    quotas,
    keep_nums,
    keep_den: tl.int64,
    BANDS: tl.constexpr,
    NUM_DRAWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Find the cut and the quota of one band (``fix_counts`` in C++)."""
    band = tl.program_id(0)
    counts = histogram + band * NUM_DRAWS
    place = tl.arange(0, CHUNK)

    # The sums stay below 2^31, as the number of samples does; the product below 2^62.
    count = tl.zeros((CHUNK,), tl.int32)
    for first in range(0, NUM_DRAWS, CHUNK):
        count += tl.load(counts + first + place)
    members = tl.sum(count).to(tl.int64)
    keep_num = members * 0
    for b in tl.static_range(BANDS):
        keep_num = tl.where(band == b, steady_value(keep_nums[b]).to(tl.int64), keep_num)
    keep = (members * keep_num // keep_den).to(tl.int32)

    # From the largest draws down: the chunk in which the number reaches `keep`.
    above = keep * 0
    chosen = keep * 0 - 1
    before = keep * 0  # members above the chosen chunk
    for step in range(0, NUM_DRAWS, CHUNK):
        first = NUM_DRAWS - CHUNK - step
        reached = above + tl.sum(tl.load(counts + first + place)).to(tl.int32)
        hit = (chosen < 0) & (reached >= keep)
        before = tl.where(hit, above, before)
        chosen = tl.where(hit, first, chosen)
        above = reached
    # ... and the draw in it; with keep = 0 that is the largest, of which none stay.
    largest = chosen + CHUNK - 1
    count = tl.load(counts + largest - place)
    short = before + tl.cumsum(count).to(tl.int32) < keep
    steps = tl.sum(short.to(tl.int32)).to(tl.int32)
    surer = before + tl.sum(tl.where(place < steps, count, 0)).to(tl.int32)
    tl.store(cuts + band, largest - steps)
    tl.store(quotas + band, keep - surer)


@triton.jit(do_not_specialize=["num_samples", "epoch", "unseen_band"])
def mark_kernel(
    records,
    thresholds,
    cuts,
    weight_class,
    block_offsets,
    ties,
    classes,
    key,
    num_samples: tl.int64,
    epoch: tl.int64,
    unseen_band: tl.int32,
    BANDS: tl.constexpr,
    NUM_DRAWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write one block's classes with ties dropped, the number sure to stay, and its ties."""
    block = tl.program_id(0)
    start = block.to(tl.int64) * BLOCK
    # Counts of 16 bits: sure to stay, ties of bands 0 to 2; ties of bands 3 to 5.
    first = tl.zeros((TILE,), tl.int64)
    second = tl.zeros((TILE,), tl.int64)
    for tile in range(BLOCK // TILE):
        begin = start + tile * TILE
        place = begin + tl.arange(0, TILE)
        mask = place < num_samples
        record = tl.load(records + place, mask, other=0)
        # Band -2 is past the end: no draw reaches its cut, so no mask is needed until the store.
        band = tl.where(mask, band_tile(record, thresholds, unseen_band, BANDS), -2)
        draw = block_draws(begin, key, epoch, TILE)
        # Band -1 does not compete: every draw is above its cut, and its class is 1.
        cut = tl.where(band == -2, NUM_DRAWS, -1)
        kind = tl.full((TILE,), 1, tl.int32)
        for b in tl.static_range(BANDS):
            cut = tl.where(band == b, tl.load(cuts + b), cut)
            kind = tl.where(band == b, steady_value(classes[b]).to(tl.int32), kind)
        is_tie = draw == cut
        tl.store(weight_class + place, tl.where(draw > cut, kind, 0).to(tl.uint8), mask)
        field = (first * 0 + 1) << (tl.where(band < 3, tl.maximum(band, 0) + 1, band - 3) * 16).to(
            tl.int64
        )
        first += tl.where(draw > cut, 1, tl.where(is_tie & (band < 3), field, 0))
        second += tl.where(is_tie & (band >= 3), field, 0)
    total = tl.sum(first)
    tl.store(block_offsets + 1 + block, total & 0xFFFF)
    total >>= 16
    rest = tl.sum(second)
    for b in tl.static_range(BANDS):
        number = (total if b < 3 else rest) >> (16 * (b % 3))
        tl.store(ties + block.to(tl.int64) * BANDS + b, (number & 0xFFFF).to(tl.int32))


@triton.jit(do_not_specialize=["num_samples", "epoch", "unseen_band"])
def settle_kernel(
    records,
    thresholds,
    cuts,
    weight_class,
    block_offsets,
    ties,
    ties_through,
    quotas,
    classes,
    key,
    num_samples: tl.int64,
    epoch: tl.int64,
    unseen_band: tl.int32,
    BANDS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Let the first ``quota`` ties of each band stay; hardly any block has one."""
    block = tl.program_id(0).to(tl.int64)
    row = block * BANDS
    kept = tl.load(block_offsets + 1 + block)
    for b in tl.static_range(BANDS):
        number = tl.load(ties + row + b)
        before = tl.load(ties_through + row + b) - number
        quota = tl.load(quotas + b)
        if (number > 0) & (before < quota):
            cut = tl.load(cuts + b)
            kind = steady_value(classes[b]).to(tl.uint8)
            for tile in range(BLOCK // TILE):
                begin = block * BLOCK + tile * TILE
                place = begin + tl.arange(0, TILE)
                mask = place < num_samples
                record = tl.load(records + place, mask, other=0)
                band = tl.where(mask, band_tile(record, thresholds, unseen_band, BANDS), -2)
                draw = block_draws(begin, key, epoch, TILE)
                tie = tl.where(band == b, tl.where(draw == cut, 1, 0), 0)
                stays = tie * tl.where(before + tl.cumsum(tie) <= quota, 1, 0)
                tl.store(weight_class + place, kind, stays != 0)
                before += tl.sum(tie).to(tl.int32)
                kept += tl.sum(stays)
    tl.store(block_offsets + 1 + block, kept)


def plan_fixed(
    records: Tensor,
    thresholds: Tensor,
    classes: list[int],
    keep_nums: tuple[int, ...],
    keep_den: int,
    unseen_band: int,
    seed: int,
    epoch: int,
    weight_class: Tensor,
    block_offsets: Tensor,
) -> None:
    """Write the weight classes, and the number each block keeps at ``block_offsets[1:]``.

    Args:
        records: [N] int64, N > 0.
        thresholds: [T] float32.
        classes: [T + 1], each in 1..255.
        keep_nums: [T + 1], ``steady``.
        keep_den: in 1..2^31-1.
        unseen_band: in -1..T.
        seed: in 0..2^63-1.
        epoch: in 0..2^31-2.
        weight_class: [N] uint8, changed.
        block_offsets: [blocks + 1] int64, changed.
    """
    num_samples, bands = records.numel(), len(classes)
    blocks = blocks_of(num_samples, PLAN_BLOCK)
    device = records.device
    histogram = torch.zeros(bands, NUM_DRAWS, dtype=torch.int32, device=device)
    cuts = torch.empty(bands, dtype=torch.int32, device=device)
    quotas = torch.empty(bands, dtype=torch.int32, device=device)
    ties = torch.empty(blocks, bands, dtype=torch.int32, device=device)
    launch(
        count_draws_kernel,
        blocks_of(num_samples, TILE),
        records,
        records,
        thresholds,
        histogram,
        seed_words(seed),
        num_samples,
        epoch,
        unseen_band,
        BANDS=bands,
        NUM_DRAWS=NUM_DRAWS,
        BLOCK=TILE,
        warps=4,
    )
    launch(
        quota_kernel,
        bands,
        records,
        histogram,
        cuts,
        quotas,
        keep_nums,
        keep_den,
        BANDS=bands,
        NUM_DRAWS=NUM_DRAWS,
        CHUNK=CHUNK,
        warps=8,
    )
    launch(
        mark_kernel,
        blocks,
        records,
        records,
        thresholds,
        cuts,
        weight_class,
        block_offsets,
        ties,
        steady(*classes),
        seed_words(seed),
        num_samples,
        epoch,
        unseen_band,
        BANDS=bands,
        NUM_DRAWS=NUM_DRAWS,
        BLOCK=PLAN_BLOCK,
        TILE=TILE,
        warps=4,
    )
    launch(
        settle_kernel,
        blocks,
        records,
        records,
        thresholds,
        cuts,
        weight_class,
        block_offsets,
        ties,
        ties.cumsum(dim=0),
        quotas,
        steady(*classes),
        seed_words(seed),
        num_samples,
        epoch,
        unseen_band,
        BANDS=bands,
        BLOCK=PLAN_BLOCK,
        TILE=TILE,
        warps=4,
    )

# SPDX-License-Identifier: Apache-2.0
"""What was predicted before anything ran: by reading the machine code, counting bytes, and peers.

Each is for an H200 at a copy bandwidth of 4.3 TB/s. ``now`` is of the kernel as it stood at commit
a957df9, ``changed`` of the change that was proposed for it then; a row's floor comes from its
bytes and the bandwidth that the sitting itself measures.
"""

from __future__ import annotations

from dataclasses import dataclass

N22 = 14_197_122
COPY_TB_PER_S = 4.3


@dataclass(frozen=True)
class Prediction:
    """Microseconds: from the least to the most.

    Args:
        now: of the kernel as it was read.
        changed: of the proposed change; None: none was proposed.
        floor: what its bytes take.
        issue: what issuing its instructions takes; None: not counted.
    """

    now: tuple[float, float]
    changed: tuple[float, float] | None = None
    floor: float | None = None
    issue: float | None = None


# (table, n, name) as in the benchmark's rows.
PREDICTIONS: dict[tuple[str, int, str], Prediction] = {
    ("epoch", N22, "plan"): Prediction((34, 36), None, 29.7, 17),
    ("epoch", N22, "plan, fixed counts"): Prediction((180, 250), (80, 80), 29.7),
    ("epoch", N22, "compact"): Prediction((14, 14), None, 11.9),
    ("epoch", N22, "threshold + plan + compact"): Prediction((58, 62), None, 38),
    ("epoch", N22, "order, all"): Prediction((80, 100), (68, 90), 17, 45),
    ("epoch", N22, "mean_threshold"): Prediction((5, 7), (2, 2), 2),
    ("epoch", N22, "audit"): Prediction((45, 45), None, 29.7, 33),
    ("epoch", N22, "torch.sort"): Prediction((600, 900), None, 357),
    ("epoch", N22, "torch.quantile"): Prediction((650, 1000), None, 360),
    ("epoch", N22, "torch.kthvalue"): Prediction((10_000, 20_000)),
    ("select", N22, "percentiles"): Prediction((75, 95), (60, 60), 13),
    ("triton select", N22, "percentiles"): Prediction((500, 10_000), None, 13),
    ("observe", 256, "observe, in a graph"): Prediction((3, 4), None, 0.1),
    ("observe", 65_536, "observe, in a graph"): Prediction((3, 6), None, 1.2),
    ("logits 2,048 x 50,257", 2048, "cross_entropy_observe"): Prediction(
        (140, 170), (65, 75), 48, 77
    ),
    ("logits 2,048 x 50,257", 2048, "cross_entropy_grad"): Prediction(
        (130, 190), (110, 110), 96, 68
    ),
    ("activations", 256, "activation_std"): Prediction((1144, 1350), None, 1144, 515),
}


def find(table: str, n: int, name: str) -> Prediction | None:
    """What was predicted for a row, if anything was."""
    return PREDICTIONS.get((table, n, name))


def verdict(prediction: Prediction, measured: float) -> str:
    """Where a measurement lies beside what was predicted."""
    low, high = prediction.now
    if prediction.changed:
        low, high = min(low, prediction.changed[0]), max(high, prediction.changed[1])
    if measured > high:
        return f"slower, {measured / high:.2f}x"
    return f"faster, {low / measured:.2f}x" if measured < low else "as predicted"

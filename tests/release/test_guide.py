# SPDX-License-Identifier: Apache-2.0
"""What the page of divided scores says of costs is what the package computes."""

from __future__ import annotations

import re
from pathlib import Path

from prune_engine.sharding import shard_cost

CASES = [(10**8, 8), (10**9, 8), (10**9, 64), (10**10, 64), (10**10, 512)]


def cost_table() -> list[str]:
    """Return the lines of the table in prune_engine/sharding/README.md."""
    lines: list[str] = []
    for n, size in CASES:
        cost = shard_cost(n, size, 0.7)
        gigabytes = (cost.owned, cost.share, cost.peak, cost.wire, cost.whole, cost.whole_wire)
        cells = " | ".join(f"{each / 1e9:.3g}" for each in gigabytes)
        lines.append(f"| 10^{len(str(n)) - 1} | {size} | {cells} |")
    return lines


def test_the_table_of_costs_is_computed():
    page = Path(__file__).resolve().parents[2] / "prune_engine" / "sharding" / "README.md"
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^\| 10\^.*$", text, re.MULTILINE) == cost_table()

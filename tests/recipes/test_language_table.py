# SPDX-License-Identifier: Apache-2.0
"""The table of the language models is what its rows say."""

from __future__ import annotations

from pathlib import Path

from prune_engine.recipes import language

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"


def test_the_table_of_the_page_is_made_from_the_rows():
    found = language.load(RESULTS / "language.json")
    page = (RESULTS / "language.md").read_text(encoding="utf-8")
    assert language.table(found) in page
    assert {row["arm"] for row in found["rows"]} == set(language.ARMS)


def test_a_table_has_means_and_deviations():
    row = {"way": "trainer", "arm": "full", "samples": 8, "nominal": 10}
    row |= {"seconds": 2.0, "cpu_seconds": 3.0}
    rows = [{**row, "held_out_loss": loss} for loss in (1.0, 2.0)]
    assert language.table({"rows": rows}).splitlines()[2] == (
        "| Trainer | full | 80.0% | 1.5000 \N{PLUS-MINUS SIGN} 0.7071 | 2.0 | 3.0 |"
    )

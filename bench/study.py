# SPDX-License-Identifier: Apache-2.0
"""Make the pages of bench/results/study/ and the guide of the policies of the studies' rows.

prune-engine study --out bench/results/study/mlp ...   # trains what is missing, in pieces
python bench/study.py                                  # makes all pages again; --check only looks
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prune_engine.recipes.study import figure, run, tables

ROOT = Path(__file__).resolve().parents[1]
STUDIES = Path(__file__).parent / "results" / "study"
GUIDE = ROOT / "prune_engine" / "policies" / "README.md"
BEGIN, END = "<!-- study -->", "<!-- /study -->"


def pages() -> dict[Path, str]:
    """Return every page that is made of rows, as it should be."""
    made: dict[Path, str] = {}
    parts: list[str] = []
    for folder in sorted(path.parent for path in STUDIES.glob(f"*/{run.HEADER}")):
        options = run.reopen(folder)
        found = run.read(options)
        made[folder / "study.md"] = tables.page(found, f"Study: {options.model}")
        parts.append(
            f"{caption(options.model, options.seeds, options.images)}\n\n{tables.guide(found)}"
        )
    text = GUIDE.read_text(encoding="utf-8")
    head, mark, rest = text.partition(BEGIN)
    if not mark or END not in rest:
        raise SystemExit(f"{GUIDE} must have {BEGIN} and {END}")
    inside = "\n\n".join(parts)
    made[GUIDE] = f"{head}{BEGIN}\n\n{inside}\n\n{END}{rest.partition(END)[2]}"
    return made


def caption(model: str, seeds: int, images: int) -> str:
    """Return the line above a table."""
    return f"**{model}**, n = {seeds} seeds, {images:,} samples:"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a page is not its rows'")
    arguments = parser.parse_args(argv)
    stale: list[Path] = []
    for path, text in pages().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not arguments.check:
                path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{'stale' if arguments.check else 'written'}: {path.relative_to(ROOT)}")
    if not arguments.check:
        for folder in sorted(path.parent for path in STUDIES.glob(f"*/{run.HEADER}")):
            figure.draw(folder / "study.svg", run.read(run.reopen(folder)))
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

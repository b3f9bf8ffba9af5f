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

from prune_engine.recipes.results import lay_out
from prune_engine.recipes.study import figure, run, tables
from prune_engine.recipes.study.design import Found

ROOT = Path(__file__).resolve().parents[1]
STUDIES = Path(__file__).parent / "results" / "study"
GUIDE, FRONT = ROOT / "prune_engine" / "policies" / "README.md", ROOT / "README.md"
SHOWN = ("mlp", ("orderdp", "hardest", "ucb", "budget"), 0.7)  # on the front page
BEGIN, END = "<!-- study -->", "<!-- /study -->"


def pages() -> dict[Path, str]:
    """Return every page that is made of rows, as it should be."""
    made: dict[Path, str] = {}
    parts: list[str] = []
    listed: list[list[str]] = []
    for folder in sorted(path.parent for path in STUDIES.glob(f"*/{run.HEADER}")):
        options = run.reopen(folder)
        found = run.read(options)
        text = tables.page(found, f"Study: {named(folder.name, options.model)}")
        made[folder / "study.md"] = f"{text}\n![every rule, regime by regime](study.svg)\n"
        parts.append(f"{caption(folder.name, found)}\n\n{tables.guide(found)}")
        listed.append(line(folder.name, found))
        if folder.name == SHOWN[0]:
            made[FRONT] = filled(FRONT, tables.brief(found, *SHOWN[1:]))
    made[GUIDE] = filled(GUIDE, "\n\n".join(parts))
    made[STUDIES / "README.md"] = contents(listed)
    return made


def named(folder: str, model: str) -> str:
    """Return what a study is called: by its model, where that is all there is to say."""
    return model if folder == model else f"{folder} ({model})"


def line(folder: str, found: Sequence[Found]) -> list[str]:
    """Return a study's line in the list of them."""
    options = found[0].options
    regimes = ", ".join(each.regime for each in found)
    counts = len(options.rules), sum(len(each.rows) for each in found)
    words = [f"{count:,}" for count in (options.images, *counts)]
    return [f"[{named(folder, options.model)}]({folder}/study.md)", regimes, *words]


def contents(listed: Sequence[list[str]]) -> str:
    """Return the page that lists the studies."""
    head = ["study", "regimes", "samples", "rules", "trainings"]
    return (
        "# Which rule beats a random subset, and where\n\nEach study is a folder: its rows "
        "(`*.jsonl`, one line for each training), where it ran (`study.json`), its tables and "
        "its figure, which `python bench/study.py` makes of the rows. What they say to whoever "
        "has to choose: [the guide](../../../prune_engine/policies/README.md#which-rule-when)."
        f"\n\n{lay_out(head, listed, markdown=True)}\n"
    )


def filled(path: Path, inside: str) -> str:
    """Return a page with something between its marks."""
    text = path.read_text(encoding="utf-8")
    head, mark, rest = text.partition(BEGIN)
    if not mark or END not in rest:
        raise SystemExit(f"{path} must have {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{inside}\n\n{END}{rest.partition(END)[2]}"


def caption(folder: str, found: Sequence[Found]) -> str:
    """Return the line above a table."""
    options = found[0].options
    made = [one.n for one in tables.differences(found) if one.saving is not None]
    seeds = f"{min(made)} to {max(made)}" if min(made) < max(made) else f"{max(made)}"
    return f"**{named(folder, options.model)}**, n = {seeds} seeds, {options.images:,} samples:"


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

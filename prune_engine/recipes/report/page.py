# SPDX-License-Identifier: Apache-2.0
"""The file: a template filled, and kept within its size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from prune_engine.files import write_bytes
from prune_engine.recipes import files
from prune_engine.recipes.report import charts, view

LIMIT = 2_000_000  # bytes of a page
CARDS = (12, 6, 3, 0)  # samples in a list: fewer where the page would be larger


def write_page(
    runs: Sequence[tuple[Path, files.Run]],
    out: Path,
    *,
    data_root: str | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Write the page of one run or several, which needs no other file and no network.

    Args:
        runs: folder and content of each.
        out: the file.
        data_root: the folder of the data's files; default where they were.
        names: of the classes; default those that are known, else numbers.

    Returns:
        The file.

    Raises:
        ValueError: names are fewer than the classes, a file is torn, or the page is above 2 MB with
            everything left out that may be.
    """
    size = 0
    for most in CARDS:
        views = [
            view.view(folder, run, data_root=data_root, names=names, most=most)
            for folder, run in runs
        ]
        page = render(views, most).encode()
        size = len(page)
        if size <= LIMIT:
            write_bytes(out, page)
            return out
    raise ValueError(
        f"the page would have {size:,} bytes and may have {LIMIT:,}: report fewer runs at a time"
    )


def render(views: Sequence[view.View], most: int = CARDS[0]) -> str:
    """Fill the template.

    Args:
        views: at least one.
        most: samples in each list, where the page says that it has fewer.

    Returns:
        HTML; what came from data or files is escaped.
    """
    environment = Environment(
        loader=PackageLoader("prune_engine.recipes.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    fewer = most if most < CARDS[0] else None
    return environment.get_template("page.html").render(views=views, charts=charts, fewer=fewer)

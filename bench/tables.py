# SPDX-License-Identifier: Apache-2.0
"""Turns the JSON of a run into Markdown tables, and two runs into a table of differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness import READ_LIMIT, Spread, paired_ratio, spread

NS = {"ms": 1e6, "us": 1e3}
Json = dict[str, Any]


def number(value: float) -> str:
    """Three significant digits, no exponent, no unit.

    Example:
        >>> [number(v) for v in (1234.5, 123.45, 1.2345, 0.012345)]
        ['1,234', '123', '1.23', '0.0123']
    """
    if value >= 1000:
        return f"{value:,.0f}"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}" if value >= 1 or value == 0 else f"{value:.3g}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def find_row(section: Json, name: str, threads: int | None = None) -> Json | None:
    """The row of that name; with `threads` None the first of them."""
    for row in section["rows"]:
        if row["name"] == name and threads in (None, row["threads"]):
            found: Json = row
            return found
    return None


def per_unit(row: Json, clock: str) -> list[float | None]:
    """The row's ns per unit of work, one entry a round."""
    return [None if ns is None else ns / row["inner"] for ns in row[clock]]


def ratio(section: Json, top: Json | None, bottom: Json | None, clock: str) -> Spread | None:
    """Median over rounds of top / bottom, both per unit; None if a row is missing."""
    if top is None or bottom is None:
        return None
    return paired_ratio(per_unit(top, clock), per_unit(bottom, clock))


def _times(value: Spread | None) -> str:
    return f"{number(value.median)}x" if value else "-"


def _share(section: Json, row: Json) -> str:
    """The row's bytes per second as a share of the read limit at the same number of threads."""
    limit = find_row(section, READ_LIMIT, row["threads"])
    if limit is None or not row["bytes"] or not limit["bytes"]:
        return "-"
    slower = ratio(section, row, limit, "wall_ns")
    if slower is None:
        return "-"
    return f"{100 * row['bytes'] / limit['bytes'] / slower.median:.3g}%"


def _cells(section: Json, row: Json) -> list[str]:
    unit = NS[section["unit"]]
    wall, cp = spread(per_unit(row, "wall_ns")), spread(per_unit(row, "cp_ns"))
    if wall is None:
        return [row["name"], str(row["threads"]), "0", *["-"] * 9]
    is_limit = row["name"] == READ_LIMIT
    versus = find_row(section, section["versus"])
    relative = find_row(section, section["relative_to"])
    faster, faster_cp = (ratio(section, versus, row, clock) for clock in ("wall_ns", "cp_ns"))
    return [
        row["name"],
        str(row["threads"]),
        str(wall.count),
        number(wall.median / unit),
        f"{number(wall.p20 / unit)} - {number(wall.p80 / unit)}",
        number(cp.median / unit) if cp else "-",
        "-" if is_limit else number(wall.median / section["items"]),
        "-" if is_limit else _times(faster),
        "-" if is_limit else _times(faster_cp),
        "-" if is_limit else _times(ratio(section, row, relative, "wall_ns")),
        f"{row['bytes'] / wall.median:.3g}" if row["bytes"] else "-",
        _share(section, row),
    ]


def section_table(section: Json) -> str:
    """One table with its heading and circumstances."""
    unit = section["unit"]
    facts = ", ".join(
        f"{k} = {v if isinstance(v, str) else format(v, ',')}" for k, v in section["facts"].items()
    )
    before, after = section["load"]
    header = [
        section["table"], "threads", "rounds", f"wall {unit}", "p20 - p80", f"cp {unit}",
        "ns/item", f"{section['versus']} / this", "by cp", f"this / {section['relative_to']}",
        "GB/s", "of read limit",
    ]  # fmt: skip
    return "\n\n".join(
        (
            f"### {section['table']}, N = {section['n']:,}",
            f"{facts}; {section['flush_mib']} MiB read before each call; "
            f"load {before:.2f} before, {after:.2f} after.",
            markdown(header, (_cells(section, row) for row in section["rows"])),
        )
    )


def memory_table(measured: Sequence[Json]) -> str:
    """The peaks of the fresh processes."""
    header = [
        "memory",
        "N",
        "num_kept",
        "peak MB",
        "bytes/sample",
        "9 N + 4 kept, MB",
        "peak / that",
    ]
    rows = [
        [
            m["kind"], f"{m['n']:,}", f"{m['num_kept']:,}", number(m["peak_bytes"] / 1e6),
            number(m["peak_bytes"] / m["n"]), number(m["bound_bytes"] / 1e6),
            f"{m['peak_bytes'] / m['bound_bytes']:.2f}",
        ]
        for m in measured
    ]  # fmt: skip
    method = ", ".join(sorted({m["method"] for m in measured}))
    return f"### memory\n\nPeak of the resident set of a fresh process ({method}).\n\n" + markdown(
        header, rows
    )


def logit_memory_table(measured: Sequence[Json]) -> str:
    """The peaks of one step from logits to their gradient."""
    rows = [
        [
            f"{m['shape']}: {m['kind']}", number(m["peak_bytes"] / 1e6),
            number(m["logit_bytes"] / 1e6), f"{m['peak_bytes'] / m['logit_bytes']:.2f}",
        ]
        for m in measured
    ]  # fmt: skip
    method = ", ".join(sorted({m["method"] for m in measured}))
    return (
        "### memory of cross_entropy\n\nGrowth of the resident set of a fresh process over one "
        f"forward and backward pass, the logits' gradient included ({method}).\n\n"
        + markdown(["step", "peak MB", "logits MB", "peak / logits"], rows)
    )


def document(run: Json) -> str:
    """The whole run: command, circumstances, all tables."""
    circumstances = ", ".join(f"{key} {value}" for key, value in run["environment"].items())
    parts = [
        f"```sh\n{run['command']}\n```",
        f"{run['started']}; {circumstances}; {run['seconds']:.0f} s.",
        *(section_table(section) for section in run["sections"]),
    ]
    if run["memory"]:
        parts.append(memory_table(run["memory"]))
    if run.get("logit_memory"):
        parts.append(logit_memory_table(run["logit_memory"]))
    return "\n\n".join(parts) + "\n"


def difference(old: Json, new: Json) -> str:
    """New against old for every row both runs have; a change inside the noise says so.

    A change counts when the intervals p20 - p80 of cp (wall where cp is missing) do not overlap.
    """
    known = {(s["table"], s["n"], s["items"]): s for s in old["sections"]}
    rows = []
    for section in new["sections"]:
        before = known.get((section["table"], section["n"], section["items"]))
        for row in section["rows"] if before else ():
            match = find_row(before, row["name"], row["threads"]) if before else None
            clock = "cp_ns" if spread(row["cp_ns"]) else "wall_ns"
            a = spread(per_unit(match, clock)) if match else None
            b = spread(per_unit(row, clock))
            if a is None or b is None:
                continue
            apart = b.p20 > a.p80 or b.p80 < a.p20
            verdict = ("slower" if b.median > a.median else "faster") if apart else "noise"
            unit = NS[section["unit"]]
            rows.append(
                [
                    f"{section['table']} N = {section['n']:,}: {row['name']}",
                    str(row["threads"]), clock.removesuffix("_ns"),
                    f"{number(a.median / unit)} {section['unit']}",
                    f"{number(b.median / unit)} {section['unit']}",
                    f"{100 * (b.median / a.median - 1):+.1f}%", verdict,
                ]
            )  # fmt: skip
    return markdown(["row", "threads", "clock", "old", "new", "change", "verdict"], rows) + "\n"

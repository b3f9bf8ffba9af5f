# SPDX-License-Identifier: Apache-2.0
"""Were exactly the planned samples seen? The audit that catches double sharding by a framework."""

from __future__ import annotations

import warnings

from prune_engine.epoch.report import EpochReport
from prune_engine.errors import CoverageError

MODES = ("raise", "warn", "ignore")


def repeats(offered: int, due: int, overlap: int) -> int:
    """Return how many observations of an epoch were of samples that had been observed before.

    A batch that is observed again in its step is not among them, as far as that can be told: by the
    tensor of its indices; or because every batch was (SAM with new tensors).

    Args:
        offered: positions that all ranks observed, each batch once.
        due: positions that were to be served.
        overlap: samples that several ranks recorded, once for each rank but the first.

    Returns:
        At least 0.

    Example:
        >>> repeats(100, 100, 0), repeats(104, 100, 4), repeats(200, 100, 0), repeats(200, 100, 100)
        (0, 4, 0, 100)
    """
    beyond = max(0, offered - due)
    if overlap == 0 and due > 0 and beyond % due == 0:
        return 0
    return max(beyond, overlap)


def coverage_problem(report: EpochReport, world: int = 1) -> str | None:
    """Say what is wrong with an epoch's coverage, and the likely cause.

    Missing samples are explained by the dropped tail and by losses that were not finite (those are
    never recorded); samples that were not planned have no innocent explanation. What one rank
    alone observes more than once may be a step that was tried again; among several, it is an error
    of their shares.

    Args:
        report: the epoch's report.
        world: ranks.

    Returns:
        One sentence, or None.

    Example:
        >>> coverage_problem(EpochReport(
        ...     0, 9, 9, 9, 9, 0, 0, 0, 0, 9, 1.0, 1.0, 9, 1.0, 9, 9, 0.0, 0.0)) is None
        True
    """
    if report.repeated > 0 and world > 1:
        return f"epoch {report.epoch}: {_name_repeats(report)}"
    unexplained = report.missing - report.dropped_tail - report.nonfinite
    if unexplained > 0 and not report.partial:
        if report.observed == 0:
            cause = "observe was never called"
        elif report.observed < report.served:
            cause = (
                "a framework shards the sampler again, the loop ended early, or drop_last cut a "
                "batch (then pass align=batch_size to engine.sampler())"
            )
        else:
            cause = "indices do not belong to the losses, or batches were seen twice"
        return (
            f"epoch {report.epoch}: {unexplained} of {report.served} served samples were never "
            f"observed ({report.observed} observations); likely cause: {cause}"
        )
    if report.extra > 0:
        return (
            f"epoch {report.epoch}: {report.extra} samples were observed that the plan had "
            "dropped; likely cause: the loader does not use engine.sampler()"
        )
    return None


def _name_repeats(report: EpochReport) -> str:
    """Say what makes a loop observe more samples than were served."""
    recorded = max(1, report.planned - report.missing)
    counted = f"{report.observed} observations of {report.served} served samples"
    if report.repeated >= recorded:
        return (
            f"{counted}: every rank trains all samples; likely cause: the sampler is sharded twice "
            "or not at all (under Accelerate, prepare the loader; without it, leave shard='auto' "
            "and make the engine after init_process_group)"
        )
    return (
        f"{counted}: {report.repeated} samples were observed more than once; likely cause: padding "
        f"repeats {report.repeated} samples so that batches or ranks are even (make the loader "
        "with align=batch_size * world size), or a batch was observed again from a copy of its "
        "indices"
    )


def enforce_coverage(report: EpochReport, mode: str, world: int = 1) -> None:
    """Raise or warn about an epoch's coverage.

    Args:
        report: the epoch's report.
        mode: ``"raise"``, ``"warn"`` or ``"ignore"``.
        world: ranks.

    Raises:
        CoverageError: there is a problem and the mode is ``"raise"``.
    """
    problem = None if mode == "ignore" else coverage_problem(report, world)
    if problem is None:
        return
    if report.repeated > 0 and world > 1:
        hint = "; pass coverage='ignore' to PruneEngine where that is meant"
    else:
        hint = "; where an epoch ends early on purpose, end it with end_epoch(partial=True)"
    if mode == "raise":
        raise CoverageError(problem + hint)
    warnings.warn(problem + hint, RuntimeWarning, stacklevel=4)

# SPDX-License-Identifier: Apache-2.0
"""Were exactly the planned samples seen? The audit that catches double sharding by a framework."""

from __future__ import annotations

import warnings

from prune_engine.epoch.report import EpochReport
from prune_engine.errors import CoverageError

MODES = ("raise", "warn", "ignore")


def coverage_problem(report: EpochReport) -> str | None:
    """Say what is wrong with an epoch's coverage, and the likely cause.

    Missing samples are explained by the dropped tail and by losses that were not finite (those are
    never recorded); samples that were not planned have no innocent explanation.

    Args:
        report: the epoch's report.

    Returns:
        One sentence, or None.

    Example:
        >>> coverage_problem(EpochReport(
        ...     0, 9, 9, 9, 9, 0, 0, 0, 0, 9, 1.0, 1.0, 9, 1.0, 9, 9, 0.0, 0.0)) is None
        True
    """
    unexplained = report.missing - report.dropped_tail - report.nonfinite
    if unexplained > 0:
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


def enforce_coverage(report: EpochReport, mode: str) -> None:
    """Raise or warn about an epoch's coverage.

    Args:
        report: the epoch's report.
        mode: ``"raise"``, ``"warn"`` or ``"ignore"``.

    Raises:
        CoverageError: there is a problem and the mode is ``"raise"``.
    """
    problem = None if mode == "ignore" else coverage_problem(report)
    if problem is None:
        return
    hint = "; pass coverage='ignore' to PruneEngine where epochs end early on purpose"
    if mode == "raise":
        raise CoverageError(problem + hint)
    warnings.warn(problem + hint, RuntimeWarning, stacklevel=4)

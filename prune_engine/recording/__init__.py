# SPDX-License-Identifier: Apache-2.0
"""What a run kept and scored, sample by sample: written by ``engine.record``, read here."""

from prune_engine.recording.export import export_scores
from prune_engine.recording.reader import Recording

__all__ = ["Recording", "export_scores"]

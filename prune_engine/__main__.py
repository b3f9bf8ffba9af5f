# SPDX-License-Identifier: Apache-2.0
"""``python -m prune_engine``: the command line."""

from __future__ import annotations

import sys

from prune_engine.cli import main

if __name__ == "__main__":
    sys.exit(main())

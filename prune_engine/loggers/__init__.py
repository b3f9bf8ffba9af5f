# SPDX-License-Identifier: Apache-2.0
"""What a run did, epoch by epoch, to TensorBoard, Weights & Biases, MLflow or your own logger.

Nothing is imported here for them: each adapter takes the object that you made with the package.
"""

from prune_engine.loggers.adapters import MLflow, TensorBoard, WandB
from prune_engine.loggers.epochs import EpochLog, Logger

__all__ = ["EpochLog", "Logger", "MLflow", "TensorBoard", "WandB"]

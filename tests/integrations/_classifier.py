# SPDX-License-Identifier: Apache-2.0
"""A classifier of transformers' kind on real digits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from _real import DigitRecords, Net
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class Classifier(PreTrainedModel):
    """Takes further arguments, as transformers' own do, and no heed of a count of items."""

    config_class = PretrainedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.net = Net()
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Keep the weights of ``Net``."""

    @classmethod
    def made(cls) -> Classifier:
        return cls(PretrainedConfig())

    def forward(self, x: Any, labels: Any = None, **kwargs: Any) -> Any:
        logits = self.net(x)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def records(n: int) -> torch.utils.data.Dataset[Any]:
    """Return digits as mappings with labels."""
    return DigitRecords(n)

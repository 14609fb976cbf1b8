"""The loss of a batch whose last images are unlabelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class SplitLoss(nn.Module):
    """Loss of the annotated images of a batch plus the weighted loss of the unlabelled ones behind them.

    One pass of the network serves both, so a step on L annotated and U unlabelled images costs what nnU-Net's own
    costs on L + U. Where a batch holds no unlabelled image, it is the loss of the annotated ones alone.

    Args:
        supervised: nnU-Net's loss of outputs and targets.
        unlabelled: loss of the outputs of the unlabelled images, finest first.

    Attributes:
        weight: of the loss of the unlabelled images; set before each epoch.
        last_supervised: loss of the annotated images of the last batch.
    """

    def __init__(self, supervised: nn.Module, unlabelled: Callable[[list[torch.Tensor]], torch.Tensor]) -> None:
        super().__init__()
        self.supervised = supervised
        self.unlabelled = unlabelled
        self.weight = 0.0
        self.last_supervised = torch.tensor(float("nan"))
        self._remembered: list[torch.Tensor] = []

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """The loss.

        Args:
            output: the network's output `(batch, channels, *spatial)`, or a list of them.
            target: labels of the first images of the batch, or a list of them.
        """
        annotated = (target[0] if isinstance(target, list) else target).shape[0]
        outputs = list(output) if isinstance(output, (list, tuple)) else [output]
        own = [one[:annotated] for one in outputs]
        loss: torch.Tensor = self.supervised(own if isinstance(output, (list, tuple)) else own[0], target)
        self.last_supervised = loss.detach()
        if outputs[0].shape[0] == annotated:
            return loss
        extra = self.unlabelled([one[annotated:] for one in outputs])
        self._remembered.append(extra.detach())
        return loss + self.weight * extra

    def collect(self) -> float:
        """Mean loss of unlabelled images since the last call, without its weight; NaN where there were none."""
        values = torch.stack(self._remembered).float().tolist() if self._remembered else []
        self._remembered = []
        return sum(values) / len(values) if values else float("nan")

"""A loss that makes clicks count, however small the object is that they lie in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy


class ClickLoss(nn.Module):
    """nnU-Net's loss plus the cross entropy around the clicks, where the truth agrees with them.

    Dice and mean cross entropy hardly notice an object of a few voxels, so a network may well leave a click unanswered.
    Here all clicks of a batch together weigh as much as its mean cross entropy. Each voxel counts by the click map of
    its true label, so the other side of a border near a click does not count.

    Args:
        loss: nnU-Net's, of outputs and targets.
        weight: of the cross entropy around the clicks.

    Attributes:
        maps: click maps of the batch, `(batch, labels, *spatial)` in [0, 1], background first; None for no clicks.
    """

    def __init__(self, loss: nn.Module, weight: float) -> None:
        super().__init__()
        self.loss, self.weight = loss, weight
        self.maps: torch.Tensor | None = None

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """The loss.

        Args:
            output: logits `(batch, labels, *spatial)`, or a list of them, finest first.
            target: labels `(batch, 1, *spatial)`, or a list of them.
        """
        loss: torch.Tensor = self.loss(output, target)
        if self.maps is None or self.weight == 0:
            return loss
        finest = output[0] if isinstance(output, (list, tuple)) else output
        truth = (target[0] if isinstance(target, (list, tuple)) else target)[:, 0].long()
        known = truth < self.maps.shape[1]  # not the ignore label
        label = torch.where(known, truth, 0)
        near = self.maps.gather(1, label[:, None])[:, 0] * known
        entropy = cross_entropy(finest.float(), label, reduction="none")
        return loss + self.weight * (near * entropy).sum() / near.sum().clamp(min=1)

"""A loss that makes clicks count, however small the object is that they lie in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ClickLoss(nn.Module):
    """nnU-Net's loss plus a soft Dice loss of each clicked patch by itself.

    Mean cross entropy, and Dice over a whole batch, hardly notice an object of a few voxels, so a network may well
    leave a click unanswered, or answer it with too large an area. Here every object of a clicked patch weighs the same:
    1 − (2·Σpy + 1)/(Σp + Σy + 1) at the finest scale, p the probability and y the truth of one label, averaged over the
    labels that clicked patches hold.

    Args:
        loss: nnU-Net's, of outputs and targets.
        weight: of the mean Dice loss of clicked patches.

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
            target: labels `(batch, 1, *spatial)`, or a list of them; those beyond the labels of `output` are ignored.
        """
        loss: torch.Tensor = self.loss(output, target)
        if self.maps is None or self.weight == 0:
            return loss
        finest = output[0] if isinstance(output, (list, tuple)) else output
        truth = (target[0] if isinstance(target, (list, tuple)) else target)[:, 0]
        clicked = self.maps.flatten(1).any(dim=1)
        finest, truth = finest[clicked].float(), truth[clicked]
        labels = torch.arange(1, finest.shape[1], device=truth.device).view(-1, *[1] * (truth.ndim - 1))
        wanted = (truth[:, None] == labels).flatten(2).float()
        known = (truth < finest.shape[1]).flatten(1)[:, None]
        found = finest.softmax(dim=1)[:, 1:].flatten(2) * known
        size = wanted.sum(2)
        dice = (2 * (found * wanted).sum(2) + 1) / (found.sum(2) + size + 1)
        held = size > 0
        return loss + self.weight * ((1 - dice) * held).sum() / held.sum().clamp(min=1)

"""The negative soft Dice coefficient of QU-Net++ (paper 001, equation 1).

The paper prints a union for the intersection and leaves the 1 out of the numerator; as meant,
−(2 Σ p·y + 1) / (Σ p + Σ y + 1), summed over all pixels of a batch at once.
"""

from __future__ import annotations

import torch
from torch import nn

SMOOTHING = 1.0


def soft_dice_loss(
    probabilities: torch.Tensor, truth: torch.Tensor, *, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Negative soft Dice, the mean over classes, in [−1, 0).

    All images of the batch are one set of pixels, as in the paper's framework: an empty image costs what is wrongly
    found in it, and its share is that of its pixels.

    Args:
        probabilities: `(batch, classes, *spatial)`, in [0, 1], of the foreground classes or regions.
        truth: the same shape, 0 or 1.
        mask: `(batch, 1, *spatial)`, true where pixels count; None for everywhere.

    Raises:
        ValueError: the shapes differ.

    >>> soft_dice_loss(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[1, 0]]]))
    tensor(-0.6667)
    """
    if probabilities.shape != truth.shape:
        raise ValueError(f"shapes must be the same, found {tuple(probabilities.shape)} and {tuple(truth.shape)}")
    truth = truth.to(probabilities.dtype)
    if mask is not None:
        probabilities, truth = probabilities * mask, truth * mask
    pixels = [0, *range(2, probabilities.ndim)]
    overlap = (probabilities * truth).sum(pixels)
    total = probabilities.sum(pixels) + truth.sum(pixels)
    return -((2 * overlap + SMOOTHING) / (total + SMOOTHING)).mean()


class SoftDiceLoss(nn.Module):
    """`soft_dice_loss` of logits, with targets as nnU-Net's loaders give them.

    Args:
        regions: channels are regions, each with a sigmoid (also for a network with the paper's single output); else
            they are classes with a softmax, the background first, and the loss is the mean over the other classes.
        ignore_label: pixels of this label do not count. For regions the last channel of the target marks them.
    """

    def __init__(self, *, regions: bool = False, ignore_label: int | None = None) -> None:
        super().__init__()
        self.regions = regions
        self.ignore_label = ignore_label

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of `logits` `(batch, channels, *spatial)`.

        Args:
            logits: of one head.
            target: label map `(batch, 1, *spatial)`; for regions their masks `(batch, regions, *spatial)`, with one
                more channel where there is an ignore label.
        """
        logits = logits.float()  # a sum over a batch is beyond the range of half precision
        mask = None
        if self.regions:
            if self.ignore_label is not None:
                target, mask = target[:, :-1], ~target[:, -1:].bool()
            return soft_dice_loss(logits.sigmoid(), target, mask=mask)
        if self.ignore_label is not None:
            mask = target != self.ignore_label
        classes = torch.arange(1, logits.shape[1], device=target.device).view(1, -1, *[1] * (logits.ndim - 2))
        return soft_dice_loss(logits.softmax(1)[:, 1:], target == classes, mask=mask)

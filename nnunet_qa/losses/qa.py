"""The QA loss of paper 002, section 2.4: what a frozen discriminator thinks of predictions that have no truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn


def foreground_probabilities(logits: torch.Tensor, *, regions: bool) -> torch.Tensor:
    """Probabilities of the foreground classes, or of the regions.

    Args:
        logits: `(batch, channels, *spatial)`.
        regions: each channel is a region with a sigmoid; else the channels are classes, the background first.

    Returns:
        `(batch, classes, *spatial)`, in [0, 1].
    """
    logits = logits.float()
    return logits.sigmoid() if regions else logits.softmax(1)[:, 1:]


def hardened(probabilities: torch.Tensor, *, regions: bool) -> torch.Tensor:
    """The decision, 0 or 1, with the gradient of the probabilities (straight-through).

    Args:
        probabilities: of `foreground_probabilities`.
        regions: thresholds each at 0.5; else the most probable class, the background included, takes all.
    """
    if regions:
        decided = (probabilities > 0.5).to(probabilities.dtype)
    else:
        background = 1 - probabilities.sum(1, keepdim=True)
        winner = torch.cat([background, probabilities], 1).argmax(1, keepdim=True)
        decided = torch.zeros_like(torch.cat([background, probabilities], 1)).scatter_(1, winner, 1)[:, 1:]
    return decided.detach() + probabilities - probabilities.detach()


def mean_entropy(logits: torch.Tensor, *, regions: bool) -> torch.Tensor:
    """Mean entropy of the predicted probabilities over all voxels, in nats, divided by its largest value, in [0, 1]."""
    logits = logits.float()
    if regions:
        entropy = nn.functional.softplus(logits) - logits * logits.sigmoid()
        return entropy.mean() / torch.log(torch.tensor(2.0))
    log = logits.log_softmax(1)
    return -(log.exp() * log).sum(1).mean() / torch.log(torch.tensor(float(logits.shape[1])))


class QALoss(nn.Module):
    """Squared distance of the predicted code to 0, success; gradients reach the network, not the discriminator.

    Args:
        codes_of: predicted codes `(pictures)` of pictures `(pictures, 3, rows, columns)` in [0, 1]; frozen.
        picture: montage `(pictures, 3, rows, columns)` of images `(batch, channels, *spatial)` as the network sees
            them and foreground probabilities `(batch, classes, *spatial)`.
        regions: see `foreground_probabilities`.
        hard: show hardened overlays.
        noise: standard deviation of Gaussian noise on the pictures.
        entropy_weight: of `mean_entropy`, which is added.
    """

    def __init__(
        self,
        codes_of: Callable[[torch.Tensor], torch.Tensor],
        picture: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        regions: bool,
        hard: bool = False,
        noise: float = 0.0,
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.codes_of = codes_of
        self.picture = picture
        self.regions = regions
        self.hard = hard
        self.noise = noise
        self.entropy_weight = entropy_weight

    def forward(self, outputs: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """The loss, the mean over the given outputs.

        Args:
            outputs: logits `(batch, channels, *spatial)` that the discriminator is to see.
            images: `(batch, channels, *spatial)`, normalised by nnU-Net.
        """
        losses = []
        for logits in outputs:
            probabilities = foreground_probabilities(logits, regions=self.regions)
            if self.hard:
                probabilities = hardened(probabilities, regions=self.regions)
            pictures = self.picture(images, probabilities)
            if self.noise:
                pictures = pictures + self.noise * torch.randn_like(pictures)
            loss = self.codes_of(pictures).float().square().mean()
            if self.entropy_weight:
                loss = loss + self.entropy_weight * mean_entropy(logits, regions=self.regions)
            losses.append(loss)
        return torch.stack(losses).mean()

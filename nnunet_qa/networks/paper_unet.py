"""The original U-Net (Ronneberger et al., MICCAI 2015) with its filter counts, which paper 004 takes (section 2.1).

nnU-Net's own U-Nets halve by strided convolutions and have a head at each level; this one pools and has one head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

FEATURES = (64, 128, 256, 512, 1024)
"""Filters of each level, finest first."""


class OriginalUNet(nn.Module):
    """Two 3×3 convolutions with ReLU a level, max pooling, transposed convolutions; no normalisation, no dropout.

    Convolutions are padded, so the output is as large as the input. One channel in and two out, as one class with its
    background needs them, make 31,030,658 parameters.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the output.
        features: filters of each level, finest first.
    """

    def __init__(self, *, input_channels: int, num_classes: int, features: Sequence[int] = FEATURES) -> None:
        super().__init__()
        inputs = (input_channels, *features[:-1])
        upwards = list(zip(features[:0:-1], features[-2::-1], strict=True))
        self.encoder = nn.ModuleList(_level(before, after) for before, after in zip(inputs, features, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, stride=2) for below, here in upwards)
        self.decoder = nn.ModuleList(_level(2 * here, here) for _, here in upwards)
        # nnU-Net's -pretrained_weights leaves out what has ".seg_layers." in its name: the head of other classes
        self.head = nn.ModuleDict({"seg_layers": nn.Conv2d(features[0], num_classes, 1)})
        self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, num_classes, y, x)` of `x`, `(batch, input_channels, y, x)`.

        Both axes must be multiples of 2^(number of levels − 1).
        """
        *levels, bottom = self.encoder
        skips = []
        for level in levels:
            skips.append(level(x))
            x = self.pool(skips[-1])
        x = bottom(x)
        for enlarge, level, skip in zip(self.enlarge, self.decoder, reversed(skips), strict=True):
            x = level(torch.cat([skip, enlarge(x)], dim=1))
        return self.head["seg_layers"](x)


def _level(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    # the original's variance of 2 / fan-in; nothing else keeps the scale of a network without normalisation
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)

"""The network of body-part regression: one score a slice, by which slices can be ordered (paper 002, section 2.1).

The paper only names the method; the shape, VGG-like features, a 1×1 convolution, the mean over the slice and one
output, is that of the method's authors, and much smaller here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

FEATURES = (8, 16, 32, 64)


class SliceOrderNetwork(nn.Module):
    """Scores of single slices: per resolution two 3×3 convolutions with batch norm and ReLU, and max pooling between.

    Args:
        features: channels at each resolution, finest first.

    Raises:
        ValueError: there is no resolution, or one has no channels.
    """

    def __init__(self, features: Sequence[int] = FEATURES) -> None:
        super().__init__()
        if not features or min(features) < 1:
            raise ValueError(f"features must be at least one number from 1 up, found {tuple(features)}")
        blocks = [_block(before, after) for before, after in pairwise((1, *features))]
        layers = [blocks[0], *(layer for block in blocks[1:] for layer in (nn.MaxPool2d(2), block))]
        self.features = nn.Sequential(*layers)
        self.mixing = nn.Sequential(nn.Conv2d(features[-1], features[-1], 1), nn.ReLU(inplace=True))
        self.score = nn.Linear(features[-1], 1)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """Scores `(batch,)` of slices `(batch, 1, rows, columns)` with grey levels in [0, 1].

        Rows and columns are at least 2^(resolutions − 1).
        """
        return self.score(self.mixing(self.features(slices)).mean(dim=(2, 3))).squeeze(1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)

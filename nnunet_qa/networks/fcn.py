"""The fully convolutional network of semiQCSeg (paper 003, section 3.1), which takes it from Bai et al. (JCMR 2018).

Five levels of 2, 2, 3, 3 and 3 convolutions; each level is reduced to 32 channels and enlarged to the image's
resolution; all five together go through two 1×1 layers and one for the logits. From the image to the logits these are
17 convolutions one behind the other; with those of the other levels' reductions there are 21.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

FILTERS = (16, 32, 64, 128, 256)
"""Filters of each level, finest first: 16·2^level."""
CONVOLUTIONS = (2, 2, 3, 3, 3)
"""3×3 convolutions of each level."""
REDUCED, DENSE = 32, 64
_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_ENLARGED = {2: "bilinear", 3: "trilinear"}


class FCN(nn.Module):
    """The network, with batch norm and ReLU behind every convolution but the last.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the output.
        dimensions: 2 as in the paper, or 3.
        strides: stride of the first convolution of levels 1 to 4 along each axis; None for 2 everywhere, as in the
            paper.

    Raises:
        ValueError: `dimensions` is neither 2 nor 3, or there are not four strides with one number an axis.
    """

    def __init__(
        self,
        *,
        input_channels: int,
        num_classes: int,
        dimensions: int = 2,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if dimensions not in _CONV:
            raise ValueError(f"dimensions must be 2 or 3, found {dimensions}")
        if strides is None:
            strides = [[2] * dimensions] * (len(FILTERS) - 1)
        if [len(stride) for stride in strides] != [dimensions] * (len(FILTERS) - 1):
            raise ValueError(f"strides must be {len(FILTERS) - 1} times {dimensions} numbers, found {strides}")
        self._mode = _ENLARGED[dimensions]
        inputs = (input_channels, *FILTERS[:-1])
        self.levels = nn.ModuleList(
            _level(before, after, count, tuple(stride))
            for before, after, count, stride in zip(
                inputs, FILTERS, CONVOLUTIONS, ([1] * dimensions, *strides), strict=True
            )
        )
        one = (1,) * dimensions
        self.reductions = nn.ModuleList(_layer(filters, REDUCED, 1, one) for filters in FILTERS)
        self.head = nn.Sequential(
            _layer(REDUCED * len(FILTERS), DENSE, 1, one),
            _layer(DENSE, DENSE, 1, one),
            _CONV[dimensions](DENSE, num_classes, 1),
        )
        self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, num_classes, *spatial)` of `x`, `(batch, input_channels, *spatial)` of any size."""
        size = x.shape[2:]
        features = []
        for level, reduction in zip(self.levels, self.reductions, strict=True):
            x = level(x)
            reduced = reduction(x)
            if reduced.shape[2:] != size:
                reduced = functional.interpolate(reduced, size=size, mode=self._mode, align_corners=False)
            features.append(reduced)
        return self.head(torch.cat(features, dim=1))


def _level(inputs: int, outputs: int, count: int, stride: tuple[int, ...]) -> nn.Sequential:
    one = (1,) * len(stride)
    return nn.Sequential(
        _layer(inputs, outputs, 3, stride), *(_layer(outputs, outputs, 3, one) for _ in range(count - 1))
    )


def _layer(inputs: int, outputs: int, kernel: int, stride: tuple[int, ...]) -> nn.Sequential:
    dimensions = len(stride)
    return nn.Sequential(
        _CONV[dimensions](inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        _NORM[dimensions](outputs),
        nn.ReLU(inplace=True),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)

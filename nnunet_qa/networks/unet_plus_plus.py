"""U-Net and U-Net++ exactly as in the QU-Net++ paper (001, section II-C and Figure 4).

X(i,j) is the node at resolution i (1 is the image's) and column j. Column 1 is the encoder. U-Net++ has every node with
i + j at most one more than the depth, each fed with all nodes before it on its row and with the one below it; U-Net has
the last node of each row only. The paper gives the two parameter counts; what they leave open is written where it is
decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

FEATURES = (32, 64, 128, 256, 512)
"""Filters of the paper, finest resolution first."""
DROPOUT = 0.5
_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


def _block(inputs: int, outputs: int, dimensions: int, *, norm: bool) -> nn.Sequential:
    """Two 3×3 convolutions, each with ReLU and, where wanted, batch norm after it."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [_CONV[dimensions](channels, outputs, 3, padding=1), nn.ReLU(inplace=True)]
        if norm:
            layers.append(_NORM[dimensions](outputs))
    return nn.Sequential(*layers)


class _Encoder(nn.Module):
    """X(1,1) to X(depth,1), with dropout behind the last two."""

    def __init__(self, input_channels: int, features: Sequence[int], dimensions: int, *, bottleneck_norm: bool) -> None:
        super().__init__()
        inputs = (input_channels, *features[:-1])
        self.blocks = nn.ModuleList(
            _block(before, after, dimensions, norm=bottleneck_norm or row < len(features) - 1)
            for row, (before, after) in enumerate(zip(inputs, features, strict=True))
        )
        self.pool = _POOL[dimensions](2)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The nodes as the decoder sees them: the bottleneck after dropout, the one above it before."""
        *blocks, last, bottleneck = self.blocks
        nodes = []
        for block in blocks:
            nodes.append(block(x))
            x = self.pool(nodes[-1])
        nodes.append(last(x))
        nodes.append(self.dropout(bottleneck(self.pool(self.dropout(nodes[-1])))))
        return nodes


class _Node(nn.Module):
    """X(i,j) from nodes of row i and one of row i + 1."""

    def __init__(self, skips: int, features: int, features_below: int, dimensions: int) -> None:
        super().__init__()
        self.up = _TRANSPOSED[dimensions](features_below, features, 2, stride=2)
        self.block = _block((skips + 1) * features, features, dimensions, norm=False)

    def forward(self, skips: list[torch.Tensor], below: torch.Tensor) -> torch.Tensor:
        return self.block(torch.cat([*skips, self.up(below)], dim=1))


class _Decoder(nn.Module):
    """Columns 2 to depth and the 1×1 heads on the nodes of the finest row.

    Attributes:
        deep_supervision: give the outputs of all heads; nnU-Net's switch.
        seg_layers: the heads, X(1,2) first.
    """

    def __init__(
        self,
        features: Sequence[int],
        num_outputs: int,
        dimensions: int,
        *,
        nested: bool,
        deep_supervision: bool,
        implicit_background: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.implicit_background = implicit_background
        depth = len(features)
        places = [
            (row, column)
            for column in range(1, depth)
            for row in range(0 if nested else depth - 1 - column, depth - column)
        ]
        self.rows = [row for row, _ in places]
        self.nodes = nn.ModuleList(
            _Node(column if nested else 1, features[row], features[row + 1], dimensions) for row, column in places
        )
        heads = depth - 1 if nested else 1
        self.seg_layers = nn.ModuleList(_CONV[dimensions](features[0], num_outputs, 1) for _ in range(heads))

    def forward(self, nodes: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        table = [[node] for node in nodes]
        for row, node in zip(self.rows, self.nodes, strict=True):
            table[row].append(node(table[row], table[row + 1][-1]))
        if not self.deep_supervision:
            return self._output(self.seg_layers[-1], table[0][-1])
        outputs = [self._output(head, node) for head, node in zip(self.seg_layers, table[0][1:], strict=True)]
        return outputs[::-1]

    def _output(self, head: nn.Module, node: torch.Tensor) -> torch.Tensor:
        logits = head(node)
        return torch.cat([torch.zeros_like(logits), logits], dim=1) if self.implicit_background else logits


class _PaperNetwork(nn.Module):
    nested: ClassVar[bool]
    bottleneck_norm: ClassVar[bool]

    def __init__(
        self,
        *,
        input_channels: int = 1,
        num_outputs: int = 1,
        features: Sequence[int] = FEATURES,
        dimensions: int = 2,
        deep_supervision: bool = True,
        implicit_background: bool = False,
    ) -> None:
        super().__init__()
        if len(features) < 2 or min(features) < 1:
            raise ValueError(f"features must be at least two numbers from 1 up, found {tuple(features)}")
        if dimensions not in _CONV:
            raise ValueError(f"dimensions must be 2 or 3, found {dimensions}")
        if implicit_background and num_outputs != 1:
            raise ValueError(f"an implicit background goes with one output, found {num_outputs}")
        self.encoder = _Encoder(input_channels, features, dimensions, bottleneck_norm=self.bottleneck_norm)
        self.decoder = _Decoder(
            features,
            num_outputs,
            dimensions,
            nested=self.nested,
            deep_supervision=deep_supervision,
            implicit_background=implicit_background,
        )
        self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits of `x`, `(batch, input_channels, *spatial)` with axes that are multiples of 2^(depth − 1).

        Returns:
            The last head's `(batch, channels, *spatial)`; with deep supervision the list of all heads', the last one,
            which is nnU-Net's finest, first. All have the resolution of `x`.
        """
        return self.decoder(self.encoder(x))


class PaperUNet(_PaperNetwork):
    """The paper's U-Net, one head: 7,767,457 parameters with batch norm's running mean and variance.

    The count holds with batch norm after each ReLU of the whole encoder, X(5,1) included.

    Args:
        input_channels: channels of the image.
        num_outputs: channels of each head; the paper has one, a sigmoid.
        features: filters of each resolution, finest first, at least two.
        dimensions: 2 as in the paper, or 3.
        deep_supervision: give a list of outputs, see `forward`.
        implicit_background: put a channel of zeros before the single output. Softmax over (0, z) is the sigmoid of z,
            so nnU-Net, which wants a background channel, trains and predicts with the paper's one output.

    Raises:
        ValueError: an argument is out of its range.
    """

    nested = False
    bottleneck_norm = True


class PaperUNetPlusPlus(_PaperNetwork):
    """The paper's U-Net++, a head on each of X(1,2) to X(1,5): 9,045,540 parameters, 9,043,620 of them trainable.

    The count holds with batch norm after each ReLU of X(1,1) to X(4,1) and none in X(5,1). Arguments as `PaperUNet`.
    """

    nested = True
    bottleneck_norm = False


def _initialise(module: nn.Module) -> None:
    # Not in the paper: without batch norm the decoder needs weights that keep the variance through its ReLUs.
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)

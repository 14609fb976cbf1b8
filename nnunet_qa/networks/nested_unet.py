"""U-Net++ from nnU-Net's plans: the nested network of QU-Net++ (paper 001, section II) for any depth, in 2D and 3D.

Node X(i, j) stands in row i (0 is the image's resolution, each further one an encoder stage below) and column j (0 is
the encoder). It convolves all nodes before it in its row and an enlarged one below: [X(i, 0…j−1), up(X(i+1, j−1))].
Each X(0, j) with j ≥ 1 has a head, so all outputs have the image's resolution. Encoder, convolution blocks, transposed
convolutions and initial weights are those of nnU-Net's own U-Nets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_convtransp
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0
from torch import nn


class NestedUNet(nn.Module):
    """U-Net++ that takes the arguments of nnU-Net's PlainConvUNet or ResidualEncoderUNet, by keyword.

    Args:
        input_channels: channels of the image.
        num_classes: channels of each output.
        n_conv_per_stage_decoder: convolutions of a node, coarsest row first as in the plans, or one number for all.
        deep_supervision: return the outputs of all heads instead of the finest alone; see `NestedDecoder`.
        encoder: further arguments of PlainConvEncoder, or of ResidualEncoder where `n_blocks_per_stage` is among them.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        n_conv_per_stage_decoder: int | list[int] | tuple[int, ...],
        deep_supervision: bool = False,
        **encoder: Any,
    ) -> None:
        super().__init__()
        kind = ResidualEncoder if "n_blocks_per_stage" in encoder else PlainConvEncoder
        self.encoder = kind(input_channels, return_skips=True, **encoder)
        self.decoder = NestedDecoder(
            self.encoder,
            num_classes,
            n_conv_per_stage_decoder,
            deep_supervision=deep_supervision,
            nonlin_first=encoder.get("nonlin_first", False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits `(batch, num_classes, *spatial)` of the finest head, or of all heads, finest first."""
        return self.decoder(self.encoder(x))

    def compute_conv_feature_map_size(self, input_size: tuple[int, ...] | list[int]) -> np.int64:
        """Values in all feature maps for an image of this size, counted as nnU-Net's networks count theirs.

        nnU-Net's planners ask the planned U-Net, never this network, which needs several times as much.
        """
        return self.encoder.compute_conv_feature_map_size(input_size) + self.decoder.compute_conv_feature_map_size(
            input_size
        )

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initial weights as nnU-Net's networks have them; for `nn.Module.apply`."""
        InitWeights_He(1e-2)(module)
        init_last_bn_before_add_to_0(module)


class NestedDecoder(nn.Module):
    """All nodes X(i, j) with j ≥ 1 and the heads of row 0.

    Attributes:
        deep_supervision: return all outputs [X(0, L), …, X(0, 1)], finest first, instead of that of X(0, L).
        nodes: `nodes[i][j − 1]` convolves for X(i, j).
        transpconvs: `transpconvs[i][j − 1]` enlarges X(i + 1, j − 1) for X(i, j).
        seg_layers: `seg_layers[j − 1]` is the head of X(0, j), so the finest comes last as in nnU-Net's own decoder.
    """

    def __init__(
        self,
        encoder: PlainConvEncoder | ResidualEncoder,
        num_classes: int,
        n_conv_per_stage: int | list[int] | tuple[int, ...],
        *,
        deep_supervision: bool,
        nonlin_first: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.num_classes = num_classes
        self.strides = encoder.strides
        self.features = encoder.output_channels
        depth = len(self.features) - 1
        convolutions = [n_conv_per_stage] * depth if isinstance(n_conv_per_stage, int) else list(n_conv_per_stage)
        if len(convolutions) != depth:
            raise ValueError(f"n_conv_per_stage_decoder must have {depth} entries, found {len(convolutions)}")

        def enlarged(row: int) -> nn.Module:
            stride = encoder.strides[row + 1]
            kind = get_matching_convtransp(conv_op=encoder.conv_op)
            return kind(self.features[row + 1], self.features[row], stride, stride, bias=encoder.conv_bias)

        def node(row: int, column: int) -> nn.Module:
            return StackedConvBlocks(
                convolutions[depth - 1 - row],
                encoder.conv_op,
                (column + 1) * self.features[row],
                self.features[row],
                encoder.kernel_sizes[row],
                1,
                encoder.conv_bias,
                encoder.norm_op,
                encoder.norm_op_kwargs,
                encoder.dropout_op,
                encoder.dropout_op_kwargs,
                encoder.nonlin,
                encoder.nonlin_kwargs,
                nonlin_first,
            )

        def head() -> nn.Module:
            return encoder.conv_op(self.features[0], num_classes, 1, 1, 0, bias=True)

        columns = [range(1, depth - row + 1) for row in range(depth)]
        # Any, for mypy does not know that the items of the list are lists
        self.transpconvs: Any = nn.ModuleList(nn.ModuleList(enlarged(i) for _ in row) for i, row in enumerate(columns))
        self.nodes: Any = nn.ModuleList(nn.ModuleList(node(i, j) for j in row) for i, row in enumerate(columns))
        self.seg_layers = nn.ModuleList(head() for _ in range(depth))

    def forward(self, skips: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Outputs from the encoder's feature maps X(0, 0) … X(L, 0)."""
        rows = [[skip] for skip in skips]
        for column in range(len(self.nodes)):
            for i in range(len(rows) - 1):  # from the top, so that the row below still ends with the column before
                below = self.transpconvs[i][column](rows[i + 1][-1])
                rows[i].append(self.nodes[i][column](torch.cat([*rows[i], below], 1)))
            rows.pop()  # complete, and nothing above needs it any more
        finest_first = list(zip(self.seg_layers, rows[0][1:], strict=True))[::-1]
        if not self.deep_supervision:
            head, features = finest_first[0]
            return head(features)
        return [head(features) for head, features in finest_first]

    def compute_conv_feature_map_size(self, input_size: tuple[int, ...] | list[int]) -> np.int64:
        """Values in the feature maps of nodes, enlargements and heads; `input_size` is that of the image."""
        total, size = np.int64(0), list(input_size)
        for row, nodes in enumerate(self.nodes):
            size = [length // stride for length, stride in zip(size, self.strides[row], strict=True)]
            for node in nodes:
                total += node.compute_conv_feature_map_size(size) + np.prod([self.features[row], *size], dtype=np.int64)
            if row == 0:
                heads = len(self.seg_layers) if self.deep_supervision else 1
                total += heads * np.prod([self.num_classes, *size], dtype=np.int64)
        return total

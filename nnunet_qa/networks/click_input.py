"""A network of nnU-Net with further input channels for clicks (paper 004); plans stay as they are.

Only the first convolution changes. Without click channels it computes what it did before, so everything that gives the
network images alone (nnU-Net's validation and prediction) gets its answer without clicks.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional


class ClickConvolution(nn.Module):
    """A convolution of images, with or without click channels behind theirs.

    Args:
        image: the convolution of the image channels; its weights are taken over, not copied.
        click_channels: how many channels may follow.

    Attributes:
        weight: of the image channels.
        bias: of the image convolution.
        seg_layers: holds the convolution of the click channels. nnU-Net's `load_pretrained_weights` wants every key of
            the network in the file but those with `.seg_layers.`; by this name a network with clicks takes weights that
            were trained without.
    """

    def __init__(self, image: nn.Conv2d | nn.Conv3d, click_channels: int) -> None:
        super().__init__()
        if image.groups != 1 or image.padding_mode != "zeros" or isinstance(image.padding, str):
            raise ValueError(f"a plain convolution with zero padding is needed, found {image}")
        self.weight = image.weight
        self.bias = image.bias
        self.stride, self.padding, self.dilation = image.stride, image.padding, image.dilation
        clicks = type(image)(click_channels, image.out_channels, cast(int, image.kernel_size), bias=False)
        nn.init.kaiming_normal_(clicks.weight, a=1e-2)  # as nnU-Net starts its own convolutions
        self.seg_layers = nn.ModuleList([clicks])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of `x`, `(batch, image channels, *spatial)` or with the click channels behind.

        Raises:
            ValueError: `x` has another number of channels.
        """
        weight = self.weight
        clicks = cast(torch.Tensor, self.seg_layers[0].weight)
        if x.shape[1] == weight.shape[1] + clicks.shape[1]:
            weight = torch.cat((weight, clicks), dim=1)
        elif x.shape[1] != weight.shape[1]:
            raise ValueError(
                f"{weight.shape[1]} image channels, or these and {clicks.shape[1]} click channels, are needed; "
                f"found {x.shape[1]} channels"
            )
        convolve = functional.conv2d if weight.ndim == 4 else functional.conv3d
        return convolve(x, weight, self.bias, self.stride, self.padding, self.dilation)


def with_click_input(network: nn.Module, image_channels: int, click_channels: int) -> nn.Module:
    """Give a network further input channels.

    Args:
        network: whose first convolution takes the image; it is changed in place.
        image_channels: channels that it takes now.
        click_channels: channels that may follow them.

    Returns:
        The same network. It takes images of `image_channels` or of `image_channels + click_channels` channels.

    Raises:
        ValueError: its first convolution is missing or takes another number of channels.
    """
    convolutions = (module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d)))
    first = next(convolutions, None)
    if first is None or first.in_channels != image_channels:
        raise ValueError(f"the first convolution must take {image_channels} channels, found {first}")
    replaced = ClickConvolution(first, click_channels)
    # nnU-Net's blocks hold the convolution by name and again in their sequence
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is first:
                parent._modules[name] = replaced
    return network

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from nnunet_qa.networks.click_input import ClickConvolution, with_click_input
from nnunet_qa.networks.nested_unet import NestedUNet


def network(kind: str, dimensions: int = 2, channels: int = 2) -> Any:
    settings: dict[str, Any] = {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": nn.Conv2d if dimensions == 2 else nn.Conv3d,
        "kernel_sizes": 3,
        "strides": [1, 2, 2],
        "num_classes": 3,
        "n_conv_per_stage_decoder": 1,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d,
        "nonlin": nn.LeakyReLU,
        "deep_supervision": False,
    }
    if kind == "residual":
        return ResidualEncoderUNet(channels, n_blocks_per_stage=1, **settings)
    settings["n_conv_per_stage"] = 1
    return NestedUNet(channels, **settings) if kind == "nested" else PlainConvUNet(channels, **settings)


@pytest.mark.parametrize("kind", ["plain", "residual", "nested"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_images_alone_give_what_they_gave(kind: str, dimensions: int) -> None:
    made = network(kind, dimensions)
    before = set(made.state_dict())
    image = torch.rand(2, 2, *[8] * dimensions)
    expected = made(image)
    assert with_click_input(made, 2, 5) is made
    torch.testing.assert_close(made(image), expected)
    none = torch.cat((image, torch.zeros(2, 5, *[8] * dimensions)), 1)
    torch.testing.assert_close(made(none), expected)
    none[:, 3] = 1
    assert not torch.allclose(made(none), expected)
    assert before < set(made.state_dict())
    assert all(".seg_layers." in key for key in set(made.state_dict()) - before)


def test_the_convolution_is_one_over_all_channels() -> None:
    plain = nn.Conv2d(2, 4, 3, stride=2, padding=1)
    ours = ClickConvolution(plain, 3)
    reference = nn.Conv2d(5, 4, 3, stride=2, padding=1)
    with torch.no_grad():
        reference.weight.copy_(torch.cat((plain.weight, ours.seg_layers[0].weight), 1))  # type: ignore[arg-type]
        reference.bias.copy_(plain.bias)  # type: ignore[union-attr, arg-type]
    x = torch.rand(1, 5, 9, 8)
    torch.testing.assert_close(ours(x), reference(x))
    torch.testing.assert_close(ours(x[:, :2]), plain(x[:, :2]))


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_takes_pretrained_weights_with_and_without_clicks(kind: str, tmp_path: Path) -> None:
    plain, clicked = network(kind), with_click_input(network(kind), 2, 3)
    image = torch.rand(1, 2, 8, 8)
    torch.save({"network_weights": plain.state_dict()}, tmp_path / "plain.pth")
    load_pretrained_weights(clicked, tmp_path / "plain.pth")
    skips = plain.encoder(image)
    torch.testing.assert_close(clicked.encoder(image), skips)
    torch.save({"network_weights": clicked.state_dict()}, tmp_path / "clicked.pth")
    back = network(kind)
    load_pretrained_weights(back, tmp_path / "clicked.pth")
    torch.testing.assert_close(back.encoder(image), skips)


def test_both_weights_learn_and_each_once() -> None:
    made = with_click_input(network("plain"), 2, 3)
    assert sum(parameter.shape[1:2] == (3,) for parameter in made.parameters()) == 1
    made(torch.rand(1, 5, 8, 8)).sum().backward()
    first = next(module for module in made.modules() if isinstance(module, ClickConvolution))
    assert first.weight.grad is not None
    assert first.seg_layers[0].weight.grad is not None


def test_copies_and_pickles() -> None:
    made = with_click_input(network("plain"), 2, 3)
    x = torch.rand(1, 5, 8, 8)
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(again(x), made(x))


def test_wrong_numbers_of_channels() -> None:
    with pytest.raises(ValueError, match="first convolution must take 3 channels, found Conv2d"):
        with_click_input(network("plain"), 3, 3)
    with pytest.raises(ValueError, match="2 image channels, or these and 3 click channels, are needed; found 4"):
        with_click_input(network("plain"), 2, 3)(torch.rand(1, 4, 8, 8))

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_qa.networks.nested_unet import NestedUNet

SHAPES = {
    "2d": (nn.Conv2d, nn.InstanceNorm2d, [[1, 1], [2, 2], [2, 2], [2, 2]], [[3, 3]] * 4, (32, 24)),
    "2d deep": (nn.Conv2d, nn.InstanceNorm2d, [[1, 1], *[[2, 2]] * 5], [[3, 3]] * 6, (64, 64)),
    "2d shallow": (nn.Conv2d, nn.InstanceNorm2d, [[1, 1], [2, 2]], [[3, 3]] * 2, (6, 8)),
    "3d": (nn.Conv3d, nn.InstanceNorm3d, [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 3, (8, 12, 16)),
    "anisotropic": (
        nn.Conv3d,
        nn.InstanceNorm3d,
        [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 1]],
        [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
        (6, 16, 8),
    ),
}


def arguments(kind: str, *, residual: bool = False) -> dict[str, Any]:
    """What nnU-Net's plans hold for a network."""
    convolution, norm, strides, kernels, _ = SHAPES[kind]
    stages = len(strides)
    name = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return {
        "n_stages": stages,
        "features_per_stage": [4, 6, 10, 12, 12, 12][:stages],
        "conv_op": convolution,
        "kernel_sizes": kernels,
        "strides": strides,
        name: [2] * stages,
        "n_conv_per_stage_decoder": [3, 2, 1, 2, 2][: stages - 1],
        "conv_bias": True,
        "norm_op": norm,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }


def network(kind: str, *, classes: int = 3, channels: int = 2, residual: bool = False, **more: Any) -> NestedUNet:
    torch.manual_seed(0)
    built = NestedUNet(
        input_channels=channels,
        num_classes=classes,
        **arguments(kind, residual=residual),
        deep_supervision=True,
        **more,
    )
    return built.apply(built.initialize)


def image(kind: str, channels: int = 2) -> torch.Tensor:
    return torch.randn(2, channels, *SHAPES[kind][4], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("kind", SHAPES)
def test_every_output_has_the_images_size_and_trains_every_parameter(kind: str, classes: int, residual: bool) -> None:
    net = network(kind, classes=classes, residual=residual)
    if residual:  # nnU-Net starts each residual branch at 0, which would hide the gradient of what is inside
        for parameter in net.encoder.parameters():
            nn.init.normal_(parameter, std=0.3)
    outputs = net(image(kind))
    depth = len(SHAPES[kind][2]) - 1
    assert [tuple(output.shape) for output in outputs] == [(2, classes, *SHAPES[kind][4])] * depth
    for head, output in zip(reversed(net.decoder.seg_layers), outputs, strict=True):
        (gradient,) = torch.autograd.grad(output.square().sum(), head.weight, retain_graph=True)
        assert gradient.abs().sum() > 0
    sum(output.square().sum() for output in outputs).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        # a bias before an instance norm changes nothing, and one voxel normalised with itself is 0
        if name.endswith("norm.weight") or (name.endswith("conv.weight") and kind != "2d shallow"):
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", SHAPES)
def test_the_finest_output_is_the_same_bits_without_deep_supervision(kind: str) -> None:
    net = network(kind).eval()
    with torch.no_grad():
        outputs = net(image(kind))
        net.decoder.deep_supervision = False
        assert torch.equal(net(image(kind)), outputs[0])
        for coarser in outputs[1:]:
            assert not torch.equal(coarser, outputs[0])


@pytest.mark.parametrize("kind", SHAPES)
def test_parameters_are_those_counted_by_hand(kind: str) -> None:
    """Convolutions from the formula for X(i, j): j + 1 inputs of the row's features, then the row's features."""
    settings = arguments(kind)
    features, kernels, strides = settings["features_per_stage"], settings["kernel_sizes"], settings["strides"]
    depth = len(features) - 1
    expected = 0

    def block(inputs: int, outputs: int, kernel: list[int]) -> int:
        return int(np.prod(kernel)) * inputs * outputs + outputs + 2 * outputs  # bias, and the norm's two

    for row, inputs in enumerate([2, *features[:-1]]):
        expected += block(inputs, features[row], kernels[row]) + block(features[row], features[row], kernels[row])
    for row in range(depth):
        repeats = settings["n_conv_per_stage_decoder"][::-1][row]
        for column in range(1, depth - row + 1):
            expected += int(np.prod(strides[row + 1])) * features[row + 1] * features[row] + features[row]
            expected += block((column + 1) * features[row], features[row], kernels[row])
            expected += (repeats - 1) * block(features[row], features[row], kernels[row])
    expected += depth * (features[0] * 3 + 3)
    assert sum(parameter.numel() for parameter in network(kind).parameters()) == expected


@pytest.mark.parametrize("kind", ["2d", "anisotropic"])
def test_nodes_are_wired_as_the_formula_says(kind: str) -> None:
    """X(i, j) from the recursion, written top down instead of column by column."""
    net = network(kind).eval()
    decoder, depth = net.decoder, len(net.decoder.seg_layers)
    with torch.no_grad():
        skips = net.encoder(image(kind))

        def x(i: int, j: int) -> torch.Tensor:
            if j == 0:
                return skips[i]
            below = decoder.transpconvs[i][j - 1](x(i + 1, j - 1))
            return decoder.nodes[i][j - 1](torch.cat([*(x(i, column) for column in range(j)), below], dim=1))

        expected = [decoder.seg_layers[j - 1](x(0, j)) for j in range(depth, 0, -1)]
        for found, wanted in zip(net(image(kind)), expected, strict=True):
            assert torch.equal(found, wanted)


def test_a_network_of_two_stages_is_nnunets_u_net() -> None:
    """One node makes it a U-Net: nnU-Net's own with the same weights (and its order of channels) gives the same."""
    ours = network("2d shallow")
    stock = PlainConvUNet(input_channels=2, num_classes=3, **arguments("2d shallow"), deep_supervision=False)
    stock.encoder.load_state_dict(ours.encoder.state_dict())
    stock.decoder.transpconvs[0].load_state_dict(ours.decoder.transpconvs[0][0].state_dict())
    weights = ours.decoder.nodes[0][0].state_dict()
    for name, value in weights.items():
        if value.ndim == 4 and value.shape[1] == 8:
            weights[name] = torch.cat([value[:, 4:], value[:, :4]], dim=1)
    stock.decoder.stages[0].load_state_dict(weights)
    stock.decoder.seg_layers[0].load_state_dict(ours.decoder.seg_layers[0].state_dict())
    torch.testing.assert_close(ours(image("2d shallow"))[0], stock(image("2d shallow")), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "deep"), [("2d", True), ("2d", False), ("anisotropic", True), ("3d", False)])
def test_the_size_of_the_feature_maps_is_what_the_modules_give(kind: str, deep: bool) -> None:
    net = network(kind)
    net.decoder.deep_supervision = deep
    counted = []
    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for module in net.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda _module, _inputs, output: counted.append(output[0].numel()))
    net(image(kind))
    assert net.compute_conv_feature_map_size(SHAPES[kind][4]) == sum(counted)


@pytest.mark.parametrize(
    ("patch", "features", "factor"),
    [((128,) * 3, [32, 64, 128, 256, 320, 320], 3.2), ((512,) * 2, [32, 64, 128, 256, 512, 512, 512, 512], 4.1)],
)
def test_memory_against_nnunets_u_net_as_documented(patch: tuple[int, ...], features: list[int], factor: float) -> None:
    stages, dimensions = len(features), len(patch)
    plans = {
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": (nn.Conv2d, nn.Conv3d)[dimensions - 2],
        "kernel_sizes": [[3] * dimensions] * stages,
        "strides": [[1] * dimensions, *[[2] * dimensions] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "input_channels": 1,
        "num_classes": 2,
        "deep_supervision": True,
    }
    with torch.device("meta"):
        ours, stock = (kind(**plans).compute_conv_feature_map_size(patch) for kind in (NestedUNet, PlainConvUNet))
    assert ours / stock == pytest.approx(factor, abs=0.05)
    page = Path(__file__).parents[2] / "docs" / "qu-net-plus-plus.md"
    assert f"{factor} times" in " ".join(page.read_text(encoding="utf-8").split())


def test_the_network_is_pickled_whole(tmp_path: Any) -> None:
    net = network("anisotropic").eval()
    torch.save(net, tmp_path / "network.pt")
    for copy in (pickle.loads(pickle.dumps(net)), torch.load(tmp_path / "network.pt", weights_only=False)):
        assert torch.equal(copy(image("anisotropic"))[0], net(image("anisotropic"))[0])


@pytest.mark.e2e  # the compiler takes a minute to start
def test_the_network_is_one_graph_for_the_compiler() -> None:
    net = network("2d").eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        for ours, theirs in zip(net(image("2d")), compiled(image("2d")), strict=True):
            assert torch.equal(ours, theirs)


def test_heads_are_the_only_parameters_that_pretraining_leaves_out() -> None:
    names = [name for name in network("2d").state_dict() if ".seg_layers." in name]
    assert sorted(names) == sorted(f"decoder.seg_layers.{n}.{part}" for n in range(3) for part in ("weight", "bias"))


def test_dropout_of_the_plans_is_in_every_block() -> None:
    settings = {**arguments("2d"), "dropout_op": nn.Dropout2d, "dropout_op_kwargs": {"p": 0.5}}
    net = NestedUNet(input_channels=1, num_classes=2, **settings)
    assert sum(isinstance(module, nn.Dropout2d) for module in net.decoder.modules()) == 3 * 1 + 2 * 2 + 1 * 3


def test_a_wrong_number_of_convolutions_is_refused() -> None:
    with pytest.raises(ValueError, match="must have 3 entries, found 2"):
        NestedUNet(input_channels=1, num_classes=2, **{**arguments("2d"), "n_conv_per_stage_decoder": [2, 2]})

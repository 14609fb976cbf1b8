from __future__ import annotations

import torch
from torch.nn import functional

from nnunet_qa.networks.paper_unet import FEATURES, OriginalUNet


def parameters(network: torch.nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def test_filters_and_parameters_are_the_originals() -> None:
    with torch.device("meta"):
        network = OriginalUNet(input_channels=1, num_classes=2)
    shapes = [tuple(level[0].weight.shape[:2]) for level in network.encoder]
    assert shapes == [(64, 1), (128, 64), (256, 128), (512, 256), (1024, 512)]
    down = sum(9 * before * after + after for after, before in shapes)
    down += sum(9 * after * after + after for after in FEATURES)
    up = sum(4 * 2 * here * here + here for here in FEATURES[:-1])
    up += sum(9 * 2 * here * here + here + 9 * here * here + here for here in FEATURES[:-1])
    assert parameters(network) == down + up + 64 * 2 + 2 == 31_030_658


def test_the_forward_pass_written_out() -> None:
    torch.manual_seed(0)
    network = OriginalUNet(input_channels=2, num_classes=3, features=(2, 3, 4))
    weights = iter(network.state_dict().values())
    stored = [(next(weights), next(weights)) for _ in range(len(network.state_dict()) // 2)]
    down, enlarge, up, head = stored[:6], stored[6:8], stored[8:12], stored[12]

    def level(x: torch.Tensor, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        for weight, bias in pairs:
            x = functional.conv2d(x, weight, bias, padding=1).clamp(min=0)
        return x

    image = torch.randn(2, 2, 8, 12)
    first = level(image, down[:2])
    second = level(first.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)), down[2:4])
    bottom = level(second.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)), down[4:])
    third = level(torch.cat([second, functional.conv_transpose2d(bottom, *enlarge[0], stride=2)], 1), up[:2])
    last = level(torch.cat([first, functional.conv_transpose2d(third, *enlarge[1], stride=2)], 1), up[2:])
    expected = functional.conv2d(last, *head)
    assert expected.shape == (2, 3, 8, 12)
    torch.testing.assert_close(network(image), expected)


def test_no_normalisation_and_no_dropout() -> None:
    network = OriginalUNet(input_channels=1, num_classes=2, features=(2, 3))
    kinds = {type(module).__name__ for module in network.modules() if not list(module.children())}
    assert kinds == {"Conv2d", "ConvTranspose2d", "MaxPool2d", "ReLU"}

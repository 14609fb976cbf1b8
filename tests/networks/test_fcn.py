from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_qa.networks.fcn import FCN


def convolutions(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]


def depth(network: FCN, level: int) -> int:
    """Convolutions between the image and the logits on the way through a level, counted while it runs."""
    passed: dict[int, int] = {}

    def count(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        passed[id(module)] = 1

    for module in [*network.levels[: level + 1], network.reductions[level], network.head]:
        for convolution in convolutions(module):
            convolution.register_forward_hook(count)
    network(torch.zeros(1, 1, 32, 32))
    return len(passed)


def test_seventeen_convolutions_one_behind_the_other() -> None:
    network = FCN(input_channels=1, num_classes=3).eval()
    assert len(convolutions(network)) == 21
    assert [depth(FCN(input_channels=1, num_classes=3).eval(), level) for level in range(5)] == [6, 8, 11, 14, 17]
    shapes = [tuple(one.weight.shape) for one in convolutions(network.levels)]
    filters = [16] * 2 + [32] * 2 + [64] * 3 + [128] * 3 + [256] * 3
    assert shapes == [(after, before, 3, 3) for before, after in zip([1, *filters[:-1]], filters, strict=True)]
    assert [one.stride for one in convolutions(network.levels)] == [
        (2, 2) if number in (2, 4, 7, 10) else (1, 1) for number in range(13)
    ]
    assert [tuple(one.weight.shape) for one in convolutions(network.reductions)] == [
        (32, channels, 1, 1) for channels in (16, 32, 64, 128, 256)
    ]
    assert [tuple(one.weight.shape) for one in convolutions(network.head)] == [
        (64, 160, 1, 1),
        (64, 64, 1, 1),
        (3, 64, 1, 1),
    ]
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
    assert len(norms) == 20
    weights = sum(one.weight.numel() for one in convolutions(network))
    assert sum(value.numel() for value in network.parameters()) == weights + 2 * sum(n.num_features for n in norms) + 3
    assert sum(value.numel() for value in network.parameters()) == 1_985_491


def written_out(network: FCN, x: torch.Tensor) -> torch.Tensor:
    """The network without interpolation of its own: every value of an enlarged level computed from its neighbours."""
    size, features, value = x.shape[2:], [], x
    for level, reduction in zip(network.levels, network.reductions, strict=True):
        value = level(value)
        small = reduction(value)
        for axis, length in enumerate(size):
            old = small.shape[2 + axis]
            place = ((torch.arange(length) + 0.5) * old / length - 0.5).clamp(0, old - 1)
            low = place.floor().long()
            high = (low + 1).clamp(max=old - 1)
            part = (place - low).reshape([-1 if number == 2 + axis else 1 for number in range(small.ndim)])
            small = small.index_select(2 + axis, low) * (1 - part) + small.index_select(2 + axis, high) * part
        features.append(small)
    return network.head(torch.cat(features, 1))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((48, 64), None),
        ((33, 50), None),
        ((8, 24, 20), [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 1, 2]]),
        ((5, 18, 17), None),
    ],
)
def test_every_level_is_enlarged_linearly(shape: tuple[int, ...], strides: Any) -> None:
    torch.manual_seed(0)
    network = FCN(input_channels=2, num_classes=4, dimensions=len(shape), strides=strides).eval()
    x = torch.randn(2, 2, *shape)
    with torch.no_grad():
        found = network(x)
        assert found.shape == (2, 4, *shape)
        torch.testing.assert_close(found, written_out(network, x), atol=1e-4, rtol=1e-4)
        copy = pickle.loads(pickle.dumps(network))
        assert torch.equal(copy(x), found)


def test_every_convolution_learns() -> None:
    torch.manual_seed(0)
    network = FCN(input_channels=1, num_classes=2)
    network(torch.randn(2, 1, 32, 32)).square().mean().backward()
    assert all(one.weight.grad.abs().max() > 0 for one in convolutions(network))
    assert 0.01 < float(network(torch.randn(2, 1, 32, 32)).std().detach()) < 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dimensions": 1}, "dimensions must be 2 or 3, found 1"),
        ({"strides": [[2, 2]] * 3}, "strides must be 4 times 2 numbers"),
        ({"strides": [[2, 2, 2]] * 4}, "strides must be 4 times 2 numbers"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FCN(input_channels=1, num_classes=2, **arguments)

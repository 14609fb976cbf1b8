from __future__ import annotations

import pytest
import torch

from nnunet_qa.networks.slice_order import SliceOrderNetwork


def test_each_slice_has_one_score_of_its_own() -> None:
    network = SliceOrderNetwork((3, 4, 5)).eval()
    slices = torch.rand(6, 1, 17, 24)
    scores = network(slices)
    assert scores.shape == (6,)
    torch.testing.assert_close(network(slices[2:3]), scores[2:3])
    assert scores.std() > 0


def test_it_is_what_the_layers_say() -> None:
    network = SliceOrderNetwork((3, 4))
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [(one.in_channels, one.out_channels, one.kernel_size[0]) for one in convolutions] == [
        (1, 3, 3),
        (3, 3, 3),
        (3, 4, 3),
        (4, 4, 3),
        (4, 4, 1),
    ]
    assert sum(isinstance(layer, torch.nn.MaxPool2d) for layer in network.modules()) == 1


def test_the_score_is_a_mean_over_the_slice() -> None:
    # Far from the border, a repeated pattern has the same features everywhere, whatever the size of the slice.
    network = SliceOrderNetwork((4,)).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size[0] == 3:
                layer.padding, layer.padding_mode = (1, 1), "circular"
                layer._reversed_padding_repeated_twice = [1, 1, 1, 1]
    tile = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(network(tile), network(tile.repeat(1, 1, 2, 3)))


@pytest.mark.parametrize("features", [(), (4, 0)])
def test_features_out_of_range(features: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="features"):
        SliceOrderNetwork(features)

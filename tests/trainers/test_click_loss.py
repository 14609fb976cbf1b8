from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from nnunet_qa.interaction.click_maps import click_maps
from nnunet_qa.interaction.clicks import Click
from nnunet_qa.trainers.click_loss import ClickLoss

IGNORE = 3


class Seven(nn.Module):
    """Another loss, which does not depend on what it is given."""

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        return torch.tensor(7.0)


def case(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of three labels, truth with an ignore label, and maps of a click on each label."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(2, 3, *shape))).float()
    truth = rng.integers(0, IGNORE + 1, (2, 1, *shape)).astype(np.int16)
    clicks = [[Click(tuple(int(rng.integers(side)) for side in shape), label) for label in (0, 1, 2)], []]
    maps = np.stack([click_maps(some, shape, 2, sigma=1.0) for some in clicks])
    return logits, torch.from_numpy(truth), torch.from_numpy(maps)


@pytest.mark.parametrize("shape", [(6, 7), (3, 5, 4)], ids=["2d", "3d"])
@pytest.mark.parametrize("several", [False, True])
def test_it_is_the_weighted_cross_entropy_written_out(shape: tuple[int, ...], several: bool) -> None:
    logits, truth, maps = case(shape)
    loss = ClickLoss(Seven(), 0.5)
    loss.maps = maps
    expected = weights = 0.0
    entropies = -log_softmax(logits.numpy().astype(np.float64), axis=1)
    for sample in range(2):
        for place in np.ndindex(shape):
            label = int(truth[(sample, 0, *place)])
            if label != IGNORE:
                weight = float(maps[(sample, label, *place)])
                expected += weight * entropies[(sample, label, *place)]
                weights += weight
    output, target = ([logits, logits[..., ::2]], [truth, truth[..., ::2]]) if several else (logits, truth)
    assert loss(output, target).item() == pytest.approx(7 + 0.5 * expected / weights, rel=1e-5)


def test_a_clicked_object_of_one_voxel_has_a_gradient_as_large_as_any() -> None:
    logits = torch.zeros(4, 2, 32, 32, requires_grad=True)
    truth = torch.zeros(4, 1, 32, 32, dtype=torch.int16)
    truth[0, 0, 9, 9] = 1
    loss = ClickLoss(Seven(), 1.0)
    loss.maps = torch.from_numpy(np.stack([click_maps([Click((9, 9), 1)], (32, 32), 1)] * 4))
    loss(logits, truth).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1, 9, 9].item() == pytest.approx(-0.5)  # of the only voxel that a click speaks of
    assert (logits.grad != 0).sum() == 2


def test_nothing_is_added_without_clicks_or_weight() -> None:
    logits, truth, maps = case((6, 7))
    loss = ClickLoss(Seven(), 0.5)
    assert loss(logits, truth).item() == 7
    loss.maps = torch.zeros_like(maps)
    assert loss(logits, truth).item() == 7
    loss = ClickLoss(Seven(), 0.0)
    loss.maps = maps
    assert loss(logits, truth).item() == 7

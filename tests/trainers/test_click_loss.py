from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
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
def test_it_is_the_dice_of_each_clicked_patch_written_out(shape: tuple[int, ...], several: bool) -> None:
    logits, truth, maps = case(shape)
    truth[0][truth[0] == 2] = 0  # a label that the clicked patch does not hold
    maps[0, 1:] = 0  # though it is clicked for background alone
    loss = ClickLoss(Seven(), 0.5)
    loss.maps = maps
    probabilities = softmax(logits.numpy().astype(np.float64), axis=1)
    terms = []
    for label in (1, 2):
        hit = found = size = 0.0
        for place in np.ndindex(shape):
            true = int(truth[(0, 0, *place)])
            if true != IGNORE:
                p = float(probabilities[(0, label, *place)])
                hit, found, size = hit + p * (true == label), found + p, size + (true == label)
        if size:
            terms.append(1 - (2 * hit + 1) / (found + size + 1))
    assert len(terms) == 1
    output, target = ([logits, logits[..., ::2]], [truth, truth[..., ::2]]) if several else (logits, truth)
    assert loss(output, target).item() == pytest.approx(7 + 0.5 * terms[0], rel=1e-5)


def test_a_clicked_object_of_one_voxel_weighs_as_much_as_a_large_one() -> None:
    truth = torch.zeros(2, 1, 32, 32, dtype=torch.int16)
    truth[0, 0, 9, 9] = 1
    truth[1, 0, 4:28, 4:28] = 1
    maps = torch.from_numpy(np.stack([click_maps([Click((9, 9), 1)], (32, 32), 1)] * 2))
    right = torch.where(truth > 0, 20.0, -20.0)
    losses = []
    for missed in (0, 1):
        foreground = right.clone()
        foreground[missed] = -20.0
        loss = ClickLoss(Seven(), 1.0)
        loss.maps = maps
        losses.append(loss(torch.cat((-foreground, foreground), dim=1), truth).item() - 7)
    assert losses[0] == pytest.approx(0.25, abs=0.01)  # of one voxel: 1 - 1/2, and the mean of two patches
    assert losses[1] == pytest.approx(0.5, abs=0.01)


def test_too_large_an_answer_costs_more_the_smaller_the_object() -> None:
    truth = torch.zeros(2, 1, 32, 32, dtype=torch.int16)
    truth[0, 0, 8:11, 8:11] = 1
    truth[1, 0, 6:26, 6:26] = 1
    maps = torch.from_numpy(np.stack([click_maps([Click((9, 9), 1)], (32, 32), 1)] * 2))
    gradients = []
    for sample in range(2):
        logits = torch.cat(((truth == 0) * 8.0, (truth == 1) * 8.0), dim=1)
        logits[sample, :, 30, :] = 0.0  # undecided outside
        logits.requires_grad_()
        loss = ClickLoss(Seven(), 1.0)
        loss.maps = maps
        loss(logits, truth).backward()
        assert logits.grad is not None
        gradients.append(logits.grad[sample, 1, 30].sum().item())
    assert gradients[0] > 3 * gradients[1] > 0


def test_nothing_is_added_without_clicks_or_weight() -> None:
    logits, truth, maps = case((6, 7))
    loss = ClickLoss(Seven(), 0.5)
    assert loss(logits, truth).item() == 7
    loss.maps = torch.zeros_like(maps)
    assert loss(logits, truth).item() == 7
    loss = ClickLoss(Seven(), 0.0)
    loss.maps = maps
    assert loss(logits, truth).item() == 7

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn

from nnunet_qa.trainers.split_loss import SplitLoss


class Distance(nn.Module):
    """Mean squared distance, which needs as many outputs as targets."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert output.shape == target.shape
        return (output - target).square().mean()


def second_moment(outputs: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([one.square().mean() for one in outputs]).sum()


@pytest.fixture
def loss() -> SplitLoss:
    made = SplitLoss(Distance(), second_moment)
    made.weight = 0.25
    return made


def test_annotated_images_come_first(loss: SplitLoss) -> None:
    output, target = torch.tensor([[[1.0]], [[2.0]], [[3.0]], [[5.0]]]), torch.tensor([[[0.0]], [[0.0]], [[0.0]]])
    # (1 + 4 + 9) / 3 of the annotated ones, 25 of the one behind them
    assert float(loss(output, target)) == pytest.approx(14 / 3 + 0.25 * 25)
    assert float(loss.last_supervised) == pytest.approx(14 / 3)
    loss.weight = 0.0
    assert float(loss(output, target)) == pytest.approx(14 / 3)


def test_without_unlabelled_images_it_is_the_loss_of_the_others(loss: SplitLoss) -> None:
    output, target = torch.rand(3, 2, 4, requires_grad=True), torch.rand(3, 2, 4)
    assert torch.equal(loss(output, target), Distance()(output, target))
    assert torch.equal(loss.last_supervised, Distance()(output, target).detach())
    assert math.isnan(loss.collect())


def test_each_output_of_deep_supervision_is_split() -> None:
    seen: list[list[torch.Tensor]] = []

    def unlabelled(outputs: list[torch.Tensor]) -> torch.Tensor:
        seen.append(outputs)
        return second_moment(outputs)

    loss = SplitLoss(DeepSupervisionWrapper(Distance(), [0.75, 0.25]), unlabelled)
    loss.weight = 2.0
    outputs = [torch.rand(5, 2, 8), torch.rand(5, 2, 4)]
    targets = [torch.rand(2, 2, 8), torch.rand(2, 2, 4)]
    expected = 0.75 * Distance()(outputs[0][:2], targets[0]) + 0.25 * Distance()(outputs[1][:2], targets[1])
    extra = outputs[0][2:].square().mean() + outputs[1][2:].square().mean()
    assert float(loss(outputs, targets)) == pytest.approx(float(expected + 2 * extra), rel=1e-6)
    assert [tuple(one.shape) for one in seen[0]] == [(3, 2, 8), (3, 2, 4)]


def test_gradients_go_where_they_belong(loss: SplitLoss) -> None:
    output = torch.rand(4, 2, 3, requires_grad=True)
    target = torch.rand(3, 2, 3)
    loss(output, target).backward()
    given: Any = output.grad
    torch.testing.assert_close(given[:3], (2 * (output[:3] - target) / 18).detach())
    torch.testing.assert_close(given[3:], (0.25 * 2 * output[3:] / 6).detach())


def test_the_losses_are_collected_without_their_weight(loss: SplitLoss) -> None:
    target = torch.zeros(1, 1)
    for value in (1.0, 3.0):
        output = torch.tensor([[9.0], [value]], requires_grad=True)
        loss(output, target).backward()
    assert loss.collect() == pytest.approx((1 + 9) / 2)
    assert math.isnan(loss.collect())

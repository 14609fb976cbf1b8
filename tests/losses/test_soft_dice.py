from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from nnunet_qa.losses.soft_dice import SoftDiceLoss, soft_dice_loss


def dice(p: np.ndarray, y: np.ndarray) -> float:
    return -(2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


@pytest.mark.parametrize(
    ("p", "y", "expected"),
    [
        ([[[[1.0, 0.0]]]], [[[[1, 0]]]], -1.0),  # −(2·1 + 1) / (1 + 1 + 1)
        ([[[[0.0, 1.0]]]], [[[[1, 0]]]], -1 / 3),  # −(0 + 1) / (1 + 1 + 1)
        ([[[[0.0, 0.0]]]], [[[[0, 0]]]], -1.0),  # both empty
        ([[[[0.5, 0.5]]]], [[[[1, 0]]]], -2 / 3),  # −(1 + 1) / (1 + 1 + 1)
        # the batch is one set of pixels: −(2·1.5 + 1) / (2 + 3 + 1), not the mean of −1 and −(1 + 1) / (0.5 + 2 + 1)
        ([[[[1.0, 0.5]]], [[[0.5, 0.0]]]], [[[[1, 0]]], [[[1, 1]]]], -4 / 6),
        # two classes: the mean of −1 and −1/3
        ([[[[1.0, 0.0]], [[0.0, 1.0]]]], [[[[1, 0]], [[1, 0]]]], -2 / 3),
    ],
)
def test_by_hand(p: list, y: list, expected: float) -> None:
    assert float(soft_dice_loss(torch.tensor(p), torch.tensor(y))) == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 5)])
@pytest.mark.parametrize("ignore", [None, 3])
def test_classes_equal_numpy(rng: np.random.Generator, shape: tuple[int, ...], ignore: int | None) -> None:
    logits = rng.normal(size=(2, 3, *shape))
    target = rng.integers(0, 3 if ignore is None else 4, (2, 1, *shape))
    counts = target[:, 0] != ignore
    p = softmax(logits, axis=1)
    expected = np.mean([dice(p[:, c][counts], (target[:, 0] == c)[counts]) for c in (1, 2)])
    loss = SoftDiceLoss(ignore_label=ignore)(torch.tensor(logits), torch.tensor(target))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ignore", [None, 3])
@pytest.mark.parametrize("kind", [bool, np.int16])
def test_regions_equal_numpy(rng: np.random.Generator, ignore: int | None, kind: type) -> None:
    logits = rng.normal(size=(2, 2, 6, 7))
    target = rng.integers(0, 2, (2, 2 if ignore is None else 3, 6, 7))
    counts = np.ones((2, 6, 7), bool) if ignore is None else target[:, 2] == 0
    p = expit(logits)
    expected = np.mean([dice(p[:, c][counts], target[:, c][counts]) for c in (0, 1)])
    loss = SoftDiceLoss(regions=True, ignore_label=ignore)(torch.tensor(logits), torch.tensor(target.astype(kind)))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_two_channels_with_an_empty_background_cost_what_one_sigmoid_does(rng: np.random.Generator) -> None:
    logit = torch.tensor(rng.normal(size=(2, 1, 6, 7)))
    target = torch.tensor(rng.integers(0, 2, (2, 1, 6, 7)))
    two = SoftDiceLoss()(torch.cat([torch.zeros_like(logit), logit], 1), target)
    one = SoftDiceLoss(regions=True)(logit, target)
    assert float(two) == pytest.approx(float(one), abs=1e-6)


def test_a_batch_in_half_precision_does_not_overflow() -> None:
    """20 × 256 × 256 foreground pixels are far beyond the largest half."""
    logits = torch.full((20, 1, 256, 256), 8.0, dtype=torch.float16)
    assert float(SoftDiceLoss(regions=True)(logits, torch.ones(20, 1, 256, 256))) == pytest.approx(-1, abs=1e-3)


def test_descent_finds_the_truth(rng: np.random.Generator) -> None:
    target = torch.tensor(rng.integers(0, 2, (2, 1, 6, 7)))
    logits = torch.zeros(2, 1, 6, 7, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(50):
        optimizer.zero_grad()
        SoftDiceLoss(regions=True)(logits, target).backward()
        optimizer.step()
    assert torch.equal(logits > 0, target == 1)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be the same"):
        soft_dice_loss(torch.zeros(1, 1, 4), torch.zeros(1, 2, 4))

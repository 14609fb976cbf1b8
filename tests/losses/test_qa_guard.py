from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_qa.losses.qa_guard import reason_to_stop

NAN = math.nan
FALLING = [2.0, 1.8, 1.6, 1.4, 1.2, 1.0]
"""A QA loss that gets better all the time."""


def reason(
    qa: list[float],
    dice: list[float],
    disagreement: list[float] | None = None,
    *,
    patience: int = 2,
    tolerance: float = 0.05,
    smoothing: int = 1,
) -> str | None:
    how = {"patience": patience, "tolerance": tolerance, "smoothing": smoothing}
    return reason_to_stop(qa=qa, dice=dice, disagreement=disagreement, **how)


@pytest.mark.parametrize(
    ("dice", "stops"),
    [
        ([0.5, 0.7, 0.8, 0.8, 0.70, 0.70], True),
        ([0.5, 0.7, 0.8, 0.7, 0.70, 0.70], True),
        ([0.5, 0.7, 0.8, 0.8, 0.80, 0.70], False),  # one epoch only
        ([0.5, 0.7, 0.8, 0.7, 0.80, 0.70], False),  # two, but not in a row
        ([0.5, 0.7, 0.8, 0.8, 0.76, 0.76], False),  # within the tolerance
        ([0.5, 0.7, 0.8, 0.8, 0.74, 0.76], False),
        ([0.5, 0.6, 0.7, 0.8, 0.90, 0.95], False),
    ],
)
def test_a_dice_that_falls_while_the_loss_falls(dice: list[float], stops: bool) -> None:
    assert (reason(FALLING, dice) is not None) == stops


def test_the_reason_names_the_numbers() -> None:
    said = reason(FALLING, [0.5, 0.7, 0.8, 0.8, 0.7, 0.6])
    assert said == "the labelled Dice fell from 0.800 (epoch 2) to 0.600 while the QA loss fell from 1.600 to 1.000"
    said = reason(FALLING, [0.8] * 6, [0.3, 0.1, 0.2, 0.2, 0.2, 0.25])
    assert said == (
        "the disagreement on the pool rose from 0.100 (epoch 1) to 0.250 while the QA loss fell from 1.800 to 1.000"
    )


def test_a_network_that_first_finds_nothing_agrees_with_itself() -> None:
    """Its two outputs are both empty, so the disagreement starts at 0 and rises as it learns."""
    dice = [0.0, 0.1, 0.3, 0.4, 0.5, 0.6]
    assert reason(FALLING, dice, [0.0, 0.4, 0.4, 0.38, 0.36, 0.35]) is None
    assert reason(FALLING, [0.3, 0.3, 0.3, 0.3, 0.3, 0.3], [0.0, 0.4, 0.4, 0.38, 0.36, 0.35]) is not None


def test_one_quiet_epoch_does_not_hide_a_disagreement_that_rose() -> None:
    """As in a real training that learnt to please: the pool's disagreement goes up and down, and its mean goes up."""
    loss = [0.37, 0.35, 0.30, 0.26, 0.22, 0.20, 0.18, 0.16, 0.15, 0.14]
    noisy = [0.38, 0.42, 0.36, 0.40, 0.52, 0.40, 0.55, 0.41, 0.54, 0.40]
    flat = [0.60, 0.60, 0.60, 0.60, 0.61, 0.61, 0.61, 0.61, 0.61, 0.61]
    assert reason(loss, flat, noisy) is None
    said = reason(loss, flat, noisy, smoothing=2)
    assert said is not None
    assert "the disagreement on the pool rose from 0.380 (epoch 3) to 0.470 while the QA loss fell from 0.280" in said
    better = [*flat[:5], *[0.7] * 5]
    assert reason(loss, better, noisy, smoothing=2) is None
    assert reason(loss, flat, noisy, smoothing=2, patience=7) is None


def test_means_need_their_epochs() -> None:
    dice = [0.8, 0.8, 0.8, 0.6, 0.6, 0.6]
    assert reason(FALLING, dice, smoothing=2) is not None
    assert reason(FALLING, dice, smoothing=5) is None
    assert reason([NAN, *FALLING[1:]], dice, smoothing=3) is None
    assert reason(FALLING, dice, smoothing=9) is None


def test_a_loss_that_rises_too_is_no_fooled_discriminator() -> None:
    dice = [0.5, 0.8, 0.8, 0.7, 0.6, 0.5]
    assert reason(FALLING, dice) is not None
    assert reason(FALLING[::-1], dice) is None
    assert reason([1.0, 1.0, 1.0, 0.9, 0.9, 1.0], dice) is None  # no better in the last epoch


def test_patience_and_tolerance_count() -> None:
    dice = [0.5, 0.8, 0.7, 0.7, 0.7, 0.7]
    assert [reason(FALLING, dice, patience=patience) is not None for patience in (1, 4, 5, 6)] == [
        True,
        True,
        False,
        False,
    ]
    assert [reason(FALLING, dice, tolerance=tolerance) is not None for tolerance in (0.0, 0.09, 0.11)] == [
        True,
        True,
        False,
    ]


def test_epochs_without_a_loss_do_not_count() -> None:
    # the best Dice was reached before the QA loss began
    assert reason([NAN, NAN, 1.6, 1.4, 1.2, 1.0], [0.9, 0.9, 0.7, 0.7, 0.7, 0.7]) is None
    assert reason([NAN, NAN, 1.6, 1.4, 1.2, 1.0], [0.9, 0.9, 0.7, 0.7, 0.6, 0.6]) is not None
    assert reason([2.0, 1.8, 1.6, 1.4, NAN, NAN], [0.8, 0.8, 0.8, 0.8, 0.6, 0.6]) is None
    assert reason([NAN] * 6, [0.8, 0.8, 0.8, 0.8, 0.6, 0.6]) is None
    assert reason(FALLING, [NAN] * 6) is None


def test_nothing_to_judge_yet() -> None:
    assert reason([], []) is None
    assert reason([2.0, 1.0], [0.8, 0.1], patience=2) is None
    assert reason([2.0, 1.0], [0.8, 0.1], patience=1) is not None


def test_equals_loops_on_random_series() -> None:
    """The rule written out: each of the last epochs against the best epoch before it."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        qa, dice = (2 - np.cumsum(rng.normal(0.02, 0.1, 8))).tolist(), rng.normal(0.7, 0.1, 8).tolist()
        expected = True
        for now in (6, 7):
            best = max(range(now), key=lambda epoch: dice[epoch])
            expected &= dice[best] - dice[now] > 0.05 and qa[now] < qa[best]
        found.append(expected)
        assert (reason(qa, dice) is not None) == expected
        # a disagreement is a Dice upside down
        assert (reason(qa, [0.7] * 8, [1 - value for value in dice]) is not None) == expected
    assert 10 < sum(found) < 290


@pytest.mark.parametrize(("dice", "disagreement"), [([0.5], None), ([0.5, 0.5], [0.1])])
def test_series_of_different_lengths_are_refused(dice: list[float], disagreement: list[float] | None) -> None:
    with pytest.raises(ValueError, match="2 QA losses, but 1 values"):
        reason([1.0, 1.0], dice, disagreement)

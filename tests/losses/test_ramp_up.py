from __future__ import annotations

import numpy as np
import pytest

from nnunet_qa.losses.ramp_up import sigmoid_ramp_up


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(-1.0, np.exp(-5)), (0.0, np.exp(-5)), (0.25, np.exp(-2.8125)), (0.5, np.exp(-1.25)), (1.0, 1.0), (7.0, 1.0)],
)
def test_by_hand(progress: float, expected: float) -> None:
    assert sigmoid_ramp_up(progress) == pytest.approx(expected)


def test_the_weight_only_grows() -> None:
    weights = [sigmoid_ramp_up(progress) for progress in np.linspace(0, 1, 50)]
    assert (np.diff(weights) > 0).all()

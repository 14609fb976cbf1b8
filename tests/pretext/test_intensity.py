from __future__ import annotations

import numpy as np
import pytest

from nnunet_qa.config_limited_data import DistortionConfig
from nnunet_qa.pretext.intensity import bend_intensities, bezier_map


def test_the_curve_is_scipys_bernstein_polynomial() -> None:
    from scipy.interpolate import BPoly

    first, second = np.array([0.2, 0.9]), np.array([0.7, 0.1])
    points = np.stack([[0, 0], first, second, [1, 1]])
    expected = BPoly(points[:, None], [0, 1])(np.linspace(0, 1, 1000))
    np.testing.assert_allclose(np.stack(bezier_map(first, second, decreasing=False), axis=1), expected, atol=1e-12)
    x, y = bezier_map(first, second, decreasing=True)
    np.testing.assert_allclose(np.stack([x, y[::-1]], axis=1), expected, atol=1e-12)


@pytest.mark.parametrize("decreasing", [0.0, 1.0])
def test_monotone_with_its_ends(decreasing: float) -> None:
    ramp = np.linspace(0, 1, 500, dtype=np.float32).reshape(1, 20, 25)
    for seed in range(50):
        bent = bend_intensities(ramp, np.random.default_rng(seed), DistortionConfig(decreasing=decreasing)).ravel()
        steps = np.diff(bent) * (1 - 2 * decreasing)
        assert steps.min() >= -1e-6
        assert (bent[0], bent[-1]) == (decreasing, 1 - decreasing)
        assert bent.dtype == np.float32


def test_half_of_the_draws_decrease_and_channels_differ() -> None:
    ramps = np.tile(np.linspace(0, 1, 30, dtype=np.float32), (1000, 1, 1))
    bent = bend_intensities(ramps, np.random.default_rng(0), DistortionConfig())
    assert (bent[:, 0, 0] == 1).mean() == pytest.approx(0.5, abs=0.06)
    assert len(np.unique(bent[:, 0, 15])) == 1000


def test_what_is_outside_gets_the_ends() -> None:
    image = np.array([-0.5, 0.0, 1.0, 2.0], np.float32).reshape(1, 2, 2)
    bent = bend_intensities(image, np.random.default_rng(0), DistortionConfig(decreasing=0)).ravel()
    assert bent.tolist() == [0, 0, 1, 1]

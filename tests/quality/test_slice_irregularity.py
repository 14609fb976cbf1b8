from __future__ import annotations

import numpy as np
import pytest

from nnunet_qa.quality.slice_irregularity import (
    irregularity_in_space,
    irregularity_in_time,
    without_harmonics,
)

FRAMES = np.arange(30)
PROFILE = np.array([0, 20, 60, 80, 60, 20, 0])


def cycle(slices: np.ndarray = PROFILE) -> np.ndarray:
    """A smooth heartbeat `(frames, slices)`."""
    return np.rint(np.outer(1 + 0.4 * np.cos(2 * np.pi * FRAMES / 30), 100 * slices)).astype(np.int64)


def test_a_smooth_heart_is_regular() -> None:
    assert irregularity_in_time(cycle()).max() < 1e-3
    assert irregularity_in_space(cycle()).max() == pytest.approx(irregularity_in_space(cycle()).min(), abs=1e-3)


@pytest.mark.parametrize("frames", [2, 3, 8, 9, 30])
def test_harmonics_are_the_best_fit_of_four_waves(frames: int) -> None:
    """Least squares instead of the Fourier transform."""
    curve = np.random.default_rng(frames).normal(size=(frames, 3))
    angle = 2 * np.pi * np.arange(frames) / frames
    design = np.stack([wave(k * angle) for k in range(min(4, frames // 2) + 1) for wave in (np.cos, np.sin)], axis=1)
    rest = curve - design @ np.linalg.lstsq(design, curve, rcond=None)[0]
    np.testing.assert_allclose(without_harmonics(curve), rest, atol=1e-9)


def test_pixels_that_change_slice_are_seen_though_the_curve_is_smooth() -> None:
    pixels = cycle()
    moved = pixels.copy()
    moved[7, 3], moved[7, 2] = 0, pixels[7, 2] + pixels[7, 3]
    np.testing.assert_array_equal(moved.sum(axis=1), pixels.sum(axis=1))
    assert irregularity_in_time(moved).argmax() == 7
    assert irregularity_in_time(moved)[7] > 0.1
    assert irregularity_in_space(moved)[7] > 1.5 * irregularity_in_space(pixels)[7]
    others = FRAMES != 7
    np.testing.assert_array_equal(irregularity_in_space(moved)[others], irregularity_in_space(pixels)[others])


def test_sizes_do_not_matter() -> None:
    rough = np.random.default_rng(0).integers(0, 90, (12, 6))
    for measure in (irregularity_in_time, irregularity_in_space):
        np.testing.assert_allclose(measure(rough * 50), measure(rough), rtol=1e-12)


def test_nothing_and_single_slices() -> None:
    nothing = np.zeros((5, 4), dtype=np.int64)
    assert not irregularity_in_time(nothing).any()
    assert not irregularity_in_space(nothing).any()
    np.testing.assert_array_equal(irregularity_in_space(np.full((5, 1), 9)), 4.0)

from __future__ import annotations

import numpy as np
import pytest

from nnunet_qa.interaction.click_maps import ClickChannels, click_channels, click_maps
from nnunet_qa.interaction.clicks import Click

CLICKS = [Click((4, 5, 6), 1), Click((5, 5, 8), 1), Click((0, 0, 0), 0)]


@pytest.mark.parametrize("spacing", [None, (3.0, 1.0, 1.5)])
def test_maps_are_the_largest_gaussian_of_each_label(spacing: tuple[float, ...] | None) -> None:
    shape, sigma = (9, 12, 20), 1.5
    maps = click_maps(CLICKS, shape, 2, sigma=sigma, spacing=spacing)
    assert maps.shape == (3, *shape)
    assert maps.dtype == np.float32
    grid = np.stack(np.indices(shape), axis=-1)
    expected = np.zeros(maps.shape)
    for click in CLICKS:
        away = np.linalg.norm((grid - click.position) * (spacing or 1.0), axis=-1) / sigma
        stamp = np.where(away <= 4, np.exp(-(away**2) / 2), 0)
        expected[click.label] = np.maximum(expected[click.label], stamp)
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    assert ((maps == 0) == (expected == 0)).all()
    assert all(maps[(click.label, *click.position)] == 1 for click in CLICKS)
    assert not maps[2].any()


def test_maps_of_a_part_are_part_of_the_maps() -> None:
    clicks = [Click((3, 9), 1), Click((10, 10), 0), Click((30, 2), 1)]
    whole = click_maps(clicks, (32, 24), 1)
    corner = (6, 8)
    moved = [Click((click.position[0] - 6, click.position[1] - 8), click.label) for click in clicks]
    np.testing.assert_array_equal(click_maps(moved, (12, 10), 1), whole[:, 6:18, 8:18])
    assert whole[1, corner[0], corner[1]] > 0  # of a click outside the part


def test_no_clicks_and_clicks_that_do_not_fit() -> None:
    assert not click_maps([], (4, 5), 1).any()
    for click in (Click((1, 1), 2), Click((1, 1), -1), Click((1, 1, 1), 0)):
        with pytest.raises(ValueError, match="does not fit 1 classes and 2 axes"):
            click_maps([click], (4, 5), 1)


def test_channels_are_maps_and_masks_of_the_previous_prediction() -> None:
    prediction = np.array([[0, 1, 2], [2, 2, 0]])
    clicks = [Click((0, 1), 2)]
    on = ClickChannels(labels=2, previous=True)(clicks, (2, 3), prediction)
    assert on.shape == (click_channels(2), 2, 3) == (5, 2, 3)
    np.testing.assert_array_equal(on[:3], click_maps(clicks, (2, 3), 2))
    np.testing.assert_array_equal(on[3:], [prediction == 1, prediction == 2])
    assert not ClickChannels(labels=2, previous=True)(clicks, (2, 3), None)[3:].any()
    assert not ClickChannels(labels=2)(clicks, (2, 3), prediction)[3:].any()

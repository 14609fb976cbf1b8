from __future__ import annotations

import numpy as np
import pytest

from nnunet_qa.interaction.clicks import Click
from nnunet_qa.interaction.lines import line_clicks


def volume() -> np.ndarray:
    truth = np.zeros((4, 9, 8), int)
    truth[0:3, 1:8, 3] = 1
    truth[1, 4, 3] = 0  # two runs of 3 voxels; the first counts
    truth[2, 2, 3] = 0  # runs of 1 and 5
    truth[0, 2:4, 4] = 1
    truth[3, 5, 6] = 2
    return truth


def test_a_click_in_each_slice_of_the_plane_that_holds_most() -> None:
    expected = [Click((0, 4, 3), 1), Click((1, 2, 3), 1), Click((2, 5, 3), 1), Click((3, 5, 6), 2)]
    assert line_clicks(volume(), axis=2) == expected
    swapped = [Click((z, x, y), label) for click in expected for (z, y, x), label in [(click.position, click.label)]]
    assert line_clicks(volume().swapaxes(1, 2), axis=1) == swapped
    assert line_clicks(volume(), axis=2, ignore=2) == expected[:3]


def test_one_click_a_class_in_a_picture() -> None:
    assert line_clicks(volume()[0], axis=1) == [Click((4, 3), 1)]
    assert line_clicks(volume()[0].T, axis=0) == [Click((3, 4), 1)]


def test_drawn_planes_go_through_the_object_in_proportion() -> None:
    rng = np.random.default_rng(0)
    truth = volume()[0]
    columns = [line_clicks(truth, axis=1, rng=rng)[0].position[1] for _ in range(300)]
    assert set(columns) == {3, 4}
    assert np.mean(np.array(columns) == 3) == pytest.approx(7 / 9, abs=0.08)


def test_no_object_and_no_lateral_axis() -> None:
    assert line_clicks(np.zeros((2, 3, 4), int), axis=1) == []
    with pytest.raises(ValueError, match="axis 0 of 3 is not lateral"):
        line_clicks(volume(), axis=0)

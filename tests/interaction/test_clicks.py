from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from skimage.measure import label as components_of

from nnunet_qa.errors import ImageError
from nnunet_qa.interaction.clicks import Click, innermost, next_click


def depths(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance of each voxel of a mask to the nearest voxel outside, one rim of voxels around the image included."""
    padded = np.pad(mask, 1)
    inside, outside = np.argwhere(padded) * spacing, np.argwhere(~padded) * spacing
    found = np.zeros(mask.shape)
    found[mask] = cdist(inside, outside).min(axis=1)
    return found


@pytest.mark.parametrize("shape", [(9, 11), (5, 7, 8)])
@pytest.mark.parametrize("anisotropic", [False, True])
def test_innermost_is_the_maximum_of_the_distance_to_the_outside(shape: tuple[int, ...], anisotropic: bool) -> None:
    rng = np.random.default_rng(len(shape))
    spacing = (3.0, 0.5, 1.0)[: len(shape)] if anisotropic else (1.0,) * len(shape)
    for _ in range(5):
        mask = rng.random(shape) < 0.85
        depth = depths(mask, spacing)
        assert innermost(mask, spacing if anisotropic else None) == np.unravel_index(depth.argmax(), shape)


def test_innermost_of_a_flat_mask_is_its_middle_and_still_a_maximum() -> None:
    volume = np.zeros((5, 11, 11), bool)
    volume[2, 2:9, 1:8] = True
    assert innermost(volume) == (2, 5, 4)
    assert depths(volume, (1.0, 1.0, 1.0))[2, 5, 4] == depths(volume, (1.0, 1.0, 1.0)).max()
    assert innermost(volume[2:3], (5.0, 1.0, 1.0)) == (0, 5, 4)  # an axis of one voxel
    line = np.zeros((4, 9), bool)
    line[1, 2:7] = True
    assert innermost(line) == (1, 4)


def test_innermost_of_one_voxel_of_everything_and_of_nothing() -> None:
    mask = np.zeros((3, 4), bool)
    assert innermost(mask) is None
    mask[2, 3] = True
    assert innermost(mask) == (2, 3)
    assert innermost(np.ones((5, 7), bool)) == (2, 2)


def scene() -> np.ndarray:
    truth = np.zeros((20, 30), int)
    truth[2:7, 2:7] = 1
    truth[10:19, 10:19] = 2
    truth[2:5, 25:28] = 2
    return truth


def test_the_first_click_is_in_the_largest_object() -> None:
    assert next_click(scene(), None, least_error=1000) == Click((14, 14), 2)
    assert next_click(np.zeros((4, 4), int), None) is None
    assert next_click(scene(), None, ignore=2) == Click((4, 4), 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ((slice(10, 19), slice(10, 19), 0), Click((14, 14), 2)),  # missed
        ((slice(2, 7), slice(2, 7), 2), Click((4, 4), 1)),  # another class
        ((slice(10, 15), slice(21, 26), 1), Click((12, 23), 0)),  # nothing is there
    ],
)
def test_later_clicks_say_what_is_true_at_the_error(change: tuple[slice, slice, int], expected: Click) -> None:
    prediction = scene()
    prediction[change[:2]] = change[2]
    assert next_click(scene(), prediction) == expected


def test_later_clicks_lie_innermost_in_the_largest_error() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        truth, prediction = rng.integers(0, 3, (2, 12, 12))
        parts = components_of(np.where(truth != prediction, truth + 1, 0), connectivity=1)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        click = next_click(truth, prediction)
        assert click is not None
        part = parts[click.position]
        assert part > 0
        assert sizes[part] == sizes.max()
        assert click.label == truth[click.position]
        depth = depths(parts == part, (1.0, 1.0))
        assert depth[click.position] == depth.max()


def test_small_errors_and_ignored_voxels_get_no_click() -> None:
    truth, prediction = scene(), scene()
    prediction[2:4, 2:5] = 0  # 6 voxels
    assert next_click(truth, prediction, least_error=7) is None
    assert next_click(truth, prediction, least_error=6) == Click((2, 2), 1)
    truth[2:4, 2:5] = 3
    assert next_click(truth, prediction, ignore=3) is None
    assert next_click(truth, truth) is None


def test_shapes_must_agree() -> None:
    with pytest.raises(ImageError, match=r"\(3, 3\) voxels cannot be compared with a truth of \(4, 4\)"):
        next_click(np.zeros((4, 4), int), np.zeros((3, 3), int))

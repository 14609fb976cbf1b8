from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_qa.data.images import Geometry
from nnunet_qa.dataset_conversion.covid_grid import (
    Turn,
    check_aligned,
    resized_geometry,
    resized_image,
    resized_mask,
    slice_geometry,
    turn_by_lungs,
    upright,
)
from nnunet_qa.errors import ImageError
from tests.dataset_conversion.covid_sets import chest

UNTURNED = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
UPSIDE_DOWN = (1.0, 0, 0, 0, -1, 0, 0, 0, 1)
SPINE_UP = {"case11", "case12", "case13", "case14", "case17", "case18"}
"""Seen by eye."""


def place(direction: tuple[float, ...] = UNTURNED, y: float = 0.0) -> Geometry:
    return Geometry((1.0, 2.0, 5.0), (0.0, y, 0.0), direction)


def test_lungs_tell_which_way_up() -> None:
    lungs = chest(0).lungs > 0
    assert turn_by_lungs(lungs) == Turn()
    for stored in (lungs[:, ::-1], lungs.swapaxes(1, 2), lungs.swapaxes(1, 2)[:, :, ::-1]):
        turn = turn_by_lungs(stored)
        assert turn is not None
        np.testing.assert_array_equal(turn.array(stored), lungs)
    assert turn_by_lungs(lungs.sum(axis=0)) == Turn()
    assert turn_by_lungs(np.ones((2, 8, 20), dtype=bool)) is None
    assert turn_by_lungs(np.zeros((2, 8, 20), dtype=bool)) is None
    assert Turn(transpose=True).geometry(place()) == Geometry((2.0, 1.0, 5.0), (0.0, 0.0, 0.0), UNTURNED)


@pytest.mark.real_data
def test_lungs_of_real_scans_tell_which_way_up(real_data: Path) -> None:
    for path in sorted((real_data / "covid19_ct" / "labels").iterdir()):
        lungs = np.asanyarray(nibabel.load(path).dataobj).transpose(2, 1, 0) > 0
        assert turn_by_lungs(lungs) == Turn(flip=path.name.removesuffix(".nii.gz") in SPINE_UP), path.name


def test_a_mask_with_other_axes_must_lie_where_its_image_lies() -> None:
    array = np.zeros((2, 4, 3))
    image = upright(array, place(), name="image")
    check_aligned(upright(array, place(y=40.0), name="mask"), image, "mask")  # a careless origin does no harm
    check_aligned(upright(array, place(UPSIDE_DOWN, y=6.0), name="mask"), image, "mask")
    with pytest.raises(ImageError, match="mask: its header places it elsewhere than its image"):
        check_aligned(upright(array, place(UPSIDE_DOWN), name="mask"), image, "mask")
    with pytest.raises(ImageError, match=r"mask: the mask has shape \(2, 3, 3\)"):
        check_aligned(upright(array[:, :3], place(), name="mask"), image, "mask")
    with pytest.raises(ImageError, match=r"scan: has the shape \(2, 4, 3, 3\)"):
        upright(np.zeros((2, 4, 3, 3)), place(), name="scan")


def test_resizing_keeps_the_covered_area_and_the_majority() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (2, 16, 24)).astype(np.uint8)
    blocks = mask.reshape(2, 8, 2, 12, 2).transpose(0, 1, 3, 2, 4).reshape(2, 8, 12, 4)
    counts = np.stack([(blocks == value).sum(axis=-1) for value in range(3)], axis=-1)
    expected = 2 - np.argmax(counts[..., ::-1], axis=-1)  # of equal shares the higher value
    np.testing.assert_array_equal(resized_mask(mask, (8, 12)), expected)
    assert resized_mask(mask > 0, (8, 12)).dtype == bool
    image = resized_image(np.full((2, 16, 24), -700, dtype=np.int16), (8, 12))
    assert image.dtype == np.int16
    assert (image == -700).all()
    smaller = resized_geometry(place(UPSIDE_DOWN), (2, 16, 24), (8, 12))
    assert smaller == Geometry((2.0, 4.0, 5.0), (0.5, -1.0, 0.0), UPSIDE_DOWN)


def test_a_slice_is_never_thinner_than_its_pixels() -> None:
    thin = Geometry((2.0, 1.0, 0.5), (0.0, 0.0, 10.0), UNTURNED)
    assert slice_geometry(thin, 4) == Geometry((2.0, 1.0, 2.0), (0.0, 0.0, 12.0), UNTURNED)

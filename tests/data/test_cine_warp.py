from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nnunet_qa.data.cine_files import cycle_of_pair, pair_names
from nnunet_qa.data.cine_phantom import physiological_curve
from nnunet_qa.data.cine_warp import slice_offset, warped_cycle
from nnunet_qa.errors import ImageError

SPACING = (8.0, 1.5, 1.4)
ML = 8.0 * 1.5 * 1.4 / 1000


def discs(radius: float, *, slices: int = 3, shift: float = 0.0, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bright cavity in a dark wall of constant area, in a texture that differs from slice to slice."""
    rows, columns = np.indices((72, 80))
    images, masks = [], []
    for index in range(first, first + slices):
        texture = np.random.default_rng(index).normal(size=(72, 80))
        texture = ndimage.gaussian_filter(texture, 4)
        rho = np.hypot((rows - 36 - shift) * 1.5, (columns - 41) * 1.4)
        size = radius - index
        lv, wall = rho <= size, (rho > size) & (rho**2 <= size**2 + 400)
        images.append(np.where(lv, 200, np.where(wall, 60, 120 + 60 * texture / texture.std())))
        masks.append(lv + 2 * wall)
    return np.stack(images), np.stack(masks)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, ...]:
    return (*discs(26.0), *discs(15.0, shift=2.0))


def test_the_given_frames_stay_and_volumes_follow_the_curve(pair: tuple[np.ndarray, ...]) -> None:
    cine = warped_cycle(*pair, frames=8, spacing=SPACING)
    end = int(np.argmin(cine.curves["lv"]))
    assert end == cine.end_systole == 3
    for frame, image, mask in ((0, pair[0], pair[1]), (end, pair[2], pair[3])):
        np.testing.assert_array_equal(cine.image[frame], image.astype(np.float32))
        np.testing.assert_array_equal(cine.mask[frame], mask)
    edv, esv = ((mask == 1).sum() * ML for mask in (pair[1], pair[3]))
    np.testing.assert_allclose(cine.curves["lv"], physiological_curve(8, edv, esv))
    np.testing.assert_allclose((cine.mask == 1).sum(axis=(1, 2, 3)) * ML, cine.curves["lv"], rtol=0.01)
    np.testing.assert_allclose((cine.mask == 2).sum(axis=(1, 2, 3)) * ML, cine.curves["myocardium"], rtol=0.01)
    assert set(cine.curves) == {"lv", "myocardium"}
    assert (cine.view, cine.disease, cine.image.dtype) == ("sa", "", np.float32)


def test_a_curve_of_ones_own(pair: tuple[np.ndarray, ...]) -> None:
    edv, esv = ((mask == 1).sum() * ML for mask in (pair[1], pair[3]))
    curve = np.array([edv, 0.7 * edv + 0.3 * esv, esv, 0.5 * (edv + esv)])
    cine = warped_cycle(*pair, spacing=SPACING, curve=curve)
    np.testing.assert_allclose((cine.mask == 1).sum(axis=(1, 2, 3)) * ML, curve, rtol=0.01)


def test_frames_between_show_the_shapes_between(pair: tuple[np.ndarray, ...]) -> None:
    edv, esv = ((mask == 1).sum() * ML for mask in (pair[1], pair[3]))
    cine = warped_cycle(*pair, spacing=SPACING, curve=np.array([edv, (edv + esv) / 2, esv]))
    rows, columns = np.indices((72, 80))
    radius = np.sqrt((26.0**2 + 15.0**2) / 2)  # half of the area, drawn independently
    rho = np.hypot((rows - 37) * 1.5, (columns - 41) * 1.4)
    assert dice(cine.mask[1, 0] == 1, rho <= radius) > 0.97
    assert dice(cine.mask[1, 0] == 2, (rho > radius) & (rho**2 <= radius**2 + 400)) > 0.9
    # the image moved along: what is bright is the cavity, what is dark around it the wall
    inside = ndimage.binary_dilation(cine.mask[1, 0] > 0)
    assert dice((cine.image[1, 0] > 130) & inside & (rho < radius + 4), cine.mask[1, 0] == 1) > 0.95
    assert cine.image[1, 0][cine.mask[1, 0] == 2].mean() < 80
    half = 0.5 * (cine.image[0, 0] + cine.image[2, 0])  # blending alone would leave both walls
    assert half[cine.mask[1, 0] == 2].mean() > 95


def test_noise_needs_a_generator(pair: tuple[np.ndarray, ...]) -> None:
    rng = np.random.default_rng(0)
    noisy = tuple(part + rng.normal(0, 5, part.shape) if index in (0, 2) else part for index, part in enumerate(pair))
    plain, more, again = (
        warped_cycle(*noisy, frames=4, spacing=SPACING, rng=chance)
        for chance in (None, np.random.default_rng(1), np.random.default_rng(1))
    )
    np.testing.assert_array_equal(more.image, again.image)
    np.testing.assert_array_equal(plain.image[0], more.image[0])
    assert 1 < (more.image[2] - plain.image[2]).std() < 6


def test_slices_in_one_volume_only_are_left_out(pair: tuple[np.ndarray, ...]) -> None:
    image, mask = discs(26.0, slices=5)
    inner, inner_mask = discs(15.0, slices=3, first=1)
    inner_mask = inner_mask.copy()
    inner_mask[2] = 0  # no ventricle at ES in the slice of index 3
    assert slice_offset(image, inner) == 1
    assert slice_offset(inner, image) == -1
    cine = warped_cycle(image, mask, inner, inner_mask, frames=4, spacing=SPACING)
    np.testing.assert_array_equal(cine.image[0], image[1:3].astype(np.float32))
    np.testing.assert_array_equal(cine.mask[cine.end_systole], inner_mask[:2])


def test_what_does_not_fit(pair: tuple[np.ndarray, ...]) -> None:
    ed, ed_mask, es, es_mask = pair
    with pytest.raises(ImageError, match="were the two swapped"):
        warped_cycle(es, es_mask, ed, ed_mask, spacing=SPACING)
    with pytest.raises(ImageError, match=r"ES image has shape \(3, 72, 80\), its mask \(2, 72, 80\)"):
        warped_cycle(ed, ed_mask, es, es_mask[:2], spacing=SPACING)
    with pytest.raises(ImageError, match="slices at ED have"):
        warped_cycle(ed[:, 1:], ed_mask[:, 1:], es, es_mask, spacing=SPACING)
    with pytest.raises(ImageError, match="ED mask holds 7; use 1 LV"):
        warped_cycle(ed, np.where(ed_mask == 2, 7, ed_mask), es, es_mask, spacing=SPACING)
    with pytest.raises(ImageError, match="no slice shows the left ventricle"):
        warped_cycle(ed, ed_mask, es, np.where(es_mask == 1, 0, es_mask), spacing=SPACING)
    with pytest.raises(ImageError, match="scale the curve to these"):
        warped_cycle(*pair, spacing=SPACING, curve=np.array([100.0, 50.0, 80.0]))
    with pytest.raises(ImageError, match="at least 3 volumes"):
        warped_cycle(*pair, spacing=SPACING, curve=np.array([100.0, np.nan, 80.0]))


@pytest.mark.real_data
def test_a_real_pair(real_data: Path) -> None:
    folder = real_data / "sunnybrook_cardiac_mr"
    assert len(pair_names(folder / "images")) == 30
    cine = cycle_of_pair(folder / "images", folder / "labels", "SC-HYP-01", frames=3, spacing=(8.0, 1.4, 1.4))
    assert cine.image.shape == (3, 5, 256, 256)  # 7 slices at ED, 5 at ES
    volumes = (cine.mask == 1).sum(axis=(1, 2, 3)) * 8 * 1.4 * 1.4 / 1000
    np.testing.assert_allclose(volumes, cine.curves["lv"], rtol=0.01)
    # each cavity in one piece, as an expert draws it
    for mask in cine.mask.reshape(-1, 256, 256):
        assert ndimage.label(mask)[1] == 1

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from nnunet_qa.data.phantoms import SubjectLook, draw_bscan
from nnunet_qa.data.retina import RetinaBand, default_crop_rows, find_retina, padding_mask
from nnunet_qa.errors import ImageError


def flat_bscan(*, top: int = 60, bottom: int = 100, rows: int = 200, columns: int = 300) -> np.ndarray:
    """A bright band on dark noise whose place is known."""
    image = np.random.default_rng(0).integers(0, 30, size=(rows, columns)).astype(np.uint8)
    image[top:bottom] += 150
    return image


def test_a_flat_band_is_found_to_a_few_rows() -> None:
    band = find_retina(flat_bscan(), margin=0.0)
    assert band.top == pytest.approx(60, abs=2)
    assert band.bottom == pytest.approx(100, abs=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_type_and_scale_make_no_difference(dtype: type) -> None:
    image = flat_bscan().astype(dtype)
    assert find_retina(image) == find_retina(flat_bscan())
    if np.issubdtype(dtype, np.floating):
        assert find_retina(image / 255) == find_retina(flat_bscan())


def test_margin_widens_the_band_by_its_part_of_the_rows() -> None:
    narrow, wide = (find_retina(flat_bscan(), margin=margin) for margin in (0.0, 0.05))
    assert (wide.top, wide.bottom) == (narrow.top - 10, narrow.bottom + 10)


def test_fixed_rows_are_centred_on_the_retina() -> None:
    band = find_retina(flat_bscan(), rows=80)
    assert band.rows == 80
    assert (band.top + band.bottom) / 2 == pytest.approx(80, abs=2)


@pytest.mark.parametrize(("top", "expected"), [(5, RetinaBand(0, 90)), (155, RetinaBand(110, 200))])
def test_fixed_rows_are_moved_into_the_image(top: int, expected: RetinaBand) -> None:
    assert find_retina(flat_bscan(top=top, bottom=top + 40), rows=90) == expected


def test_more_rows_than_the_image_has_give_the_image() -> None:
    assert find_retina(flat_bscan(), rows=500) == RetinaBand(0, 200)


def test_a_tilted_retina_lies_within_the_band() -> None:
    image = flat_bscan()
    shift = np.rint(np.linspace(-30, 30, image.shape[1])).astype(int)
    for column, by in enumerate(shift):
        image[:, column] = np.roll(image[:, column], by)
    band = find_retina(image, margin=0.0)
    assert band.top == pytest.approx(30, abs=4)
    assert band.bottom == pytest.approx(130, abs=4)


@pytest.mark.parametrize("value", [0, 255])
def test_borders_of_any_side_change_nothing_much(value: int) -> None:
    plain = find_retina(flat_bscan(), margin=0.0)
    image = flat_bscan()
    image[:25], image[-30:] = value, value
    image[:, :12] = value
    image[:, -2:] = value
    band = find_retina(image, margin=0.0)
    assert abs(band.top - plain.top) <= 3
    assert abs(band.bottom - plain.bottom) <= 3


def test_white_corners_with_a_blurred_edge_change_nothing_much() -> None:
    image = flat_bscan().astype(float)
    row, column = np.indices(image.shape)
    height = row + column * 0.1  # a slanted corner with an edge as resampling leaves it
    image = np.where(height < 20, 255, np.where(height < 22, 128, image))
    band = find_retina(image, margin=0.0)
    assert band.top == pytest.approx(60, abs=3)


def test_one_column_that_reaches_far_out_is_an_outlier() -> None:
    image = flat_bscan()
    image[:, 150:153] = 180
    assert find_retina(image, margin=0.0).rows < 50


def whole(image: np.ndarray) -> np.ndarray:
    """`padding_mask` written out: all areas are labelled and dilated."""
    areas, count = ndimage.label(image >= 0.95 * image.max())
    sizes = np.bincount(areas.ravel(), minlength=count + 1)
    chosen = [area for area in np.unique(areas[[0, -1]]) if area and sizes[area] >= max(image.shape) / 4]
    return np.asarray(ndimage.binary_dilation(np.isin(areas, chosen), np.ones((7, 7))))


@pytest.mark.parametrize("seed", range(8))
def test_padding_mask_is_what_labelling_the_whole_image_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.where(rng.random((40, 60)) < (0.5 if seed % 2 else 0.05), 255, rng.integers(0, 200, (40, 60)))
    image = image.astype(rng.choice([np.uint8, np.float32]))
    row, column = np.indices(image.shape)
    image[row + column * 0.3 < 9] = 255
    image[row - column * 0.2 > (36 if seed < 6 else 99)] = 255
    image[15 + seed] = 0
    np.testing.assert_array_equal(padding_mask(image), whole(image))


def test_padding_that_is_known_is_taken() -> None:
    image = flat_bscan()
    image[:40, :40] = 255
    image[:40, 40:] = 200  # bright, and neither saturated nor tissue
    padding = np.zeros(image.shape, dtype=bool)
    padding[:43] = True
    assert find_retina(image, margin=0.0).top < 10
    assert find_retina(image, margin=0.0, padding=padding).top == pytest.approx(60, abs=2)


def test_padding_mask_takes_white_corners_and_no_tissue() -> None:
    image = flat_bscan()
    image[70:80, :] = 255  # saturated tissue from side to side
    row, column = np.indices(image.shape)
    corner = row + column * 0.1 < 20
    image[corner] = 255
    mask = padding_mask(image)
    assert mask[corner].all()
    assert not mask[24:].any()
    image[corner] = 0
    assert not padding_mask(image).any()


@pytest.mark.parametrize("value", [0, 17, 255])
def test_a_constant_image_has_no_retina(value: int) -> None:
    with pytest.raises(ImageError, match="no retina found: all pixels are"):
        find_retina(np.full((64, 96), value, dtype=np.uint8))


def test_noise_alone_has_no_retina() -> None:
    with pytest.raises(ImageError, match="no retina found: bright areas are only 1"):
        find_retina(np.random.default_rng(1).integers(0, 255, size=(496, 768)).astype(np.uint8))


def test_a_bright_spot_is_no_retina() -> None:
    image = np.random.default_rng(1).integers(0, 30, size=(200, 300)).astype(np.uint8)
    image[80:120, 100:150] += 200
    with pytest.raises(ImageError, match="no retina found: the widest bright area crosses"):
        find_retina(image)


def test_two_constant_halves_of_padding_have_no_retina() -> None:
    image = np.zeros((64, 96), dtype=np.uint8)
    image[:32] = 255
    with pytest.raises(ImageError, match="no retina found"):
        find_retina(image)


def test_wrong_arguments() -> None:
    with pytest.raises(ImageError, match="is no B-scan"):
        find_retina(np.zeros((3, 64, 96)))
    with pytest.raises(ImageError, match="crop of 0 rows"):
        find_retina(flat_bscan(), rows=0)
    image = flat_bscan().astype(float)
    image[3, 4] = np.nan
    with pytest.raises(ImageError, match="1 of 60000 intensities are NaN"):
        find_retina(image)


@pytest.mark.parametrize(("rows", "columns"), [(496, 768), (498, 770)])
def test_the_band_is_that_of_every_pixel_smoothed(rows: int, columns: int) -> None:
    """Sampled at every fourth row and eighth column, the band ends within two rows of where all pixels put it."""
    rng = np.random.default_rng(3)
    image = draw_bscan(rng, look=SubjectLook.draw(rng, severity=1.0), rows=rows, columns=columns, padding=False).image
    smooth = ndimage.gaussian_filter(image.astype(float), (rows / 124, rows / 62), mode="nearest")[3:-3, 3:-3]
    areas, _ = ndimage.label(smooth > threshold_otsu(smooth))
    sizes = np.bincount(areas.ravel())[1:]
    bright = np.isin(areas, 1 + np.flatnonzero(sizes >= sizes.max() / 10))
    first, last = bright.argmax(axis=0), len(bright) - bright[::-1].argmax(axis=0)
    band = find_retina(image, margin=0.0)
    assert band.top == pytest.approx(3 + np.percentile(first, 2), abs=2)
    assert band.bottom == pytest.approx(3 + np.percentile(last, 98), abs=2)


@pytest.mark.parametrize("seed", range(6))
def test_phantoms_keep_their_fluid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bscan = draw_bscan(rng, look=SubjectLook.draw(rng, severity=1.0), rows=248, columns=384)
    band = find_retina(bscan.image, rows=default_crop_rows(248))
    assert (bscan.fluid > 0).any()
    assert not (bscan.fluid[: band.top] > 0).any()
    assert not (bscan.fluid[band.bottom :] > 0).any()


@pytest.mark.real_data
@pytest.mark.parametrize(("rows", "mean_rows"), [(None, 215), (320, 320)])
def test_real_bscans_keep_their_fluid_and_lose_the_rest(real_data: Path, rows: int | None, mean_rows: float) -> None:
    folder = real_data / "oct_duke_dme"
    fluid = kept = 0
    heights = []
    for path in sorted((folder / "images").glob("*.png")):
        mask = np.asarray(Image.open(folder / "fluid_mask" / path.name)) > 0
        band = find_retina(np.asarray(Image.open(path)), rows=rows)
        fluid += int(mask.sum())
        kept += int(mask[band.top : band.bottom].sum())
        heights.append(band.rows)
    assert len(heights) == 66
    assert kept / fluid >= 0.995
    assert np.mean(heights) <= mean_rows

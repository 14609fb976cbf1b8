from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage import filters

from nnunet_qa.errors import ImageError
from nnunet_qa.quality.image_quality import METRICS, Definition, image_quality

TYPES = [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]


def scans(kind: type, *, slices: int = 3, rows: int = 37, columns: int = 52) -> np.ndarray:
    """Smooth noise with a brightness, contrast and sharpness of its own in each slice."""
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(slices, rows, columns))
    stack = [ndimage.gaussian_filter(image, 0.3 * n + 0.4) * 60 + 90 + 20 * n for n, image in enumerate(noise)]
    return np.clip(stack, 0, 255).astype(kind)


def region(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(4).random(shape) < 0.4


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("with_region", [False, True])
def test_paper_against_scipy_and_scikit_image(kind: type, with_region: bool) -> None:
    stack = scans(kind)
    roi = region(stack.shape) if with_region else None
    found = image_quality(stack, roi)
    for number, image in enumerate(stack.astype(np.float64)):
        inside = image[roi[number]] if roi is not None else image
        expected = {
            "blurriness": 1 / ndimage.laplace(image).var(),
            "psnr_inv": (image - ndimage.median_filter(image, size=3)).var() / image.max(),
            "cov": inside.var() / inside.max(),
            "roi_mean": inside.mean(),
        }
        for name, value in expected.items():
            assert getattr(found, name)[number] == pytest.approx(value, rel=1e-10), name
        assert found.blurriness[number] == pytest.approx(1 / filters.laplace(image).var(), rel=1e-10)
        noise = image - filters.median(image, np.ones((3, 3)))
        assert found.psnr_inv[number] == pytest.approx(noise.var() / image.max(), rel=1e-10)


@pytest.mark.parametrize("kind", TYPES)
def test_reference_code_against_scipy(kind: type) -> None:
    stack = scans(kind)
    roi = region(stack.shape)
    found = image_quality(stack, roi, definition=Definition.REFERENCE_CODE)
    for number, image in enumerate(stack.astype(np.float64)):
        scaled = (image - image.min()) / (image.max() - image.min())
        error = np.mean((image - ndimage.median_filter(image, size=20)) ** 2)
        masked = image * roi[number]
        assert found.blurriness[number] == pytest.approx(ndimage.laplace(scaled).var(), rel=1e-10)
        assert found.psnr_inv[number] == pytest.approx(20 * np.log10(255 / np.sqrt(error)), rel=1e-10)
        assert found.cov[number] == pytest.approx(masked.std() / masked.mean(), rel=1e-10)
        assert found.roi_mean[number] == pytest.approx(image[roi[number]].mean(), rel=1e-10)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 20, 31])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64])
def test_any_median_window(kind: type, size: int) -> None:
    stack = scans(kind)
    expected = [
        (image - ndimage.median_filter(image, size=size)).var() / image.max() for image in stack.astype(np.float64)
    ]
    found = image_quality(stack, median_size=size).psnr_inv
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


def test_negative_intensities_and_the_whole_range_of_a_type() -> None:
    rng = np.random.default_rng(0)
    for kind in (np.int8, np.int16, np.uint16):
        limits = np.iinfo(kind)
        stack = rng.integers(limits.min, limits.max, size=(1, 20, 30), endpoint=True).astype(kind)
        image = stack[0].astype(np.float64)
        found = image_quality(stack)
        assert found.blurriness[0] == pytest.approx(1 / ndimage.laplace(image).var(), rel=1e-10)
        noise = image - ndimage.median_filter(image, size=3)
        assert found.psnr_inv[0] == pytest.approx(noise.var() / image.max(), rel=1e-10)


@pytest.mark.parametrize("definition", Definition)
def test_the_number_of_slices_makes_no_difference(definition: Definition) -> None:
    stack = scans(np.uint8, slices=5, rows=256, columns=300)  # more than one block
    roi = region(stack.shape)
    together = image_quality(stack, roi, definition=definition)
    for number in range(5):
        alone = image_quality(stack[number : number + 1], roi[number : number + 1], definition=definition)
        for name in METRICS:
            assert getattr(together, name)[number] == pytest.approx(getattr(alone, name)[0], rel=1e-12)


def test_the_metrics_say_what_their_names_say() -> None:
    rng = np.random.default_rng(1)
    sharp = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 2) * 300 + 128
    stack = np.stack([sharp, ndimage.gaussian_filter(sharp, 2), sharp + rng.normal(scale=20, size=sharp.shape)])
    paper = image_quality(stack)
    assert paper.blurriness[1] > paper.blurriness[0] > paper.blurriness[2]
    assert paper.psnr_inv[2] > paper.psnr_inv[0] > paper.psnr_inv[1]
    code = image_quality(stack, definition=Definition.REFERENCE_CODE, median_size=3)
    assert code.blurriness[1] < code.blurriness[0]
    assert code.psnr_inv[2] < code.psnr_inv[0] < code.psnr_inv[1]


def test_a_constant_slice_has_no_quality() -> None:
    stack = scans(np.uint8)
    stack[1] = 7
    for definition in Definition:
        found = image_quality(stack, definition=definition)
        for name in METRICS:
            assert np.isnan(getattr(found, name)).tolist() == [False, True, False]


def test_an_image_that_the_median_does_not_change() -> None:
    steps = np.repeat(np.repeat([[0, 4]], 8, axis=0), 8, axis=1)[None].astype(np.uint8)
    assert image_quality(steps).psnr_inv[0] == 0
    assert image_quality(steps, definition=Definition.REFERENCE_CODE, median_size=3).psnr_inv[0] == 100


def test_slices_without_region_and_without_positive_intensities() -> None:
    stack = scans(np.int16)
    roi = region(stack.shape)
    roi[0] = False
    stack[2] -= 1000
    found = image_quality(stack, roi)
    assert np.isnan(found.cov).tolist() == [True, False, True]
    assert np.isnan(found.roi_mean).tolist() == [True, False, False]
    assert np.isnan(found.psnr_inv).tolist() == [False, False, True]
    assert np.isfinite(found.blurriness).all()
    code = image_quality(stack, roi, definition=Definition.REFERENCE_CODE)
    assert np.isnan(code.cov).tolist() == [True, False, True]


def test_wrong_arguments() -> None:
    stack = scans(np.float64)
    with pytest.raises(ImageError, match="is no stack of slices"):
        image_quality(stack[0])
    with pytest.raises(ImageError, match="must be the same"):
        image_quality(stack, region((3, 37, 51)))
    with pytest.raises(ValueError, match="at least 1"):
        image_quality(stack, median_size=0)
    stack[0, 1, 2] = np.nan
    with pytest.raises(ImageError, match="1 of 5772 intensities are NaN"):
        image_quality(stack)

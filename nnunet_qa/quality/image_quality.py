"""Quality of an image without its segmentation: blurriness, PSNR-inv, CoV and ROI mean of QU-Net++, slice by slice.

The paper and its reference code define three of the four differently, and in opposite directions; both are here.
Borders are continued by their own pixels (`mode="reflect"` of SciPy; scikit-image agrees for windows of 3 x 3).
OpenCV's default leaves the border pixels themselves out of it, which changes only the outermost rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy import ndimage
from skimage.filters import rank

from nnunet_qa.data.images import check_finite, check_same_grid
from nnunet_qa.errors import ImageError

METRICS = ("blurriness", "psnr_inv", "cov", "roi_mean")
_BLOCK = 1 << 18  # pixels that are worked on at a time: an 8-bit slice of 512 x 512 and its copies stay in the cache
_GREY_LEVELS = 256  # as many as scikit-image's sliding histogram counts quickly
_PEAK = 255.0
_NO_NOISE = 100.0  # dB, where the median changes nothing


class Definition(str, Enum):
    """Whose formulas: those printed in the paper, or those of its reference code."""

    PAPER = "paper"
    REFERENCE_CODE = "reference_code"

    @property
    def median_size(self) -> int:
        """Width of the median window: 20 in the reference code; the paper names none, so 3, the smallest."""
        return 3 if self is Definition.PAPER else 20


@dataclass(frozen=True, kw_only=True)
class SliceQuality:
    """The four metrics, each `(slices,)` and float64.

    A slice of one single intensity has none of them (all NaN). `cov` and `roi_mean` are NaN where the slice has no
    pixel in the region of interest; `psnr_inv` and `cov` where their divisor, a maximum or mean, is not above 0.

    Attributes:
        blurriness: paper: `1 / var(L)`, L the Laplacian of the slice (kernel 0 1 0 / 1 -4 1 / 0 1 0); high is blurred.
            Reference code: `var(L)` of the slice scaled to [0, 1] by its minimum and maximum; high is sharp.
        psnr_inv: paper: `var(I - median(I)) / max(I)`; high is noisy. Reference code: the PSNR itself,
            `20 log10(255 / sqrt(mean((I - median(I))^2)))` in dB, 100 where the median changes nothing; high is clean.
        cov: paper: `var / max` of the pixels inside the region. Reference code: `std / mean` of the whole slice with
            zeros outside the region.
        roi_mean: mean of the pixels inside the region.
    """

    blurriness: np.ndarray
    psnr_inv: np.ndarray
    cov: np.ndarray
    roi_mean: np.ndarray


def image_quality(
    slices: np.ndarray,
    roi: np.ndarray | None = None,
    *,
    definition: Definition = Definition.PAPER,
    median_size: int | None = None,
) -> SliceQuality:
    """Measure every slice of a stack.

    Args:
        slices: `(slices, rows, columns)`, any integer or float type; one 2D image is a stack of one.
        roi: region of interest, True inside, of the same shape; None for the whole slice.
        definition: whose formulas.
        median_size: width of the square median window; None for `definition.median_size`. In a window of even width the
            upper of the two middle values is taken, and the window reaches one pixel further up and left, as in SciPy.

    Returns:
        The metrics; see there for what is NaN.

    Raises:
        ImageError: not a stack of slices, intensities that are NaN or infinite, or a region of another shape.
        ValueError: the median window is smaller than 1.

    >>> step = np.repeat([[0, 0, 4, 4]], 4, axis=0)[None]
    >>> float(image_quality(step).blurriness[0])  # the Laplacian is 0, 4, -4, 0 in every row
    0.125
    """
    if slices.ndim != 3 or not slices.size:
        raise ImageError(f"shape {slices.shape} is no stack of slices (slices, rows, columns)")
    check_finite(slices, "the image")
    if roi is not None:
        check_same_grid(slices, roi, "the region of interest")
    size = definition.median_size if median_size is None else median_size
    if size < 1:
        raise ValueError(f"a median window of {size} pixels; it must be at least 1")
    if slices.dtype == bool:
        slices = slices.astype(np.uint8)
    result = np.full((len(METRICS), len(slices)), np.nan)
    step = max(1, _BLOCK // (slices.shape[1] * slices.shape[2]))
    for start in range(0, len(slices), step):
        block = slices[start : start + step]
        inside = None if roi is None else roi[start : start + step].astype(bool)
        with np.errstate(divide="ignore", invalid="ignore"):
            measured = np.stack(
                [
                    _blurriness(block, definition),
                    _psnr_inv(block, definition, size),
                    *_region(block, inside, definition),
                ]
            )
        varies = block.min(axis=(1, 2)) < block.max(axis=(1, 2))
        result[:, start : start + step] = np.where(varies, measured, np.nan)
    return SliceQuality(**dict(zip(METRICS, result, strict=True)))


def _blurriness(block: np.ndarray, definition: Definition) -> np.ndarray:
    variance = _variance(_laplacian(block))
    if definition is Definition.PAPER:
        return 1 / variance
    low, high = (extreme(axis=(1, 2)).astype(np.float64) for extreme in (block.min, block.max))
    return variance / (high - low) ** 2  # the Laplacian of a shifted and scaled image is scaled as the image is


def _psnr_inv(block: np.ndarray, definition: Definition, size: int) -> np.ndarray:
    change = np.subtract(block, _median(block, size), dtype=np.float64)
    if definition is Definition.PAPER:
        return _variance(change) / _positive(block.max(axis=(1, 2)))
    squared = np.mean(change**2, axis=(1, 2))
    return np.where(squared == 0, _NO_NOISE, 20 * np.log10(_PEAK / np.sqrt(squared)))


def _region(block: np.ndarray, inside: np.ndarray | None, definition: Definition) -> tuple[np.ndarray, np.ndarray]:
    """CoV and ROI mean; no region stands for all pixels."""
    values = block.astype(np.float64)
    pixels = values.shape[1] * values.shape[2]
    if inside is None:
        count, highest = np.full(len(block), pixels), block.max(axis=(1, 2)).astype(np.float64)
    else:
        count = np.count_nonzero(inside, axis=(1, 2))
        highest = np.max(values, axis=(1, 2), where=inside, initial=-np.inf)
        values *= inside
    total = values.sum(axis=(1, 2))
    mean = total / count
    if definition is Definition.REFERENCE_CODE:
        cov = np.where(count > 0, np.sqrt(_variance(values)) / _positive(total / pixels), np.nan)
        return cov, mean
    values -= mean[:, None, None]
    if inside is not None:
        values *= inside
    return _square_sum(values) / count / _positive(highest), mean


def _laplacian(block: np.ndarray) -> np.ndarray:
    """Sum of the four neighbours less four times the pixel, in a type that holds it exactly for integers."""
    whole = np.issubdtype(block.dtype, np.integer)
    padded = _continued(block.astype({1: np.int16, 2: np.int32}.get(block.itemsize, float) if whole else float), 1, 1)
    result = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1]
    result += padded[:, 1:-1, :-2]
    result += padded[:, 1:-1, 2:]
    result -= 4 * padded[:, 1:-1, 1:-1]
    return result


def _median(block: np.ndarray, size: int) -> np.ndarray:
    """Median over a square window of each slice, in the type of the image."""
    if size == 3:
        return _median_of_nine(block)
    return np.stack([_wide_median(image, size) for image in block])


def _median_of_nine(block: np.ndarray) -> np.ndarray:
    """Median over 3 x 3 by comparing whole shifted images: sort each column of three, then merge three columns.

    The median of nine is that of three: the largest of the lows, the median of the middles, the smallest of the highs.
    """
    padded = _continued(block, 1, 1)
    up, here, down = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    low, high = np.minimum(up, here), np.maximum(up, here)
    middle = np.minimum(high, down)
    np.maximum(high, down, out=high)
    middle, low = np.maximum(low, middle), np.minimum(low, middle)
    lows = np.maximum(np.maximum(low[..., :-2], low[..., 1:-1]), low[..., 2:])
    highs = np.minimum(np.minimum(high[..., :-2], high[..., 1:-1]), high[..., 2:])
    return _median_of_three(lows, _median_of_three(middle[..., :-2], middle[..., 1:-1], middle[..., 2:]), highs)


def _median_of_three(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    return np.maximum(np.minimum(first, second), np.minimum(np.maximum(first, second), third))


def _wide_median(image: np.ndarray, size: int) -> np.ndarray:
    """Median of one slice over a window of any size; by a sliding histogram where there are few grey levels."""
    levels, codes = np.unique(image, return_inverse=True)
    if len(levels) > _GREY_LEVELS:
        return np.asarray(ndimage.median_filter(image, size=size, mode="reflect"))
    before, after = size // 2, size - 1 - size // 2
    padded = _continued(codes.reshape(1, *image.shape).astype(np.uint8), before, after)[0]
    # the window of scikit-image reaches as far from the middle as this one, once the middle is shifted
    filtered = rank.median(padded, np.ones((size, size), dtype=np.uint8))
    return np.asarray(levels[filtered[before : before + image.shape[0], before : before + image.shape[1]]])


def _continued(block: np.ndarray, before: int, after: int) -> np.ndarray:
    return np.pad(block, ((0, 0), (before, after), (before, after)), mode="symmetric")


def _variance(values: np.ndarray) -> np.ndarray:
    """Variance of each slice, in two passes so that nothing cancels out."""
    mean = values.mean(axis=(1, 2), dtype=np.float64)
    return _square_sum(values - mean[:, None, None]) / (values.shape[1] * values.shape[2])


def _square_sum(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("nij,nij->n", values, values))


def _positive(divisor: np.ndarray) -> np.ndarray:
    return np.where(divisor > 0, divisor, np.nan)

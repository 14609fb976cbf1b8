"""Where the retina lies in an OCT B-scan, from the image alone, so that conversions can crop to it.

In a B-scan the retina is the bright band between the dark vitreous above and the fading speckle below. The raster of
some public B-scans was shifted after acquisition; corners left free are saturated (white), in other sets black.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from nnunet_qa.errors import ImageError

SMOOTHING = 1 / 124
"""Standard deviation of the smoothing as a part of the image's rows: 4 rows of 496, about a retinal layer."""
CROP_FRACTION = 320 / 496
"""Rows of a crop as a part of the B-scan's rows: about 1.25 mm of the usual 2 mm, retina and choroid with a margin."""
_OUTLIERS = (2.0, 98.0)  # percentiles over columns: blood vessels and the optic nerve head reach far out of the band
_SATURATED = 0.95  # part of the maximum; resampling and JPEG leave white slightly below it
_EDGE = 3  # pixels; the same blur the border of white areas
_MIN_CONTRAST = 1.3  # mean of bright over dark areas once smoothed; speckle alone gives 1.1, the real B-scans over 2
_MIN_COLUMNS = 1 / 3  # a bright band crosses the B-scan, a spot does not


@dataclass(frozen=True)
class RetinaBand:
    """Rows of a B-scan that hold the retina.

    Attributes:
        top: first row, 0-based.
        bottom: the row after the last, so that `image[top:bottom]` is the band.
    """

    top: int
    bottom: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.bottom - self.top


def default_crop_rows(rows: int) -> int:
    """Rows that a crop to the retina keeps of a B-scan with `rows` rows.

    >>> default_crop_rows(496)
    320
    """
    return max(1, round(rows * CROP_FRACTION))


def padding_mask(image: np.ndarray) -> np.ndarray:
    """Pixels that a shifted raster left free: saturated areas that touch the first or last row, and their blurred edge.

    Args:
        image: B-scan `(rows, columns)`, any integer or float type, without negative values.

    Returns:
        Boolean mask `(rows, columns)`. Areas smaller than a quarter of the longer side are taken for bright tissue.
    """
    areas, count = ndimage.label(image >= _SATURATED * float(image.max()))
    sizes = np.bincount(areas.ravel(), minlength=count + 1)
    keep = np.zeros(count + 1, dtype=bool)
    keep[np.unique(areas[[0, -1]])] = True  # saturated tissue reaches the sides, never these
    keep &= sizes >= max(image.shape) / 4
    keep[0] = False
    return np.asarray(ndimage.binary_dilation(keep[areas], structure=np.ones((3, 3)), iterations=_EDGE))


def find_retina(image: np.ndarray, *, rows: int | None = None, margin: float = 0.02) -> RetinaBand:
    """Find the rows of a B-scan that hold the retina.

    The smoothed image is parted in bright and dark (Otsu's threshold on everything but the padding), bright areas that
    are small beside the largest are dropped, and the band goes from the first to the last bright row of the columns,
    a few outlying columns left aside. Fluid is dark, but lies between bright layers.

    Args:
        image: B-scan `(rows, columns)`, any integer or float type; vitreous above, choroid below.
        rows: height of the band that is wanted: that many rows around the middle of the retina, moved into the image
            where they would leave it (all rows where the image has fewer). None for the retina and `margin`.
        margin: with `rows` None, rows added above and below as a part of the image's rows.

    Returns:
        The band.

    Raises:
        ImageError: the array is no B-scan, holds NaN, or has no bright band (a constant image, noise alone).
    """
    if image.ndim != 2 or min(image.shape) < 8:
        raise ImageError(f"shape {image.shape} is no B-scan; give one image (rows, columns) of at least 8 x 8 pixels")
    if rows is not None and rows < 1:
        raise ImageError(f"a crop of {rows} rows was asked for; give at least 1")
    values = image.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError(f"{int((~np.isfinite(values)).sum())} of {image.size} intensities are NaN or infinite")
    top, bottom = _extent(_bright_areas(values))
    height = image.shape[0]
    if rows is None:
        spare = round(margin * height)
        return RetinaBand(max(0, top - spare), min(height, bottom + spare))
    if rows >= height:
        return RetinaBand(0, height)
    start = min(max(0, round((top + bottom - rows) / 2)), height - rows)
    return RetinaBand(start, start + rows)


def _bright_areas(values: np.ndarray) -> np.ndarray:
    """Mask of the areas of the smoothed image that are large and bright."""
    if values.min() == values.max():
        raise ImageError(f"no retina found: all pixels are {values.min():g}; leave this B-scan out or check its file")
    sigma = max(1.0, values.shape[0] * SMOOTHING)
    values = values - values.min()
    padding = padding_mask(values)
    frame = np.ones(values.shape, dtype=bool)  # thin ends of white corners and lines along the sides are left out too
    frame[_EDGE:-_EDGE, _EDGE:-_EDGE] = False
    padding |= frame
    smooth, valid = _smooth_without(values, padding, sigma=(sigma, 2 * sigma))
    inside = smooth[valid]
    if not inside.size or inside.min() == inside.max():
        raise ImageError("no retina found: nothing but padding; leave this B-scan out or check its file")
    threshold = threshold_otsu(inside)
    contrast = inside[inside > threshold].mean() / max(inside[inside <= threshold].mean(), 1e-12)
    if contrast < _MIN_CONTRAST:
        raise ImageError(
            f"no retina found: bright areas are only {contrast:.2f} times as bright as dark ones; "
            "leave this B-scan out or convert without the crop"
        )
    bright = valid & (smooth > threshold)
    areas, count = ndimage.label(bright)
    sizes = np.bincount(areas.ravel(), minlength=count + 1)
    sizes[0] = 0
    bright = (sizes >= sizes.max() / 10)[areas] & (areas > 0)
    largest = areas == int(sizes.argmax())
    if largest.any(axis=0).mean() < _MIN_COLUMNS:
        raise ImageError(
            f"no retina found: the widest bright area crosses {largest.any(axis=0).mean():.0%} of the columns; "
            "leave this B-scan out or convert without the crop"
        )
    return np.asarray(bright)


def _smooth_without(
    values: np.ndarray, left_out: np.ndarray, *, sigma: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian mean of the pixels that are not left out, and where there are any nearby."""
    used = (~left_out).astype(np.float64)
    weight = ndimage.gaussian_filter(used, sigma, mode="nearest")
    total = ndimage.gaussian_filter(np.where(left_out, 0.0, values), sigma, mode="nearest")
    valid = (weight > 0.1) & ~left_out
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0.1), valid


def _extent(bright: np.ndarray) -> tuple[int, int]:
    """First bright row and the row after the last, outlying columns left aside."""
    columns = bright.any(axis=0)
    first = bright.argmax(axis=0)[columns]
    last = bright.shape[0] - bright[::-1].argmax(axis=0)[columns]
    return int(np.percentile(first, _OUTLIERS[0])), int(np.ceil(np.percentile(last, _OUTLIERS[1])))

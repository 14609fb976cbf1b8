"""Where the retina lies in an OCT B-scan, from the image alone, so that conversions can crop to it.

In a B-scan the retina is the bright band between the dark vitreous above and the fading speckle below. The raster of
some public B-scans was shifted after acquisition; corners left free are saturated (white), in other sets black.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

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
    limit = _SATURATED * float(image.max())
    saturated = image >= (math.ceil(limit) if np.issubdtype(image.dtype, np.integer) else limit)
    mask = np.zeros(image.shape, dtype=bool)
    # no area goes across a row without saturated pixels, so what lies between the first and the last is not looked at
    dark = np.flatnonzero(~saturated.any(axis=1))
    top, bottom = (dark[0], dark[-1] + 1) if len(dark) else (len(mask), len(mask))
    for rows, outermost in ((slice(0, top), [0] if len(dark) else [0, -1]), (slice(bottom, None), [-1])):
        if mask[rows].size and saturated[rows][outermost].any():
            mask[rows] = _areas_at(saturated[rows], outermost, least=max(image.shape) / 4)
    grown = mask.copy()
    for rows in (slice(0, top + _EDGE), slice(max(0, bottom - _EDGE), None)):
        if mask[rows].any():
            grown[rows] |= _grown(_grown(mask[rows], axis=0), axis=1)
    return grown


def _areas_at(saturated: np.ndarray, rows: list[int], *, least: float) -> np.ndarray:
    """Areas that touch one of the rows and have so many pixels; saturated tissue reaches the sides, never these."""
    areas, count = ndimage.label(saturated)
    keep = np.zeros(count + 1, dtype=bool)
    keep[areas[rows]] = True
    keep &= np.bincount(areas.ravel(), minlength=count + 1) >= least
    keep[0] = False
    return np.asarray(keep[areas])


def _grown(mask: np.ndarray, *, axis: int) -> np.ndarray:
    """A mask that reaches `_EDGE` pixels further to both sides along an axis."""
    grown = mask.copy()
    for shift in range(1, _EDGE + 1):
        here, there = ([slice(None)] * axis + [part] for part in (slice(shift, None), slice(None, -shift)))
        grown[tuple(here)] |= mask[tuple(there)]
        grown[tuple(there)] |= mask[tuple(here)]
    return grown


def find_retina(
    image: np.ndarray, *, rows: int | None = None, margin: float = 0.02, padding: np.ndarray | None = None
) -> RetinaBand:
    """Find the rows of a B-scan that hold the retina.

    The smoothed image, sampled as densely as the smoothing asks for, is parted in bright and dark (Otsu's threshold on
    everything but the padding), bright areas that are small beside the largest are dropped, and the band goes from the
    first to the last bright row of the columns, a few outlying columns left aside. Fluid is dark, but lies between
    bright layers.

    Args:
        image: B-scan `(rows, columns)`, any integer or float type; vitreous above, choroid below.
        rows: height of the band that is wanted: that many rows around the middle of the retina, moved into the image
            where they would leave it (all rows where the image has fewer). None for the retina and `margin`.
        margin: with `rows` None, rows added above and below as a part of the image's rows.
        padding: pixels that are none of the image's, where they are known; otherwise those of `padding_mask`.

    Returns:
        The band.

    Raises:
        ImageError: the array is no B-scan, holds NaN, or has no bright band (a constant image, noise alone).
    """
    if image.ndim != 2 or min(image.shape) < 8:
        raise ImageError(f"shape {image.shape} is no B-scan; give one image (rows, columns) of at least 8 x 8 pixels")
    if rows is not None and rows < 1:
        raise ImageError(f"a crop of {rows} rows was asked for; give at least 1")
    if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
        raise ImageError(f"{int((~np.isfinite(image)).sum())} of {image.size} intensities are NaN or infinite")
    top, bottom = _extent(*_smoothed(image, padding))
    height = image.shape[0]
    if rows is None:
        spare = round(margin * height)
        return RetinaBand(max(0, top - spare), min(height, bottom + spare))
    if rows >= height:
        return RetinaBand(0, height)
    start = min(max(0, round((top + bottom - rows) / 2)), height - rows)
    return RetinaBand(start, start + rows)


def _smoothed(image: np.ndarray, padding: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Gaussian mean of the pixels that are no padding, where there are any, and how many rows apart its samples are.

    Along the columns it is twice as wide, and its samples twice as far apart. They are means of blocks of pixels, which
    smooth a little by themselves.
    """
    lowest = float(image.min())
    if lowest == float(image.max()):
        raise ImageError(f"no retina found: all pixels are {lowest:g}; leave this B-scan out or check its file")
    sigma = max(1.0, image.shape[0] * SMOOTHING)
    if padding is None:
        padding = padding_mask(image.astype(np.float32) - np.float32(lowest) if lowest else image)
    block = (int(sigma), 2 * int(sigma))
    rest = tuple(math.sqrt((wide * sigma) ** 2 - (step**2 - 1) / 12) / step for wide, step in enumerate(block, 1))
    values = _without_sides(image.astype(image.dtype if image.dtype in (np.uint8, np.uint16) else np.float32))
    if padding.any():
        values[padding] = 0
        part, weight = _parts(_without_sides(~padding), block, rest)
    else:
        part, weight = _inner_parts(image.shape, block, rest)
    mean = _blocks(values, block) - np.float32(lowest) * part
    total = ndimage.gaussian_filter(mean, rest, mode="nearest")
    seen = weight > 0.1
    return np.divide(total, weight, out=np.zeros_like(total), where=seen), seen & (part >= 0.5), block[0]


def _without_sides(pixels: np.ndarray) -> np.ndarray:
    """The array itself, 0 near the sides: thin ends of white corners and lines along the sides are left out, too."""
    for near in (slice(None, _EDGE), slice(-_EDGE, None)):
        pixels[near] = pixels[:, near] = 0
    return pixels


def _parts(used: np.ndarray, block: tuple[int, int], sigma: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Part of each block of pixels that is used, and the same smoothed."""
    part = _blocks(used.astype(np.uint8), block)
    return part, ndimage.gaussian_filter(part, sigma, mode="nearest")


@lru_cache(maxsize=8)
def _inner_parts(
    shape: tuple[int, ...], block: tuple[int, int], sigma: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """`_parts` of a B-scan without padding; all B-scans of a scan have one size."""
    return _parts(_without_sides(np.ones(shape, dtype=bool)), block, sigma)


def _blocks(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Means of blocks of so many rows and columns, float32; beyond the last row and column are zeros.

    The same as scikit-image's `downscale_local_mean`, in a seventh of its time, which counts for each B-scan: pixels of
    up to 16 bits are added up as whole numbers.
    """
    spare = [-size % step for size, step in zip(values.shape, block, strict=True)]
    padded = np.pad(values, [(0, count) for count in spare]) if any(spare) else values
    kind = np.float32 if np.issubdtype(values.dtype, np.floating) else np.uint32
    by_row = padded[:: block[0]].astype(kind)
    for first in range(1, block[0]):
        np.add(by_row, padded[first :: block[0]], out=by_row)
    total = by_row[:, :: block[1]].astype(kind)
    for first in range(1, block[1]):
        np.add(total, by_row[:, first :: block[1]], out=total)
    return np.asarray(total.astype(np.float32) / np.float32(math.prod(block)))


def _extent(smooth: np.ndarray, valid: np.ndarray, step: int) -> tuple[int, int]:
    """First bright row and the row after the last in pixels, outlying columns left aside."""
    inside = smooth[valid]
    if not inside.size or inside.min() == inside.max():
        raise ImageError("no retina found: nothing but padding; leave this B-scan out or check its file")
    threshold = float(threshold_otsu(inside))
    contrast = inside[inside > threshold].mean() / max(inside[inside <= threshold].mean(), 1e-12)
    if contrast < _MIN_CONTRAST:
        raise ImageError(
            f"no retina found: bright areas are only {contrast:.2f} times as bright as dark ones; "
            "leave this B-scan out or convert without the crop"
        )
    bright = _large_areas(valid & (smooth > threshold))
    excess = np.where(valid, smooth - threshold, -np.inf)
    first = _edges(bright, excess, step)
    last = smooth.shape[0] * step - _edges(bright[::-1], excess[::-1], step)
    return int(np.percentile(first, _OUTLIERS[0])), int(np.ceil(np.percentile(last, _OUTLIERS[1])))


def _large_areas(bright: np.ndarray) -> np.ndarray:
    """Bright areas without those that are small beside the largest, which has to cross the B-scan."""
    areas, count = ndimage.label(bright)
    sizes = np.bincount(areas.ravel(), minlength=count + 1)
    sizes[0] = 0
    across = float((areas == int(sizes.argmax())).any(axis=0).mean())
    if across < _MIN_COLUMNS:
        raise ImageError(
            f"no retina found: the widest bright area crosses {across:.0%} of the columns; "
            "leave this B-scan out or convert without the crop"
        )
    return np.asarray((sizes >= sizes.max() / 10)[areas] & (areas > 0))


def _edges(bright: np.ndarray, excess: np.ndarray, step: int) -> np.ndarray:
    """First bright row of pixels of each column with bright samples; rows between two samples by their excess.

    A sample is bright where its excess is above 0; it is -inf where there is no image.
    """
    columns = np.flatnonzero(bright.any(axis=0))
    first = bright[:, columns].argmax(axis=0)
    inner, outer = (excess[np.maximum(first - back, 0), columns] for back in (0, 1))
    known = (first > 0) & np.isfinite(outer) & (outer <= 0)
    back = np.where(known, inner / np.where(known, inner - outer, 1.0), 0.5)  # of the way to the sample before
    return np.asarray(np.ceil((first + 0.5 - back) * step - 0.5))

"""Regions of interest: the retina in OCT B-scans, the lungs in CT, or chosen labels of a mask.

QU-Net++ measures CoV and mean inside such a region, so that the empty part of a scan does not drown the tissue.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import disk

from nnunet_qa.data.images import check_finite
from nnunet_qa.data.retina import find_retina, padding_mask
from nnunet_qa.errors import ImageError

AIR = -500
"""Intensity below which an image must reach to be taken for HU: air is at -1000, and only HU go so far below 0."""
LUNG = -320
"""HU between lung and soft tissue."""
_SMOOTHING = 1 / 256  # of the rows, as the lengths below
_OPENING = 1 / 128  # wider than the table top and the couch, thinner than any part of a lung that matters
_CLOSING = 1 / 50  # about 7 mm: vessels, bronchi and the rims of infiltrates
_SMALLER_LUNG = 0.1  # of the voxels of the larger one; what is smaller is bowel gas or a gap between fat and muscle


class Roi(str, Enum):
    """Where the region of interest comes from: a mask file, labels of a label map, or the image; or the whole image.

    `nonzero` is what is not 0, for images that were masked before.
    """

    NONE = "none"
    MASK = "mask"
    LABELS = "labels"
    RETINA = "retina"
    LUNGS = "lungs"
    NONZERO = "nonzero"


def from_labels(labels: np.ndarray, values: Collection[int] = ()) -> np.ndarray:
    """Where a label map or mask has one of the values, or any value above 0 where none are given.

    >>> from_labels(np.array([0, 1, 2]), {2}).tolist()
    [False, False, True]
    """
    return np.isin(labels, list(values)) if values else labels > 0


def retina(slices: np.ndarray) -> np.ndarray:
    """The band of rows that holds the retina in each B-scan, without the padding of shifted rasters.

    Args:
        slices: B-scans `(slices, rows, columns)`, any type; see `nnunet_qa.data.retina.find_retina`.

    Returns:
        Boolean mask of the same shape. A B-scan of a volume in which no retina is found has an empty one.

    Raises:
        ImageError: no retina is found in any of the B-scans.
    """
    mask = np.zeros(slices.shape, dtype=bool)
    failure = None
    for image, inside in zip(slices, mask, strict=True):
        try:
            band = find_retina(image)
        except ImageError as error:
            failure = failure or error
            continue
        inside[band.top : band.bottom] = True
        inside &= ~padding_mask(image.astype(np.float64) - float(image.min()))
    if failure is not None and not mask.any():
        raise failure
    return mask


def lungs(slices: np.ndarray) -> np.ndarray:
    """The lungs in a CT: what is dark inside the body, by thresholds and connected components, vessels filled in.

    Of an image in HU (minimum below `AIR`) the threshold is `LUNG`. Of any other, scaled slice by slice for example,
    Otsu's threshold parts each slice into air and body, and once more the inside of the body; the lower one counts. So
    infiltrates as bright as muscle are lost where they are larger than a vessel.

    Args:
        slices: axial slices `(slices, rows, columns)` of one scan, or a single one, any type. The body must be brighter
            than the air around it, and closed: lungs that the edge of the image cuts open are not found.

    Returns:
        Boolean mask of the same shape, empty where nothing is found.

    Raises:
        ImageError: not a stack of slices, or intensities that are NaN or infinite.
    """
    if slices.ndim != 3 or not slices.size:
        raise ImageError(f"shape {slices.shape} is no stack of slices (slices, rows, columns)")
    check_finite(slices, "the image")
    rows = slices.shape[1]
    threshold = LUNG if slices.min() < AIR else None
    dark = np.stack([_dark_inside(image, threshold) for image in slices])
    areas, count = ndimage.label(dark)
    sizes = np.bincount(areas.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = (sizes >= _SMALLER_LUNG * sizes.max()) & (sizes > 0)
    closing = max(1, round(rows * _CLOSING))
    # a closing pulls back from the border of the array, so the array is made larger for it
    padded = np.pad(large[areas], ((0, 0), (closing, closing), (closing, closing)))
    closed = ndimage.binary_closing(padded, disk(closing)[None])[:, closing:-closing, closing:-closing]
    return np.stack([ndimage.binary_fill_holes(image) for image in closed])


def _dark_inside(image: np.ndarray, threshold: float | None) -> np.ndarray:
    """What is dark inside the body in one slice; nothing where the slice has one single intensity."""
    rows = image.shape[0]
    smooth = ndimage.gaussian_filter(image.astype(np.float64), rows * _SMOOTHING)
    if smooth.min() == smooth.max():
        return np.zeros(image.shape, dtype=bool)
    opening = disk(max(1, round(rows * _OPENING)))
    edge = threshold if threshold is not None else threshold_otsu(smooth)
    areas, count = ndimage.label(ndimage.binary_opening(smooth > edge, opening))
    sizes = np.bincount(areas.ravel(), minlength=count + 1)
    sizes[0] = 0
    body = ndimage.binary_fill_holes(areas == sizes.argmax()) if count else np.zeros(image.shape, dtype=bool)
    inside = smooth[body]
    if threshold is None and inside.size and inside.min() < inside.max():
        # where a slice holds little lung, the second threshold parts fat from muscle, and the first is the lower one
        edge = min(edge, threshold_otsu(inside))
    return np.asarray(ndimage.binary_opening(body & (smooth <= edge), opening))

"""Chest CT put upright and resized: axes by the header or by the lungs, with the position in the patient kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from skimage.transform import resize, resize_local_mean

from nnunet_qa.data.images import Geometry, check_same_grid
from nnunet_qa.dataset_conversion.budget import read_bounded
from nnunet_qa.dataset_conversion.engine import below
from nnunet_qa.errors import ImageError

AXES = "LPS"
"""Columns run to the patient's left, rows to the back (spine at the bottom), slices to the head."""
_SAME_DIRECTION = 1e-3
_LEAST_SKEW = 0.05


@dataclass(frozen=True)
class Upright:
    """A volume with its axes along `AXES`.

    Attributes:
        array: `(slices, rows, columns)`.
        geometry: its position; no voxel has moved in the patient.
        stored: position of the array as it was in the file.
    """

    array: np.ndarray
    geometry: Geometry
    stored: Geometry


@dataclass(frozen=True)
class Turn:
    """What puts slices upright whose header is wrong or missing.

    Attributes:
        transpose: exchange rows and columns, before `flip`.
        flip: reverse the rows.
    """

    transpose: bool = False
    flip: bool = False

    def array(self, array: np.ndarray) -> np.ndarray:
        """Turn `(slices, rows, columns)`."""
        turned = array.swapaxes(1, 2) if self.transpose else array
        return turned[:, ::-1] if self.flip else turned

    def geometry(self, geometry: Geometry | None) -> Geometry | None:
        """The spacing follows the axes; origin and direction stay, as the header was right about the body."""
        if geometry is None or not self.transpose:
            return geometry
        x, y, z = geometry.spacing
        return replace(geometry, spacing=(y, x, z))


def read_upright(path: Path, source: Path) -> Upright:
    """Read a volume below `source` and put it upright by its header.

    Raises:
        DatasetError: a symbolic link leads out of the source.
        ImageError: the file cannot be read, unpacks to far more than it weighs, or is no volume.
    """
    return upright(*read_bounded(below(path, source)), name=str(path))


def upright(array: np.ndarray, geometry: Geometry, *, name: str) -> Upright:
    """Exchange and reverse axes until they run along `AXES`, or as near as an oblique volume allows.

    Raises:
        ImageError: the array is not `(slices, rows, columns)`.
    """
    if array.ndim != 3:
        raise ImageError(
            f"{name}: has the shape {array.shape}; a volume (slices, rows, columns) of one channel is needed"
        )
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    oriented = sitk.DICOMOrient(image, AXES)
    return Upright(sitk.GetArrayFromImage(oriented), Geometry.of(oriented), geometry)


def check_aligned(mask: Upright, image: Upright, name: str) -> None:
    """Refuse a mask that lies elsewhere than its image.

    Headers of public masks are often careless about origin and spacing. That does no harm where mask and image were
    stored with the same axes; where the axes differ, both headers must put them at the same place.

    Raises:
        ImageError: shapes differ, or it is not known how the mask lies on the image.
    """
    check_same_grid(image.array, mask.array, name)
    if np.allclose(mask.stored.direction, image.stored.direction, atol=_SAME_DIRECTION):
        return
    shift = np.abs(np.subtract(mask.geometry.origin, image.geometry.origin)).max()
    if (
        not np.allclose(mask.geometry.direction, image.geometry.direction, atol=_SAME_DIRECTION)
        or not np.allclose(mask.geometry.spacing, image.geometry.spacing, rtol=1e-2)
        or shift > min(image.geometry.spacing) / 2
    ):
        raise ImageError(f"{name}: its header places it elsewhere than its image, with other axes; correct the header")


def turn_by_lungs(lungs: np.ndarray) -> Turn | None:
    """Find what puts slices upright from the lungs alone.

    The lungs lie side by side, so they spread more along the columns than along the rows; and as they taper to the
    front, the rows of their pixels are skewed towards it. Left and right cannot be told apart this way.

    Args:
        lungs: pixels of the lungs in all slices of a stack `(slices, rows, columns)`, or their sum `(rows, columns)`.

    Returns:
        The turn, or None where the lungs do not tell front from back.
    """
    counts = lungs.sum(axis=0) if lungs.ndim == 3 else lungs
    if not counts.any():
        return None
    spread = [_moments(counts.sum(axis=1 - axis)) for axis in (0, 1)]
    transpose = spread[0][0] > spread[1][0]
    skew = spread[1 if transpose else 0][1]
    return None if abs(skew) < _LEAST_SKEW else Turn(transpose=transpose, flip=skew > 0)


def _moments(counts: np.ndarray) -> tuple[float, float]:
    """Standard deviation and skewness of positions 0, 1, … that occur `counts` times."""
    positions = np.arange(len(counts))
    share = counts / counts.sum()
    offset = positions - (positions * share).sum()
    deviation = float(np.sqrt((offset**2 * share).sum()))
    return deviation, float((offset**3 * share).sum()) / max(deviation, 1e-9) ** 3


def resized_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Every slice at `size` (rows, columns), low-pass filtered before it is sampled; integers stay integers."""
    out = np.empty((len(image), *size), dtype=image.dtype)
    for index, pixels in enumerate(image):
        values = resize(pixels.astype(np.float64), size, order=1, anti_aliasing=True, preserve_range=True)
        out[index] = np.rint(values) if np.issubdtype(image.dtype, np.integer) else values
    return out


def resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Every slice at `size`: a pixel gets the value that most of its area has, of equal shares the higher one."""
    out = np.empty((len(mask), *size), dtype=mask.dtype)
    for index, pixels in enumerate(mask):
        values = np.unique(pixels)[::-1]
        shares = [resize_local_mean((pixels == value).astype(np.float64), size) for value in values]
        out[index] = values[np.argmax(np.round(shares, 6), axis=0)]  # rounding must not decide about equal shares
    return out


def resized_geometry(geometry: Geometry, shape: tuple[int, ...], size: tuple[int, int]) -> Geometry:
    """Position after resizing slices of `shape` (…, rows, columns) to `size`; the covered area stays."""
    old = np.array(geometry.spacing)
    new = old * (shape[-1] / size[1], shape[-2] / size[0], 1)
    return replace(geometry, spacing=tuple(new.tolist()), origin=_moved(geometry, (new - old) / 2))


def slice_geometry(geometry: Geometry, index: int) -> Geometry:
    """Position of one slice as a volume of its own.

    It is never thinner than its pixels are wide: nnU-Net takes the axis of the widest spacing for that of the slices.
    """
    x, y, z = geometry.spacing
    return replace(geometry, spacing=(x, y, max(x, y, z)), origin=_moved(geometry, np.array((0, 0, index * z))))


def _moved(geometry: Geometry, along: np.ndarray) -> tuple[float, ...]:
    """Origin after a step in mm along the volume's own axes."""
    step = np.reshape(geometry.direction, (3, 3)) @ along
    return tuple((np.array(geometry.origin) + step).tolist())

"""Left and right in CT of the legs: whose bone a mask shows, where to cut between the legs, the box around a bone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_qa.data.images import Geometry
from nnunet_qa.errors import ImageError

RIGHT, LEFT = 1, 2
SIDES = {"right": RIGHT, "left": LEFT}
TISSUE, BONE = -200.0, 200.0
"""Intensities in HU above which a voxel is taken for soft tissue and for bone."""
_VALLEY = 0.35  # tissue between two legs, as a part of what the thinner leg has
_SMALL = 0.03  # of the largest bone
_APART = 30.0  # mm; two bones with less between them belong to one leg


@dataclass(frozen=True)
class Leg:
    """Part of a scan.

    Attributes:
        side: "left", "right", or nothing where it is not known.
        start: first index along the axis from right to left.
        stop: index behind the last.
    """

    side: str
    start: int
    stop: int


def side_axis(geometry: Geometry) -> tuple[int, bool]:
    """Axis of an array `(slices, rows, columns)` that runs between right and left; whether its end is on the left."""
    across = np.reshape(geometry.direction, (3, 3))[0]
    column = int(np.abs(across).argmax())
    return 2 - column, bool(across[column] > 0)


def sides_of(mask: np.ndarray, image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Name the sides of a mask that does not say them.

    Bones far apart are those of two legs. A single one belongs to the leg it lies in; where only one leg is in the
    scan, the fibula says itself which, because it lies on the outer side of the leg.

    Args:
        mask: booleans `(slices, rows, columns)`, not empty.
        image: HU of the same shape.
        geometry: of both.

    Returns:
        0, `RIGHT` and `LEFT` of the same shape.
    """
    axis, rising = side_axis(geometry)
    column = 2 - axis
    used = np.flatnonzero(mask.any(axis=_others(axis)))
    gaps = np.diff(used)
    widest = int(gaps.argmax()) if len(gaps) else 0
    if len(gaps) and gaps[widest] * geometry.spacing[column] >= _APART:
        cut = (used[widest] + used[widest + 1] + 1) / 2
    else:
        between = midline(image, axis)
        cut = _mean_index(image > TISSUE, axis) + 0.5 if between is None else between
        place = _mean_index(mask, axis) + 0.5
        cut = mask.shape[axis] if place < cut else 0
    lower, upper = (RIGHT, LEFT) if rising else (LEFT, RIGHT)
    position = np.arange(mask.shape[axis]) + 0.5
    by_index = np.where(position < cut, lower, upper).astype(np.uint8)
    return np.asarray(mask * by_index.reshape([-1 if number == axis else 1 for number in range(3)]), dtype=np.uint8)


def check_sides(sides: np.ndarray, geometry: Geometry, name: str) -> None:
    """Refuse masks whose left lies on the right of their right.

    Raises:
        ImageError: the names are exchanged, or a surface is in the other frame.
    """
    axis, rising = side_axis(geometry)
    if not ((sides == RIGHT).any() and (sides == LEFT).any()):
        return
    right, left = (_mean_index(sides == value, axis) for value in (RIGHT, LEFT))
    if (left > right) != rising:
        raise ImageError(
            f"{name}: the left fibula lies on the right of the right one; correct the names of the masks, or the frame "
            "of the surfaces with --stl-space"
        )


def midline(image: np.ndarray, axis: int) -> int | None:
    """Index along the axis from right to left at which a scan of two legs is cut; None where it shows one leg.

    Two legs show as two hills of tissue with a valley between them, which touching legs have too.
    """
    profile = (image > TISSUE).sum(axis=_others(axis)).astype(np.float64)
    used = np.flatnonzero(profile > 0.05 * profile.max())
    if len(used) < 4:
        return None
    quarter = len(used) // 4
    middle = np.arange(used[0] + quarter, used[-1] - quarter + 1)
    hills = np.minimum(np.maximum.accumulate(profile), np.maximum.accumulate(profile[::-1])[::-1])[middle]
    depth = profile[middle] / np.maximum(hills, 1.0)
    if depth.min() > _VALLEY:
        return None
    return round(float(middle[depth == depth.min()].mean()))


def legs_of(image: np.ndarray, sides: np.ndarray | None, geometry: Geometry, name: str) -> list[Leg]:
    """Cut a scan into its legs.

    Args:
        image: HU `(slices, rows, columns)`.
        sides: 0, `RIGHT` and `LEFT` of the same shape, or None for a scan without mask.
        geometry: of the scan.
        name: of the scan, for error texts.

    Raises:
        ImageError: the masks of the two sides overlap from right to left.
    """
    axis, rising = side_axis(geometry)
    length = image.shape[axis]
    lower, upper = ("right", "left") if rising else ("left", "right")
    known = {side: _extent(sides == value, axis) for side, value in SIDES.items()} if sides is not None else {}
    found = {side: extent for side, extent in known.items() if extent is not None}
    cut = midline(image, axis)
    if len(found) == 2:
        below, above = found[lower][1], found[upper][0]
        if below > above:
            raise ImageError(
                f"{name}: the masks of left and right overlap from right to left; are they named the wrong way round?"
            )
        if cut is None or not below <= cut <= above:
            cut = (below + above) // 2
    elif len(found) == 1:
        ((side, (start, stop)),) = found.items()
        if cut is None or not (stop <= cut if side == lower else start >= cut):
            return [Leg(side, 0, length)]
    if cut is None:
        return [Leg("", 0, length)]
    return [Leg(lower, 0, cut), Leg(upper, cut, length)]


def bare_leg(image: np.ndarray, sides: np.ndarray, geometry: Geometry, name: str) -> Leg | None:
    """The leg without a mask in a scan of two legs, one of which has a mask; None for all other scans.

    Args:
        image: HU `(slices, rows, columns)`.
        sides: 0, `RIGHT` and `LEFT` of the same shape.
        geometry: of the scan.
        name: of the scan, for error texts.
    """
    annotated = [side for side, value in SIDES.items() if (sides == value).any()]
    legs = legs_of(image, sides, geometry, name) if len(annotated) == 1 else []
    return next((leg for leg in legs if leg.side not in annotated), None)


def bone_box(bone: np.ndarray, margin: float, geometry: Geometry) -> tuple[slice, slice, slice]:
    """The box around a bone and a margin in mm, within the scan.

    Args:
        bone: booleans `(slices, rows, columns)`, not empty.
        margin: in mm, rounded up to whole voxels.
        geometry: of the scan.
    """
    box = []
    for axis, size in enumerate(bone.shape):
        extent = _extent(bone, axis)
        assert extent is not None
        extra = int(np.ceil(margin / geometry.spacing[2 - axis] - 1e-6))
        box.append(slice(max(0, extent[0] - extra), min(size, extent[1] + extra)))
    return box[0], box[1], box[2]


def bones_of(image: np.ndarray) -> np.ndarray:
    """Connected parts of a scan above `BONE`, without those that are small beside the largest, as booleans.

    A scan without mask is cropped around them; a fibula has about a seventh of the volume of its tibia.
    """
    numbered, _ = ndimage.label(image > BONE)
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    kept = (sizes > 0) & (sizes >= _SMALL * sizes.max())
    return np.asarray(kept[numbered])


def _extent(mask: np.ndarray, axis: int) -> tuple[int, int] | None:
    used = np.flatnonzero(mask.any(axis=_others(axis)))
    return (int(used[0]), int(used[-1]) + 1) if len(used) else None


def _mean_index(mask: np.ndarray, axis: int) -> float:
    counts = mask.sum(axis=_others(axis))
    return float(counts @ np.arange(len(counts)) / max(1, counts.sum()))


def _others(axis: int) -> tuple[int, ...]:
    return tuple(number for number in range(3) if number != axis)

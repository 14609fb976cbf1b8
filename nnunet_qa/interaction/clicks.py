"""Where a user clicks (paper 004): first in the middle of the object, then in the middle of the largest error.

Positions are voxel indices in array order, (z, y, x) or (y, x); label maps have no channel axis, 0 is background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_qa.errors import ImageError

BACKGROUND = 0


@dataclass(frozen=True)
class Click:
    """A voxel and what the user says it belongs to.

    Attributes:
        position: voxel index in array order.
        label: 0 for background, else the class, 1…K.
    """

    position: tuple[int, ...]
    label: int


def innermost(mask: np.ndarray, spacing: Sequence[float] | None = None) -> tuple[int, ...] | None:
    """The point of a mask that lies deepest inside: the maximum of its Euclidean distance transform.

    All beyond the image counts as outside. Of several such points it is the first in C order. Where a mask is one voxel
    thick along an axis, every point is as near to the outside across it, and the one deepest within the plane is taken.

    Args:
        mask: booleans.
        spacing: voxel sizes in mm, in the order of the axes; None for equal ones.

    Returns:
        Its index; None for an empty mask.

    >>> innermost(np.ones((3, 7), bool))
    (1, 1)
    """
    if not mask.any():
        return None
    box = _bounding_box(mask)
    cropped = mask[box]
    # nothing outside the box but its rim can be the nearest point outside
    rim = [(0, 0) if length == 1 and mask.ndim > 1 else (1, 1) for length in cropped.shape]
    if not any(before for before, _ in rim):
        return tuple(part.start for part in box)
    depth = ndimage.distance_transform_edt(np.pad(cropped, rim), sampling=spacing)
    found = np.unravel_index(int(depth.argmax()), depth.shape)
    return tuple(int(i) - before + part.start for i, (before, _), part in zip(found, rim, box, strict=True))


def next_click(
    truth: np.ndarray,
    prediction: np.ndarray | None,
    *,
    least_error: int = 0,
    spacing: Sequence[float] | None = None,
    ignore: int | None = None,
) -> Click | None:
    """The click of a user who knows the truth and sees the prediction.

    The first click lies innermost in the largest connected object of one label. Each later one lies innermost in the
    largest connected error whose voxels share one true label, and says that label: the class that is missing or was
    taken for another, or background where there is nothing. Voxels are connected that share a face.

    Args:
        truth: label map.
        prediction: label map of the same shape; None for the first click.
        least_error: errors of fewer voxels get no click; the first click is placed in an object of any size.
        spacing: voxel sizes in mm, in the order of the axes; None for equal ones.
        ignore: label of `truth` at which nothing is an error and no click is placed.

    Returns:
        None where there is no object, or no error of that size.

    Raises:
        ImageError: the shapes differ.

    >>> truth = np.zeros((5, 5), int)
    >>> truth[1:4, 1:4] = 1
    >>> next_click(truth, None)
    Click(position=(2, 2), label=1)
    >>> next_click(np.zeros_like(truth), truth)
    Click(position=(2, 2), label=0)
    >>> next_click(truth, truth) is None
    True
    """
    if prediction is not None and prediction.shape != truth.shape:
        raise ImageError(f"a prediction of {prediction.shape} voxels cannot be compared with a truth of {truth.shape}")
    errors = truth > BACKGROUND if prediction is None else truth != prediction
    if ignore is not None:
        errors &= truth != ignore
    if not errors.any():
        return None
    box = _bounding_box(errors)
    least = 0 if prediction is None else least_error
    found = _largest_error(errors[box], truth[box], max(least, 1))
    if found is None:
        return None
    mask, label = found
    position = innermost(mask, spacing)
    assert position is not None
    return Click(tuple(i + part.start for i, part in zip(position, box, strict=True)), label)


def _largest_error(errors: np.ndarray, truth: np.ndarray, least: int) -> tuple[np.ndarray, int] | None:
    """The largest component of at least so many errors that share a label, and that label."""
    found = None
    labels, counts = np.unique(truth[errors], return_counts=True)
    for label, count in zip(labels, counts, strict=True):
        if count < least:
            continue
        components, _ = ndimage.label(errors & (truth == label))
        sizes = np.bincount(components.ravel())[1:]
        largest = int(sizes.argmax())
        if sizes[largest] >= least:
            found = components == largest + 1, int(label)
            least = int(sizes[largest]) + 1
    return found


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)

"""Volumes as small pictures of their slices, in order along the body and at one scale for all scans.

This is how body-part regression (paper 002, section 2.1) sees a scan. The order comes from the geometry in the file,
so scans that were stored feet first, or slice by slice from the side, come out like the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from joblib import Parallel, delayed
from torch.nn import functional

from nnunet_qa.data.images import Geometry, check_finite, read_volume
from nnunet_qa.errors import ImageError
from nnunet_qa.progress import track

_PERCENTILES = (0.5, 99.5)
_VISIBLE = 25  # of 255, brighter than air
_LEAST_VISIBLE = 0.01  # of a picture


class BodyAxis(str, Enum):
    """Axis of the patient along which slices are ordered, and the direction of the order.

    The directions of `HEAD_TO_FEET` are the paper's, where the score grows from the heart (−12) to the duodenum (+12).
    """

    HEAD_TO_FEET = "z"
    FRONT_TO_BACK = "y"
    RIGHT_TO_LEFT = "x"

    @property
    def orientation(self) -> str:
        """SimpleITK's code of the orientation in which slices follow each other in this order."""
        return {"z": "LPI", "y": "RSP", "x": "PSL"}[self.value]

    @property
    def coordinate(self) -> int:
        """Which of the coordinates x, y, z in mm (LPS) it is."""
        return "xyz".index(self.value)


@dataclass(frozen=True, kw_only=True)
class SliceSpec:
    """How slices are made for the network.

    Attributes:
        size: rows and columns of a picture.
        field_of_view: width and height that a picture shows, around the centre of the slice, in mm.
        window: intensities shown as black and white; None for the percentiles 0.5 and 99.5 of each scan.
        axis: the order.
    """

    size: int
    field_of_view: float
    window: tuple[float, float] | None = None
    axis: BodyAxis = BodyAxis.HEAD_TO_FEET


@dataclass(frozen=True, kw_only=True)
class SliceStack:
    """The slices of one scan, in the order of `SliceSpec.axis`.

    Attributes:
        case_id: name of the scan.
        pictures: `(slices, size, size)` uint8, 0 to 255 over the window.
        depth: distance of each slice from the first, in mm; strictly increasing.
        positions: coordinate of the centre of each slice along the axis of the patient, in mm (LPS).
        indices: which slice of the file it is, from 0.
    """

    case_id: str
    pictures: np.ndarray
    depth: np.ndarray
    positions: np.ndarray
    indices: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        """`(slices,)` bool: False for the empty ones, of one grey level or with 99% of the pixels as dark as air."""
        constant = self.pictures.min(axis=(1, 2)) == self.pictures.max(axis=(1, 2))
        return ~constant & ((self.pictures > _VISIBLE).mean(axis=(1, 2)) >= _LEAST_VISIBLE)


def oriented(array: np.ndarray, geometry: Geometry, axis: BodyAxis) -> Any:
    """A SimpleITK image whose last axis follows `axis`, from an array `(slices, rows, columns)`."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return sitk.DICOMOrient(image, axis.orientation)


def read_scan(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read a volume of one channel, `(slices, rows, columns)`.

    Raises:
        ImageError: the file cannot be read, is a picture or of more than three axes, or holds NaN.
    """
    array, geometry = read_volume(path)
    if array.ndim != 3 or len(geometry.spacing) != 3 or min(array.shape) < 2:
        raise ImageError(f"{path}: is no volume (shape {array.shape}); body parts are ordered within 3D scans only")
    check_finite(array, str(path))
    return array, geometry


def read_slices(path: Path, case_id: str, spec: SliceSpec) -> SliceStack:
    """Read the slices of one scan.

    Raises:
        ImageError: as `read_scan`; also where all slices are empty.
    """
    array, geometry = read_scan(path)
    try:
        return slices_of(array, geometry, case_id, spec)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def read_stacks(
    paths: Mapping[str, Path], spec: SliceSpec, *, jobs: int = 1, show_progress: bool = False
) -> list[SliceStack]:
    """Read the slices of scans, by case, in processes.

    Raises:
        ImageError: as `read_slices`.
    """
    calls = [delayed(read_slices)(path.absolute(), case, spec) for case, path in paths.items()]
    stacks = Parallel(n_jobs=jobs, return_as="generator")(calls)
    return list(track(stacks, "reading", len(calls)) if show_progress else stacks)


def slices_of(array: np.ndarray, geometry: Geometry, case_id: str, spec: SliceSpec) -> SliceStack:
    """Slices of a volume `(slices, rows, columns)`.

    Raises:
        ImageError: all slices are empty.
    """
    image = oriented(array, geometry, spec.axis)
    spacing = image.GetSpacing()
    ordered = sitk.GetArrayViewFromImage(image)
    pictures = _pictures(_grey(ordered, spec.window), spacing[1::-1], spec)
    ends = [[(size - 1) / 2 for size in image.GetSize()[:2]] + [last] for last in (0, len(ordered) - 1)]
    points = np.array([image.TransformContinuousIndexToPhysicalPoint(end) for end in ends])
    along = spec.axis.coordinate
    stack = SliceStack(
        case_id=case_id,
        pictures=pictures,
        depth=np.arange(len(ordered)) * spacing[2],
        positions=np.linspace(points[0, along], points[1, along], len(ordered)),
        indices=_indices(points, geometry, len(ordered)),
    )
    if not stack.seen.any():
        raise ImageError("every slice is empty (nothing to see within the window); leave it out or change the window")
    return stack


def field_of_view(paths: Sequence[Path], axis: BodyAxis) -> float:
    """The median over scans of the larger side of their slices in mm, from the files' headers.

    Raises:
        ImageError: a file cannot be read or is no volume.
    """
    return float(np.median([_larger_side(path, axis) for path in paths]))


def _larger_side(path: Path, axis: BodyAxis) -> float:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # the full reader says more
        read_scan(path)
        raise
    if reader.GetDimension() != 3:
        raise ImageError(
            f"{path}: is no volume ({reader.GetDimension()} axes); body parts are ordered within 3D scans only"
        )
    direction = np.abs(np.reshape(reader.GetDirection(), (3, 3)))
    along = int(direction[axis.coordinate].argmax())
    sides = np.array(reader.GetSize()) * np.array(reader.GetSpacing())
    return float(np.delete(sides, along).max())


def _grey(volume: np.ndarray, window: tuple[float, float] | None) -> torch.Tensor:
    """`(slices, 1, rows, columns)` in [0, 1]; empty slices stay empty and do not count for the percentiles."""
    if window is None:
        seen = volume.reshape(len(volume), -1)
        seen = volume[seen.min(axis=1) != seen.max(axis=1)]
        window = tuple(np.percentile(seen, _PERCENTILES)) if len(seen) else (0.0, 1.0)
    low, high = window
    grey = torch.from_numpy(volume.astype(np.float32))[:, None]
    # A scan of two intensities, one of them rare, has no width between its percentiles.
    return grey.sub_(low).div_(max(high - low, 1e-6)).clamp_(0, 1)


def _pictures(grey: torch.Tensor, spacing: Sequence[float], spec: SliceSpec) -> np.ndarray:
    """Cut or fill up slices to the field of view around their centre, then shrink or enlarge them."""
    padding: list[int] = []
    for size, step in zip(grey.shape[:1:-1], spacing[::-1], strict=True):  # columns first, as torch pads
        missing = max(1, round(spec.field_of_view / step)) - size
        padding += [missing // 2, missing - missing // 2]
    framed = functional.pad(grey, padding)
    small = functional.interpolate(framed, size=(spec.size, spec.size), mode="bilinear", antialias=True)
    return (small[:, 0] * 255).round().to(torch.uint8).numpy()


def _indices(points: np.ndarray, geometry: Geometry, slices: int) -> np.ndarray:
    """Number of each slice in the file, from the centres of the first and the last."""
    direction = np.reshape(geometry.direction, (3, 3))
    across = direction.T @ (points - geometry.origin).T / np.array(geometry.spacing)[:, None]
    along = int(np.abs(across[:, 1] - across[:, 0]).argmax())
    return np.linspace(across[along, 0], across[along, 1], slices).round().astype(int)

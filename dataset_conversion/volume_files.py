"""What the conversions of volumes share: endings, headers that may not point elsewhere, and masks on another grid."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from nnunet_qa.data.images import Geometry, read_volume
from nnunet_qa.dataset_conversion.engine import below
from nnunet_qa.errors import DatasetError, ImageError

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of files that hold a volume and its place in the patient."""
_WITH_HEADER = (".nrrd", ".nhdr", ".mha", ".mhd")
_DATA_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file\s*:)[ \t]*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
_HEADER = 1 << 16


def stem_of(path: Path) -> str:
    """File name without its ending; `.nii.gz` is one ending.

    >>> stem_of(Path("scans/p1.v2.nii.gz"))
    'p1.v2'
    """
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def is_volume(path: Path) -> bool:
    """Whether the ending is one of `VOLUMES`, in any case of letters."""
    return path.name.lower().endswith(VOLUMES)


def read_source_volume(path: Path, source: Path) -> tuple[np.ndarray, Geometry]:
    """Read a volume of the source; a single 2D slice becomes a volume of one slice.

    Returns:
        The array `(slices, rows, columns)` in its own data type, and its place in the patient.

    Raises:
        DatasetError: the file, or the one that holds its voxels, lies outside the source.
        ImageError: the file cannot be read, or holds something else than one scalar volume.
    """
    check_data_file(below(path, source), source)
    array, geometry = read_volume(path)
    if array.ndim == 2:
        direction = np.eye(3)
        direction[:2, :2] = np.reshape(geometry.direction, (2, 2))
        place = (*geometry.spacing, 1.0), (*geometry.origin, 0.0), tuple(direction.ravel().tolist())
        array, geometry = array[None], Geometry(*place)
    if array.ndim != 3:
        raise ImageError(
            f"{path}: is not one volume of numbers (shape {array.shape}); write each volume to its own file"
        )
    return array, geometry


def check_data_file(path: Path, source: Path) -> None:
    """Refuse a MetaImage or NRRD header whose voxels lie in a file outside the source, or in a list of files.

    Raises:
        DatasetError: names the file that the header names.
    """
    if not path.name.lower().endswith(_WITH_HEADER):
        return
    with path.open("rb") as file:
        match = _DATA_FILE.search(file.read(_HEADER))
    if match is None or match.group(1).upper() == b"LOCAL":
        return
    name = os.fsdecode(match.group(1))
    if name.upper().startswith("LIST") or "%" in name:
        raise DatasetError(f"{path}: takes its voxels from a list of files; write it as one file")
    if not (path.parent / name).resolve().is_relative_to(source.resolve()):
        raise DatasetError(f"{path}: takes its voxels from {name}, outside {source}; copy the file there")


def affine(geometry: Geometry) -> np.ndarray:
    """Matrix `(4, 4)` from voxel indices in the order x, y, z to mm in LPS."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(geometry.direction, (3, 3)) * np.asarray(geometry.spacing)
    matrix[:3, 3] = geometry.origin
    return matrix


def from_index(geometry: Geometry, start: tuple[int, int, int]) -> Geometry:
    """Geometry of the part of a volume that starts at an index `(slice, row, column)`."""
    origin = affine(geometry) @ (*start[::-1], 1)
    return Geometry(geometry.spacing, tuple(origin[:3].tolist()), geometry.direction)


def onto_grid(mask: np.ndarray, own: Geometry, shape: tuple[int, ...], grid: Geometry, name: str) -> np.ndarray:
    """Bring a mask onto the grid of its image, voxel by voxel.

    The mask may be cropped, shifted by whole voxels, or have its axes in another order or direction. Where its voxels
    lie between those of the image it is refused: resampling would change what was annotated.

    Args:
        mask: label values `(slices, rows, columns)`, 0 outside.
        own: geometry of the mask.
        shape: of the image.
        grid: geometry of the image.
        name: of the mask, for error texts.

    Returns:
        Label values of the shape of the image.

    Raises:
        ImageError: the grids do not fit, or a labelled voxel lies outside the image.
    """
    step = np.linalg.inv(affine(grid)) @ affine(own)
    inside = np.argwhere(mask)
    moved = (inside[:, ::-1] @ step[:3, :3].T + step[:3, 3])[:, ::-1]
    target = np.rint(moved).astype(np.int64)
    axes = np.abs(step[:3, :3])
    same_voxels = np.abs(axes - axes.round()).max() < 0.02 and (axes.round().sum(axis=0) == 1).all()
    if not same_voxels or np.abs(moved - target).max(initial=0) > 0.1:
        raise ImageError(
            f"{name}: the mask lies on another grid than its image (spacing {_shown(own.spacing)} "
            f"and {_shown(grid.spacing)} mm, origin {_shown(own.origin)} and {_shown(grid.origin)}); resample it to it"
        )
    if ((target < 0) | (target >= np.array(shape))).any():
        raise ImageError(f"{name}: part of the mask lies outside its image; is it the mask of another scan?")
    result = np.zeros(shape, dtype=mask.dtype)
    result[tuple(target.T)] = mask[tuple(inside.T)]
    return result


def _shown(values: tuple[float, ...]) -> str:
    return "×".join(f"{value:.4g}" for value in values)

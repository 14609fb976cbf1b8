"""What the conversions of volumes share: endings, headers that may not point elsewhere, and masks on another grid."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from nnunet_qa.data.images import Geometry
from nnunet_qa.data.metaimage import metaimage_data
from nnunet_qa.dataset_conversion.budget import read_bounded
from nnunet_qa.dataset_conversion.engine import below
from nnunet_qa.errors import DatasetError, ImageError

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of files that hold a volume and its place in the patient."""
_NRRD_DATA_FILE = re.compile(rb"^\s*data ?file\s*:(?!=)[ \t]*(.*?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
_META_DATA_FILE = re.compile(rb"^[ \t]*(ElementDataFile)[ \t]*[=:][ \t]*(.*?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
_NRRD_END = re.compile(rb"\r?\n\r?\n")
_HEADER = 1 << 16  # bytes; real headers have a few hundred


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
        ImageError: the file cannot be read, unpacks to far more than it weighs, or holds something else than one
            scalar volume.
    """
    array, geometry = read_bounded(path, data_file(below(path, source), source))
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


def data_file(path: Path, source: Path) -> Path:
    """The file that holds the voxels: for a MetaImage or NRRD header it may be another one, in the source.

    Raises:
        DatasetError: that file lies outside the source, or the header names a list of files.
        ImageError: the header has no end, or names no or several files.
    """
    ending = path.suffix.lower()
    if ending == ".mhd":
        return below(metaimage_data(path), source)
    if ending in (".mha", ".nrrd", ".nhdr"):
        with path.open("rb") as file:
            start = file.read(_HEADER)
        name = _meta_data_file(path, start) if ending == ".mha" else _nrrd_data_file(path, start)
        if name is None or name.upper() == "LOCAL":
            return path
        if name.upper().startswith("LIST") or "%" in name:
            raise DatasetError(f"{path}: takes its voxels from a list of files; write it as one file")
        if not (path.parent / name).resolve().is_relative_to(source.resolve()):
            raise DatasetError(f"{path}: takes its voxels from {name}, outside {source}; copy the file there")
        return path.parent / name
    return path


def _meta_data_file(path: Path, start: bytes) -> str:
    """What a `.mha` names; its voxels follow that line, and may by chance look like a second one."""
    match = _META_DATA_FILE.search(start)
    if match is None or match.group(1) != b"ElementDataFile" or not match.group(2):  # readers pass over other spellings
        raise ImageError(f"{path}: is no MetaImage (it must name an ElementDataFile); copy the file again")
    return os.fsdecode(match.group(2))


def _nrrd_data_file(path: Path, start: bytes) -> str | None:
    """What a NRRD header names, or None where the voxels follow it; keys (`:=`) are free text and name nothing."""
    end = _NRRD_END.search(start)
    if end is None and (len(start) == _HEADER or path.suffix.lower() != ".nhdr"):
        raise ImageError(f"{path}: its header does not end within {_HEADER} bytes; write the file again")
    names = _NRRD_DATA_FILE.findall(start[: end.start()] if end else start)
    if len(names) > 1:
        raise ImageError(f"{path}: names {len(names)} data files; write it as one file")
    if not names and path.suffix.lower() == ".nhdr":
        raise ImageError(f"{path}: names no data file; write it as one .nrrd")
    return os.fsdecode(names[0]) if names else None


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
    if mask.shape == shape and np.abs(step - np.eye(4)).max() * max(shape) < 0.02:
        return mask
    turn = step[2::-1, 2::-1]  # from steps in the mask's array to steps in the image's
    whole = turn.round().astype(int)
    far = np.array(mask.shape) - 1
    moved = step[2::-1, 3] + turn @ far / 2  # of the middle, where the grids fit best
    start = moved - whole @ far / 2
    off = np.abs(turn - whole) @ far / 2 + np.abs(start - start.round())
    if np.abs(turn - whole).max() > 0.02 or (np.abs(whole).sum(axis=0) != 1).any() or off.max() > 0.1:
        raise ImageError(
            f"{name}: the mask lies on another grid than its image (spacing {_shown(own.spacing)} "
            f"and {_shown(grid.spacing)} mm, origin {_shown(own.origin)} and {_shown(grid.origin)}); resample it to it"
        )
    order = np.abs(whole).argmax(axis=1)
    backward = whole.sum(axis=1) < 0
    turned = np.flip(mask.transpose(order), tuple(np.flatnonzero(backward).tolist()))
    low = start.round().astype(int) - np.where(backward, np.array(turned.shape) - 1, 0)
    from_ = np.maximum(-low, 0)
    to = np.maximum(np.minimum(np.array(shape) - low, turned.shape), from_)
    inside = tuple(slice(*pair) for pair in zip(from_, to, strict=True))
    if np.count_nonzero(turned[inside]) < np.count_nonzero(turned):
        raise ImageError(f"{name}: part of the mask lies outside its image; is it the mask of another scan?")
    result = np.zeros(shape, dtype=mask.dtype)
    result[tuple(slice(*pair) for pair in zip(low + from_, low + to, strict=True))] = turned[inside]
    return result


def _shown(values: tuple[float, ...]) -> str:
    return "×".join(f"{value:.4g}" for value in values)

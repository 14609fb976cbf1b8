"""NIfTI folders of the usual converter of UK Biobank's cines: `<eid>/sa.nii.gz` with `label_sa_ED.nii.gz` and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_qa.data.images import Geometry, check_label_values
from nnunet_qa.data.nifti import check_nifti
from nnunet_qa.dataset_conversion.budget import check_volume
from nnunet_qa.dataset_conversion.engine import LeftOut
from nnunet_qa.dataset_conversion.ukbiobank_series import Stack, whole_numbers
from nnunet_qa.errors import ImageError

_SAME_PLACE = 0.3  # of a voxel, anywhere in the volume; converters round


@dataclass
class Annotation:
    """What is annotated of a stack.

    Attributes:
        labels: `(slices, rows, columns)` uint8 by frame.
        phases: ED or ES, and how that is known, by frame.
        left_out: labels that are no case.
    """

    labels: dict[int, np.ndarray] = field(default_factory=dict)
    phases: dict[int, tuple[str, str]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def read_nifti_stack(path: Path) -> Stack:
    """Read a 4D series, or a 3D volume as its one frame.

    Raises:
        ImageError: the file is cut off or no NIfTI file, holds NaN, or has other than 3 or 4 axes.
    """
    image, geometry, frame_time = _read(path)
    return Stack(
        image=whole_numbers(image), geometry=geometry, frame_time=frame_time, filled=(0,) * len(image), places={}
    )


def read_labels(paths: Mapping[str, Path], images: Mapping[str, Path], stack: Stack, known: set[int]) -> Annotation:
    """Read the label files of a stack and find out of which frames they are.

    The files of ED and ES do not say which frame they are of. It is the frame of the whole cycle's labels that equals
    them, or the frame of the series that equals the converter's own image of that phase; otherwise ED is frame 0, and
    ES is estimated by `most_different_frame`.

    Args:
        paths: label files by phase: ED, ES, or empty for the whole cycle, whose empty frames are not annotated.
        images: the converter's images of ED and ES, where there are any.
        stack: the images.
        known: label values that may occur.

    Raises:
        ImageError: a file cannot be read, lies on another grid than the images, or has unknown values.
    """
    found = Annotation()
    if "" in paths:
        series = _labels(paths[""], stack, known)
        if len(series) != len(stack.image):
            raise ImageError(f"{paths['']}: has {len(series)} frames, its images {len(stack.image)}")
        found.labels = {frame: label for frame, label in enumerate(series) if label.any()}
        if not found.labels:
            found.left_out.append(LeftOut(str(paths[""]), "has no labelled voxel in any frame", bad=True))
    for phase in ("ED", "ES"):
        if phase not in paths:
            continue
        (label,) = _labels(paths[phase], stack, known, frames=1)
        if not label.any():
            found.left_out.append(LeftOut(str(paths[phase]), "has no labelled voxel", bad=True))
            continue
        frame, how = _frame_of(label, phase, found, images.get(phase), stack)
        if frame in found.phases:
            reason = f"no frame but {frame} fits it, which is ED"
            found.left_out.append(LeftOut(str(paths[phase]), reason, bad=True))
            continue
        found.labels[frame] = label
        found.phases[frame] = (phase, how)
    return found


def _frame_of(label: np.ndarray, phase: str, found: Annotation, image: Path | None, stack: Stack) -> tuple[int, str]:
    for frame, other in found.labels.items():
        if frame not in found.phases and np.array_equal(label, other):
            return frame, "equal labels"
    if image is not None:
        picture = _on_grid(_read(image), stack.geometry, image)[0]
        for frame, other in enumerate(stack.image):
            if frame not in found.phases and np.array_equal(picture, other):
                return frame, "equal image"
    if phase == "ED" or len(stack.image) == 1:
        return 0, "protocol"
    return most_different_frame(stack.image), "estimate"


def most_different_frame(image: np.ndarray) -> int:
    """Estimate of end-systole: the frame that differs most from frame 0 in the middle of the picture."""
    rows, columns = image.shape[-2:]
    middle = image[..., rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4].astype(np.float32)
    return int(np.argmax(np.abs(middle - middle[0]).mean(axis=(1, 2, 3))))


def _labels(path: Path, stack: Stack, known: set[int], *, frames: int | None = None) -> np.ndarray:
    labels = _on_grid(_read(path), stack.geometry, path)
    if labels.shape[1:] != stack.image.shape[1:] or (frames is not None and len(labels) != frames):
        raise ImageError(f"{path}: has the shape {labels.shape}, the images {stack.image.shape}")
    check_label_values(labels, known, str(path))
    return labels.astype(np.uint8)


def _read(path: Path) -> tuple[np.ndarray, Geometry, float]:
    """Array `(frames, slices, rows, columns)`, geometry of a frame, and seconds between frames (0: not known)."""
    check_volume(path)
    check_nifti(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise ImageError(f"{path}: cannot be read as an image: {str(error).splitlines()[-1]}") from error
    axes = image.GetDimension()
    if axes not in (3, 4) or image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(f"{path}: a series has the axes x, y, z and time, this file has {axes}")
    direction = np.reshape(image.GetDirection(), (axes, axes))[:3, :3]
    geometry = Geometry(image.GetSpacing()[:3], image.GetOrigin()[:3], tuple(direction.ravel().tolist()))
    array = sitk.GetArrayFromImage(image)
    return (array, geometry, image.GetSpacing()[3]) if axes == 4 else (array[None], geometry, 0.0)


def _on_grid(found: tuple[np.ndarray, Geometry, float], wanted: Geometry, path: Path) -> np.ndarray:
    """The array with its axes as in `wanted`, where both are the same grid but for order and direction of the axes."""
    array, geometry, _ = found
    size = np.array(array.shape[:0:-1])
    to_wanted = np.linalg.inv(_matrix(wanted)) @ _matrix(geometry)
    turn = np.rint(to_wanted)
    start = np.linalg.solve(_matrix(wanted), np.subtract(geometry.origin, wanted.origin))
    axes = np.abs(turn).argmax(axis=1)  # of the file, for each wanted one
    signs = turn[range(3), axes]
    expected = np.where(signs < 0, size[axes] - 1, 0)
    off = max(float((np.abs(to_wanted - turn) @ size).max()), float(np.abs(start - expected).max()))
    if sorted(axes) != [0, 1, 2] or np.abs(turn).sum() != 3 or off > _SAME_PLACE:
        raise ImageError(f"{path}: lies elsewhere in the patient than its images; resample it to their grid")
    turned = array.transpose(0, *(3 - axes[::-1]))
    flips = tuple(3 - axis for axis in range(3) if signs[axis] < 0)
    return np.ascontiguousarray(np.flip(turned, flips) if flips else turned)


def _matrix(geometry: Geometry) -> np.ndarray:
    return np.reshape(geometry.direction, (3, 3)) * np.array(geometry.spacing)

"""Reading and writing images and masks, checked, through the libraries that nnU-Net itself uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from skimage.io import imread, imsave

from nnunet_qa.data.nifti import check_nifti
from nnunet_qa.errors import ImageError, StorageError
from nnunet_qa.files import replacing

NATURAL_ENDINGS = (".png", ".bmp", ".tif")
"""Endings that nnU-Net reads as 2D pictures without spacing."""


@dataclass(frozen=True)
class Geometry:
    """Position of a volume in the patient, as SimpleITK states it: x, y, z order, mm, LPS."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: Any) -> Geometry:
        """Geometry of a SimpleITK image."""
        return cls(image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def read_picture(path: Path) -> np.ndarray:
    """Read a grey-level 2D picture as `(rows, columns)` in its own data type; RGB(A) is turned to luminance.

    Raises:
        ImageError: the file is missing, truncated or no picture.
    """
    try:
        picture = np.asarray(imread(path))
    except Exception as error:
        raise _unreadable(path, error) from error
    if picture.ndim == 3 and picture.shape[-1] in (3, 4):
        weights = np.array([0.2126, 0.7152, 0.0722])
        grey = picture[..., :3].astype(np.float64) @ weights
        return np.rint(grey).astype(picture.dtype) if np.issubdtype(picture.dtype, np.integer) else grey
    if picture.ndim != 2:
        raise ImageError(f"{path}: is not a single 2D picture (shape {picture.shape})")
    return picture


def read_volume(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read an image of any format that SimpleITK knows as an array `(slices, rows, columns)` and its geometry.

    Raises:
        ImageError: the file is missing, truncated or in no known format.
    """
    check_nifti(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return sitk.GetArrayFromImage(image), Geometry.of(image)


def holds_volumes(dataset_json: Mapping[str, Any]) -> bool:
    """Whether the files of a dataset are volumes, not pictures; a TIFF may be either."""
    reader = dataset_json.get("overwrite_image_reader_writer")
    return reader == "Tiff3DIO" or dataset_json["file_ending"] not in NATURAL_ENDINGS


def read_array(path: Path, *, volumes: bool) -> np.ndarray:
    """Read a picture `(rows, columns)` or a volume `(slices, rows, columns)`.

    Raises:
        ImageError: as `read_picture` and `read_volume`.
    """
    return read_volume(path)[0] if volumes else read_picture(path)


def write_image(path: Path, array: np.ndarray, geometry: Geometry | None = None) -> None:
    """Write one channel or one mask in one step; the format follows the ending.

    Args:
        path: where to; pictures (`NATURAL_ENDINGS`) through scikit-image, everything else through SimpleITK.
        array: `(rows, columns)` for pictures, `(slices, rows, columns)` otherwise.
        geometry: position in the patient; None for 1 mm at the origin. Pictures have none.

    Raises:
        ImageError: the writer does not take this array.
        StorageError: the disk is full or read-only.
    """
    with replacing(path) as temporary:
        try:
            if path.name.endswith(NATURAL_ENDINGS):
                imsave(temporary, array, check_contrast=False)
            else:
                image = sitk.GetImageFromArray(array)
                if geometry is not None:
                    image.SetSpacing(geometry.spacing)
                    image.SetOrigin(geometry.origin)
                    image.SetDirection(geometry.direction)
                sitk.WriteImage(image, str(temporary), useCompression=True)
                _check_written(path, temporary)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ImageError(f"{path}: could not be written: {_last_line(error)}") from error


def _check_written(path: Path, temporary: Path) -> None:
    """Refuse what ITK has cut off: on a full disk it writes as much of a NIfTI file as fits, and raises nothing."""
    try:
        check_nifti(temporary, finite=False)
    except ImageError as error:
        raise StorageError(
            f"{path}: could not be written whole (is the disk full?); free space or choose another folder, then run "
            "again"
        ) from error


def check_finite(array: np.ndarray, name: str) -> None:
    """Refuse NaN and infinite intensities.

    Raises:
        ImageError: with the number of such voxels.
    """
    if np.issubdtype(array.dtype, np.floating):
        wrong = int((~np.isfinite(array)).sum())
        if wrong:
            raise ImageError(f"{name}: {wrong} of {array.size} intensities are NaN or infinite; replace them first")


def check_label_values(mask: np.ndarray, allowed: Collection[int], name: str) -> None:
    """Refuse label values that dataset.json does not declare.

    Raises:
        ImageError: names the values found and those allowed.
    """
    if mask.size and np.issubdtype(mask.dtype, np.integer):
        low, high = int(mask.min()), int(mask.max())
        if all(value in allowed for value in range(low, high + 1)):  # far quicker than to look for each value
            return
    found = np.unique(mask)
    unknown = [value for value in found.tolist() if value not in allowed]
    if unknown:
        shown = ", ".join(f"{value:g}" for value in unknown[:5])
        raise ImageError(
            f"{name}: label value {shown} is not in dataset.json (allowed: {', '.join(map(str, sorted(allowed)))}); "
            "correct the mask or declare the label"
        )


def check_same_grid(image: np.ndarray, mask: np.ndarray, name: str) -> None:
    """Refuse a mask of another shape than its image.

    Raises:
        ImageError: names both shapes.
    """
    if image.shape != mask.shape:
        raise ImageError(f"{name}: the mask has shape {mask.shape}, its image {image.shape}; they must be the same")


def label_values(labels: dict[str, Any]) -> set[int]:
    """All label values that the `labels` entry of a dataset.json declares, regions and ignore label included."""
    values: set[int] = set()
    for value in labels.values():
        values.update(int(part) for part in (value if isinstance(value, (list, tuple)) else [value]))
    return values


def _unreadable(path: Path, error: Exception) -> ImageError:
    if not path.exists():
        return ImageError(f"{path}: not found")
    return ImageError(f"{path}: cannot be read as an image (truncated or another format?): {_last_line(error)}")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

"""Reading one DICOM series as a volume: slices in the order of their positions, gaps and repeats noticed.

Only what places the pixels is read; names, birth dates, institutions and identifiers never leave this module.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.dataset import Dataset

from nnunet_qa.data.images import Geometry
from nnunet_qa.dataset_conversion.budget import check_unpacked
from nnunet_qa.dataset_conversion.engine import below
from nnunet_qa.errors import ImageError

_TAGS = (
    "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "NumberOfFrames", "Rows", "Columns",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SamplesPerPixel", "BitsAllocated",
)  # fmt: skip
_PLACE = ("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_DICOM_ENDINGS = (".dcm", ".ima", ".dicom")
_TURNED = 1.01e-3  # of direction cosines, which scanners round differently, to three decimals, within one series
_SAME = 1e-3  # mm; positions are decimal texts
_UNEVEN = 0.1  # part of the slice distance
_SHEAR = 0.1  # mm


@dataclass(frozen=True)
class Series:
    """A series as a volume.

    Attributes:
        array: rescaled values (HU for CT) `(slices, rows, columns)`; int16 or int32 where whole, else float32.
        geometry: place in the patient.
        notes: what else lay in the folder and was not read, and oddities that did no harm.
    """

    array: np.ndarray
    geometry: Geometry
    notes: list[str] = field(default_factory=list)


def read_series(files: Iterable[Path], source: Path) -> Series:
    """Read the largest series among some files.

    Args:
        files: candidates; those that are no DICOM are noted.
        source: folder that all of them must lie in.

    Raises:
        DatasetError: a symbolic link leads out of the source.
        ImageError: a file is damaged, there is no series or more than one of the same size, its slices are missing,
            repeated, sheared or unlike each other, or it unpacks to far more than it weighs.
    """
    by_series: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    notes = []
    for path in files:
        header = _header(below(path, source))
        if header is None:
            notes.append(f"{path.name} is neither an image nor a mask")
        else:
            by_series[str(header.SeriesInstanceUID)].append((path, header))
    if not by_series:
        raise ImageError("holds no image (DICOM series, NIfTI, NRRD or MHA)")
    chosen, *others = sorted(by_series.values(), key=len, reverse=True)
    if others and len(others[0]) == len(chosen):
        places = " and ".join(str(group[0][0]) for group in (chosen, others[0]))
        raise ImageError(f"mixes two series of {len(chosen)} files ({places}, …); keep the one that is to be converted")
    for other in others:
        notes.append(f"series {other[0][1].get('SeriesNumber', '')} of {len(other)} files was not read")
    slices, geometry = _in_order(chosen)
    check_unpacked(
        sum(_size(header) for _, header in slices),
        sum(path.stat().st_size for path, _ in slices),
        f"{slices[0][0]} and the other slices of its series",
    )
    numbers = Counter(str(header.get("InstanceNumber", "")) for _, header in slices)
    repeated = [number for number, count in numbers.items() if count > 1 and number]
    if repeated:
        notes.append(f"instance number {repeated[0]} stands more than once; the positions give the order of the slices")
    return Series(_pixels([path for path, _ in slices]), geometry, notes)


def _header(path: Path) -> Dataset | None:
    """What places a file's pixels, or None where it is no DICOM file."""
    with path.open("rb") as file:
        mark = file.read(132)[128:]
    if mark != b"DICM" and path.suffix.lower() not in _DICOM_ENDINGS:
        return None
    if path.name.upper() == "DICOMDIR":
        return None
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    except Exception as error:  # pydicom raises a dozen types on a damaged file
        raise ImageError(f"{path}: cannot be read as DICOM (truncated?): {error}") from error
    if "SeriesInstanceUID" not in header:
        raise ImageError(f"{path}: names no series (truncated?); copy the file again or remove it")
    return header


def _size(header: Dataset) -> int:
    """Bytes that the pixels of a file unpack to; where the header does not say, as for CT."""
    samples, bits = (
        int(header.get(keyword) or least) for keyword, least in (("SamplesPerPixel", 1), ("BitsAllocated", 16))
    )
    return int(header.Rows) * int(header.Columns) * samples * bits // 8


def _in_order(series: list[tuple[Path, Dataset]]) -> tuple[list[tuple[Path, Dataset]], Geometry]:
    """Slices from the first to the last position, and the volume's geometry."""
    for path, header in series:
        missing = [keyword for keyword in _PLACE if header.get(keyword) is None]
        if missing:
            raise ImageError(f"{path}: lacks {missing[0]} (truncated, or no slice of a CT volume?)")
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise ImageError(f"{path}: holds several frames; convert it to NIfTI first")
    first = series[0][1]
    cosines = np.array([header.ImageOrientationPatient for _, header in series], dtype=np.float64)
    turned = ~(np.abs(cosines - cosines[0]).max(axis=1) <= _TURNED)  # true for NaN too
    for (path, header), other in zip(series, turned, strict=True):
        if other or any(header.get(keyword) != first.get(keyword) for keyword in ("Rows", "Columns", "PixelSpacing")):
            raise ImageError(f"{path}: differs in size or orientation from {series[0][0].name} of the same series")
    if len(series) < 2:
        raise ImageError(f"{series[0][0]}: is the only slice of its series; a volume needs at least two")
    row, column = cosines[0].reshape(2, 3)
    normal = np.cross(row, column)
    corners = np.array([header.ImagePositionPatient for _, header in series], dtype=np.float64)
    order = np.argsort(corners @ normal, kind="stable")
    slices, corners = [series[index] for index in order], corners[order]
    distance = _distance([path for path, _ in slices], corners, normal)
    direction = np.stack([row, column, normal], axis=1)
    spacing = (float(first.PixelSpacing[1]), float(first.PixelSpacing[0]), distance)  # DICOM states rows first
    return slices, Geometry(spacing, tuple(corners[0].tolist()), tuple(direction.ravel().tolist()))


def _distance(paths: list[Path], corners: np.ndarray, normal: np.ndarray) -> float:
    """Distance of neighbouring slices in mm."""
    along = corners @ normal
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    index = int(gaps.argmin())
    if gaps[index] < _SAME:
        raise ImageError(f"{paths[index]} and {paths[index + 1].name} lie at the same place; remove one of them")
    index = int(np.abs(gaps - usual).argmax())
    if abs(gaps[index] - usual) > _UNEVEN * usual:
        raise ImageError(
            f"{paths[index]}: {gaps[index]:g} mm to the next slice, {paths[index + 1].name}, where {usual:g} mm are "
            "usual; slices are missing or of two series"
        )
    shear = corners - corners[0] - np.outer(along - along[0], normal)
    if np.abs(shear).max() > _SHEAR:
        raise ImageError(f"{paths[0]}: the slices are shifted against each other (tilted gantry); resample the series")
    return float(gaps.mean())


def _pixels(paths: list[Path]) -> np.ndarray:
    """Rescaled values of all slices; SimpleITK reads compressed files too and applies slope and intercept."""
    slices = []
    for path in paths:
        try:
            pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ImageError(f"{path}: the pixels cannot be read (truncated?): {reason}") from error
        slices.append(np.squeeze(pixels, axis=0))
    volume = np.stack(slices)
    if np.issubdtype(volume.dtype, np.floating) and not np.array_equal(volume, np.rint(volume)):
        return volume.astype(np.float32)
    limits = np.iinfo(np.int16)
    fits = volume.min() >= limits.min and volume.max() <= limits.max
    return volume.astype(np.int16 if fits else np.int32)

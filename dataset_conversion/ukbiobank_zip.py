"""DICOM images of a UK Biobank zip, read in memory: nothing is unpacked to disk, and no entry is trusted."""

from __future__ import annotations

import contextlib
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pydicom

from nnunet_qa.dataset_conversion.engine import LeftOut
from nnunet_qa.dataset_conversion.ukbiobank_manifest import NAMES, read_manifest
from nnunet_qa.errors import DatasetError, ImageError

MAX_FILES, MAX_FILE, MAX_TOTAL = 20_000, 64 << 20, 4 << 30
"""Entries and expanded bytes of one entry and of all; UK Biobank's zips stay a factor of ten below."""
MAX_RATIO, _SMALL = 200, 1 << 20
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_TAGS = [
    "SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "InstanceNumber", "TriggerTime",
    "CardiacNumberOfImages", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope",
    "RescaleIntercept", "PixelData",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Image:
    """One slice at one time.

    Attributes:
        name: zip and entry, for errors.
        series: its SeriesDescription.
        series_uid: its SeriesInstanceUID.
        uid: its SOPInstanceUID.
        order: SeriesNumber and InstanceNumber.
        time: TriggerTime in ms.
        frames: CardiacNumberOfImages, 0 where it is not stated.
        position: of the first pixel, mm, LPS.
        orientation: direction along a row and down a column, `(2, 3)`.
        spacing: (z, y, x) in mm; z is SpacingBetweenSlices, or else SliceThickness.
        pixels: `(rows, columns)`.
    """

    name: str
    series: str
    series_uid: str
    uid: str
    order: tuple[int, int]
    time: float
    frames: int
    position: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float, float]
    pixels: np.ndarray


def read_images(path: Path, wanted: re.Pattern[str]) -> tuple[list[Image], list[LeftOut]]:
    """Read the images of the wanted series.

    Args:
        path: the zip.
        wanted: matches the names of series.

    Returns:
        The images; and what is wrong with the manifest, without which the names of series are those of the DICOM files,
        or with the zip, which may lack images that the manifest lists.

    Raises:
        DatasetError: the zip is cut off or encrypted, an entry climbs out of it, or it expands to too much.
        ImageError: a DICOM file is cut off or lacks a field.
    """
    try:
        with zipfile.ZipFile(path) as zipped:
            entries = [entry for entry in zipped.infolist() if not entry.is_dir()]
            _check_entries(path, entries)
            listed, notes = _manifest(path, zipped, entries)
            images, unpacked = [], 0
            for entry, series in _dicom_files(entries, listed):
                if series is not None and not wanted.fullmatch(series):
                    continue
                image = _read_image(f"{path}: {entry.filename}", zipped.read(entry), series, wanted)
                images += [image] if image is not None else []
                unpacked += image.pixels.nbytes if image is not None else 0
                if unpacked > MAX_TOTAL:
                    raise DatasetError(f"{path}: its images unpack to more than {MAX_TOTAL} bytes (a bomb?); not read")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DatasetError(f"{path}: cannot be read as a zip (cut off? download it again): {error}") from error
    missing = sum(wanted.fullmatch(series) is not None for series in listed.values()) - len(images)
    if missing > 0:
        reason = f"{missing} of the images that the manifest lists are not in the zip"
        notes.append(LeftOut(str(path), reason, bad=True))
    return images, notes


def uids_of_others(path: Path, wanted: re.Pattern[str]) -> set[str]:
    """SOPInstanceUIDs of the images that `read_images` passes over in a zip that it has read, such as other views'."""
    found = set()
    with zipfile.ZipFile(path) as zipped:
        entries = [entry for entry in zipped.infolist() if not entry.is_dir()]
        listed, _ = _manifest(path, zipped, entries)
        for entry, series in _dicom_files(entries, listed):
            if series is not None and wanted.fullmatch(series):
                continue
            with contextlib.suppress(Exception):  # contours of a damaged image count as lost
                header = _dataset(zipped.read(entry), ["SOPInstanceUID", "SeriesDescription"])
                if series is not None or not wanted.fullmatch(str(header.get("SeriesDescription", ""))):
                    found.add(str(header.SOPInstanceUID))
    return found


def _dicom_files(
    entries: Sequence[zipfile.ZipInfo], listed: Mapping[str, str]
) -> Iterator[tuple[zipfile.ZipInfo, str | None]]:
    """DICOM files and their series in the manifest, None for those that it does not list."""
    for entry in entries:
        name = PurePosixPath(entry.filename).name
        if name.lower().endswith(".dcm"):
            yield entry, listed.get(name)


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse what no zip of UK Biobank has. Python reads no more of an entry than its stated size."""
    for entry in entries:
        shown = entry.filename[:100]
        parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
        if ".." in parts or entry.filename.startswith(("/", "\\")) or re.match("[A-Za-z]:", entry.filename):
            raise DatasetError(f'{path}: the entry "{shown}" climbs out of the zip; not read, download it again')
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DatasetError(f'{path}: the entry "{shown}" is a symbolic link; not read, download it again')
        if entry.file_size > MAX_FILE or (
            entry.file_size > _SMALL and entry.file_size > MAX_RATIO * max(1, entry.compress_size)
        ):
            raise DatasetError(
                f'{path}: the entry "{shown}" expands to {entry.file_size} bytes (a zip bomb?); not read'
            )
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_FILES or total > MAX_TOTAL:
        raise DatasetError(f"{path}: expands to {len(entries)} files of {total} bytes (a zip bomb?); not read")


def _manifest(
    path: Path, zipped: zipfile.ZipFile, entries: list[zipfile.ZipInfo]
) -> tuple[dict[str, str], list[LeftOut]]:
    for entry in entries:
        if PurePosixPath(entry.filename).name.lower() in NAMES:
            try:
                return read_manifest(zipped.read(entry), entry.filename), []
            except DatasetError as error:
                return {}, [LeftOut(str(path), str(error))]
    return {}, [LeftOut(str(path), f"has no {NAMES[0]}")]


def _dataset(content: bytes, tags: list[str]) -> pydicom.Dataset:
    if _DEFLATED in content[:1024]:
        raise ValueError("its contents are compressed once more, which UK Biobank does not do")
    return pydicom.dcmread(io.BytesIO(content), specific_tags=tags)


def _read_image(name: str, content: bytes, listed: str | None, wanted: re.Pattern[str]) -> Image | None:
    """The image, or None where it is of another series."""
    try:
        dataset = _dataset(content, _TAGS)
        series = listed if listed is not None else str(dataset.get("SeriesDescription", ""))
        if not wanted.fullmatch(series):
            return None
        rows_apart, columns_apart = (float(value) for value in dataset.PixelSpacing)
        apart = dataset.get("SpacingBetweenSlices") or dataset.SliceThickness
        image = Image(
            name=name,
            series=series,
            series_uid=str(dataset.SeriesInstanceUID),
            uid=str(dataset.SOPInstanceUID),
            order=(int(dataset.get("SeriesNumber") or 0), int(dataset.get("InstanceNumber") or 0)),
            time=float(dataset.TriggerTime),
            frames=int(dataset.get("CardiacNumberOfImages") or 0),
            position=np.array(dataset.ImagePositionPatient, dtype=np.float64),
            orientation=np.array(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3),
            spacing=(float(apart), rows_apart, columns_apart),
            pixels=_pixels(dataset),
        )
        numbers = (image.time, *image.position, *image.orientation.ravel(), *image.spacing)
        if image.pixels.ndim != 2 or not np.isfinite(numbers).all() or min(image.spacing) <= 0:
            raise ValueError("no single grey-level picture with a spacing")
    except Exception as error:  # pydicom and its decoders raise a dozen types on a broken file
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name}: cannot be read as a cine image (cut off?): {reason}") from error
    return image


def _pixels(dataset: Any) -> np.ndarray:
    """Intensities after rescaling, whole numbers where scale and offset are."""
    samples = int(dataset.get("NumberOfFrames") or 1) * int(dataset.get("SamplesPerPixel") or 1)
    if dataset.Rows * dataset.Columns * samples * dataset.BitsAllocated // 8 > MAX_FILE:
        raise ValueError(f"{dataset.Rows} × {dataset.Columns} pixels (a bomb?)")
    stored: np.ndarray = dataset.pixel_array
    slope = float(dataset.get("RescaleSlope", 1) or 1)
    intercept = float(dataset.get("RescaleIntercept", 0) or 0)
    if (slope, intercept) == (1.0, 0.0):
        return stored
    if slope.is_integer() and intercept.is_integer():
        return np.asarray(stored.astype(np.int32) * int(slope) + int(intercept))
    return np.asarray(stored * slope + intercept, dtype=np.float32)

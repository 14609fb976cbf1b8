"""Drawn CT of two lower legs in the files that clinics and planning programs hand out: for tests, demos and dry runs.

A leg is a cylinder of soft tissue with a thick tibia and, on its outer side, a thin fibula, both with marrow.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from skimage.measure import marching_cubes

from nnunet_qa.data.images import Geometry, write_image
from nnunet_qa.files import replacing
from nnunet_qa.progress import track

RIGHT, LEFT = 1, 2
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
PATIENT_NAME = "Phantom^Petra"
"""Stands in every DICOM file, so that tests can look for it in what was converted."""
_ROOT = "1.2.826.0.1.3680043.8.498."  # free for anybody: pydicom's
_HEADER = b"drawn legs".ljust(80)


@dataclass(frozen=True)
class LegScan:
    """A drawn scan.

    Attributes:
        image: HU `(slices, rows, columns)`, int16.
        label: 0, `RIGHT` and `LEFT` fibula, uint8.
        geometry: place in the patient.
    """

    image: np.ndarray
    label: np.ndarray
    geometry: Geometry


def draw_legs(
    rng: np.random.Generator,
    *,
    shape: tuple[int, int, int] = (20, 40, 80),
    spacing: tuple[float, float, float] = (4.0, 4.0, 6.0),
    direction: Sequence[float] = STRAIGHT,
    legs: Sequence[str] = ("right", "left"),
) -> LegScan:
    """Draw a scan; the legs lie right in the patient whatever the direction of the axes is.

    Args:
        rng: source of all chance.
        shape: `(slices, rows, columns)`.
        spacing: mm, in the order x, y, z.
        direction: cosines of the axes as SimpleITK states them.
        legs: which are in the scan; a single one lies in its middle.

    Returns:
        Image, label and geometry.
    """
    axes = np.reshape(direction, (3, 3)) * spacing
    centre = rng.uniform(-30, 30, size=3)
    origin = centre - axes @ ((np.array(shape[::-1]) - 1) / 2)
    geometry = Geometry(spacing, tuple(origin.tolist()), tuple(direction))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")[::-1])
    x, y, z = np.tensordot(axes, grid - ((np.array(shape[::-1]) - 1) / 2)[:, None, None, None], axes=1)
    hu = np.full(shape, -1000.0)
    label = np.zeros(shape, dtype=np.uint8)
    for name in legs:
        outwards = 1 if name == "left" else -1  # LPS: x rises to the left
        middle = outwards * 80.0 if len(legs) == 2 else 0.0
        bend = 0.02 * z * outwards
        _cylinder(hu, np.hypot(x - middle, y), 52 + rng.uniform(-4, 4), 45)
        tibia = np.hypot(x - middle + 6 * outwards, y + 12)
        _cylinder(hu, tibia, 16 + rng.uniform(-1, 1), 1100)
        _cylinder(hu, tibia, 10, 120)
        fibula = np.hypot(x - middle - 28 * outwards - bend, y - 6)
        radius = 8.5 + rng.uniform(-0.5, 1)
        _cylinder(hu, fibula, radius, 900)
        _cylinder(hu, fibula, radius - 5, 150)
        label[fibula <= radius] = LEFT if name == "left" else RIGHT
    hu += rng.normal(0, 8, size=shape)
    return LegScan(np.rint(hu).clip(-1024, 3071).astype(np.int16), label, geometry)


def _cylinder(hu: np.ndarray, distance: np.ndarray, radius: float, value: float) -> None:
    hu[distance <= radius] = value


def write_dicom_series(
    folder: Path,
    image: np.ndarray,
    geometry: Geometry,
    rng: np.random.Generator,
    *,
    slope: float = 1.0,
    intercept: float = -1024.0,
    series: int = 2,
) -> list[Path]:
    """Write a volume as one CT series, a file a slice, in random order of names.

    Args:
        folder: where the files go.
        image: HU `(slices, rows, columns)`; whole numbers from 0 to 65535 after intercept and slope.
        geometry: place in the patient.
        rng: for the identifiers and the order of the files.
        slope: rescale slope.
        intercept: rescale intercept.
        series: SeriesNumber.

    Returns:
        The files in the order of the slices.
    """
    stored = np.rint((image - intercept) / slope).astype("<u2")
    common: dict[str, str | int] = {
        "PatientName": PATIENT_NAME, "PatientID": "4711", "PatientBirthDate": "19700101",
        "InstitutionName": "Phantom Hospital", "StudyDate": "20200202", "Modality": "CT", "SeriesNumber": series,
        "StudyInstanceUID": _identifier(rng), "SeriesInstanceUID": _identifier(rng),
        "RescaleSlope": f"{slope:g}", "RescaleIntercept": f"{intercept:g}",
    }  # fmt: skip
    names = rng.permutation(len(stored)).tolist()
    paths = []
    for index, pixels in enumerate(stored):
        path = folder / f"IM{names[index]:05d}.dcm"
        with replacing(path) as temporary:
            _dicom(pixels, geometry, index, common, _identifier(rng)).save_as(temporary, enforce_file_format=True)
        paths.append(path)
    return paths


def _identifier(rng: np.random.Generator) -> str:
    return _ROOT + str(int(rng.integers(10**17, 10**18)))


def _dicom(pixels: np.ndarray, geometry: Geometry, index: int, common: dict[str, str | int], uid: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = uid
    dataset.InstanceNumber = index + 1
    for keyword, value in common.items():
        setattr(dataset, keyword, value)
    direction = np.reshape(geometry.direction, (3, 3))
    corner = np.array(geometry.origin) + direction[:, 2] * index * geometry.spacing[2]
    dataset.ImagePositionPatient = [f"{value:.6f}" for value in corner]
    dataset.ImageOrientationPatient = [f"{value:.9f}" for value in (*direction[:, 0], *direction[:, 1])]
    dataset.PixelSpacing = [f"{geometry.spacing[1]:g}", f"{geometry.spacing[0]:g}"]  # rows first
    dataset.SliceThickness = f"{geometry.spacing[2]:g}"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.tobytes()
    return dataset


def write_stl(path: Path, mask: np.ndarray, geometry: Geometry) -> None:
    """Write the surface of a mask as binary STL in LPS, half-way between the centres of voxels inside and outside.

    Args:
        path: where to.
        mask: booleans `(slices, rows, columns)`, not empty.
        geometry: place in the patient.

    Raises:
        StorageError: the disk is full or read-only.
    """
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    axes = np.reshape(geometry.direction, (3, 3)) * geometry.spacing
    points = (vertices[:, ::-1] - 1) @ axes.T + geometry.origin
    triangles = np.zeros(len(faces), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("unused", "<u2")])
    triangles["corners"] = points[faces]
    with replacing(path) as temporary:
        temporary.write_bytes(_HEADER + struct.pack("<I", len(faces)) + triangles.tobytes())


def write_fibula(
    folder: Path,
    rng: np.random.Generator,
    *,
    patients: int = 6,
    annotated: int = 4,
    surfaces: bool = False,
    shape: tuple[int, int, int] = (20, 40, 80),
    spacing: tuple[float, float, float] = (4.0, 4.0, 6.0),
) -> list[Path]:
    """Write a folder a patient `p01` …, with a DICOM series in `ct` and the masks of the fibulae.

    Args:
        folder: where the patients' folders are made.
        rng: source of all chance.
        patients: how many.
        annotated: how many of them have masks.
        surfaces: masks as `fibula_left.stl` and `fibula_right.stl`, not as `fibula_mask.nii.gz`.
        shape: as of `draw_legs`.
        spacing: as of `draw_legs`.

    Returns:
        The patients' folders.
    """
    folders = [folder / f"p{number:02d}" for number in range(1, patients + 1)]
    for number, place in enumerate(track(folders, "Drawing patients", total=patients)):
        scan = draw_legs(rng, shape=shape, spacing=spacing)
        write_dicom_series(place / "ct", scan.image, scan.geometry, rng)
        if number >= annotated:
            continue
        if surfaces:
            for side, value in (("right", RIGHT), ("left", LEFT)):
                write_stl(place / f"fibula_{side}.stl", scan.label == value, scan.geometry)
        else:
            write_image(place / "fibula_mask.nii.gz", (scan.label > 0).astype(np.uint8), scan.geometry)
    return folders

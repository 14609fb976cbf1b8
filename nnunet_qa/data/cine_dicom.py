"""Cines as UK Biobank hands out cardiac MR: one zip a subject and view, with DICOM files and a table of series."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from nnunet_qa.data.cine_files import geometry, whole_numbers
from nnunet_qa.data.cine_phantom import SHORT_AXIS, Cine
from nnunet_qa.data.images import Geometry
from nnunet_qa.errors import ImageError
from nnunet_qa.files import replacing

FIELDS = {SHORT_AXIS: "20209", "ao": "20210", "la": "20208"}
"""UK Biobank's data field of each view."""
MANIFEST = "manifest.csv"
_SERIES = {SHORT_AXIS: "CINE_segmented_SAX_b{}", "ao": "CINE_segmented_Ao_dist"}
_MIXED = "CINE_segmented_SAX"
_DATE, _DATE_IN_WORDS = "20160511", "May 11, 2016"  # the comma stands there without quotes, as in the real tables
_ROOT = "1.2.826.0.1.3680043.8.498."  # free for anybody: pydicom's


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """Slices over one heartbeat and how their series are named.

    Attributes:
        image: `(frames, slices, rows, columns)`, whole numbers from 0 to 65535, before rescaling.
        place: position of a frame in the patient.
        frame_time: seconds from one frame to the next.
        name: SeriesDescription; `{}` stands for the number of the slice, from 1.
        rescale: slope and intercept, where the files state them.
    """

    image: np.ndarray
    place: Geometry
    frame_time: float
    name: str
    rescale: tuple[float, float] | None = None


def write_ukbiobank_zip(
    folder: Path, eid: str, cine: Cine, rng: np.random.Generator, *, mixed: bool = False, manifest: str = MANIFEST
) -> Path:
    """Write `<eid>_20209_2_0.zip` (short axis) or `<eid>_20210_2_0.zip` (aorta).

    Each short-axis slice is a series `CINE_segmented_SAX_b<N>` of its own. Files carry random names in random order;
    frames are told apart by TriggerTime alone. Masks have no place here: see `cine_files.write_labels`.

    Args:
        folder: where the zip goes.
        eid: identifier of the subject.
        cine: what to write.
        rng: for the identifiers and the order of the files.
        mixed: all short-axis slices under one name, `CINE_segmented_SAX`, as a few subjects have them.
        manifest: name of the table of series; older zips have `manifest.cvs`.

    Returns:
        The zip.

    Raises:
        ImageError: intensities that cannot be stored as whole numbers from 0 to 32767.
        StorageError: the disk is full or read-only.
    """
    image = whole_numbers(cine)
    if image.min() < 0:
        raise ImageError(f"{eid}: intensities go down to {image.min()}; shift them, for MR images are not negative")
    acquisition = Acquisition(
        image=image,
        place=geometry(cine),
        frame_time=cine.frame_time,
        name=_MIXED if mixed else _SERIES[cine.view],
    )
    path = folder / f"{eid}_{FIELDS[cine.view]}_2_0.zip"
    return write_series_zip(path, eid, [acquisition], rng, manifest=manifest)


def write_series_zip(
    path: Path, eid: str, acquisitions: Sequence[Acquisition], rng: np.random.Generator, *, manifest: str = MANIFEST
) -> Path:
    """Write a zip of any series, such as the views of the long axis.

    Args:
        path: the zip.
        eid: identifier of the subject.
        acquisitions: what to write.
        rng: for the identifiers and the order of the files.
        manifest: name of the table of series.

    Returns:
        The zip.

    Raises:
        StorageError: the disk is full or read-only.
    """
    study = {"PatientID": eid, "StudyInstanceUID": _identifier(rng), "FrameOfReferenceUID": _identifier(rng)}
    lines = ["filename,patientid,date,series discription"]
    planned = [
        (acquisition, frame, index, _identifier(rng) if frame == 0 else "")
        for acquisition in acquisitions
        for frame in range(acquisition.image.shape[0])
        for index in range(acquisition.image.shape[1])
    ]
    series = {(id(acquisition), index): uid for acquisition, _, index, uid in planned if uid}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for number in rng.permutation(len(planned)).tolist():
            acquisition, frame, index, _ = planned[number]
            description = acquisition.name.format(index + 1)
            frames = acquisition.image.shape[0]
            entries: dict[str, str | int] = {
                **study,
                "CardiacNumberOfImages": frames,
                "NominalInterval": str(round(frames * acquisition.frame_time * 1000)),
                "SeriesInstanceUID": series[id(acquisition), index],
                "SeriesDescription": description,
                "SeriesNumber": index + 1,
            }
            name = f"{_identifier(rng)}.dcm"
            content = _dicom(acquisition, frame, index, entries, uid=name[:-4])
            zipped.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
            lines.append(f"{name},{eid},{_DATE_IN_WORDS},{description}")
        zipped.writestr(zipfile.ZipInfo(manifest), "\n".join(lines) + "\n")
    return path


def _identifier(rng: np.random.Generator) -> str:
    return _ROOT + str(int(rng.integers(10**17, 10**18)))


def _dicom(acquisition: Acquisition, frame: int, index: int, entries: dict[str, str | int], *, uid: str) -> bytes:
    """One file, with what a reader of cine series looks at."""
    pixels = acquisition.image[frame, index]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = uid
    dataset.Modality = "MR"
    dataset.StudyDate = _DATE
    dataset.InstanceNumber = frame + 1
    dataset.TriggerTime = f"{frame * acquisition.frame_time * 1000:.3f}"
    for keyword, value in entries.items():
        setattr(dataset, keyword, value)
    _place(dataset, acquisition.place, index)
    if acquisition.rescale is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept = (f"{value:g}" for value in acquisition.rescale)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    written = io.BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    return written.getvalue()


def _place(dataset: Dataset, place: Geometry, index: int) -> None:
    direction = np.reshape(place.direction, (3, 3))
    corner = np.array(place.origin) + direction[:, 2] * index * place.spacing[2]
    dataset.ImagePositionPatient = [f"{value:.6f}" for value in corner]
    dataset.ImageOrientationPatient = [f"{value:.9f}" for value in (*direction[:, 0], *direction[:, 1])]
    dataset.PixelSpacing = [f"{place.spacing[1]:g}", f"{place.spacing[0]:g}"]  # rows first
    dataset.SliceThickness = dataset.SpacingBetweenSlices = f"{place.spacing[2]:g}"
    dataset.SliceLocation = f"{index * place.spacing[2]:g}"

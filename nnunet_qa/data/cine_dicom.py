"""Cines as UK Biobank hands out cardiac MR: one zip a subject and view, with DICOM files and a table of series."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from nnunet_qa.data.cine_files import geometry, whole_numbers
from nnunet_qa.data.cine_phantom import SHORT_AXIS, Cine
from nnunet_qa.data.images import Geometry
from nnunet_qa.errors import ImageError
from nnunet_qa.files import replacing

FIELDS = {SHORT_AXIS: "20209", "ao": "20210"}
"""UK Biobank's data field of each view."""
MANIFEST = "manifest.csv"
_SERIES = {SHORT_AXIS: "CINE_segmented_SAX_b{}", "ao": "CINE_segmented_Ao_dist"}
_DATE, _DATE_IN_WORDS = "20160511", "May 11, 2016"  # the comma stands there without quotes, as in the real tables
_ROOT = "1.2.826.0.1.3680043.8.498."  # free for anybody: pydicom's


def write_ukbiobank_zip(folder: Path, eid: str, cine: Cine, rng: np.random.Generator) -> Path:
    """Write `<eid>_20209_2_0.zip` (short axis) or `<eid>_20210_2_0.zip` (aorta).

    Each short-axis slice is a series `CINE_segmented_SAX_b<N>` of its own. Files carry random names in random order;
    frames are told apart by TriggerTime alone. Masks have no place here: see `cine_files.write_labels`.

    Args:
        folder: where the zip goes.
        eid: identifier of the subject.
        cine: what to write.
        rng: for the identifiers and the order of the files.

    Returns:
        The zip.

    Raises:
        ImageError: intensities that cannot be stored as whole numbers from 0 to 32767.
        StorageError: the disk is full or read-only.
    """
    image = whole_numbers(cine)
    if image.min() < 0:
        raise ImageError(f"{eid}: intensities go down to {image.min()}; shift them, for MR images are not negative")
    frames, slices = image.shape[:2]
    common = {
        "PatientID": eid,
        "StudyInstanceUID": _identifier(rng),
        "FrameOfReferenceUID": _identifier(rng),
        "CardiacNumberOfImages": frames,
        "NominalInterval": str(round(frames * cine.frame_time * 1000)),
    }
    path = folder / f"{eid}_{FIELDS[cine.view]}_2_0.zip"
    lines = ["filename,patientid,date,series discription"]
    series = [(_identifier(rng), _SERIES[cine.view].format(index + 1)) for index in range(slices)]
    order = rng.permutation(frames * slices).tolist()
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for number in order:
            frame, index = divmod(number, slices)
            uid, description = series[index]
            where = {"SeriesInstanceUID": uid, "SeriesDescription": description, "SeriesNumber": index + 1}
            name = f"{_identifier(rng)}.dcm"
            content = _dicom(cine, image[frame, index], frame, index, {**common, **where}, uid=name[:-4])
            zipped.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
            lines.append(f"{name},{eid},{_DATE_IN_WORDS},{description}")
        zipped.writestr(zipfile.ZipInfo(MANIFEST), "\n".join(lines) + "\n")
    return path


def _identifier(rng: np.random.Generator) -> str:
    return _ROOT + str(int(rng.integers(10**17, 10**18)))


def _dicom(cine: Cine, pixels: np.ndarray, frame: int, index: int, entries: dict[str, str | int], *, uid: str) -> bytes:
    """One file, with what a reader of cine series looks at."""
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
    dataset.TriggerTime = f"{frame * cine.frame_time * 1000:.3f}"
    for keyword, value in entries.items():
        setattr(dataset, keyword, value)
    _place(dataset, geometry(cine), index)
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

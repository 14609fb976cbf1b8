"""RETOUCH challenge (Bogunović et al. 2019, IEEE TMI 38(8)), `TRAIN001/{oct,reference}.mhd` …, to nnU-Net's format.

Scans of three vendors with intraretinal fluid, subretinal fluid and pigment epithelial detachments; every B-scan of a
training scan is annotated, scans without a reference become the unlabelled pool.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nnunet_qa.cases import Role
from nnunet_qa.data.images import Geometry, check_label_values, check_same_grid
from nnunet_qa.data.metaimage import metaimage_data
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.dataset_conversion.budget import read_bounded
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Options, Unit, below, safe_name
from nnunet_qa.dataset_conversion.engine import convert as convert_units
from nnunet_qa.dataset_conversion.oct import (
    BscanCase,
    Framing,
    frame_bscan,
    parse_size,
    scale_of,
)
from nnunet_qa.dataset_conversion.options import Dask, Folds, Jobs, Number, Overwrite, Strict
from nnunet_qa.dataset_conversion.script import run_script, tell
from nnunet_qa.dataset_conversion.subjects import chosen_subjects
from nnunet_qa.errors import DatasetError, ImageError

REFERENCE = "Bogunović et al. 2019, RETOUCH: the retinal OCT fluid detection and segmentation benchmark, IEEE TMI 38(8)"
FLUIDS = {"background": 0, "IRF": 1, "SRF": 2, "PED": 3}
"""Intraretinal fluid, subretinal fluid, pigment epithelial detachment."""
VENDORS = ("cirrus", "spectralis", "topcon")
IMAGE, MASK = "oct.mhd", "reference.mhd"
LAYOUT = "RETOUCH-TrainingSet-<vendor>/TRAIN<n>/{oct,reference}.{mhd,raw}"
_NEEDED_BY = {MASK: IMAGE, "oct.raw": IMAGE, "reference.raw": MASK}  # files, and what they are nothing without


class Mode(str, Enum):
    """What becomes a case."""

    BSCANS = "bscans"
    VOLUMES = "volumes"


@dataclass(frozen=True)
class Scan:
    """One scan, taken for one subject.

    Attributes:
        subject: `<vendor>_<folder>`.
        vendor: lower case; empty where no folder's name says it.
        folder: of its files.
        annotated: whether it has a reference.
    """

    subject: str
    vendor: str
    folder: Path
    annotated: bool


def convert(
    source: Path,
    number: int,
    *,
    name: str = "OCTRetouch",
    mode: Mode = Mode.BSCANS,
    framing: Framing | None = None,
    test_subjects: Iterable[str] = (),
    options: Options | None = None,
) -> Path:
    """Convert the RETOUCH set; a run that was killed is resumed by running it again.

    Args:
        source: the folder that holds the scans' folders, at any depth.
        number: dataset number, 1 to 999.
        name: dataset name after the number.
        mode: one 2D picture a B-scan, or one volume a scan, voxels and position as they are.
        framing: crop and size of B-scans; None for the defaults.
        test_subjects: scans (`cirrus_TRAIN001`) kept for testing.
        options: processes (each holds one scan, about 0.2 GB), folds, strictness; None for the defaults.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: no scans, unknown test subjects, a framing for volumes, or no scan could be converted.
    """
    source = source.absolute()  # a worker may have another working folder
    if mode is Mode.VOLUMES and framing not in (None, Framing()):
        raise DatasetError("--mode volumes keeps the scans as they are; crop, size and padding are for --mode bscans")
    units, left_out = find_scans(source)
    test = chosen_subjects(test_subjects, [unit.name for unit in units])
    framing = framing or Framing()
    dataset = RawDataset.named(
        number,
        name,
        channel_names=("OCT",),
        labels=FLUIDS,
        file_ending=".png" if mode is Mode.BSCANS else ".nii.gz",
        settings={
            "source": str(source.resolve()),
            "mode": mode.value,
            "test_subjects": sorted(test),
            **(asdict(framing) if mode is Mode.BSCANS else {}),
        },
        extra={"reference": REFERENCE},
    )
    read = partial(read_scan, source=source, mode=mode, framing=framing, test=test)
    return convert_units(dataset, units, read, what="Scans", options=options or Options(), left_out=left_out)


def find_scans(source: Path) -> tuple[list[Unit], list[LeftOut]]:
    """Go through the folders without opening a file.

    Returns:
        The scans by name, and what is none: references and raw files without a header, linked folders, a second scan
        of the same name.

    Raises:
        DatasetError: there is no such folder, or no scan below it.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder that holds {LAYOUT} with -i")
    scans: dict[str, Scan] = {}
    left_out: list[LeftOut] = []
    for text, folders, files in os.walk(source):
        folder = Path(text)
        folders.sort()
        links = [folder / name for name in folders if (folder / name).is_symlink()]
        left_out += [
            LeftOut(str(link), "is a symbolic link to a folder; copy the folder there", bad=True) for link in links
        ]
        left_out += [
            LeftOut(str(folder / name), f"has no {other} beside it", bad=True)
            for name, other in _NEEDED_BY.items()
            if name in files and other not in files
        ]
        if IMAGE not in files:
            continue
        vendor = _vendor(folder, source)
        try:
            subject = safe_name(f"{vendor} {folder.resolve().name}".strip())
        except DatasetError as error:
            left_out.append(LeftOut(str(folder), str(error), bad=True))
            continue
        if subject in scans:
            reason = f"gives the same cases {subject} as {scans[subject].folder}; rename one of the folders"
            left_out.append(LeftOut(str(folder), reason, bad=True))
            continue
        scans[subject] = Scan(subject, vendor, folder, annotated=MASK in files)
    if not scans:
        raise DatasetError(f"{source}: no folder with {IMAGE} there; expected {LAYOUT}")
    return [Unit(subject, scans[subject]) for subject in sorted(scans)], left_out


def _vendor(folder: Path, source: Path) -> str:
    """The vendor that the innermost folder's name tells."""
    names = (source.resolve().name, *folder.relative_to(source).parts)
    return next((vendor for name in reversed(names) for vendor in VENDORS if vendor in name.lower()), "")


def read_scan(scan: Scan, *, source: Path, mode: Mode, framing: Framing, test: set[str]) -> Iterator[Case | LeftOut]:
    """The cases of one scan.

    Args:
        scan: where its files are.
        source: the folder that they must lie in.
        mode: B-scans or the volume.
        framing: crop and size of B-scans.
        test: subjects kept for testing.

    Yields:
        Cases in the order of the scan, and what is left out.

    Raises:
        DatasetError: a file is a link out of the source.
        ImageError: a file is missing or damaged, shapes or directions do not fit, unknown labels, or a B-scan with
            fluid but without a retina.
    """
    if scan.subject in test and not scan.annotated:
        yield LeftOut(scan.subject, "is not annotated, of a subject for testing")
        return
    role = Role.TEST if scan.subject in test else Role.LABELLED if scan.annotated else Role.UNLABELLED
    image, geometry = _volume(scan.folder / IMAGE, source)
    label = _reference(scan.folder / MASK, source, image, geometry) if scan.annotated else None
    if mode is Mode.VOLUMES:
        if image.min() == image.max():
            lost = label is not None and bool(label.any())
            yield LeftOut(scan.subject, f"all voxels are {float(image.min()):g}", bad=lost)
            return
        row = {"subject_id": scan.subject, "stack_id": scan.subject, "site": scan.vendor}
        yield Case(case_id=scan.subject, role=role, images=[image], label=label, geometry=geometry, row=row)
        return
    scale = scale_of(image, str(scan.folder / IMAGE))
    for index, bscan in enumerate(image):
        case = BscanCase(f"{scan.subject}_bscan{index:03d}", scan.subject, scan.subject, index, scan.vendor, role)
        fluid = None if label is None else label[index]
        yield from frame_bscan(case, bscan, fluid, framing=framing, scale=scale)


def _reference(path: Path, source: Path, image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Label values on the grid of the image; spacing and origin are the image's, whatever the header says."""
    label, own = _volume(path, source)
    check_same_grid(image, label, str(path))
    if not np.allclose(own.direction, geometry.direction, atol=1e-3):
        raise ImageError(f"{path}: has other directions than {IMAGE}; resample it to the grid of the image")
    check_label_values(label, set(FLUIDS.values()), str(path))
    return label.astype(np.uint8)


def _volume(path: Path, source: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels `(B-scans, rows, columns)` and their geometry."""
    volume, geometry = read_bounded(path, below(metaimage_data(below(path, source)), source))
    if volume.ndim != 3:
        raise ImageError(f"{path}: has shape {volume.shape}; a volume (B-scans, rows, columns) is needed")
    return volume, geometry


def command(
    source: Annotated[Path, typer.Option("-i", "--input", help=f"The folder that holds {LAYOUT}.")],
    number: Number,
    name: str = typer.Option("OCTRetouch", "--name", help="Dataset name after the number."),
    mode: Mode = typer.Option(Mode.BSCANS, "--mode", help="2D pictures, one a B-scan, or 3D volumes, one a scan."),
    crop: bool = typer.Option(True, "--crop/--no-crop", help="Crop each B-scan to the retina."),
    crop_rows: int | None = typer.Option(
        None, "--crop-rows", help="Native rows of the crop; by default 65% of the rows (320 of 496)."
    ),
    size: str = typer.Option("80x192", "--size", help="ROWSxCOLUMNS of a case, or native."),
    native: bool = typer.Option(False, "--native", help="The same as --size native."),
    blank_padding: bool = typer.Option(
        True, "--blank-padding/--keep-padding", help="Set white corners of a shifted raster to 0."
    ),
    test_subjects: list[str] = typer.Option(
        [], "--test-subjects", help="Scans kept for testing, such as cirrus_TRAIN003; may be repeated."
    ),
    jobs: Jobs = 1,
    dask: Dask = None,
    folds: Folds = 5,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert the RETOUCH challenge: three fluids, three vendors.

    Example: `nnunet-qa convert oct-retouch -i /data/RETOUCH -d 104 --mode bscans -np 4`
    """
    framing = Framing(
        crop=crop, crop_rows=crop_rows, size=None if native else parse_size(size), blank_padding=blank_padding
    )
    folder = convert(
        source,
        number,
        name=name,
        mode=mode,
        framing=framing,
        test_subjects=test_subjects,
        options=Options(jobs=jobs, dask=dask, folds=folds, strict=strict, overwrite=overwrite),
    )
    tell(folder)


if __name__ == "__main__":
    run_script(command)

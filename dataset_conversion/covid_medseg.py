"""MedSeg's 100 COVID-19 slices of more than 40 patients, `tr_im.nii.gz` …, to nnU-Net's format.

Each slice is of a patient whom nobody names, so each is a case and a subject of its own. `val_im.nii.gz` has no masks
and becomes the pool.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import SimpleITK as sitk
import typer

from nnunet_qa.data.images import Geometry, check_same_grid
from nnunet_qa.dataset_conversion import covid
from nnunet_qa.dataset_conversion.budget import check_volume, read_bounded
from nnunet_qa.dataset_conversion.covid import Classes, Look, Scan, ScanFiles, covid_dataset
from nnunet_qa.dataset_conversion.covid_grid import Upright, check_aligned, slice_geometry, upright
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Options, Unit, below
from nnunet_qa.dataset_conversion.engine import convert as convert_units
from nnunet_qa.dataset_conversion.oct import parse_size
from nnunet_qa.dataset_conversion.options import Dask, Folds, Jobs, Number, Overwrite, Strict
from nnunet_qa.dataset_conversion.script import run_script, tell
from nnunet_qa.errors import DatasetError, ImageError

REFERENCE = "MedSeg COVID-19 CT segmentation dataset no. 1 (2020)"
MASKS = {
    "tr": {"findings": ("tr_mask",), "lungs": ("tr_lungmasks_updated", "tr_lungmasks")},
    "val": {"findings": ("val_mask",), "lungs": ("val_lungmasks_updated", "val_lungmasks")},
}
"""Names of the masks of each part, the better one first; the downloaded set holds those of `tr`."""


def convert(
    source: Path,
    number: int,
    *,
    name: str = "CovidMedSeg",
    look: Look | None = None,
    test_subjects: Iterable[str] = (),
    options: Options,
) -> Path:
    """Convert the slices; a run that was killed is resumed by running it again.

    Args:
        source: the folder that holds `tr_im.nii.gz`.
        number: dataset number, 1 to 999.
        name: dataset name after the number.
        look: classes, lung mask, size; None for the defaults.
        test_subjects: slices (`medseg_tr_slice004`) kept for testing; without a mask they are left out.
        options: processes, folds, strictness.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: no images, an unknown test subject, or what `engine.convert` raises.
    """
    source = source.absolute()  # a worker may have another working folder
    look = look or Look()
    units, left_out = find_parts(source)
    test = covid.subjects_for_testing(test_subjects, units, _subjects)
    dataset = covid_dataset(number, name, source, look, reference=REFERENCE, test_subjects=sorted(test))
    read = partial(read_slices, look=look, test=test)
    return convert_units(dataset, units, read, what="Files", options=options, left_out=left_out)


def find_parts(source: Path) -> tuple[list[Unit], list[LeftOut]]:
    """The files of training and validation slices; one unit each, its content `ScanFiles`.

    Raises:
        DatasetError: there is no such folder or neither file.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder that holds tr_im.nii.gz with -i")
    units, left_out = [], []
    for part, kinds in MASKS.items():
        image = _file(source, f"{part}_im")
        masks = {kind: found for kind, names in kinds.items() if (found := _file(source, *names))}
        if image is not None:
            units.append(Unit(part, ScanFiles(part, image, masks, source)))
        else:
            left_out += [LeftOut(str(path), f"has no image {part}_im.nii.gz", bad=True) for path in masks.values()]
    if not units:
        raise DatasetError(f"{source}: neither tr_im.nii.gz nor val_im.nii.gz there; give their folder with -i")
    return units, left_out


def _file(folder: Path, *names: str) -> Path | None:
    """The first of some NIfTI files that is there."""
    paths = (folder / f"{name}{ending}" for name in names for ending in (".nii.gz", ".nii"))
    return next((path for path in paths if path.exists()), None)


def _subjects(files: ScanFiles) -> list[str]:
    """Subjects of a file, as many as its header states slices."""
    path = below(files.image, files.source)
    check_volume(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ImageError(f"{files.image}: cannot be read as an image") from error
    return [_subject(files, index) for index in range(reader.GetSize()[-1])]


def _subject(files: ScanFiles, index: int) -> str:
    return f"medseg_{files.name}_slice{index:03d}"


def read_slices(files: ScanFiles, *, look: Look, test: Collection[str] = ()) -> Iterator[Case | LeftOut]:
    """Cases of all slices of a file; those of the subjects `test` are for testing.

    Raises:
        DatasetError: a symbolic link leads out of the source.
        ImageError: a file cannot be read, is not axial, or a mask lies elsewhere or holds other values than 0 to 3.
    """
    image: tuple[np.ndarray, Geometry] = read_bounded(below(files.image, files.source))
    masks: dict[str, tuple[np.ndarray, Geometry]] = {
        kind: read_bounded(below(path, files.source)) for kind, path in files.masks.items()
    }
    for kind, (array, _) in masks.items():
        check_same_grid(image[0], array, str(files.masks[kind]))
    for index in range(len(image[0])):
        pixels = _slice(*image, index, files.image)
        own = {kind: _slice(*mask, index, files.masks[kind]) for kind, mask in masks.items()}
        for kind, mask in own.items():
            check_aligned(mask, pixels, str(files.masks[kind]))
        case = _subject(files, index)
        findings, lungs = own.get("findings"), own.get("lungs")
        scan = Scan(
            case_id=case,
            image=pixels.array,
            findings=None if findings is None else covid.findings_of(findings.array, str(files.masks["findings"])),
            lungs=None if lungs is None else lungs.array > covid.DECIMALS,
            geometry=pixels.geometry,
            test=case in test,
            row={"subject_id": case, "slice_index": index, "site": "medseg"},
        )
        yield from covid.cases_of(scan, look)


def _slice(array: np.ndarray, geometry: Geometry, index: int, path: Path) -> Upright:
    """One slice, upright by itself: the slices are of different patients, so their order is that of the file."""
    if array.ndim != 3:
        raise ImageError(f"{path}: has the shape {array.shape}; slices (slices, rows, columns) are needed")
    found = upright(array[index : index + 1], slice_geometry(geometry, index), name=str(path))
    if len(found.array) != 1:
        raise ImageError(f"{path}: by its header its last axis does not run from feet to head; correct the header")
    return found


def command(
    source: Annotated[Path, typer.Option("-i", "--input", help="The folder that holds tr_im.nii.gz.")],
    number: Number,
    name: str = typer.Option("CovidMedSeg", "--name", help="Dataset name after the number."),
    classes: Classes = covid.CLASSES,
    lung_masked: bool = covid.LUNG_MASKED,
    size: str = covid.SIZE,
    test_subjects: list[str] = covid.TEST_SUBJECTS,
    jobs: Jobs = 1,
    dask: Dask = None,
    folds: Folds = 5,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert MedSeg's 100 COVID-19 CT slices; the 10 slices without masks become the pool.

    Example: `nnunet-qa convert covid-medseg -i /data/medseg -d 121 --classes ggo --size 256x256`
    """
    look = Look(classes=classes, lung_masked=lung_masked, size=parse_size(size))
    options = Options(jobs=jobs, dask=dask, folds=folds, strict=strict, overwrite=overwrite)
    tell(convert(source, number, name=name, look=look, test_subjects=test_subjects, options=options))


if __name__ == "__main__":
    run_script(command)

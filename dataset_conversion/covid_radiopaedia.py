"""Radiopaedia's 9 annotated COVID-19 volumes (MedSeg), `rp_im/1.nii.gz` …, to nnU-Net's format."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from nnunet_qa.dataset_conversion import covid
from nnunet_qa.dataset_conversion.covid import Classes, Look, Orientation, Scan, ScanFiles, covid_dataset, find_scans
from nnunet_qa.dataset_conversion.covid_grid import read_upright
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Options, Unit, safe_name
from nnunet_qa.dataset_conversion.engine import convert as convert_units
from nnunet_qa.dataset_conversion.oct import parse_size
from nnunet_qa.dataset_conversion.options import Dask, Folds, Jobs, Number, Overwrite, Strict
from nnunet_qa.dataset_conversion.script import run_script, tell

REFERENCE = "MedSeg COVID-19 CT segmentation dataset no. 2 (2020), nine volumes of Radiopaedia"


def convert(
    source: Path,
    number: int,
    *,
    name: str = "CovidRadiopaedia",
    look: Look | None = None,
    test_subjects: Iterable[str] = (),
    options: Options,
) -> Path:
    """Convert the nine volumes; a run that was killed is resumed by running it again.

    Args:
        source: the folder that holds `rp_im`, `rp_msk` and `rp_lung_msk`.
        number: dataset number, 1 to 999.
        name: dataset name after the number.
        look: classes, lung mask, slices, size; None for the defaults.
        test_subjects: volumes (`radiopaedia_3`) kept for testing; without a mask they are left out.
        options: processes, folds, strictness.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: no volumes, an unknown test subject, or what `engine.convert` raises.
    """
    source = source.absolute()  # a worker may have another working folder
    look = look or Look()
    units, left_out = find_volumes(source)
    test = covid.subjects_for_testing(test_subjects, units, lambda files: [_subject(files)])
    dataset = covid_dataset(number, name, source, look, reference=REFERENCE, test_subjects=sorted(test))
    read = partial(read_volumes, look=look, test=test)
    return convert_units(dataset, units, read, what="Volumes", options=options, left_out=left_out)


def find_volumes(source: Path) -> tuple[list[Unit], list[LeftOut]]:
    """Volumes with their masks; see `find_scans`."""
    return find_scans(source, "rp_im", {"findings": "rp_msk", "lungs": "rp_lung_msk"}, annotations=("findings",))


def _subject(files: ScanFiles) -> str:
    return safe_name(f"radiopaedia_{files.name}")


def read_volumes(files: ScanFiles, *, look: Look, test: Collection[str] = ()) -> Iterator[Case | LeftOut]:
    """One volume, or its slices; those of the subjects `test` are for testing.

    Raises:
        DatasetError: a symbolic link leads out of the source.
        ImageError: a file cannot be read, a mask lies elsewhere than its image or holds other values than 0 to 3.
    """
    image = read_upright(files.image, files.source)
    findings, lungs = files.read_mask("findings", image), files.read_mask("lungs", image)
    case = _subject(files)
    scan = Scan(
        case_id=case,
        image=image.array,
        findings=None if findings is None else covid.findings_of(findings, str(files.masks["findings"])),
        lungs=None if lungs is None else lungs > covid.DECIMALS,
        geometry=image.geometry,
        test=case in test,
        row={"subject_id": case, "stack_id": case, "site": "radiopaedia"},
    )
    yield from covid.cases_of(scan, look)


def command(
    source: Annotated[Path, typer.Option("-i", "--input", help="The folder that holds rp_im, rp_msk and rp_lung_msk.")],
    number: Number,
    name: str = typer.Option("CovidRadiopaedia", "--name", help="Dataset name after the number."),
    classes: Classes = covid.CLASSES,
    lung_masked: bool = covid.LUNG_MASKED,
    slices: bool = covid.SLICES,
    size: str = covid.SIZE,
    orientation: Orientation = covid.ORIENTATION,
    test_subjects: list[str] = covid.TEST_SUBJECTS,
    jobs: Jobs = 1,
    dask: Dask = None,
    folds: Folds = 5,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert the nine annotated COVID-19 CT volumes of Radiopaedia.

    Example: `nnunet-qa convert covid-radiopaedia -i /data/radiopaedia -d 122 --slices --lung-masked -np 4`
    """
    look = Look(classes=classes, lung_masked=lung_masked, size=parse_size(size), slices=slices, orientation=orientation)
    options = Options(jobs=jobs, dask=dask, folds=folds, strict=strict, overwrite=overwrite)
    tell(convert(source, number, name=name, look=look, test_subjects=test_subjects, options=options))


if __name__ == "__main__":
    run_script(command)

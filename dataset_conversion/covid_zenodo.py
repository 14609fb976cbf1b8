"""COVID-19-CT-Seg, 20 volumes with lungs and infection (Zenodo 3757476, Ma et al. 2021), to nnU-Net's format."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nnunet_qa.dataset_conversion import covid
from nnunet_qa.dataset_conversion.covid import Classes, Look, Orientation, Scan, ScanFiles, covid_dataset, find_scans
from nnunet_qa.dataset_conversion.covid_grid import Upright, read_upright
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Options, Unit, safe_name
from nnunet_qa.dataset_conversion.engine import convert as convert_units
from nnunet_qa.dataset_conversion.oct import parse_size
from nnunet_qa.dataset_conversion.options import Dask, Folds, Jobs, Number, Overwrite, Strict
from nnunet_qa.dataset_conversion.script import run_script, tell
from nnunet_qa.errors import DatasetError

REFERENCE = (
    "Ma et al. 2021, Toward data-efficient learning: a benchmark for COVID-19 CT lung and infection segmentation"
)
IMAGES = "COVID-19-CT-Seg_20cases"
MASKS = {"infection": "Infection_Mask", "lungs": "Lung_Mask", "both": "Lung_and_Infection_Mask"}
WINDOW = (-1250.0, 250.0)
"""HU that its authors made 0 and 255 in the volumes of Radiopaedia; those of Coronacases are in HU."""
_BOTH_INFECTION = 3
_RADIOPAEDIA = re.compile(r"(radiopaedia_\d+)_.*", re.IGNORECASE)


def convert(
    source: Path,
    number: int,
    *,
    name: str = "CovidZenodo",
    look: Look | None = None,
    keep_window: bool = False,
    test_subjects: Iterable[str] = (),
    options: Options,
) -> Path:
    """Convert the 20 volumes; a run that was killed is resumed by running it again.

    Args:
        source: the folder that holds `COVID-19-CT-Seg_20cases` and the folders of masks.
        number: dataset number, 1 to 999.
        name: dataset name after the number.
        look: classes, lung mask, slices, size; None for the defaults. The set does not part ground glass from
            consolidation.
        keep_window: leave the volumes of Radiopaedia at 0 to 255 instead of bringing them back to HU; nnU-Net is then
            told to normalise each image by itself.
        test_subjects: subjects (`coronacases_001`, `radiopaedia_4`) kept for testing; without a mask they are left out.
        options: processes, folds, strictness.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: the class ggo was asked for, no volumes, an unknown test subject, or what `engine.convert` raises.
    """
    source = source.absolute()  # a worker may have another working folder
    look = look or Look()
    if look.classes is Classes.GGO:
        raise DatasetError("--classes ggo: these masks do not tell ground glass from consolidation; choose infection")
    units, left_out = find_volumes(source)
    test = covid.subjects_for_testing(test_subjects, units, lambda files: [_subject(files)])
    channel = "lung window" if keep_window else "CT"
    settings = {"keep_window": keep_window, "test_subjects": sorted(test)}
    dataset = covid_dataset(number, name, source, look, reference=REFERENCE, channel=channel, **settings)
    read = partial(read_volumes, look=look, keep_window=keep_window, test=test)
    return convert_units(dataset, units, read, what="Volumes", options=options, left_out=left_out)


def find_volumes(source: Path) -> tuple[list[Unit], list[LeftOut]]:
    """Volumes with their masks; see `find_scans`."""
    return find_scans(source, IMAGES, MASKS, annotations=("infection", "both"))


def _subject(files: ScanFiles) -> str:
    """Two series of one patient share the number after "radiopaedia"."""
    case = safe_name(files.name)
    match = _RADIOPAEDIA.fullmatch(case)
    return match.group(1) if match else case


def read_volumes(
    files: ScanFiles, *, look: Look, keep_window: bool = False, test: Collection[str] = ()
) -> Iterator[Case | LeftOut]:
    """One volume, or its slices; those of the subjects `test` are for testing.

    Raises:
        DatasetError: a symbolic link leads out of the source.
        ImageError: a file cannot be read, or a mask lies elsewhere than its image.
    """
    image = read_upright(files.image, files.source)
    infection, lungs = _masks(files, image)
    windowed = float(image.array.min()) >= 0 and float(image.array.max()) <= 255
    case, subject = safe_name(files.name), _subject(files)
    scan = Scan(
        case_id=case,
        image=hounsfield(image.array) if windowed and not keep_window else image.array,
        findings=None if infection is None else np.where(infection, covid.INFECTION, 0).astype(np.uint8),
        lungs=lungs,
        geometry=image.geometry,
        test=subject in test,
        row={
            "subject_id": subject,
            "stack_id": case,
            "site": "coronacases" if subject == case else "radiopaedia",
            "stored_as": "window" if windowed else "HU",
        },
    )
    yield from covid.cases_of(scan, look)


def hounsfield(pixels: np.ndarray) -> np.ndarray:
    """HU of pixels of 0 to 255, int16; what lay outside `WINDOW` is lost."""
    low, high = WINDOW
    return np.rint(low + pixels.astype(np.float64) / 255 * (high - low)).astype(np.int16)


def _masks(files: ScanFiles, image: Upright) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Infection and lungs as booleans, from masks of their own or else from the combined one."""
    infection, lungs = files.read_mask("infection", image), files.read_mask("lungs", image)
    both = files.read_mask("both", image) if infection is None or lungs is None else None
    infected = None if infection is None else infection > covid.DECIMALS
    breathing = None if lungs is None else lungs > covid.DECIMALS
    if both is not None:
        infected = np.rint(both) == _BOTH_INFECTION if infected is None else infected
        breathing = both > covid.DECIMALS if breathing is None else breathing
    return infected, breathing


def command(
    source: Annotated[
        Path, typer.Option("-i", "--input", help=f"The folder that holds {IMAGES} and the masks' folders.")
    ],
    number: Number,
    name: str = typer.Option("CovidZenodo", "--name", help="Dataset name after the number."),
    classes: Classes = covid.CLASSES,
    lung_masked: bool = covid.LUNG_MASKED,
    slices: bool = covid.SLICES,
    size: str = covid.SIZE,
    orientation: Orientation = covid.ORIENTATION,
    keep_window: bool = typer.Option(
        False,
        "--keep-window/--to-hu",
        help="Leave volumes that are stored as 0 to 255 as they are, or bring them to HU.",
    ),
    test_subjects: list[str] = covid.TEST_SUBJECTS,
    jobs: Jobs = 1,
    dask: Dask = None,
    folds: Folds = 5,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert COVID-19-CT-Seg, 20 volumes with lungs and infection.

    Example: `nnunet-qa convert covid-zenodo -i /data/zenodo -d 124 --classes lung-infection -np 4`
    """
    look = Look(classes=classes, lung_masked=lung_masked, size=parse_size(size), slices=slices, orientation=orientation)
    options = Options(jobs=jobs, dask=dask, folds=folds, strict=strict, overwrite=overwrite)
    folder = convert(
        source, number, name=name, look=look, keep_window=keep_window, test_subjects=test_subjects, options=options
    )
    tell(folder)


if __name__ == "__main__":
    run_script(command)

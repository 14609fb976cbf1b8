"""Duke DME set (Chiu et al. 2015, Biomedical Optics Express 6(4)), `Subject_01.mat` …, to nnU-Net's format.

Every volume has 61 B-scans of which 11 carry manual fluid; the others are NaN there and become the unlabelled pool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import typer
from scipy.io import loadmat, whosmat

from nnunet_qa.cases import Role
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.dataset_conversion.oct import (
    LABELS,
    BscanCase,
    Framing,
    Outcome,
    chosen_subjects,
    convert_bscan,
    convert_units,
    parse_size,
    scale_of,
)
from nnunet_qa.dataset_conversion.script import run_script
from nnunet_qa.errors import DatasetError, DependencyError, ImageError

REFERENCE = "Chiu et al. 2015, Kernel regression based segmentation of OCT images with diabetic macular edema, BOE 6(4)"
GRADERS = (1, 2)
_FILE = re.compile(r"Subject_(\d+)\.mat", re.IGNORECASE)


def convert(
    source: Path,
    number: int,
    *,
    name: str = "OCTDukeDME",
    framing: Framing | None = None,
    grader: int = 1,
    test_subjects: Iterable[str] = (),
    jobs: int = 1,
    folds: int = 5,
    overwrite: bool = False,
) -> Path:
    """Convert the Duke DME set; a run that was killed is resumed by running it again.

    Args:
        source: the folder `2015_BOE_Chiu`, or the one that holds it.
        number: dataset number, 1 to 999.
        name: dataset name after the number.
        framing: crop and size; None for the defaults.
        grader: whose manual fluid, 1 or 2.
        test_subjects: subjects (S01 …) kept for testing: their annotated B-scans become imagesTs and labelsTs, their
            other B-scans are left out, so that nothing is ever trained on them.
        jobs: processes; each holds one volume (about 0.5 GB) in memory.
        folds: cross-validation folds, grouped by subject.
        overwrite: delete an earlier conversion first.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: no files, a subject stands twice, unknown test subjects, a file cannot be read or lacks a key.
        ImageError: shapes do not fit, NaN in an image, or an annotated B-scan without a retina.
        DependencyError: a file is of MATLAB's version 7.3 and h5py is not installed.
    """
    if grader not in GRADERS:
        raise DatasetError(f"--grader {grader}: the set has the graders 1 and 2")
    files = find_subjects(source)
    test = chosen_subjects(test_subjects, files)
    framing = framing or Framing()
    dataset = RawDataset.named(
        number,
        name,
        channel_names=("OCT",),
        labels=LABELS,
        file_ending=".png",
        settings={
            "source": str(source.resolve()),
            "grader": grader,
            "test_subjects": sorted(test),
            **asdict(framing),
        },
        extra={"reference": REFERENCE},
    )
    function = partial(_convert_subject, dataset=dataset, framing=framing, grader=grader, test=test)
    return convert_units(
        dataset, list(files.items()), function, what="Subjects", jobs=jobs, folds=folds, overwrite=overwrite
    )


def find_subjects(source: Path) -> dict[str, Path]:
    """Files by subject (`S01` …), sorted.

    Raises:
        DatasetError: there is no such folder or file, or two files are of one subject.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder 2015_BOE_Chiu with -i")
    found: dict[str, Path] = {}
    for folder in (source, source / "2015_BOE_Chiu"):
        for path in sorted(folder.glob("*")):
            match = _FILE.fullmatch(path.name)
            if match is None:
                continue
            subject = f"S{int(match.group(1)):02d}"
            if subject in found:
                raise DatasetError(f"{path}: is a second file of subject {subject} beside {found[subject]}; remove one")
            found[subject] = path
    if not found:
        raise DatasetError(f"{source}: no Subject_01.mat … there; give the folder 2015_BOE_Chiu with -i")
    return dict(sorted(found.items()))


def read_mat(path: Path, wanted: Iterable[str]) -> dict[str, np.ndarray]:
    """Read variables of a `.mat` file of any version, axes in MATLAB's order.

    Raises:
        DatasetError: the file is truncated or no .mat file, or a variable is missing.
        DependencyError: the file is of version 7.3 (HDF5) and h5py is not installed.
    """
    names = list(wanted)
    try:
        found, known = _read_hdf5(path, names) if _is_hdf5(path) else _read_classic(path, names)
    except DependencyError:
        raise
    except Exception as error:  # SciPy and h5py raise a dozen types on a broken file
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{path}: cannot be read as a .mat file (truncated download?): {reason}") from error
    for name in names:
        if name not in found:
            raise DatasetError(
                f'{path}: the variable "{name}" is missing; found: {", ".join(sorted(known)) or "none"}. '
                "Is it the file of the Duke DME set, and whole?"
            )
        if not np.issubdtype(found[name].dtype, np.number):
            raise DatasetError(f'{path}: the variable "{name}" holds no numbers ({found[name].dtype})')
    return found


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(520)
    return start.startswith((b"MATLAB 7.3", b"\x89HDF")) or start[512:516] == b"\x89HDF"


def _read_classic(path: Path, names: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    content = loadmat(path, variable_names=names)
    found = {name: np.asarray(content[name]) for name in names if name in content}
    return found, [] if len(found) == len(names) else [entry[0] for entry in whosmat(path)]


def _read_hdf5(path: Path, names: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        import h5py
    except ImportError as error:
        raise DependencyError(
            f"{path}: is of MATLAB's version 7.3 and needs h5py; run `pip install nnunet-qa[mat73]` (or h5py alone)"
        ) from error
    with h5py.File(path, "r") as file:
        # HDF5 lists the axes of a MATLAB array the other way round
        return {name: np.asarray(file[name]).T for name in names if name in file}, list(file)


def _convert_subject(
    unit: tuple[str, Path], *, dataset: RawDataset, framing: Framing, grader: int, test: set[str]
) -> Outcome:
    subject, path = unit
    key = f"manualFluid{grader}"
    content = read_mat(path, ("images", key))
    images, fluid = (_volume(content[name]) for name in ("images", key))
    if images.ndim != 3 or images.shape != fluid.shape or not images.size:
        raise ImageError(
            f"{path}: images have shape {images.shape}, {key} {fluid.shape}; both must be (rows, columns, B-scans)"
        )
    annotated = np.ones(fluid.shape[2], dtype=bool)
    if np.issubdtype(fluid.dtype, np.floating):
        annotated = ~np.isnan(fluid).all(axis=(0, 1))
    scale = scale_of(images, f"{path}: images")
    outcome = Outcome()
    for index in range(images.shape[2]):
        role = Role.LABELLED if annotated[index] else Role.UNLABELLED
        if subject in test:
            if role is Role.UNLABELLED:
                continue
            role = Role.TEST
        case = BscanCase(f"{subject}_bscan{index:02d}", subject, subject, index, "duke", role)
        # single pixels of an annotated B-scan that are NaN are taken for background, as NaN > 0 is false
        mask = fluid[..., index] > 0 if annotated[index] else None
        convert_bscan(dataset, case, images[..., index], mask, framing=framing, scale=scale, outcome=outcome)
    return outcome


def _volume(array: np.ndarray) -> np.ndarray:
    return array[..., None] if array.ndim == 2 else array  # MATLAB drops a last axis of length 1


def command(
    source: Path = typer.Option(..., "-i", "--input", help="The folder 2015_BOE_Chiu, or the one that holds it."),
    number: int = typer.Option(..., "-d", "--dataset", help="Dataset number, 1 to 999."),
    name: str = typer.Option("OCTDukeDME", "--name", help="Dataset name after the number."),
    crop: bool = typer.Option(True, "--crop/--no-crop", help="Crop each B-scan to the retina."),
    crop_rows: int | None = typer.Option(None, "--crop-rows", help="Native rows of the crop; 320 of 496 by default."),
    size: str = typer.Option("80x192", "--size", help="ROWSxCOLUMNS of a case, or native."),
    native: bool = typer.Option(False, "--native", help="The same as --size native."),
    blank_padding: bool = typer.Option(
        True, "--blank-padding/--keep-padding", help="Set white corners of a shifted raster to 0."
    ),
    grader: int = typer.Option(1, "--grader", help="Whose manual fluid: 1 or 2."),
    test_subjects: list[str] = typer.Option(
        [], "--test-subjects", help="Subjects kept for testing, such as S05,S06; may be repeated."
    ),
    jobs: int = typer.Option(1, "-np", "--jobs", help="Processes."),
    folds: int = typer.Option(5, "--folds", help="Cross-validation folds, grouped by subject."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Delete an earlier conversion of this dataset."),
) -> None:
    """Convert the Duke DME set (Chiu et al. 2015).

    Annotated B-scans become training cases, the others the unlabelled pool.

    Example: `nnunet-qa convert oct-chiu -i /data/2015_BOE_Chiu -d 101 --test-subjects S09,S10 -np 4`
    """
    framing = Framing(
        crop=crop, crop_rows=crop_rows, size=None if native else parse_size(size), blank_padding=blank_padding
    )
    folder = convert(
        source,
        number,
        name=name,
        framing=framing,
        grader=grader,
        test_subjects=test_subjects,
        jobs=jobs,
        folds=folds,
        overwrite=overwrite,
    )
    typer.echo(f"Wrote {folder}")


if __name__ == "__main__":
    run_script(command)

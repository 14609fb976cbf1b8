"""Duke DME set (Chiu et al. 2015, Biomedical Optics Express 6(4)), `Subject_01.mat` …, to nnU-Net's format.

Every volume has 61 B-scans of which 11 carry manual fluid; the others are NaN there and become the unlabelled pool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.io import loadmat, whosmat

from nnunet_qa.cases import Role
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Options, Unit, below
from nnunet_qa.dataset_conversion.engine import convert as convert_units
from nnunet_qa.dataset_conversion.oct import (
    LABELS,
    BscanCase,
    Framing,
    frame_bscan,
    parse_size,
    scale_of,
)
from nnunet_qa.dataset_conversion.options import Dask, Folds, Jobs, Number, Overwrite, Strict
from nnunet_qa.dataset_conversion.script import run_script, tell
from nnunet_qa.dataset_conversion.subjects import chosen_subjects
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
    options: Options | None = None,
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
        options: processes (each holds one volume, about 0.5 GB), folds, strictness; None for the defaults.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: no files, unknown test subjects, or no file could be converted.
    """
    source = source.absolute()  # a worker may have another working folder
    if grader not in GRADERS:
        raise DatasetError(f"--grader {grader}: the set has the graders 1 and 2")
    files, left_out = find_subjects(source)
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
    read = partial(read_subject, source=source, framing=framing, grader=grader, test=test)
    units = [Unit(subject, (subject, path)) for subject, path in files.items()]
    return convert_units(dataset, units, read, what="Subjects", options=options or Options(), left_out=left_out)


def find_subjects(source: Path) -> tuple[dict[str, Path], list[LeftOut]]:
    """Files by subject (`S01` …), sorted; and what lies beside them: second files of a subject, other names.

    Raises:
        DatasetError: there is no such folder or file.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder 2015_BOE_Chiu with -i")
    found: dict[str, Path] = {}
    left_out: list[LeftOut] = []
    inner = source / "2015_BOE_Chiu"
    for folder in (source, inner):
        others: list[LeftOut] = []
        for path in sorted(folder.glob("[!.]*")):
            match = _FILE.fullmatch(path.name)
            if match is None and path == inner:
                continue
            if match is None:
                others.append(LeftOut(str(path), "is not named Subject_<n>.mat; not read"))
                continue
            subject = f"S{int(match.group(1)):02d}"
            if found.setdefault(subject, path) != path:
                reason = f"is a second file of subject {subject} beside {found[subject]}, which was taken; remove one"
                left_out.append(LeftOut(str(path), reason, bad=True))
        if found:  # whatever lies beside the folder of the set is none of its business
            left_out += others
    if not found:
        raise DatasetError(f"{source}: no Subject_01.mat … there; give the folder 2015_BOE_Chiu with -i")
    return dict(sorted(found.items())), left_out


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


def read_subject(
    content: tuple[str, Path], *, source: Path, framing: Framing, grader: int, test: set[str]
) -> Iterator[Case | LeftOut]:
    """The B-scans of one subject.

    Args:
        content: subject and its file.
        source: the folder that the file must lie in.
        framing: crop and size.
        grader: whose manual fluid, 1 or 2.
        test: subjects kept for testing.

    Yields:
        Cases in the order of the volume, and what is left out.

    Raises:
        DatasetError: the file cannot be read, lacks a key or is a link out of the source.
        ImageError: shapes do not fit, NaN in an image, or a B-scan with fluid but without a retina.
        DependencyError: the file is of MATLAB's version 7.3 and h5py is not installed.
    """
    subject, path = content
    key = f"manualFluid{grader}"
    variables = read_mat(below(path, source), ("images", key))
    images, fluid = (_volume(variables[name]) for name in ("images", key))
    if images.ndim != 3 or images.shape != fluid.shape or not images.size:
        raise ImageError(
            f"{path}: images have shape {images.shape}, {key} {fluid.shape}; both must be (rows, columns, B-scans)"
        )
    annotated = np.ones(fluid.shape[2], dtype=bool)
    if np.issubdtype(fluid.dtype, np.floating):
        annotated = ~np.isnan(fluid).all(axis=(0, 1))
    if subject in test and not annotated.all():
        yield LeftOut(f"{subject}: {int((~annotated).sum())} B-scans", "are not annotated, of a subject for testing")
    scale = scale_of(images, f"{path}: images")
    for index in range(images.shape[2]):
        if subject in test and not annotated[index]:
            continue
        role = Role.TEST if subject in test else Role.LABELLED if annotated[index] else Role.UNLABELLED
        case = BscanCase(f"{subject}_bscan{index:02d}", subject, subject, index, "duke", role)
        # single pixels of an annotated B-scan that are NaN are taken for background, as NaN > 0 is false
        mask = fluid[..., index] > 0 if annotated[index] else None
        yield from frame_bscan(case, images[..., index], mask, framing=framing, scale=scale)


def _volume(array: np.ndarray) -> np.ndarray:
    return array[..., None] if array.ndim == 2 else array  # MATLAB drops a last axis of length 1


def command(
    source: Annotated[Path, typer.Option("-i", "--input", help="The folder 2015_BOE_Chiu, or the one that holds it.")],
    number: Number,
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
    jobs: Jobs = 1,
    dask: Dask = None,
    folds: Folds = 5,
    strict: Strict = False,
    overwrite: Overwrite = False,
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
        options=Options(jobs=jobs, dask=dask, folds=folds, strict=strict, overwrite=overwrite),
    )
    tell(folder)


if __name__ == "__main__":
    run_script(command)

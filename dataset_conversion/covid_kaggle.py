"""Kaggle's "COVID-19 CT Images Segmentation" arrays, `images_medseg.npy` …, to nnU-Net's format (paper 001, II-A)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nnunet_qa.dataset_conversion import covid
from nnunet_qa.dataset_conversion.covid import Classes, Look, Orientation, Scan, covid_dataset
from nnunet_qa.dataset_conversion.covid_grid import Turn, turn_by_lungs
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Options, Unit, below
from nnunet_qa.dataset_conversion.engine import convert as convert_units
from nnunet_qa.dataset_conversion.oct import parse_size
from nnunet_qa.dataset_conversion.options import Dask, Folds, Jobs, Number, Overwrite, Strict
from nnunet_qa.dataset_conversion.script import run_script, tell
from nnunet_qa.errors import DatasetError, ImageError

REFERENCE = "Kaggle covid-segmentation (2020), from MedSeg COVID-19 CT segmentation datasets no. 1 and 2"
GGO_CHANNEL, CONSOLIDATION_CHANNEL, CHANNELS = 0, 1, 4
LUNG_CHANNELS = slice(0, 3)
"""Ground glass, consolidation and other lung; the last channel is the background."""
_TURN_SLICES = 64


class Subset(str, Enum):
    """Which arrays: 100 slices of many patients, 829 slices of nine scans, or both."""

    MEDSEG = "medseg"
    RADIOPEDIA = "radiopedia"
    BOTH = "both"


@dataclass(frozen=True)
class Arrays:
    """Files of one stack of slices.

    Attributes:
        name: what its cases are called.
        images: `(slices, rows, columns)` or `(slices, rows, columns, 1)`.
        masks: `(slices, rows, columns, 4)`; None for the pool.
        upright: masks of slices that lie the same way, for a stack without masks of its own.
        source: the folder that none of them may leave.
    """

    name: str
    images: Path
    masks: Path | None
    upright: Path | None
    source: Path


def convert(
    source: Path,
    number: int,
    *,
    name: str = "CovidKaggle",
    look: Look | None = None,
    subset: Subset = Subset.BOTH,
    scans: Sequence[int] = (),
    test_subjects: Iterable[str] = (),
    options: Options,
) -> Path:
    """Convert the arrays; a run that was killed is resumed by running it again.

    Args:
        source: the folder that holds `images_medseg.npy`.
        number: dataset number, 1 to 999.
        name: dataset name after the number.
        look: classes, lung mask, size; None for the defaults.
        subset: which arrays; the slices of `test_images_medseg.npy`, which have no masks, are the pool of each.
        scans: slices of each scan of `images_radiopedia.npy`, in their order. The file does not say where one ends;
            without this all its slices are one subject, lest a fold tests on the scan that it trained on.
        test_subjects: subjects (`medseg_slice004`, `radiopedia_2`) kept for testing; without a mask they are left out.
        options: processes, folds, strictness.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: no arrays, an unknown test subject, or what `engine.convert` raises.
    """
    source = source.absolute()  # a worker may have another working folder
    look = look or Look()
    units, left_out = find_arrays(source, subset=subset)
    test = covid.subjects_for_testing(test_subjects, units, partial(_subjects, scans=tuple(scans)))
    settings = {"subset": subset.value, "scans": list(scans), "test_subjects": sorted(test)}
    dataset = covid_dataset(number, name, source, look, reference=REFERENCE, **settings)
    read = partial(read_slices, look=look, scans=tuple(scans), test=test)
    return convert_units(dataset, units, read, what="Files", options=options, left_out=left_out)


def find_arrays(source: Path, *, subset: Subset = Subset.BOTH) -> tuple[list[Unit], list[LeftOut]]:
    """The stacks of slices; one unit each, its content `Arrays`.

    Raises:
        DatasetError: there is no such folder or no array in it.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder that holds images_medseg.npy with -i")
    wanted = [one.value for one in (Subset.MEDSEG, Subset.RADIOPEDIA) if subset in (one, Subset.BOTH)]
    units, left_out = [], []
    for name in wanted:
        images, masks = (source / f"{kind}_{name}.npy" for kind in ("images", "masks"))
        found = masks if masks.exists() else None
        if images.exists():
            units.append(Unit(name, Arrays(name, images, found, None, source)))
        elif found is not None:
            left_out.append(LeftOut(str(found), f"has no image {images.name}", bad=True))
    pool, masks = source / "test_images_medseg.npy", source / "masks_medseg.npy"
    if pool.exists():
        units.append(Unit("test_medseg", Arrays("test_medseg", pool, None, masks if masks.exists() else None, source)))
    if not units:
        raise DatasetError(f"{source}: no images_{wanted[0]}.npy there; give the folder that holds it with -i")
    return units, left_out


def _subjects(arrays: Arrays, *, scans: tuple[int, ...]) -> set[str]:
    count = len(_open_images(arrays))
    return {str(row["subject_id"]) for row in _rows(arrays, count, scans)}


def read_slices(
    arrays: Arrays, *, look: Look, scans: tuple[int, ...] = (), test: Collection[str] = ()
) -> Iterator[Case | LeftOut]:
    """Cases of all slices of a stack, one slice in memory at a time; those of the subjects `test` are for testing.

    Raises:
        DatasetError: a symbolic link leads out of the source; or the slices of `scans` are more or fewer.
        ImageError: a file cannot be read or has another shape.
    """
    images = _open_images(arrays)
    masks = None if arrays.masks is None else _open_masks(arrays.masks, arrays.source)
    if masks is not None and masks.shape[:3] != images.shape:
        raise ImageError(
            f"{arrays.masks}: has the shape {masks.shape}, its images {images.shape}; they must be of the same slices"
        )
    turn = _turn(masks, arrays) if look.orientation is Orientation.LUNGS else None
    for index, row in enumerate(_rows(arrays, len(images), scans)):
        case_id = f"{arrays.name}_slice{index:03d}"
        pixels = np.asarray(images[index], dtype=np.float32)[None]
        if not np.isfinite(pixels).all():
            wrong = int((~np.isfinite(pixels)).sum())
            yield LeftOut(case_id, f"{wrong} intensities are NaN or infinite", bad=True)
            continue
        marked = None if masks is None else np.asarray(masks[index]) > 0.5
        if marked is not None and not marked.any():
            yield LeftOut(case_id, "its mask marks nothing, not even background", bad=True)
            continue
        scan = Scan(
            case_id=case_id,
            image=pixels,
            findings=None if marked is None else _findings(marked)[None],
            lungs=None if marked is None else marked[None, ..., LUNG_CHANNELS].any(axis=-1),
            turn=turn,
            test=row["subject_id"] in test,
            row=row,
        )
        yield from covid.cases_of(scan, look)


def open_array(path: Path, source: Path) -> np.ndarray:
    """Map an array of numbers into memory; nothing that a file holds is ever run.

    Raises:
        DatasetError: a symbolic link leads out of the source.
        ImageError: the file is truncated, no `.npy` file, or holds Python objects.
    """
    below(path, source)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy raises half a dozen types on a damaged header
        raise ImageError(
            f"{path}: cannot be read as an .npy array of numbers (truncated, or Python objects?): {error}"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{path}: holds no numbers ({array.dtype})")
    return array


def _open_images(arrays: Arrays) -> np.ndarray:
    images = open_array(arrays.images, arrays.source)
    images = images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images
    if images.ndim != 3 or not images.size:
        raise ImageError(f"{arrays.images}: has the shape {images.shape}; (slices, rows, columns) is needed")
    return images


def _open_masks(path: Path, source: Path) -> np.ndarray:
    masks = open_array(path, source)
    if masks.ndim != 4 or masks.shape[-1] != CHANNELS:
        raise ImageError(f"{path}: has the shape {masks.shape}; (slices, rows, columns, {CHANNELS}) is needed")
    return masks


def _findings(marked: np.ndarray) -> np.ndarray:
    """Findings from the channels of one slice; where two channels overlap, the denser one counts."""
    findings = np.where(marked[..., GGO_CHANNEL], covid.GGO, 0)
    return np.where(marked[..., CONSOLIDATION_CHANNEL], covid.CONSOLIDATION, findings).astype(np.uint8)


def _turn(masks: np.ndarray | None, arrays: Arrays) -> Turn:
    """What puts all slices of a file upright, by the lungs of some of them."""
    if masks is None and arrays.upright is not None:
        masks = _open_masks(arrays.upright, arrays.source)
    if masks is None:
        raise ImageError(f"{arrays.images}: has no masks to tell which way up it is; convert with --orientation header")
    counts = np.zeros(masks.shape[1:3])
    for index in range(0, len(masks), max(1, len(masks) // _TURN_SLICES)):
        counts += (np.asarray(masks[index])[..., LUNG_CHANNELS] > 0.5).any(axis=-1)
    turn = turn_by_lungs(counts)
    if turn is None:
        raise ImageError(f"{arrays.images}: the lungs do not tell front from back; convert with --orientation header")
    return turn


def _rows(arrays: Arrays, count: int, scans: tuple[int, ...]) -> Iterator[dict[str, object]]:
    """Columns of cases.csv for each slice; slices of MedSeg are each of a patient whom nobody names."""
    if arrays.name != Subset.RADIOPEDIA.value:
        for index in range(count):
            yield {"subject_id": f"{arrays.name}_slice{index:03d}", "slice_index": index, "site": "medseg"}
        return
    if scans and sum(scans) != count:
        raise DatasetError(f"--scans: are {sum(scans)} slices, {arrays.images} holds {count}; correct the numbers")
    for number, length in enumerate(scans or (count,), start=1):
        name = f"{arrays.name}_{number}" if scans else arrays.name
        for index in range(length):
            yield {"subject_id": name, "stack_id": name, "slice_index": index, "site": "radiopaedia"}


def parse_scans(text: str) -> tuple[int, ...]:
    """Read `--scans`: numbers of slices with commas between, or nothing.

    Raises:
        DatasetError: something else stands there.

    >>> parse_scans("39, 418")
    (39, 418)
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise DatasetError(f'--scans "{text}": give the slices of each scan with commas between, such as 39,418')
    return tuple(int(part) for part in parts)


def command(
    source: Annotated[Path, typer.Option("-i", "--input", help="The folder that holds images_medseg.npy.")],
    number: Number,
    name: str = typer.Option("CovidKaggle", "--name", help="Dataset name after the number."),
    subset: Subset = typer.Option(Subset.BOTH.value, "--subset", help="Which arrays."),
    scans: str = typer.Option(
        "", "--scans", help="Slices of each scan in images_radiopedia.npy, in order, so that folds can part the scans."
    ),
    classes: Classes = covid.CLASSES,
    lung_masked: bool = covid.LUNG_MASKED,
    size: str = covid.SIZE,
    orientation: Orientation = covid.ORIENTATION,
    test_subjects: list[str] = covid.TEST_SUBJECTS,
    jobs: Jobs = 1,
    dask: Dask = None,
    folds: Folds = 5,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert Kaggle's COVID-19 CT arrays; the slices without masks become the pool.

    Example: `nnunet-qa convert covid-kaggle -i /data/kaggle -d 123 --classes ggo --lung-masked --size 256x256`
    """
    look = Look(classes=classes, lung_masked=lung_masked, size=parse_size(size), orientation=orientation)
    options = Options(jobs=jobs, dask=dask, folds=folds, strict=strict, overwrite=overwrite)
    folder = convert(
        source, number, name=name, look=look, subset=subset, scans=parse_scans(scans), test_subjects=test_subjects,
        options=options,
    )  # fmt: skip
    tell(folder)


if __name__ == "__main__":
    run_script(command)

"""Any folder of images and masks to nnU-Net's format: which files, which subject and which labels is said by options.

Images and masks belong together where the stars of their patterns stand for the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nnunet_qa.cases import Role
from nnunet_qa.data.images import Geometry, read_picture
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.dataset_conversion import engine
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Options, Unit, below, safe_name
from nnunet_qa.dataset_conversion.folder_options import Labels, Pattern
from nnunet_qa.dataset_conversion.options import Dask, Folds, Jobs, Number, Overwrite, Strict
from nnunet_qa.dataset_conversion.script import run_script, tell
from nnunet_qa.dataset_conversion.subjects import chosen_subjects
from nnunet_qa.dataset_conversion.volume_files import onto_grid, read_source_volume
from nnunet_qa.errors import DatasetError, ImageError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")
"""Endings that are read as 2D pictures without spacing; all others as volumes through SimpleITK."""


@dataclass(frozen=True)
class Files:
    """Files of one case.

    Attributes:
        case_id: identifier.
        subject: what the subject expression found, or the case.
        role: labelled, unlabelled or test.
        source: folder that all files must lie in.
        channels: one file a channel.
        mask: None for a case of the pool.
    """

    case_id: str
    subject: str
    role: Role
    source: Path
    channels: tuple[Path, ...]
    mask: Path | None


def convert(
    source: Path,
    number: int,
    *,
    images: str,
    masks: str,
    name: str = "Folder",
    channels: Iterable[str] = (),
    labels: Sequence[str] = (),
    subject_regex: str | None = None,
    test_subjects: Iterable[str] = (),
    options: Options | None = None,
) -> Path:
    """Convert a folder of images and masks; a run that was killed is resumed by running it again.

    Args:
        source: folder that the patterns are relative to.
        number: dataset number, 1 to 999.
        images: pattern of the images, `GLOB` or `NAME=GLOB`.
        masks: pattern of the masks.
        name: dataset name after the number.
        channels: patterns of further channels, `NAME=GLOB`.
        labels: see `Labels.parse`; none for masks of 0 and 1, or 0 and 255.
        subject_regex: found anywhere in the path of an image below the source; its first group (or the whole match) is
            the subject. Without one, every case is a subject of its own.
        test_subjects: subjects kept for testing; their images without mask are left out.
        options: processes, folds, strictness.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: a pattern, label or expression is wrong, no image was found, or none could be converted.
        StorageError: the disk is full or read-only.
    """
    source = source.absolute()  # a worker may have another working folder
    patterns = _patterns(images, channels)
    mapping = Labels.parse(labels)
    mask_pattern = Pattern.parse(masks, name="mask")
    units, left_out = find_cases(source, patterns, mask_pattern, subject_regex=subject_regex)
    test = chosen_subjects(test_subjects, {unit.content.subject for unit in units})
    units, without = _with_roles(units, test)
    dataset = RawDataset.named(
        number,
        name,
        channel_names=tuple(pattern.name for pattern in patterns),
        labels=dict(mapping.names),
        file_ending=_ending(units),
        settings={
            "source": str(source.resolve()),
            "images": [vars(pattern) for pattern in patterns],
            "masks": mask_pattern.glob,
            "labels": list(labels),
            "subject_regex": subject_regex,
            "test_subjects": sorted(test),
        },
    )
    read = partial(read_case, labels=mapping)
    left_out += without
    return engine.convert(dataset, units, read, what="Images", options=options or Options(), left_out=left_out)


def _patterns(images: str, channels: Iterable[str]) -> list[Pattern]:
    """Patterns of all channels, the images first."""
    patterns = [Pattern.parse(images, name="image"), *map(Pattern.parse, channels)]
    if len({pattern.name for pattern in patterns}) < len(patterns):
        raise DatasetError(
            "--channel: two channels have the same name; give each its own, such as T2=scans/*_t2.nii.gz"
        )
    return patterns


def find_cases(
    source: Path, channels: Sequence[Pattern], masks: Pattern, *, subject_regex: str | None = None
) -> tuple[list[Unit], list[LeftOut]]:
    """Match masks and further channels to images by names; no image is opened.

    Returns:
        A unit a case, with the role labelled or unlabelled; and what is no case: masks without image, images that lack
        a channel or whose names repeat.

    Raises:
        DatasetError: there is no such folder or no image, or the subject expression is wrong or fits no image.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder that the patterns are relative to with -i")
    try:
        expression = re.compile(subject_regex) if subject_regex is not None else None
    except re.error as error:
        raise DatasetError(f'--subject-regex "{subject_regex}" is not a regular expression: {error}') from error
    found = [pattern.files(source) for pattern in channels]
    by_mask = masks.files(source)
    elsewhere = {path for files in (*found[1:], by_mask) for path in files.values()}
    found[0] = {key: path for key, path in found[0].items() if path not in elsewhere}
    if not found[0]:
        raise DatasetError(f'{source}: no file fits --images "{channels[0].glob}"; put the pattern in quotes')
    units: list[Unit] = []
    left_out = _linked(source, (*channels, masks), found[0])
    taken: set[str] = set()
    for key, path in found[0].items():
        shown = path.relative_to(source).as_posix()
        try:
            case_id = safe_name("_".join(part for part in key if part) or path.stem)
            images, mask = _files_of(key, found, by_mask, channels)
            subject = _subject(expression, shown, case_id)
            if case_id in taken:
                raise DatasetError(f'gives the case identifier "{case_id}", as another image does; rename it')
        except DatasetError as error:
            left_out.append(LeftOut(shown, str(error), bad=True))
            continue
        taken.add(case_id)
        role = Role.UNLABELLED if mask is None else Role.LABELLED
        units.append(Unit(shown, Files(case_id, subject, role, source, tuple(images), mask)))
    for key, path in by_mask.items():
        if key not in found[0]:
            left_out.append(LeftOut(path.relative_to(source).as_posix(), "is a mask without an image", bad=True))
    if not units:
        raise DatasetError(
            f"{source}: no image makes a case; the first reason: {left_out[0].name}: {left_out[0].reason}"
        )
    return units, left_out


def _linked(source: Path, patterns: Sequence[Pattern], images: dict[tuple[str, ...], Path]) -> list[LeftOut]:
    """Take away images that are links to other images; tell of these and of linked folders."""
    folders = sorted({path for pattern in patterns for path in pattern.linked_folders(source)})
    shown = (path.relative_to(source).as_posix() for path in folders)
    left_out = [LeftOut(name, "is a linked folder; copy it there", bad=True) for name in shown]
    owners: dict[Path, Path] = {}
    for key, path in sorted(images.items(), key=lambda item: item[1].is_symlink()):
        first = owners.setdefault(path.resolve(), path)
        if first != path:
            left_out.append(LeftOut(path.relative_to(source).as_posix(), f"is the same file as {first.name}"))
            del images[key]
    return left_out


def _files_of(
    key: tuple[str, ...],
    found: Sequence[Mapping[tuple[str, ...], Path]],
    masks: Mapping[tuple[str, ...], Path],
    channels: Sequence[Pattern],
) -> tuple[list[Path], Path | None]:
    """One file a channel, and the mask or None."""
    files: list[Path] = []
    for pattern, by_key in zip(channels, found, strict=True):
        if key not in by_key:
            raise DatasetError(f'has no file of the channel "{pattern.name}" ({pattern.glob})')
        files.append(by_key[key])
    return files, masks.get(key)


def _subject(expression: re.Pattern[str] | None, path: str, case_id: str) -> str:
    if expression is None:
        return case_id
    match = expression.search(path)
    subject = (match.group(1) if expression.groups else match.group(0)) if match else None
    if not subject:
        raise DatasetError(f'does not match --subject-regex "{expression.pattern}"')
    return safe_name(subject)


def _with_roles(units: Sequence[Unit], test: set[str]) -> tuple[list[Unit], list[LeftOut]]:
    """Units with the role test where their subject is kept for testing; those of them without mask are left out."""
    kept, left_out = [], []
    for unit in units:
        files = unit.content
        if files.subject not in test:
            kept.append(unit)
        elif files.mask is None:
            left_out.append(LeftOut(unit.name, "has no mask, and its subject is kept for testing"))
        else:
            kept.append(Unit(unit.name, replace(files, role=Role.TEST)))
    return kept, left_out


def _ending(units: Sequence[Unit]) -> str:
    """Ending of the dataset: pictures stay pictures, everything else becomes NIfTI."""
    paths = [path for unit in units for path in (*unit.content.channels, unit.content.mask) if path is not None]
    pictures = [_is_picture(path) for path in paths]
    if any(pictures) and not all(pictures):
        one, other = paths[pictures.index(True)], paths[pictures.index(False)]
        raise DatasetError(f"{one} is a picture and {other} a volume; a dataset holds one of these kinds")
    if not pictures[0]:
        return ".nii.gz"
    return ".tif" if any(path.suffix.lower() in (".tif", ".tiff") for path in paths) else ".png"


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def read_case(files: Files, *, labels: Labels) -> Iterator[Case]:
    """Read the channels and the mask of a case.

    Raises:
        DatasetError: a link leads out of the source.
        ImageError: a file cannot be read, or the grids of the channels or the mask do not fit.
    """
    images: list[np.ndarray] = []
    geometry: Geometry | None = None
    for path in files.channels:
        image, place = _read(path, files.source)
        if place is not None and geometry is not None:
            _check_same_place(path, image, place, images[0], geometry)
        geometry = geometry or place
        images.append(image)
    label = None
    if files.mask is not None:
        mask, place = _read(files.mask, files.source)
        mask = labels.of(mask, str(files.mask))
        label = (
            mask
            if place is None or geometry is None
            else onto_grid(mask, place, images[0].shape, geometry, str(files.mask))
        )
    row = {"subject_id": files.subject}
    yield Case(case_id=files.case_id, role=files.role, images=images, label=label, geometry=geometry, row=row)


def _read(path: Path, source: Path) -> tuple[np.ndarray, Geometry | None]:
    """A picture without geometry, or a volume with it."""
    if _is_picture(path):
        return read_picture(below(path, source)), None
    return read_source_volume(path, source)


def _check_same_place(path: Path, image: np.ndarray, place: Geometry, first: np.ndarray, geometry: Geometry) -> None:
    same = all(
        np.allclose(one, other, atol=1e-3)
        for one, other in (
            (place.spacing, geometry.spacing),
            (place.origin, geometry.origin),
            (place.direction, geometry.direction),
        )
    )
    if image.shape != first.shape or not same:
        raise ImageError(f"{path}: lies on another grid than the first channel; resample it")


def command(
    images: Annotated[
        str, typer.Option("--images", help="Pattern of the images, GLOB or NAME=GLOB (CT=images/*.nii.gz).")
    ],
    masks: Annotated[str, typer.Option("--masks", help="Pattern of the masks; its stars stand for the same text.")],
    number: Number,
    source: Path = typer.Option(Path("."), "-i", "--input", help="The folder that the patterns are relative to."),
    name: str = typer.Option("Folder", "--name", help="Dataset name after the number."),
    channel: list[str] = typer.Option([], "--channel", help="A further channel, NAME=GLOB; may be repeated."),
    label: list[str] = typer.Option(
        [], "--label", help="NAME=VALUE,… of the masks; may be repeated. Without it masks are 0/1 or 0/255."
    ),
    subject_regex: str | None = typer.Option(
        None, "--subject-regex", help="Finds the subject in an image's path; by default each image is a subject."
    ),
    test_subjects: list[str] = typer.Option(
        [], "--test-subjects", help="Subjects kept for testing, such as p3,p7; may be repeated."
    ),
    jobs: Jobs = 1,
    dask: Dask = None,
    folds: Folds = 5,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert any folder of images and masks.

    Images without a mask become the unlabelled pool.

    Example: `nnunet-qa convert folder -i /data/spleen --images "CT=images/*.nii.gz" --masks "masks/*.nii.gz" -d 141`
    """
    options = Options(jobs=jobs, dask=dask, folds=folds, strict=strict, overwrite=overwrite)
    folder = convert(
        source, number, images=images, masks=masks, name=name, channels=channel, labels=label,
        subject_regex=subject_regex, test_subjects=test_subjects, options=options,
    )  # fmt: skip
    tell(folder)


if __name__ == "__main__":
    run_script(command)

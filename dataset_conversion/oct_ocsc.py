"""OPTIMA cyst segmentation challenge (OCSC): `<vendor>_<n>/{train,test}/{Image,GT}/bscan_<k>.png` to nnU-Net's format.

This is the layout of the copies in circulation; masks of several graders may lie in folders G1, G2, G3 below GT.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nnunet_qa.cases import Role
from nnunet_qa.data.images import check_finite, check_same_grid, read_picture
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
from nnunet_qa.errors import DatasetError

GRADERS = ("G1", "G2", "G3")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SPLITS = ("train", "test")
logger = logging.getLogger(__name__)

LAYOUT = "<vendor>_<n>/{train,test}/{Image,GT}/bscan_<k>.png|jpg|tif"
_STACK = re.compile(r"([A-Za-z]+)[_-](\d+)")
_BSCAN = re.compile(r"bscan[_-]?(\d+)", re.IGNORECASE)
_LOSSY = (".jpg", ".jpeg")
_PARTS = ("image", "gt")
_INSIDE = {"train": _PARTS, "test": _PARTS, "gt": tuple(grader.lower() for grader in GRADERS)}


@dataclass(frozen=True)
class Stack:
    """One `train` or `test` folder of a stack.

    Attributes:
        subject: `<vendor>_<n>`, lower case.
        vendor: lower case.
        split: `train` or `test`; empty for a stack that has neither.
        images: files by number.
        masks: files by number: one, or two whose overlap is meant.
        fault: why it cannot be converted; None for a stack that fits the layout.
    """

    subject: str
    vendor: str
    split: str
    images: dict[int, Path]
    masks: dict[int, tuple[Path, ...]]
    fault: str | None = None

    @property
    def stack_id(self) -> str:
        """`<vendor>_<n>_<split>`."""
        return f"{self.subject}_{self.split}".rstrip("_")


def convert(
    source: Path,
    number: int,
    *,
    name: str = "OCTOptima",
    framing: Framing | None = None,
    grader: str | None = None,
    test_subjects: Iterable[str] = (),
    options: Options | None = None,
) -> Path:
    """Convert the OPTIMA cyst challenge; a run that was killed is resumed by running it again.

    B-scans of `train` with a mask are labelled, those without are the pool; B-scans of `test` with a mask are test
    cases, those without are left out.

    Args:
        source: the folder that holds the stacks.
        number: dataset number, 1 to 999.
        name: dataset name after the number.
        framing: crop and size; None for the defaults.
        grader: G1, G2 or G3 (where only G1 and G2 exist: what both call fluid); None for masks right in `GT`.
        test_subjects: further stacks (`<vendor>_<n>`) kept for testing: their annotated B-scans become test cases,
            their other B-scans are left out.
        options: processes, folds, strictness; None for the defaults.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: the layout is another one, or no stack could be converted.
    """
    source = source.absolute()  # a worker may have another working folder
    if grader is not None and grader.upper() not in GRADERS:
        raise DatasetError(f"--grader {grader}: choose from {', '.join(GRADERS)}")
    grader = grader.upper() if grader else None
    stacks, left_out = find_stacks(source, grader=grader)
    if all(stack.fault for stack in stacks):
        raise DatasetError(str(stacks[0].fault))
    test = chosen_subjects(test_subjects, {stack.subject for stack in stacks})
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
        extra={"reference": "OPTIMA cyst segmentation challenge, MICCAI 2015"},
    )
    read = partial(read_stack, source=source, framing=framing, test=test)
    units = [Unit(stack.stack_id, stack) for stack in stacks]
    return convert_units(dataset, units, read, what="Stacks", options=options or Options(), left_out=left_out)


def find_stacks(source: Path, *, grader: str | None) -> tuple[list[Stack], list[LeftOut]]:
    """Go through the folders and match masks to images, before anything is written.

    Returns:
        The stacks by name; what does not fit the layout (a folder, a grader or all images missing, a B-scan twice) is
        told as their `fault`. And what is none: folders and files with other names, a second folder of a stack.

    Raises:
        DatasetError: there are no stacks.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder that holds {LAYOUT} with -i")
    stacks: dict[tuple[str, str], Stack] = {}
    left_out: list[LeftOut] = []
    for folder in _visible(source):
        match = _STACK.fullmatch(folder.name)
        if match is None or not folder.is_dir():
            like_one = folder.is_dir() and any(_child(folder, split) for split in SPLITS)
            left_out.append(LeftOut(str(folder), "is no folder named <vendor>_<n>", bad=like_one))
            continue
        vendor = match.group(1).lower()
        subject = f"{vendor}_{int(match.group(2))}"
        splits = [(split, found) for split in SPLITS if (found := _child(folder, split))]
        left_out += _unfit(folder)
        if not splits:
            fault = f"{folder}: has neither a folder train nor test; expected {LAYOUT}"
            stacks[subject, ""] = Stack(subject, vendor, "", {}, {}, fault)
        for split, found in splits:
            if (subject, split) in stacks:
                reason = f"is a second folder of the stack {subject}; the other one was taken, remove one of them"
                left_out.append(LeftOut(str(found), reason, bad=True))
                continue
            try:
                stacks[subject, split] = Stack(subject, vendor, split, *_matched(found, grader))
            except DatasetError as error:
                stacks[subject, split] = Stack(subject, vendor, split, {}, {}, str(error))
    if not stacks:
        raise DatasetError(f"{source}: no folder named <vendor>_<n> there; expected {LAYOUT}")
    both = sorted(subject for subject, split in stacks if split == "train" and (subject, "test") in stacks)
    if both:
        logger.warning(
            "%d stacks (%s, …) have B-scans in train and in test, so test figures will be of subjects seen in training",
            len(both),
            both[0],
        )
    return [stacks[key] for key in sorted(stacks)], left_out


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _unfit(folder: Path, folders: tuple[str, ...] = SPLITS) -> Iterator[LeftOut]:
    """What in the folder of a stack has a name that the layout does not know there; a picture may be a lost B-scan."""
    read: dict[str, Path] = {}
    for entry in _visible(folder):
        name = entry.name.lower()
        if entry.is_dir() and name in folders:
            if read.setdefault(name, entry) != entry:
                reason = f"is a second folder {name} beside {read[name].name}, which was taken; put them together"
                yield LeftOut(str(entry), reason, bad=True)
                continue
            yield from _unfit(entry, _INSIDE.get(name, ()))
        elif entry.is_dir() or folders in (SPLITS, _PARTS) or _number(entry) is None:
            picture = entry.suffix.lower() in ENDINGS
            yield LeftOut(str(entry), f"has another name or place than {LAYOUT}; not read", bad=picture)


def _matched(folder: Path, grader: str | None) -> tuple[dict[int, Path], dict[int, tuple[Path, ...]]]:
    """Images and masks of one split by B-scan number."""
    image_folder = _child(folder, "Image")
    images = _pictures(image_folder) if image_folder else {}
    if not images:
        raise DatasetError(f"{folder / 'Image'}: no bscan_<k>.png, .jpg or .tif there; expected {LAYOUT}")
    mask_folder = _child(folder, "GT")
    masks = _masks(mask_folder, grader) if mask_folder else {}
    return images, masks


def _masks(folder: Path, grader: str | None) -> dict[int, tuple[Path, ...]]:
    """Masks of one grader, or those right in `folder`."""
    graders = {name: found for name in GRADERS if (found := _child(folder, name))}
    if grader is None:
        if graders and not _pictures(folder):
            raise DatasetError(f"{folder}: has the graders {', '.join(graders)}; choose one with --grader")
        return {number: (path,) for number, path in _pictures(folder).items()}
    if grader in graders:
        return {number: (path,) for number, path in _pictures(graders[grader]).items()}
    if grader == "G3" and {"G1", "G2"} <= set(graders):
        first, second = (_pictures(graders[name]) for name in ("G1", "G2"))
        return {number: (first[number], second[number]) for number in sorted(first.keys() & second.keys())}
    raise DatasetError(
        f"{folder}: no folder {grader} there (found: {', '.join(graders) or 'no graders'}); "
        f"{'choose one of these' if graders else 'leave out --grader'}"
    )


def _pictures(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        number = _number(path)
        if number is None:
            continue
        if number in found:
            raise DatasetError(f"{path}: is a second file of B-scan {number} beside {found[number].name}; remove one")
        found[number] = path
    return dict(sorted(found.items()))


def _number(path: Path) -> int | None:
    """Number of a B-scan; None for a file of another name."""
    match = _BSCAN.fullmatch(path.stem)
    return int(match.group(1)) if match is not None and path.suffix.lower() in ENDINGS else None


def _child(folder: Path, name: str) -> Path | None:
    """The subfolder of this name in any case of letters."""
    matches = (entry for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name.lower() == name.lower())
    return next(matches, None)


def read_stack(stack: Stack, *, source: Path, framing: Framing, test: set[str]) -> Iterator[Case | LeftOut]:
    """The B-scans of one stack.

    Args:
        stack: its files.
        source: the folder that the files must lie in.
        framing: crop and size.
        test: stacks kept for testing.

    Yields:
        Cases by number, and what is left out, masks without an image among it.

    Raises:
        DatasetError: the stack does not fit the layout, or a file is a link out of the source.
        ImageError: a file cannot be read, shapes do not fit, or a B-scan with fluid has no retina.
    """
    if stack.fault:
        raise DatasetError(stack.fault)
    for number in sorted(stack.masks.keys() - stack.images.keys()):
        yield LeftOut(str(stack.masks[number][0]), f"has no image bscan_{number} in Image", bad=True)
    for_test = stack.split == "test" or stack.subject in test
    if for_test and (without := len(stack.images.keys() - stack.masks.keys())):
        yield LeftOut(f"{stack.stack_id}: {without} B-scans", "have no mask, of a stack for testing")
    for number, path in stack.images.items():
        annotated = number in stack.masks
        if for_test and not annotated:
            continue
        role = Role.TEST if for_test else Role.LABELLED if annotated else Role.UNLABELLED
        case_id = f"{stack.stack_id}_bscan_{number:03d}"
        case = BscanCase(case_id, stack.subject, stack.stack_id, number, stack.vendor, role)
        image = read_picture(below(path, source))
        check_finite(image, str(path))
        mask = read_fluid(tuple(below(one, source) for one in stack.masks[number])) if annotated else None
        if mask is not None:
            check_same_grid(image, mask, str(stack.masks[number][0]))
        yield from frame_bscan(case, image, mask, framing=framing, scale=scale_of(image, str(path)))


def read_fluid(paths: tuple[Path, ...]) -> np.ndarray:
    """Fluid of one mask, or what several masks agree on, as booleans `(rows, columns)`.

    Fluid is everything above 0; in JPEG files, whose compression leaves faint traces around each edge, everything in
    the upper half of the range.

    Raises:
        ImageError: a file cannot be read, or the masks differ in shape.
    """
    masks = []
    for path in paths:
        pixels = read_picture(path)
        masks.append(pixels > (127 if path.suffix.lower() in _LOSSY else 0))
        check_same_grid(masks[0], masks[-1], str(path))
    return np.asarray(np.logical_and.reduce(masks))


def command(
    source: Annotated[Path, typer.Option("-i", "--input", help=f"The folder that holds {LAYOUT}.")],
    number: Number,
    name: str = typer.Option("OCTOptima", "--name", help="Dataset name after the number."),
    crop: bool = typer.Option(True, "--crop/--no-crop", help="Crop each B-scan to the retina."),
    crop_rows: int | None = typer.Option(
        None, "--crop-rows", help="Native rows of the crop; by default 65% of the rows (320 of 496)."
    ),
    size: str = typer.Option("80x192", "--size", help="ROWSxCOLUMNS of a case, or native."),
    native: bool = typer.Option(False, "--native", help="The same as --size native."),
    blank_padding: bool = typer.Option(
        True, "--blank-padding/--keep-padding", help="Set white corners of a shifted raster to 0."
    ),
    grader: str | None = typer.Option(
        None, "--grader", help="G1, G2 or G3; G3 is the overlap of G1 and G2 where it has no folder of its own."
    ),
    test_subjects: list[str] = typer.Option(
        [], "--test-subjects", help="Further stacks kept for testing, such as cirrus_4; may be repeated."
    ),
    jobs: Jobs = 1,
    dask: Dask = None,
    folds: Folds = 5,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert the OPTIMA cyst segmentation challenge.

    Example: `nnunet-qa convert oct-ocsc -i /data/OCSC -d 102 --grader G3 -np 4`
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

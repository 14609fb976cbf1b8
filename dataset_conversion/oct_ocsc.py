"""OPTIMA cyst segmentation challenge (OCSC): `<vendor>_<n>/{train,test}/{Image,GT}/bscan_<k>.png` to nnU-Net's format.

This is the layout of the copies in circulation; masks of several graders may lie in folders G1, G2, G3 below GT.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import typer

from nnunet_qa.cases import Role
from nnunet_qa.data.images import check_finite, check_same_grid, read_picture
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
from nnunet_qa.errors import DatasetError

GRADERS = ("G1", "G2", "G3")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
logger = logging.getLogger(__name__)

LAYOUT = "<vendor>_<n>/{train,test}/{Image,GT}/bscan_<k>.png|jpg|tif"
_STACK = re.compile(r"([A-Za-z]+)[_-](\d+)")
_BSCAN = re.compile(r"bscan[_-]?(\d+)", re.IGNORECASE)
_LOSSY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Stack:
    """One `train` or `test` folder of a stack.

    Attributes:
        subject: `<vendor>_<n>`, lower case.
        vendor: lower case.
        split: `train` or `test`.
        images: files by number.
        masks: files by number: one, or two whose overlap is meant.
    """

    subject: str
    vendor: str
    split: str
    images: dict[int, Path]
    masks: dict[int, tuple[Path, ...]]


def convert(
    source: Path,
    number: int,
    *,
    name: str = "OCTOptima",
    framing: Framing | None = None,
    grader: str | None = None,
    test_subjects: Iterable[str] = (),
    jobs: int = 1,
    folds: int = 5,
    overwrite: bool = False,
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
        jobs: processes.
        folds: cross-validation folds, grouped by subject.
        overwrite: delete an earlier conversion first.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: the layout is another one, a B-scan stands twice, a grader or an image is missing.
        ImageError: a file cannot be read, shapes do not fit, or an annotated B-scan has no retina.
    """
    if grader is not None and grader.upper() not in GRADERS:
        raise DatasetError(f"--grader {grader}: choose from {', '.join(GRADERS)}")
    grader = grader.upper() if grader else None
    stacks = find_stacks(source, grader=grader)
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
    function = partial(_convert_stack, dataset=dataset, framing=framing, test=test)
    return convert_units(dataset, stacks, function, what="Stacks", jobs=jobs, folds=folds, overwrite=overwrite)


def find_stacks(source: Path, *, grader: str | None) -> list[Stack]:
    """Go through the folders and match masks to images, before anything is written.

    Raises:
        DatasetError: says which folder, image or grader is missing, or which B-scan stands twice.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder that holds {LAYOUT} with -i")
    stacks: dict[tuple[str, str], Stack] = {}
    for folder in sorted(entry for entry in source.iterdir() if entry.is_dir()):
        match = _STACK.fullmatch(folder.name)
        if match is None:
            continue
        vendor = match.group(1).lower()
        subject = f"{vendor}_{int(match.group(2))}"
        splits = [(split, found) for split in ("train", "test") if (found := _child(folder, split))]
        if not splits:
            raise DatasetError(f"{folder}: has neither a folder train nor test; expected {LAYOUT}")
        for split, found in splits:
            if (subject, split) in stacks:
                raise DatasetError(f"{found}: the stack {subject} stands there twice; remove one of the two folders")
            images, masks = _matched(found, grader)
            stacks[subject, split] = Stack(subject, vendor, split, images, masks)
    if not stacks:
        raise DatasetError(f"{source}: no folder named <vendor>_<n> there; expected {LAYOUT}")
    both = sorted(subject for subject, split in stacks if split == "train" and (subject, "test") in stacks)
    if both:
        logger.warning(
            "%d stacks (%s, …) have B-scans in train and in test, so test figures will be of subjects seen in training",
            len(both),
            both[0],
        )
    return [stacks[key] for key in sorted(stacks)]


def _matched(folder: Path, grader: str | None) -> tuple[dict[int, Path], dict[int, tuple[Path, ...]]]:
    """Images and masks of one split by B-scan number."""
    image_folder = _child(folder, "Image")
    images = _pictures(image_folder) if image_folder else {}
    if not images:
        raise DatasetError(f"{folder / 'Image'}: no bscan_<k>.png, .jpg or .tif there; expected {LAYOUT}")
    mask_folder = _child(folder, "GT")
    masks = _masks(mask_folder, grader) if mask_folder else {}
    for number, paths in masks.items():
        if number not in images:
            raise DatasetError(f"{paths[0]}: has no image bscan_{number} in {image_folder}")
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
        match = _BSCAN.fullmatch(path.stem)
        if match is None or path.suffix.lower() not in ENDINGS:
            continue
        number = int(match.group(1))
        if number in found:
            raise DatasetError(f"{path}: is a second file of B-scan {number} beside {found[number].name}; remove one")
        found[number] = path
    return dict(sorted(found.items()))


def _child(folder: Path, name: str) -> Path | None:
    """The subfolder of this name in any case of letters."""
    matches = (entry for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name.lower() == name.lower())
    return next(matches, None)


def _convert_stack(stack: Stack, *, dataset: RawDataset, framing: Framing, test: set[str]) -> Outcome:
    outcome = Outcome()
    left_out = 0
    for number, path in stack.images.items():
        annotated = number in stack.masks
        for_test = stack.split == "test" or stack.subject in test
        if for_test and not annotated:
            left_out += 1
            continue
        role = Role.TEST if for_test else Role.LABELLED if annotated else Role.UNLABELLED
        stack_id = f"{stack.subject}_{stack.split}"
        case = BscanCase(f"{stack_id}_bscan_{number:03d}", stack.subject, stack_id, number, stack.vendor, role)
        image = read_picture(path)
        check_finite(image, str(path))
        mask = read_fluid(stack.masks[number]) if annotated else None
        if mask is not None:
            check_same_grid(image, mask, str(stack.masks[number][0]))
        convert_bscan(dataset, case, image, mask, framing=framing, scale=scale_of(image, str(path)), outcome=outcome)
    if left_out and stack.split == "test":
        outcome.warnings.append(f"{stack.subject}/test: {left_out} B-scans without a mask were left out")
    return outcome


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
    source: Path = typer.Option(..., "-i", "--input", help=f"The folder that holds {LAYOUT}."),
    number: int = typer.Option(..., "-d", "--dataset", help="Dataset number, 1 to 999."),
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
    jobs: int = typer.Option(1, "-np", "--jobs", help="Processes."),
    folds: int = typer.Option(5, "--folds", help="Cross-validation folds, grouped by subject."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Delete an earlier conversion of this dataset."),
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
        jobs=jobs,
        folds=folds,
        overwrite=overwrite,
    )
    typer.echo(f"Wrote {folder}")


if __name__ == "__main__":
    run_script(command)

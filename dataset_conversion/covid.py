"""What the four COVID-19 CT conversions share: classes, the image within the lungs (paper 001, II-A), slices, size."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import typer

from nnunet_qa.cases import Role
from nnunet_qa.data.images import Geometry
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.dataset_conversion.covid_grid import (
    Turn,
    Upright,
    check_aligned,
    read_upright,
    resized_geometry,
    resized_image,
    resized_mask,
    slice_geometry,
    turn_by_lungs,
)
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Unit
from nnunet_qa.dataset_conversion.subjects import chosen_subjects
from nnunet_qa.errors import DatasetError, ImageError, NnunetQAError

logger = logging.getLogger(__name__)

GGO, CONSOLIDATION, EFFUSION, INFECTION = 1, 2, 3, 4
"""Values of `Scan.findings`, beside 0 for none: as MedSeg numbers them; the last where a set parts no kinds."""
AIR = -1024
"""HU of what lies outside the lungs of a lung-masked image."""
DECIMALS = 0.01
"""Resampled masks hold decimals; a voxel belongs to the mask from here on."""
_NIFTI = re.compile(r"(.+?)\.nii(\.gz)?", re.IGNORECASE)


class Classes(str, Enum):
    """What is to be segmented."""

    GGO = "ggo"
    INFECTION = "infection"
    LUNG_INFECTION = "lung-infection"


LABELS = {
    Classes.GGO: {"background": 0, "ggo": 1},
    Classes.INFECTION: {"background": 0, "infection": 1},
    Classes.LUNG_INFECTION: {"background": 0, "lung": 1, "infection": 2},
}
"""Infection is ground glass and consolidation; effusion, which lies outside the lung, is background."""


class Orientation(str, Enum):
    """Who says which way up a scan is: its header (arrays without one are taken as stored), or the lungs."""

    HEADER = "header"
    LUNGS = "lungs"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What becomes of a scan.

    Attributes:
        classes: what is to be segmented.
        lung_masked: whether everything outside the lungs is set to air and to background, as in paper 001; this also
            takes away text that is burnt into a slice.
        size: rows and columns of a slice; None for those of the source.
        slices: whether each slice becomes a case of its own.
        orientation: who says which way up a scan is.
    """

    classes: Classes = Classes.INFECTION
    lung_masked: bool = False
    size: tuple[int, int] | None = None
    slices: bool = False
    orientation: Orientation = Orientation.HEADER

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 8:
            raise DatasetError(f"--size {self.size[0]}x{self.size[1]} is too small; give at least 8x8")

    def label(self, findings: np.ndarray, lungs: np.ndarray | None) -> np.ndarray:
        """Label values of `LABELS` from findings and lungs on the same grid, uint8.

        Raises:
            ImageError: the lungs are needed and not there; see `lacks`.
        """
        if self.classes is Classes.GGO:
            return (findings == GGO).astype(np.uint8)
        infection = np.isin(findings, (GGO, CONSOLIDATION, INFECTION))
        if self.classes is Classes.INFECTION:
            return infection.astype(np.uint8)
        if lungs is None:
            raise ImageError("the class lung needs a lung mask")
        return np.where(infection, 2, lungs).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A volume, or a lone slice, as read; axes by its header.

    Attributes:
        case_id: identifier of the case, or the beginning of those of its slices.
        image: `(slices, rows, columns)`.
        findings: 0, `GGO`, `CONSOLIDATION`, `EFFUSION` or `INFECTION` on the same grid; None where not annotated.
        lungs: booleans on the same grid; None where there is no lung mask.
        geometry: position in the patient; None for 1 mm at the origin.
        turn: what puts it upright where its own lungs are not to be asked.
        test: whether its subject is kept for testing.
        row: further columns of cases.csv.
    """

    case_id: str
    image: np.ndarray
    findings: np.ndarray | None = None
    lungs: np.ndarray | None = None
    geometry: Geometry | None = None
    turn: Turn | None = None
    test: bool = False
    row: Mapping[str, object] = field(default_factory=dict)


def covid_dataset(
    number: int, name: str, source: Path, look: Look, *, reference: str, channel: str = "CT", **settings: object
) -> RawDataset:
    """The raw dataset of one of the sets.

    Args:
        number: dataset number, 1 to 999.
        name: dataset name after the number.
        source: folder of the set.
        look: what becomes of a scan.
        reference: whom to cite.
        channel: name of the channel; "CT" makes nnU-Net normalise HU over the whole set.
        settings: further options of the script.

    Raises:
        EnvironmentVariableError: nnUNet_raw or nnUNet_preprocessed is not set.
        DatasetError: number or name is not what nnU-Net accepts.
    """
    return RawDataset.named(
        number,
        name,
        channel_names=(channel,),
        labels=LABELS[look.classes],
        file_ending=".nii.gz",
        settings={"source": str(source.resolve()), **asdict(look), **settings},
        extra={"reference": reference},
    )


def subjects_for_testing(
    wanted: Iterable[str], units: Iterable[Unit], subjects: Callable[[Any], Iterable[str]]
) -> set[str]:
    """Resolve `--test-subjects`.

    Args:
        wanted: see `chosen_subjects`.
        units: all that is converted.
        subjects: names the subjects of the content of a unit, and may look at the headers of its files.

    Raises:
        DatasetError: see `chosen_subjects`.
        NnunetQAError: a name is unknown, and this is what is wrong with a unit that may have it.
    """
    names = list(wanted)
    known: set[str] = set()
    failure: NnunetQAError | None = None
    for unit in units if names else ():
        try:
            known.update(subjects(unit.content))
        except NnunetQAError as error:  # the report will say what is wrong with it
            failure = failure or error
    try:
        return chosen_subjects(names, known)
    except DatasetError as error:
        if failure is not None:
            raise failure from error
        raise


def cases_of(scan: Scan, look: Look) -> Iterator[Case | LeftOut]:
    """The case or cases that a scan becomes: labelled or for testing where it is annotated, else of the pool.

    Raises:
        ImageError: the lungs do not tell which way up the scan is.
    """
    if scan.lungs is None and (missing := _why_lungs(scan, look)):
        yield LeftOut(scan.case_id, f"has no lung mask, which {missing} needs")
        return
    if scan.findings is None and scan.test:
        yield LeftOut(scan.case_id, "has no mask, and its subject is kept for testing")
        return
    scan = _turned(scan, look)
    label = None if scan.findings is None else look.label(scan.findings, scan.lungs)
    image, lungs, geometry = scan.image, scan.lungs, scan.geometry
    if look.size is not None and look.size != image.shape[1:]:
        geometry = None if geometry is None else resized_geometry(geometry, image.shape, look.size)
        image = resized_image(image, look.size)
        lungs = None if lungs is None else resized_mask(lungs, look.size)
        label = None if label is None else resized_mask(label, look.size)
    if look.lung_masked and lungs is not None:
        if not lungs.any():
            yield LeftOut(scan.case_id, "no lung in it")
            return
        image = np.where(lungs, image, np.asarray(air_of(image), dtype=image.dtype))
        label = None if label is None else label * lungs
    role = Role.UNLABELLED if label is None else Role.TEST if scan.test else Role.LABELLED
    if not look.slices:
        if geometry is not None and len(image) == 1:
            geometry = slice_geometry(geometry, 0)
        yield Case(case_id=scan.case_id, role=role, images=[image], label=label, geometry=geometry, row=scan.row)
        return
    for index in range(len(image)):
        case_id = f"{scan.case_id}_slice{index:03d}"
        if look.lung_masked and lungs is not None and not lungs[index].any():
            yield LeftOut(case_id, "no lung in it")
            continue
        one = slice(index, index + 1)
        yield Case(
            case_id=case_id,
            role=role,
            images=[image[one]],
            label=None if label is None else label[one],
            geometry=None if geometry is None else slice_geometry(geometry, index),
            row={**scan.row, "slice_index": index},
        )


def air_of(image: np.ndarray) -> float:
    """What air is in an image: -1024 HU, or the lowest value of one that is not in HU and so has none below 0."""
    lowest = float(image.min())
    return AIR if lowest < 0 else lowest


def _why_lungs(scan: Scan, look: Look) -> str:
    """The option that needs lungs for this scan, or nothing."""
    if look.lung_masked:
        return "--lung-masked"
    if look.orientation is Orientation.LUNGS and scan.turn is None:
        return "--orientation lungs"
    return "--classes lung-infection" if look.classes is Classes.LUNG_INFECTION and scan.findings is not None else ""


def _turned(scan: Scan, look: Look) -> Scan:
    if look.orientation is Orientation.HEADER:
        return scan
    turn = scan.turn
    if turn is None and scan.lungs is not None:
        turn = turn_by_lungs(scan.lungs)
    if turn is None:
        raise ImageError(f"{scan.case_id}: its lungs do not tell front from back; convert with --orientation header")
    return replace(
        scan,
        image=turn.array(scan.image),
        findings=None if scan.findings is None else turn.array(scan.findings),
        lungs=None if scan.lungs is None else turn.array(scan.lungs),
        geometry=turn.geometry(scan.geometry),
    )


@dataclass(frozen=True)
class ScanFiles:
    """Files of one volume.

    Attributes:
        name: of the files, without ending.
        image: the volume.
        masks: masks by kind, those that are there.
        source: the folder that none of them may leave.
    """

    name: str
    image: Path
    masks: Mapping[str, Path]
    source: Path

    def read_mask(self, kind: str, image: Upright) -> np.ndarray | None:
        """A mask, upright, on the grid of the image; None where there is no file.

        Raises:
            DatasetError: a symbolic link leads out of the source.
            ImageError: the file cannot be read or lies elsewhere than the image.
        """
        if kind not in self.masks:
            return None
        mask = read_upright(self.masks[kind], self.source)
        check_aligned(mask, image, str(self.masks[kind]))
        return mask.array


def find_scans(
    source: Path, images: str, masks: Mapping[str, str], *, annotations: Sequence[str]
) -> tuple[list[Unit], list[LeftOut]]:
    """Match volumes and masks that have the same name in different folders.

    Args:
        source: folder of the set.
        images: its subfolder with the volumes.
        masks: its subfolders with masks, by kind; each may be missing.
        annotations: kinds of masks that make a volume an annotated one.

    Returns:
        One unit a volume, its content `ScanFiles`; and what was left out: masks without a volume, files twice there.

    Raises:
        DatasetError: there is no such folder or no volume in it.
    """
    left_out: list[LeftOut] = []
    folder = source / images
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; give the folder that holds {images} with -i")
    volumes = _nifti_files(folder, left_out)
    if not volumes:
        raise DatasetError(f"{folder}: no .nii or .nii.gz file there")
    found = {kind: _nifti_files(source / name, left_out) for kind, name in masks.items()}
    units = []
    for name, path in volumes.items():
        own = {kind: paths[name] for kind, paths in found.items() if name in paths}
        units.append(Unit(name, ScanFiles(name, path, own, source)))
    for paths in found.values():
        left_out += [
            LeftOut(str(path), f"has no image in {folder}", bad=True)
            for name, path in paths.items()
            if name not in volumes
        ]
    pool = [unit.name for unit in units if not set(annotations) & set(unit.content.masks)]
    if pool:
        logger.warning("without a mask, so of the pool: %d (%s)", len(pool), ", ".join(pool))
    return units, left_out


def _nifti_files(folder: Path, left_out: list[LeftOut]) -> dict[str, Path]:
    """NIfTI files by name without ending, numbers in their order; none where there is no such folder."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _NIFTI.fullmatch(path.name)
        if match is None or path.name.startswith("."):
            continue
        if match.group(1) in found:
            first = found[match.group(1)].name
            left_out.append(LeftOut(str(path), f"is a second file of that name beside {first}", bad=True))
            continue
        found[match.group(1)] = path
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[str | int]:
    """Sorting key that puts 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def findings_of(mask: np.ndarray, name: str) -> np.ndarray:
    """Findings from a mask numbered as MedSeg does, whole numbers stored in any type.

    Raises:
        ImageError: another value than 0, 1, 2 or 3.
    """
    findings = mask if np.issubdtype(mask.dtype, np.integer) else np.rint(mask)
    decimals = float(np.abs(findings - mask).max()) if findings is not mask else 0.0
    # NaN is below and above nothing
    if not (decimals <= DECIMALS and findings.min() >= 0 and findings.max() <= EFFUSION):
        raise ImageError(
            f"{name}: holds values from {mask.min():g} to {mask.max():g}; expected whole numbers 0 to 3 (none, ground "
            "glass, consolidation, effusion)"
        )
    return findings.astype(np.uint8)


CLASSES = typer.Option(
    Classes.INFECTION.value, "--classes", help="ggo, infection (ground glass and consolidation) or lung-infection."
)
LUNG_MASKED = typer.Option(
    False, "--lung-masked/--whole-image", help="Set everything outside the lungs to air (-1024 HU)."
)
SIZE = typer.Option("native", "--size", help="ROWSxCOLUMNS of a slice, such as 256x256, or native.")
ORIENTATION = typer.Option(
    Orientation.HEADER.value,
    "--orientation",
    help="Which way up: by the header (arrays without one as stored), or by the shape of the lungs.",
)
TEST_SUBJECTS = typer.Option(
    [], "--test-subjects", help="Subjects kept for testing, named as in cases.csv; may be repeated."
)
SLICES = typer.Option(False, "--slices/--volumes", help="One case a slice, or one a volume.")

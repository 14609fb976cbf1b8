"""CT of the lower legs with masks of the fibula to nnU-Net's format: DICOM, NIfTI, NRRD or MHA, masks also as STL.

One case a leg, or one a patient with one or two labels; scans without mask become the unlabelled pool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nnunet_qa.cases import Role
from nnunet_qa.data.images import Geometry
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.dataset_conversion import engine
from nnunet_qa.dataset_conversion.dicom_series import read_series
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Options, Unit, below
from nnunet_qa.dataset_conversion.fibula_files import Patient, find_patients
from nnunet_qa.dataset_conversion.fibula_sides import (
    LEFT,
    RIGHT,
    SIDES,
    Leg,
    bare_leg,
    bone_box,
    bones_of,
    check_sides,
    legs_of,
    side_axis,
    sides_of,
)  # fmt: skip
from nnunet_qa.dataset_conversion.options import Dask, Folds, Jobs, Number, Overwrite, Strict
from nnunet_qa.dataset_conversion.script import run_script, tell
from nnunet_qa.dataset_conversion.subjects import chosen_subjects
from nnunet_qa.dataset_conversion.surface import SPACES, read_surface
from nnunet_qa.dataset_conversion.volume_files import (
    affine,
    from_index,
    is_volume,
    onto_grid,
    read_source_volume,
    stem_of,
)  # fmt: skip
from nnunet_qa.errors import DatasetError, ImageError

TOTALSEGMENTATOR = {"fibula": 3}
"""Number of the bone in TotalSegmentator's task appendicular_bones."""
_SIDE = re.compile(r"(?<![a-z])(left|right|l|r)(?![a-z])", re.IGNORECASE)
_VALUE = re.compile(r"(?:(left|right)=)?(\d+)", re.IGNORECASE)


class Sides(str, Enum):
    """What becomes of the two legs of a scan."""

    SPLIT = "split"
    LABELS = "labels"
    TOGETHER = "together"

    @property
    def labels(self) -> dict[str, int]:
        """Labels of the dataset."""
        if self is Sides.LABELS:
            return {"background": 0, "fibula_right": RIGHT, "fibula_left": LEFT}
        return {"background": 0, "fibula": 1}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a scan becomes cases.

    Attributes:
        sides: one case a leg, one case with two labels, or one case with one label.
        mirror_left: mirror left legs, so that all cases look like right ones; with one case a leg only.
        crop: margin in mm around the bone; None for the whole scan.
        hu_clip: lowest and highest intensity in HU; None leaves them.
        mask_values: values of masks, see `parse_values`.
        stl_space: frame of STL surfaces, "lps" or "ras".

    Raises:
        DatasetError: the settings contradict each other.
    """

    sides: Sides = Sides.SPLIT
    mirror_left: bool = False
    crop: float | None = None
    hu_clip: tuple[float, float] | None = (-1024, 3000)
    mask_values: str = "auto"
    stl_space: str = "lps"

    def __post_init__(self) -> None:
        if self.mirror_left and self.sides is not Sides.SPLIT:
            raise DatasetError("--mirror-left needs one case a leg; use it with --sides split")
        if self.crop is not None and not 0 <= self.crop < np.inf:
            raise DatasetError(f"--crop {self.crop:g}: give a margin of 0 mm or more")
        if self.hu_clip is not None and not self.hu_clip[0] < self.hu_clip[1]:
            raise DatasetError(f"--hu-clip {self.hu_clip[0]:g} {self.hu_clip[1]:g}: give the lower value first")
        if self.stl_space not in SPACES:
            raise DatasetError(f"--stl-space {self.stl_space}: choose from {', '.join(SPACES)}")
        parse_values(self.mask_values)


def convert(
    source: Path,
    number: int,
    *,
    name: str = "FibulaCT",
    settings: Settings | None = None,
    test_subjects: Iterable[str] = (),
    options: Options | None = None,
) -> Path:
    """Convert CT of the lower legs; a run that was killed is resumed by running it again.

    Args:
        source: folder with the scans, see `find_patients`.
        number: dataset number, 1 to 999.
        name: dataset name after the number.
        settings: sides, crop, intensities, masks; None for the defaults.
        test_subjects: patients kept for testing; those of their scans that have no mask are left out.
        options: processes, folds, strictness.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: no scan was found or none could be converted, or a test subject is unknown.
        StorageError: the disk is full or read-only.
    """
    source = source.absolute()  # a worker may have another working folder
    settings = settings or Settings()
    units, left_out = find_patients(source)
    test = chosen_subjects(test_subjects, [unit.name for unit in units])
    units = [Unit(unit.name, replace(unit.content, test=unit.name in test)) for unit in units]
    dataset = RawDataset.named(
        number,
        name,
        channel_names=("CT",),
        labels=settings.sides.labels,
        file_ending=".nii.gz",
        settings={"source": str(source.resolve()), "test_subjects": sorted(test), **vars(settings)},
    )
    read = partial(read_patient, settings=settings)
    return engine.convert(dataset, units, read, what="Scans", options=options or Options(), left_out=left_out)


def parse_values(text: str) -> dict[int, str]:
    """Side of each mask value from `--mask-values`; empty for `auto`.

    Raises:
        DatasetError: the text is not understood or names a value twice.

    >>> parse_values("left=1,right=2"), parse_values("fibula")
    ({1: 'left', 2: 'right'}, {3: ''})
    """
    if text.strip().lower() == "auto":
        return {}
    values: dict[int, str] = {}
    for part in text.lower().split(","):
        match = _VALUE.fullmatch(str(TOTALSEGMENTATOR.get(part.strip(), part.strip())))
        if match is None or int(match.group(2)) == 0 or int(match.group(2)) in values:
            raise DatasetError(
                f'--mask-values "{text}": give auto, fibula (TotalSegmentator\'s number 3), a value, or left=1,right=2'
            )
        values[int(match.group(2))] = match.group(1) or ""
    return values


def read_patient(patient: Patient, *, settings: Settings) -> Iterator[Case | LeftOut]:
    """Read one patient's scan and masks.

    Raises:
        DatasetError: a link leads out of the source.
        ImageError: a file cannot be read, the mask is empty or does not fit, or the patient has no or several scans.
    """
    image, geometry, notes = _read_image(patient)
    yield from (LeftOut(patient.name, note) for note in notes)
    sides = _read_sides(patient, image, geometry, settings) if patient.masks else None
    if settings.sides is Sides.SPLIT:
        for leg in legs_of(image, sides, geometry, patient.name):
            yield _case_of(patient, leg, image, sides, geometry, settings)
        return
    whole_scan = Leg("", 0, image.shape[side_axis(geometry)[0]])
    found = _case_of(patient, whole_scan, image, sides, geometry, settings)
    bare = None if sides is None else bare_leg(image, sides, geometry, patient.name)
    if bare is not None and isinstance(found, Case) and _reaches(found, bare, geometry):
        reason = f"its {bare.side} leg has no mask and would be labelled as background; use --sides split"
        found = LeftOut(patient.name, reason, bad=True)
    yield found


def _clipped(image: np.ndarray, hu_clip: tuple[float, float] | None) -> np.ndarray:
    """Only what is written is clipped: in clipped values air may pass for tissue, and bone be gone."""
    if hu_clip is None:
        return image
    whole = np.issubdtype(image.dtype, np.integer) and all(float(bound).is_integer() for bound in hu_clip)
    return np.clip(image, *hu_clip).astype(image.dtype if whole else np.float32)


def _read_image(patient: Patient) -> tuple[np.ndarray, Geometry, list[str]]:
    volumes = [path for path in patient.images if is_volume(path)]
    if len(volumes) > 1:
        raise ImageError(
            f"{volumes[0]}: is one of {len(volumes)} scans of {patient.name}; keep one, or give masks names with _mask"
        )
    if not volumes:
        series = read_series(patient.images, patient.source)
        return series.array, series.geometry, series.notes
    notes = [
        f"{path.name} was not read, as {volumes[0].name} is the scan" for path in patient.images if path != volumes[0]
    ]
    return *read_source_volume(volumes[0], patient.source), notes[:5]


def _read_sides(patient: Patient, image: np.ndarray, geometry: Geometry, settings: Settings) -> np.ndarray:
    """Masks of a patient on the grid of the scan: 0, `RIGHT` and `LEFT`."""
    sides = np.zeros(image.shape, dtype=np.uint8)
    unnamed = np.zeros(image.shape, dtype=bool)
    for path in patient.masks:
        for side, mask in _read_mask(path, patient, geometry, image.shape, settings).items():
            if not side:
                unnamed |= mask
                continue
            if (sides[mask] == SIDES["left" if side == "right" else "right"]).any():
                raise ImageError(
                    f"{path}: a voxel is in the mask of the left and of the right fibula; correct the masks"
                )
            sides[mask] = SIDES[side]
    unnamed &= sides == 0
    if unnamed.any():
        sides += sides_of(unnamed, image, geometry)
    if not sides.any():
        raise ImageError(f"{patient.masks[0]}: the mask is empty; remove it to make the scan part of the pool")
    check_sides(sides, geometry, str(patient.masks[0].parent))
    return sides


def _read_mask(
    path: Path, patient: Patient, geometry: Geometry, shape: tuple[int, ...], settings: Settings
) -> Mapping[str, np.ndarray]:
    """Booleans by side; the side is empty where neither the name of the file nor the value says it."""
    tail = stem_of(path)
    tail = tail[len(patient.name) :] if tail.startswith(patient.name) else tail
    match = _SIDE.search(tail)
    by_name = {"l": "left", "r": "right"}.get(match.group(1).lower(), match.group(1).lower()) if match else ""
    if not is_volume(path):
        return {by_name: read_surface(below(path, patient.source), shape, geometry, space=settings.stl_space)}
    mask = onto_grid(*read_source_volume(path, patient.source), shape, geometry, str(path))
    values = parse_values(settings.mask_values)
    if not values:
        found = np.unique(mask[mask != 0])
        if len(found) > 1:
            raise ImageError(
                f"{path}: the mask holds the values {', '.join(f'{value:g}' for value in found[:5])}; say which is the "
                "fibula with --mask-values fibula, --mask-values VALUE or --mask-values left=VALUE,right=VALUE"
            )
        return {by_name: mask != 0}
    wanted = {side or by_name for side in values.values()}
    return {
        side: np.isin(mask, [value for value, own in values.items() if (own or by_name) == side]) for side in wanted
    }


def _case_of(
    patient: Patient,
    leg: Leg,
    image: np.ndarray,
    sides: np.ndarray | None,
    geometry: Geometry,
    settings: Settings,
) -> Case | LeftOut:
    """The case of one leg or, where the legs are not split, of the whole scan."""
    axis, _ = side_axis(geometry)
    box = [slice(0, size) for size in image.shape]
    box[axis] = slice(leg.start, leg.stop)
    name = f"{patient.case_id}_{leg.side}" if leg.side else patient.case_id
    part = image[tuple(box)]
    label = sides[tuple(box)] if sides is not None and sides[tuple(box)].any() else None
    if label is None and patient.test:
        return LeftOut(name, "has no mask, and its patient is kept for testing")
    if settings.mirror_left and not leg.side:
        return LeftOut(name, "neither a mask nor a second leg tells left from right, which --mirror-left needs")
    if settings.crop is not None:
        bone = label > 0 if label is not None else bones_of(part)
        if not bone.any():
            return LeftOut(name, "holds neither a mask nor bone to crop around")
        inner = bone_box(bone, settings.crop, geometry)
        part, label = part[inner], label[inner] if label is not None else None
        box = [slice(outer.start + cut.start, outer.start + cut.stop) for outer, cut in zip(box, inner, strict=True)]
    if label is not None and settings.sides is not Sides.LABELS:
        label = (label > 0).astype(np.uint8)
    mirrored = settings.mirror_left and leg.side == "left"
    if mirrored:
        part, label = np.flip(part, axis), np.flip(label, axis) if label is not None else None
    start = (box[0].start, box[1].start, box[2].start)
    return Case(
        case_id=name,
        role=Role.UNLABELLED if label is None else Role.TEST if patient.test else Role.LABELLED,
        images=[np.ascontiguousarray(_clipped(part, settings.hu_clip))],
        label=label,
        geometry=from_index(geometry, start),
        row={"subject_id": patient.case_id, "stack_id": patient.case_id, "side": leg.side, "mirrored": int(mirrored)},
    )


def _reaches(case: Case, leg: Leg, scan: Geometry) -> bool:
    """Whether part of a leg lies in the case, which may be a crop of the scan."""
    assert case.geometry is not None
    axis, _ = side_axis(scan)
    start = round(float(np.linalg.solve(affine(scan), (*case.geometry.origin, 1))[2 - axis]))
    return start < leg.stop and leg.start < start + case.images[0].shape[axis]


def command(
    source: Annotated[
        Path, typer.Option("-i", "--input", help="The folder with the scans; see docs/convert-fibula.md.")
    ],
    number: Number,
    name: str = typer.Option("FibulaCT", "--name", help="Dataset name after the number."),
    sides: Sides = typer.Option(Sides.SPLIT, "--sides", help="One case a leg, one case with two labels, or one label."),
    mirror_left: bool = typer.Option(
        False, "--mirror-left", help="Mirror left legs, so that all look like right ones."
    ),
    crop: float | None = typer.Option(None, "--crop", help="Crop around the bone with this margin in mm."),
    hu_clip: tuple[float, float] = typer.Option((-1024, 3000), "--hu-clip", help="Lowest and highest HU."),
    mask_values: str = typer.Option(
        "auto", "--mask-values", help="auto, fibula (TotalSegmentator's number), a value, or left=1,right=2."
    ),
    stl_space: str = typer.Option("lps", "--stl-space", help="Frame of STL surfaces: lps or ras."),
    test_subjects: list[str] = typer.Option(
        [], "--test-subjects", help="Patients kept for testing, such as p3,p7; may be repeated."
    ),
    jobs: Jobs = 1,
    dask: Dask = None,
    folds: Folds = 5,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert CT of the lower legs with masks of the fibula.

    Scans with a mask become training cases, the others the unlabelled pool.

    Example: `nnunet-qa convert fibula -i /data/fibula -d 131 --sides split --mirror-left --crop 20 -np 4`
    """
    settings = Settings(
        sides=sides, mirror_left=mirror_left, crop=crop, hu_clip=hu_clip, mask_values=mask_values,
        stl_space=stl_space.lower(),
    )  # fmt: skip
    options = Options(jobs=jobs, dask=dask, folds=folds, strict=strict, overwrite=overwrite)
    folder = convert(source, number, name=name, settings=settings, test_subjects=test_subjects, options=options)
    tell(folder)


if __name__ == "__main__":
    run_script(command)

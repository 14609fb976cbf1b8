"""Which files of a folder with CT of the legs belong to which patient, told by names alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunet_qa.dataset_conversion.engine import LeftOut, Unit, safe_name
from nnunet_qa.dataset_conversion.volume_files import is_volume, stem_of
from nnunet_qa.errors import DatasetError

IMAGE_FOLDERS = ("images", "image", "scans", "ct", "dicom")
MASK_FOLDERS = ("masks", "mask", "labels", "segmentations", "segmentation", "surfaces", "stl")
OTHER_BONES = frozenset((
    "calcaneus", "carpal", "feet", "femora", "femur", "femurs", "foot", "hand", "hip", "hips", "humerus", "knee",
    "metacarpal", "metatarsal", "patella", "patellae", "pelvis", "phalanges", "radius", "sacrum", "skin", "talus",
    "tarsal", "tibia", "tibiae", "tibias", "ulna",
))  # fmt: skip
"""Words in names of masks that are no fibula, TotalSegmentator's bones among them."""
LAYOUT = "a folder a patient, or files side by side such as p1.nii.gz and p1_mask.nii.gz, or folders images and masks"
_SIDES = frozenset(("left", "right", "l", "r"))
_MASK = re.compile(r"(?<![a-z])(masks?|seg|segmentation|labels?|fibulae?)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Patient:
    """Files of one scan.

    Attributes:
        name: as the folder or file is called.
        case_id: the name as a case identifier.
        source: folder that all files must lie in.
        images: one volume, or the files that may be DICOM slices.
        masks: volumes and surfaces.
        test: whether the patient is kept for testing.
    """

    name: str
    case_id: str
    source: Path
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    test: bool = False


def find_patients(source: Path) -> tuple[list[Unit], list[LeftOut]]:
    """Sort the files below a folder by patient; no image is opened.

    A patient is a folder (DICOM files or one volume, at any depth), or a volume that lies directly in the source or
    in its folder `images`. A mask is an STL surface, or a volume that has `mask`, `seg`, `label` or `fibula` in its
    name or lies in a folder `masks`, `labels` or `segmentations`; it belongs to the patient in whose folder it lies, or
    with whose name its own begins.

    Returns:
        A unit a patient, and what belongs to none.

    Raises:
        DatasetError: there is no such folder, or no scan in it.
    """
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder that holds the scans ({LAYOUT}) with -i")
    images: dict[str, list[Path]] = defaultdict(list)
    masks: list[tuple[Path, str]] = []
    left_out: list[LeftOut] = []
    for path in _files(source, left_out):
        *folders, _ = parts = path.relative_to(source).parts
        top = parts[0].lower() if folders else ""
        inner = parts[1:] if top in (*IMAGE_FOLDERS, *MASK_FOLDERS) else parts
        owner = inner[0] if len(inner) > 1 else ""
        in_masks = any(folder.lower() in MASK_FOLDERS for folder in folders)
        if _is_mask(path, owner, in_masks=in_masks, in_images=top in IMAGE_FOLDERS):
            masks.append((path, owner))
        elif in_masks or not (owner or is_volume(path)):
            left_out.append(LeftOut(_shown(path, source), "is neither a scan nor a mask of a known kind"))
        else:
            images[owner or stem_of(path)].append(path)
    _without_other_bones(images, source, left_out)
    owned: dict[str, list[Path]] = defaultdict(list)
    for path, owner in masks:
        patient = owner if owner in images else _named_like(stem_of(path), images)
        if _words(path, patient or owner) & OTHER_BONES:
            left_out.append(LeftOut(_shown(path, source), "is the mask of another bone"))
        elif patient is None:
            left_out.append(LeftOut(_shown(path, source), "is a mask without a scan", bad=True))
        else:
            owned[patient].append(path)
    for patient, own in owned.items():
        owned[patient] = _of_fibula(own, patient, source, left_out)
    units = list(_units(images, owned, source, left_out))
    if not units:
        raise DatasetError(f"{source}: no scan there; expected {LAYOUT}")
    return units, left_out


def _files(source: Path, left_out: list[LeftOut]) -> Iterator[Path]:
    """All files below a folder, sorted; links to folders are not followed."""
    for path in sorted(source.rglob("*")):
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_symlink():
            reason = "is a link to a folder or to nothing; links are not followed"
            left_out.append(LeftOut(_shown(path, source), reason, bad=True))


def _is_mask(path: Path, owner: str, *, in_masks: bool, in_images: bool) -> bool:
    if path.suffix.lower() == ".stl":
        return True
    words = _words(path, owner)
    alone = bool(owner) or not any(letter.isdigit() for letter in path.stem)  # tibia_7.nii.gz may be a scan
    other_bone = alone and bool(words & OTHER_BONES) and words <= OTHER_BONES | _SIDES
    named = not in_images and (_MASK.search(stem_of(path)) is not None or other_bone)
    return is_volume(path) and (in_masks or named)


def _words(path: Path, patient: str) -> set[str]:
    """Words in the name of a file without the name of its patient, small."""
    return set(re.findall("[a-z]+", stem_of(path).removeprefix(patient).lower()))


def _without_other_bones(images: dict[str, list[Path]], source: Path, left_out: list[LeftOut]) -> None:
    """Take away what passes for a scan but is called by another patient and a bone, such as `p2_tibia` beside `p2`."""
    for name in [name for name in images if OTHER_BONES & set(re.findall("[a-z]+", name.lower()))]:
        other = _named_like(name, set(images) - {name})
        if other is not None and OTHER_BONES & set(re.findall("[a-z]+", name.removeprefix(other).lower())):
            paths = images.pop(name)
            left_out += [LeftOut(_shown(path, source), "is the mask of another bone") for path in paths]


def _of_fibula(masks: list[Path], patient: str, source: Path, left_out: list[LeftOut]) -> list[Path]:
    """Of several masks of a patient, those whose names say that they are, or say no more than a side."""
    if len(masks) < 2:
        return masks
    kept = []
    for path in masks:
        if _words(path, patient) <= _SIDES or _MASK.search(stem_of(path).removeprefix(patient)):
            kept.append(path)
        else:
            reason = "is one of several masks and its name does not say fibula, mask or a side; rename it if it is one"
            left_out.append(LeftOut(_shown(path, source), reason, bad=True))
    return kept


def _named_like(stem: str, patients: Iterable[str]) -> str | None:
    """The patient with whose name a mask's begins; the longest where there are several."""
    fitting = [name for name in patients if stem.startswith(name) and not stem[len(name) : len(name) + 1].isalnum()]
    return max(fitting, key=len, default=None)


def _units(
    images: dict[str, list[Path]], masks: dict[str, list[Path]], source: Path, left_out: list[LeftOut]
) -> Iterator[Unit]:
    taken: dict[str, str] = {}
    for name, files in sorted(images.items()):
        try:
            case_id = safe_name(name)
        except DatasetError as error:
            left_out.append(LeftOut(name, str(error), bad=True))
            continue
        first = taken.setdefault(case_id, name)
        if first != name:
            reason = f'gives the same case identifier as "{first}", {case_id}; rename it'
            left_out.append(LeftOut(name, reason, bad=True))
            continue
        yield Unit(name, Patient(name, case_id, source, tuple(files), tuple(masks[name])))


def _shown(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()

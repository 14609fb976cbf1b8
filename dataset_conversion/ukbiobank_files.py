"""Which file of a UK Biobank download is whose: images, masks and contours by subject, without opening them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_qa.dataset_conversion.cvi42 import ENDINGS
from nnunet_qa.dataset_conversion.engine import LeftOut, Unit, below, safe_name
from nnunet_qa.dataset_conversion.ukbiobank_views import VIEWS
from nnunet_qa.errors import DatasetError

_IMAGES, _MASKS = "images", "masks"
FIRST_VISIT = "2_0"
"""Instance of the first imaging visit, as file names have it."""
_ZIP = re.compile(r"(.+)_(\d{5})_(\d+_\d+)\.zip", re.IGNORECASE)
_VISIT = re.compile(r"(.+?)_([2-9]_\d+)")


@dataclass(frozen=True, kw_only=True)
class Found:
    """One view of one subject at one visit, and how it is to be read.

    Attributes:
        stack_id: `<eid>_<view>`, with the visit in between from the second one on.
        subject: the eid.
        path: zip or NIfTI file.
        labels: mask files by phase: ED, ES, or empty for the whole cycle.
        phase_images: the converter's own images of ED and ES.
        contours: cvi42's XML files.
        view: a name of `VIEWS`.
        scheme: see `View.scheme`.
        frames: see `ukbiobank.convert`.
        test: whether the subject is kept for testing.
    """

    stack_id: str
    subject: str
    path: Path
    labels: Mapping[str, Path]
    phase_images: Mapping[str, Path]
    contours: tuple[Path, ...]
    view: str
    scheme: str
    frames: str
    test: bool = False


@dataclass
class _Files:
    """Files of one subject at one visit."""

    images: list[Path] = field(default_factory=list)
    labels: dict[str, Path] = field(default_factory=dict)
    phase_images: dict[str, Path] = field(default_factory=dict)
    contours: list[Path] = field(default_factory=list)

    def of(self, subject: str, path: Path, *, stack_id: str, view: str, scheme: str, frames: str) -> Found:
        """The stack whose images `path` holds."""
        return Found(
            stack_id=stack_id,
            subject=subject,
            path=path,
            labels=self.labels,
            phase_images=self.phase_images,
            contours=tuple(self.contours),
            view=view,
            scheme=scheme,
            frames=frames,
        )


def find_stacks(
    source: Path,
    *,
    annotations: Path,
    view: str,
    scheme: str,
    frames: str,
    subjects: Collection[str] | None = None,
) -> tuple[list[Unit], list[LeftOut]]:
    """Go through the folders and match masks and contours to images.

    Args:
        source: folder of images.
        annotations: folder of masks and contours; may be the same.
        view: a name of `VIEWS`.
        scheme: handed on.
        frames: handed on.
        subjects: eids that are wanted; None for all.

    Returns:
        One unit a stack, named by it, with a `Found`; and what is left out.

    Raises:
        DatasetError: a folder is missing, or holds no images of the view.
    """
    files, left_out = _collect(source, annotations, view, subjects)
    units: dict[str, Unit] = {}
    for (subject, visit), found in sorted(files.items()):
        if subjects is not None and subject not in subjects:
            continue
        if not found.images:
            reason, drawn_in_it = "has no image of this view", bool(VIEWS[view].contours)
            left_out += [LeftOut(str(path), reason, bad=True) for path in found.labels.values()]
            left_out += [LeftOut(str(path), reason, bad=drawn_in_it) for path in found.contours]
            continue
        # a converted series comes first, for the masks beside it were drawn on its grid
        path, *others = sorted(found.images, key=lambda path: path.suffix.lower() == ".zip")
        left_out += [LeftOut(str(other), f"{path.name} holds the same stack and was taken") for other in others]
        try:
            stack_id = safe_name("_".join((subject, *(() if visit == FIRST_VISIT else (visit,)), view)))
            if stack_id in units:
                raise DatasetError(f"{units[stack_id].content.path} has the same name {stack_id}; rename")
        except DatasetError as error:
            left_out.append(LeftOut(str(path), str(error), bad=True))
            continue
        content = found.of(subject, path, stack_id=stack_id, view=view, scheme=scheme, frames=frames)
        units[stack_id] = Unit(stack_id, content)
    left_out += _unknown(subjects, {unit.content.subject for unit in units.values()})
    if not units:
        wanted = f"<eid>_{VIEWS[view].field}_2_0.zip or <eid>/{view}.nii.gz"
        raise DatasetError(f"{source}: no {wanted} there{'' if subjects is None else ' of the subjects wanted'}")
    return list(units.values()), left_out


def read_subjects(path: Path) -> set[str]:
    """Read a list of eids: one a line, or the first column of a CSV file; `#` starts a comment.

    Raises:
        DatasetError: the file is missing, no text, or names nobody.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of subjects: {error}") from error
    names = {line.split("#")[0].split(",")[0].strip().strip('"') for line in lines}
    names -= {"", "eid"}
    if not names:
        raise DatasetError(f"{path}: names no subject; write one eid a line")
    return names


def _collect(
    source: Path, annotations: Path, view: str, subjects: Collection[str] | None
) -> tuple[dict[tuple[str, str], _Files], list[LeftOut]]:
    """Files by subject and visit."""
    uses: dict[Path, set[str]] = defaultdict(set)  # one of the folders may lie in the other
    left_out: list[LeftOut] = []
    for root, use in ((source, _IMAGES), (annotations, _MASKS)):
        if not root.is_dir():
            raise DatasetError(f"{root}: no such folder")
        inside, outside = _walk(root.resolve())
        for path in inside:
            uses[path].add(use)
        left_out += [found for found in outside if found not in left_out]
    files: dict[tuple[str, str], _Files] = defaultdict(_Files)
    contours = []
    for path, used in uses.items():
        if path.name.lower().endswith(ENDINGS):
            contours += [path] if _MASKS in used else []
        else:
            left_out += _sort_in(path, view, files, used)
    return files, left_out + _sort_contours(contours, files, view, subjects)


def _walk(root: Path) -> tuple[list[Path], list[LeftOut]]:
    """Files below a folder; symbolic links out of it, and those to folders, are left out."""
    inside, outside = [], []
    for path in sorted(root.rglob("*")):
        try:
            below(path, root)
        except (DatasetError, OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            outside.append(LeftOut(str(path), str(error), bad=True))
            continue
        if path.is_symlink() and path.is_dir():
            outside.append(LeftOut(str(path), "is a symbolic link to a folder; copy the folder there", bad=True))
        elif path.is_file():
            inside.append(path)
    return inside, outside


def _sort_in(path: Path, view: str, files: dict[tuple[str, str], _Files], use: set[str]) -> list[LeftOut]:
    """Put an image or a mask of the view to its subject; says so where a zip is nobody's or a mask stands twice."""
    if path.suffix.lower() == ".zip":
        match = _ZIP.fullmatch(path.name)
        if _IMAGES not in use:
            return []
        if match is None:
            return [LeftOut(str(path), "is not named <eid>_<field>_<instance>.zip")]
        if match.group(2) == VIEWS[view].field:
            files[match.group(1), match.group(3)].images.append(path)
        return []
    match = re.fullmatch(rf"(label_)?{view}(?:_(ED|ES))?\.nii\.gz", path.name)
    if match is None or (_MASKS if match.group(1) else _IMAGES) not in use:
        return []
    owner, phase = files[_owner(path.parent.name)], match.group(2) or ""
    if not match.group(1) and not phase:
        owner.images.append(path)
        return []
    others = owner.labels if match.group(1) else owner.phase_images
    if phase in others:
        return [LeftOut(str(path), f"{others[phase]} is of the same subject and was taken", bad=True)]
    others[phase] = path
    return []


def _owner(folder: str) -> tuple[str, str]:
    """Subject and visit of a folder `<eid>` or `<eid>_3_0`."""
    match = _VISIT.fullmatch(folder)
    return (match.group(1), match.group(2)) if match else (folder, FIRST_VISIT)


def _sort_contours(
    paths: list[Path], files: dict[tuple[str, str], _Files], view: str, subjects: Collection[str] | None
) -> list[LeftOut]:
    """Put XML files to their subjects: `<eid>.cvi42wsx`, `<eid>_….xml`, or any name in a folder `<eid>`."""
    left_out = []
    for path in paths:
        names = (path.name.split(".")[0], re.split(r"[._ -]", path.name)[0], path.parent.name)
        owner = next((_owner(name) for name in names if _owner(name) in files), None)
        if owner is None and subjects is not None and not any(_owner(name)[0] in subjects for name in names):
            continue  # as masks of those who are not wanted
        if owner is None:
            reason = "belongs to no subject that is here; name it <eid>.cvi42wsx"
            left_out.append(LeftOut(str(path), reason, bad=bool(VIEWS[view].contours)))
        else:
            files[owner].contours.append(path)
    return left_out


def _unknown(wanted: Collection[str] | None, found: Collection[str]) -> list[LeftOut]:
    return [LeftOut(subject, "is wanted but not here") for subject in sorted(set(wanted or ()) - set(found))]

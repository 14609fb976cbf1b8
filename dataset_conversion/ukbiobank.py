"""UK Biobank cardiac MR to nnU-Net's format: zips as downloaded or NIfTI folders, one case a frame (paper 003).

Zips `<eid>_20209_2_0.zip` (short axis), `<eid>_20208_2_0.zip` (long axis) and `<eid>_20210_2_0.zip` (aorta) are read
without unpacking. Frames with a mask or with contours are labelled, every other frame is the pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from nnunet_qa.cases import Role
from nnunet_qa.data.cine_phantom import SHORT_AXIS
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.dataset_conversion import engine
from nnunet_qa.dataset_conversion.cvi42 import Contours, fill, read_contours
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Options, Unit
from nnunet_qa.dataset_conversion.options import Dask, Folds, Jobs, Number, Overwrite, Strict
from nnunet_qa.dataset_conversion.script import run_script, tell
from nnunet_qa.dataset_conversion.subjects import chosen_subjects
from nnunet_qa.dataset_conversion.ukbiobank_files import Found, find_stacks, read_subjects
from nnunet_qa.dataset_conversion.ukbiobank_nifti import (
    Annotation,
    most_different_frame,
    read_labels,
    read_nifti_stack,
)
from nnunet_qa.dataset_conversion.ukbiobank_series import Stack, build_stack
from nnunet_qa.dataset_conversion.ukbiobank_views import UKBB, VIEWS, View, relabelled
from nnunet_qa.dataset_conversion.ukbiobank_zip import read_images, uids_of_others
from nnunet_qa.errors import DatasetError, nearest

REFERENCE = "UK Biobank, data fields 20208, 20209 and 20210"
ALL, KEY_FRAMES = "all", "ed_es"


def convert(
    source: Path,
    number: int,
    *,
    name: str = "UKBiobank",
    view: str = SHORT_AXIS,
    annotations: Path | None = None,
    scheme: str = UKBB,
    frames: str = ALL,
    subjects: Path | None = None,
    test_subjects: Iterable[str] = (),
    options: Options | None = None,
) -> Path:
    """Convert one view of UK Biobank's cardiac MR; a run that was killed is resumed by running it again.

    Args:
        source: the folder of the zips, or of the NIfTI folders `<eid>/`; subfolders are searched.
        number: dataset number, 1 to 999.
        name: dataset name after the number.
        view: "sa", "ao", "la_2ch", "la_3ch" or "la_4ch".
        annotations: where `<eid>/label_sa_ED.nii.gz` … or cvi42's XML files lie; None for `source`.
        scheme: label values: "ukbb", or another one of the view.
        frames: "all", "ed_es", or numbers of frames from 0 such as "0,10,20"; other frames are left out, annotated or
            not.
        subjects: a text file with one eid a line; None for all.
        test_subjects: eids kept for testing: their annotated frames become test cases, their others are left out.
        options: processes, folds, strictness.

    Returns:
        The folder of the raw dataset.

    Raises:
        DatasetError: an option that the view does not have, nothing found, an unknown test subject, or see
            `engine.convert`.
    """
    source = source.absolute()  # a worker may have another working folder
    if view not in VIEWS:
        raise DatasetError(f'--view "{view}"{nearest(view, VIEWS)}: choose from {", ".join(VIEWS)}')
    labels = VIEWS[view].scheme(scheme)
    _numbers(frames)
    wanted = None if subjects is None else read_subjects(subjects)
    units, left_out = find_stacks(
        source, annotations=(annotations or source).absolute(), view=view, scheme=scheme, frames=frames, subjects=wanted
    )
    test = chosen_subjects(test_subjects, {unit.content.subject for unit in units})
    units = [Unit(unit.name, replace(unit.content, test=unit.content.subject in test)) for unit in units]
    settings = {
        "source": str(source.resolve()),
        "annotations": str((annotations or source).resolve()),
        "view": view,
        "scheme": scheme,
        "frames": frames,
        "test_subjects": sorted(test),
        "subjects": wanted and hashlib.sha256("\n".join(sorted(wanted)).encode()).hexdigest(),
    }
    dataset = RawDataset.named(
        number, name, channel_names=("MRI",), labels={"background": 0, **labels}, file_ending=".nii.gz",
        settings=settings, extra={"reference": REFERENCE},
    )  # fmt: skip
    return engine.convert(dataset, units, read_stack, what="Subjects", options=options or Options(), left_out=left_out)


def read_stack(found: Found) -> Iterator[Case | LeftOut]:
    """Cases of one view of one subject: the chosen frames.

    Raises:
        DatasetError: the zip cannot be read or lacks the view.
        ImageError: an image, a mask or an XML file cannot be read, or they do not fit.
    """
    view = VIEWS[found.view]
    contours: Contours = {}
    for path in found.contours:
        contours |= read_contours(path)
    if found.path.suffix.lower() == ".zip":
        images, notes = read_images(found.path, view.series)
        if not images:
            raise DatasetError(f"{found.path}: holds no series {view.series.pattern}")
        yield from notes
        stack = build_stack(images, where=str(found.path), annotated=contours)
        yield from (LeftOut(found.stack_id, note) for note in stack.notes)
        del images
    else:
        stack = read_nifti_stack(found.path)
    annotation = _annotation(found, view, stack, contours)
    yield from annotation.left_out
    phases = _phases(annotation, stack, view, estimate=found.frames == KEY_FRAMES)
    scheme = view.scheme(found.scheme)
    chosen = _numbers(found.frames)
    frames = [frame for frame in range(len(stack.image)) if chosen is None or frame in chosen]
    if found.frames == KEY_FRAMES:
        frames = sorted(phases)
    if found.test and (bare := [frame for frame in frames if frame not in annotation.labels]):
        yield LeftOut(f"{found.stack_id}: {len(bare)} frames", "are not annotated, of a subject for testing")
        frames = [frame for frame in frames if frame in annotation.labels]
    for frame in frames:
        label = annotation.labels.get(frame)
        phase, known_by = phases.get(frame, ("", ""))
        yield Case(
            case_id=f"{found.stack_id}_fr{frame:03d}",
            role=Role.UNLABELLED if label is None else Role.TEST if found.test else Role.LABELLED,
            images=[stack.image[frame]],
            label=None if label is None else relabelled(label, view.labels, scheme),
            geometry=stack.geometry,
            row={
                "subject_id": found.subject,
                "stack_id": found.stack_id,
                "frame_index": frame,
                "phase": phase,
                "phase_from": known_by,
                "frame_time": round(stack.frame_time, 6),
                "filled_slices": stack.filled[frame],
            },
        )


def _numbers(frames: str) -> set[int] | None:
    """Frames given by number, or None."""
    if frames in (ALL, KEY_FRAMES):
        return None
    texts = [text.strip() for text in frames.split(",")]
    if not all(text.isascii() and text.isdigit() for text in texts):
        raise DatasetError(f'--frames "{frames}": give all, ed_es, or numbers from 0 such as 0,10,20')
    return {int(text) for text in texts}


def _annotation(found: Found, view: View, stack: Stack, contours: Contours) -> Annotation:
    """Labels of masks, or else of contours."""
    if found.labels:
        annotation = read_labels(found.labels, found.phase_images, stack, {0, *view.labels.values()})
        if found.contours:
            annotation.left_out.append(LeftOut(str(found.contours[0]), "there are masks too, which were taken"))
        return annotation
    annotation = Annotation()
    names = {name for name, _ in view.contours}
    of_view = {uid: of_image for uid, of_image in contours.items() if not names.isdisjoint(of_image)}
    without_image = of_view.keys() - stack.places.keys()
    if without_image and stack.places:  # a workspace holds the contours of all views, some by the same name
        without_image -= uids_of_others(found.path, view.series)
    for uid, of_image in of_view.items():
        if uid not in stack.places:
            continue
        frame, index = stack.places[uid]
        label = annotation.labels.setdefault(frame, np.zeros(stack.image.shape[1:], dtype=np.uint8))
        label[index] = fill(of_image, (label.shape[1], label.shape[2]), view.contours)
    if without_image:
        reason = f"contours of {len(without_image)} images that are not in {found.path.name} or were not taken from it"
        annotation.left_out.append(LeftOut(str(found.contours[0]), reason, bad=True))
    elif found.contours and not annotation.labels:
        reason = f"has no contour of this view ({', '.join(sorted(names)) or 'none is known'})"
        annotation.left_out.append(LeftOut(str(found.contours[0]), reason))
    return annotation


def _phases(annotation: Annotation, stack: Stack, view: View, *, estimate: bool) -> dict[int, tuple[str, str]]:
    """ED and ES, and how they are known; ES of images without labels only where it is asked for."""
    phases = dict(annotation.phases)
    known = {phase for phase, _ in phases.values()}
    sign = -1 if view.full_at_systole else 1
    sizes = {frame: sign * int((label == 1).sum()) for frame, label in annotation.labels.items()}
    if "ED" not in known and 0 not in sizes and len(sizes) > 1:  # annotated in another frame than the protocol's
        phases[max(sizes, key=sizes.__getitem__)] = ("ED", "volume")
    elif "ED" not in known:
        phases.setdefault(0, ("ED", "protocol"))
    if "ES" not in known:
        others = sizes.keys() - phases.keys()
        if others:
            phases[min(sorted(others), key=sizes.__getitem__)] = ("ES", "volume")
        elif estimate and len(stack.image) > 1:
            phases.setdefault(most_different_frame(stack.image), ("ES", "estimate"))
    return phases


def command(
    source: Annotated[
        Path,
        typer.Option(
            "-i", "--input", help="Folder of the zips <eid>_20209_2_0.zip …, or of NIfTI folders <eid>/sa.nii.gz."
        ),
    ],
    number: Number,
    name: str = typer.Option("UKBiobank", "--name", help="Dataset name after the number."),
    view: str = typer.Option(
        SHORT_AXIS, "--view", help="sa (short axis), ao (aorta), la_2ch, la_3ch or la_4ch (long axis)."
    ),
    annotations: Path | None = typer.Option(
        None, "-a", "--annotations", help="Folder of <eid>/label_sa_ED.nii.gz … or of cvi42 XML files; by default -i."
    ),
    scheme: str = typer.Option(
        UKBB, "--scheme", help="Label values: ukbb; sa also acdc, lv, lv-myo; ao also ascending; la_4ch also la."
    ),
    frames: str = typer.Option(ALL, "--frames", help="Frames that become cases: all, ed_es, or numbers such as 0,10."),
    subjects: Path | None = typer.Option(None, "--subjects", help="Text file with one eid a line; by default all."),
    test_subjects: list[str] = typer.Option(
        [], "--test-subjects", help="Eids kept for testing, with commas between; may be repeated."
    ),
    jobs: Jobs = 1,
    dask: Dask = None,
    folds: Folds = 5,
    strict: Strict = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert UK Biobank's cardiac MR: one view, one case a frame.

    Annotated frames become training cases, all other frames the unlabelled pool.

    Example: `nnunet-qa convert ukbiobank -i /data/ukbb -d 131 -a /data/ukbb_labels -np 8`
    """
    options = Options(jobs=jobs, dask=dask, folds=folds, strict=strict, overwrite=overwrite)
    folder = convert(
        source,
        number,
        name=name,
        view=view,
        annotations=annotations,
        scheme=scheme,
        frames=frames,
        subjects=subjects,
        test_subjects=test_subjects,
        options=options,
    )
    tell(folder)


if __name__ == "__main__":
    run_script(command)

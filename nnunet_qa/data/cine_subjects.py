"""Folders and datasets of many cines, drawn or made from real pairs: resumable, and the same from the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from nnunet_qa.data.cine_dicom import FIELDS, write_ukbiobank_zip
from nnunet_qa.data.cine_files import Annotated, cycle_of_pair, pair_names, write_frames, write_labels, write_nifti
from nnunet_qa.data.cine_phantom import DISEASES_AO, DISEASES_SA, SHORT_AXIS, Cine, aortic_cine, short_axis_cine
from nnunet_qa.data.paths import PREPROCESSED, RAW, base_folder, new_dataset_name, read_json
from nnunet_qa.errors import PhantomError, nearest
from nnunet_qa.files import clear, write_csv, write_json
from nnunet_qa.progress import track

RECORD = "phantom.json"
TRUE_CURVES = "true_curves.csv"
_FIRST_EID = 1_000_001


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which subjects are drawn: number `index` is always the same one.

    Attributes:
        view: "sa" or "ao".
        diseases: given to the subjects in turn.
        frames: over one heartbeat.
        seed: of all chance, together with the index.
    """

    view: str
    diseases: tuple[str, ...]
    frames: int
    seed: int

    @classmethod
    def checked(cls, *, view: str, diseases: list[str] | None, frames: int | None, seed: int) -> Recipe:
        """A recipe with defaults where nothing is said: all diseases of the view, 50 frames (sa) or 100 (ao).

        Raises:
            PhantomError: a disease that the view does not have, or a negative seed.
        """
        known = DISEASES_SA if view == SHORT_AXIS else DISEASES_AO
        for disease in diseases or ():
            if disease not in known:
                raise PhantomError(
                    f'unknown disease "{disease}"{nearest(disease, known)}; the view {view} has {", ".join(known)}'
                )
        if seed < 0:
            raise PhantomError(f"the seed {seed} is negative; use 0 or more")
        return cls(
            view=view,
            diseases=tuple(diseases or known),
            frames=frames or (50 if view == SHORT_AXIS else 100),
            seed=seed,
        )

    def draw(self, index: int) -> Cine:
        """The subject of this number, from 0."""
        draw = short_axis_cine if self.view == SHORT_AXIS else aortic_cine
        disease = self.diseases[index % len(self.diseases)]
        return draw(np.random.default_rng([self.seed, index]), disease=disease, frames=self.frames)

    def settings(self) -> dict[str, Any]:
        """What decides about the subjects, for a record beside the files."""
        return {"view": self.view, "diseases": list(self.diseases), "frames": self.frames, "seed": self.seed}


def eid_of(index: int) -> str:
    """Identifier of a drawn subject, seven digits as in UK Biobank."""
    return str(_FIRST_EID + index)


def write_subjects(
    folder: Path,
    recipe: Recipe,
    *,
    subjects: int,
    dicom: bool = False,
    annotated: Annotated = "all",
    overwrite: bool = False,
) -> int:
    """Write drawn subjects as NIfTI series or UK Biobank zips, masks and true curves in `<eid>/` in both cases.

    Args:
        folder: where to.
        recipe: what to draw.
        subjects: how many.
        dicom: zips in place of NIfTI images.
        annotated: which frames get a mask.
        overwrite: delete what an earlier run wrote there.

    Returns:
        How many were written; the others were there already.

    Raises:
        PhantomError: the folder holds subjects of other settings, or something else.
        StorageError: the disk is full or read-only.
    """
    about = {"cine": recipe.settings(), "dicom": dicom, "annotated": annotated}

    def write(eid: str) -> None:
        index = int(eid) - _FIRST_EID
        rng = np.random.default_rng([recipe.seed, index, 1]) if dicom else None
        _write_cine(folder, eid, recipe.draw(index), annotated=annotated, zipped=rng)

    names, last = [eid_of(index) for index in range(subjects)], _last_file(recipe.view, dicom=dicom)
    return _write_missing(folder, names, last, about, write, overwrite=overwrite)


def write_cycles(
    images: Path,
    labels: Path,
    folder: Path,
    *,
    frames: int = 30,
    spacing: tuple[float, float, float] | None = None,
    dicom: bool = False,
    annotated: Annotated = "all",
    seed: int = 0,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write the heartbeats between real pairs of images as `write_subjects` does, with masks and true curves.

    Args:
        images: folder of `<patient>_ED.nii.gz` and `<patient>_ES.nii.gz`.
        labels: folder of their masks.
        folder: where to.
        frames: of each heartbeat.
        spacing: `(z, y, x)` in mm; that of the ED images where None.
        dicom: UK Biobank zips in place of NIfTI images.
        annotated: which frames get a mask.
        seed: of the noise, and of the identifiers in the zips.
        overwrite: delete what an earlier run wrote there.

    Returns:
        How many patients there are, and how many were written now.

    Raises:
        ImageError: a pair is not whole or does not fit, or intensities cannot be stored.
        PhantomError: the folder holds patients of other settings, or something else.
    """
    patients = pair_names(images)
    places = {patient: index for index, patient in enumerate(patients)}
    about = {
        "images": str(images.resolve()),
        "labels": str(labels.resolve()),
        "frames": frames,
        "spacing": list(spacing) if spacing else None,
        "dicom": dicom,
        "annotated": annotated,
        "seed": seed,
    }

    def write(patient: str) -> None:
        noise = np.random.default_rng([seed, places[patient]])
        cine = cycle_of_pair(images, labels, patient, frames=frames, spacing=spacing, rng=noise)
        rng = np.random.default_rng([seed, places[patient], 1]) if dicom else None
        _write_cine(folder, patient, cine, annotated=annotated, zipped=rng)

    last = _last_file(SHORT_AXIS, dicom=dicom)
    return len(patients), _write_missing(folder, patients, last, about, write, overwrite=overwrite)


def _write_cine(
    folder: Path, name: str, cine: Cine, *, annotated: Annotated, zipped: np.random.Generator | None
) -> None:
    """Write true curves and masks of a subject, then the image: NIfTI, or with `zipped` a zip of which it draws."""
    write_csv(folder / name / TRUE_CURVES, curve_table(name, cine))
    if zipped is None:
        write_nifti(folder, name, cine, annotated=annotated)
    else:
        write_labels(folder, name, cine, annotated=annotated)
        write_ukbiobank_zip(folder, name, cine, zipped)


def _last_file(view: str, *, dicom: bool) -> str:
    """Path of the file of a subject that `_write_cine` writes last, with the subject's name as `{0}`."""
    return f"{{0}}_{FIELDS[view]}_2_0.zip" if dicom else f"{{0}}/{view}.nii.gz"


def _write_missing(
    folder: Path,
    names: list[str],
    last: str,
    about: dict[str, Any],
    write: Callable[[str], None],
    *,
    overwrite: bool,
) -> int:
    """Write the subjects whose last file is not there yet; `last` is its path with the subject's name as `{0}`."""
    record = folder / RECORD
    if folder.is_dir() and any(folder.iterdir()):
        if not record.is_file():
            raise PhantomError(f"{folder}: exists and holds something else than phantoms; choose another folder")
        if overwrite:
            clear(folder, record)
        elif read_json(record) != about:
            raise PhantomError(f"{folder}: holds phantoms of other settings; choose another folder or use --overwrite")
    write_json(record, about)
    missing = [name for name in names if not (folder / last.format(name)).is_file()]
    for name in track(missing, "Writing cines", total=len(missing)):
        write(name)
    return len(missing)


def curve_table(eid: str, cine: Cine) -> pd.DataFrame:
    """The designed curves in the columns of `nnunet-qa curves`, one row a structure and frame."""
    unit = "mL" if cine.view == SHORT_AXIS else "mm²"
    rows = [
        (f"{eid}_{cine.view}", eid, structure, frame, frame * cine.frame_time, value, unit)
        for structure, curve in cine.curves.items()
        for frame, value in enumerate(curve.tolist())
    ]
    columns = ["acquisition_id", "subject_id", "structure", "frame_index", "time_s", "value", "unit"]
    return pd.DataFrame(rows, columns=columns)


def write_dataset(
    number: int,
    name: str,
    recipe: Recipe,
    *,
    labelled: int,
    unlabelled: int,
    test: int,
    frames_per_labelled: Literal["ed_es", "all"] = "ed_es",
    jobs: int = 1,
    overwrite: bool = False,
) -> tuple[Path, int]:
    """Draw subjects into a raw nnU-Net dataset of frames, see `write_frames`; labelled ones have the first numbers.

    Returns:
        The dataset's folder, and how many cases it has.

    Raises:
        EnvironmentVariableError: nnUNet_raw or nnUNet_preprocessed is not set.
        DatasetError: number or name is not what nnU-Net accepts, or the folder holds something else.
    """
    base_folder(PREPROCESSED)
    folder = base_folder(RAW) / new_dataset_name(number, name)
    stacks = DrawnStacks(recipe, labelled + unlabelled + test)
    names = list(stacks)
    table = write_frames(
        folder,
        stacks,
        labelled=names[:labelled],
        unlabelled=names[labelled : labelled + unlabelled],
        test=names[labelled + unlabelled :],
        frames_per_labelled=frames_per_labelled,
        settings={"cine": recipe.settings()},
        jobs=jobs,
        overwrite=overwrite,
    )
    return folder, len(table)


@dataclass(frozen=True)
class DrawnStacks(Mapping[str, tuple[str, Cine]]):
    """Subject and cine of stacks `<eid>_<view>`, drawn each time one is asked for, so that memory holds only one.

    Attributes:
        recipe: what to draw.
        count: of subjects.
    """

    recipe: Recipe
    count: int

    def __getitem__(self, stack: str) -> tuple[str, Cine]:
        try:
            index = list(self).index(stack)
        except ValueError:
            raise KeyError(stack) from None
        return eid_of(index), self.recipe.draw(index)

    def __iter__(self) -> Iterator[str]:
        return (f"{eid_of(index)}_{self.recipe.view}" for index in range(self.count))

    def __len__(self) -> int:
        return self.count

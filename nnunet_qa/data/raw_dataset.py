"""Writing a raw dataset in nnU-Net's format: case by case, resumable, and complete only when dataset.json is there."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_qa import __version__
from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.images import (
    NATURAL_ENDINGS,
    Geometry,
    check_finite,
    check_label_values,
    check_same_grid,
    label_values,
    write_image,
)
from nnunet_qa.data.journal import refuse_unsettled
from nnunet_qa.data.paths import PREPROCESSED, RAW, base_folder, new_dataset_name, read_json
from nnunet_qa.data.splits import FILE_NAME as SPLITS
from nnunet_qa.data.splits import grouped_splits, write_splits
from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.files import clear, make_folder, remove_leftovers, write_json

logger = logging.getLogger(__name__)

RECORD = "conversion.json"
FOLDERS = {
    Role.LABELLED: ("imagesTr", "labelsTr"),
    Role.TEST: ("imagesTs", "labelsTs"),
    Role.UNLABELLED: ("imagesUn", ""),
}
"""Folder of the images and of the labels of each role; nnU-Net knows the first pair and ignores `imagesUn`."""


@dataclass(frozen=True)
class RawDataset:
    """What a raw dataset is to be.

    Attributes:
        folder: `nnUNet_raw/DatasetXXX_Name`.
        channel_names: one name a channel, as in dataset.json ("CT" makes nnU-Net normalise as CT).
        labels: label values by name, background first; lists of values for regions.
        file_ending: ".png", ".nii.gz", …
        settings: whatever determines the converted files; a conversion is resumed only with the same settings.
        extra: further entries for dataset.json (`regions_class_order`, `licence`, `reference`, …).
    """

    folder: Path
    channel_names: tuple[str, ...]
    labels: dict[str, Any]
    file_ending: str
    settings: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def named(cls, number: int, name: str, **entries: Any) -> RawDataset:
        """A dataset in nnUNet_raw; entries as for the class.

        Raises:
            EnvironmentVariableError: nnUNet_raw or nnUNet_preprocessed is not set.
            DatasetError: number or name is not what nnU-Net accepts.
        """
        base_folder(PREPROCESSED)
        return cls(folder=base_folder(RAW).absolute() / new_dataset_name(number, name), **entries)

    def image_paths(self, case_id: str, role: Role) -> list[Path]:
        """Files of all channels of a case."""
        folder = self.folder / FOLDERS[role][0]
        return [folder / f"{case_id}_{channel:04d}{self.file_ending}" for channel in range(len(self.channel_names))]

    def label_path(self, case_id: str, role: Role) -> Path:
        """File of the label of a labelled or test case."""
        return self.folder / FOLDERS[role][1] / f"{case_id}{self.file_ending}"

    def begin(self, *, overwrite: bool = False) -> None:
        """Create the folder, or resume in it.

        Args:
            overwrite: delete what an earlier conversion wrote there.

        Raises:
            DatasetError: the folder holds something else, or a conversion with other settings.
            StorageError: the folder cannot be written.
        """
        record = self.folder / RECORD
        content = json.loads(json.dumps({"nnunet_qa": __version__, "settings": self.settings}, default=str))
        if self.folder.is_dir():
            remove_leftovers(self.folder)  # else a kill before the record was renamed leaves a folder of nobody
        if self.folder.is_dir() and any(self.folder.iterdir()):
            if not record.is_file():
                raise DatasetError(
                    f"{self.folder}: exists and was not written by a conversion; choose another number or name"
                )
            refuse_unsettled(self.folder)
            if overwrite:
                self._check_no_source_inside()
                clear(self.folder, record)
            else:
                old = read_json(record)
                self._check_same_settings(old.get("settings", {}), content["settings"])
                self._check_nothing_promoted(old.get("annotated"))
                content |= {"annotated": old["annotated"]} if "annotated" in old else {}
        make_folder(self.folder)
        self._remove_leftovers()
        write_json(record, content)

    def _remove_leftovers(self) -> None:
        for folder in self._case_folders():
            remove_leftovers(folder)

    def _case_folders(self) -> list[Path]:
        names = {name for pair in FOLDERS.values() for name in pair if name}
        return [self.folder / name for name in sorted(names) if (self.folder / name).is_dir()]

    def _check_no_source_inside(self) -> None:
        folder = self.folder.resolve()
        for path in (self.settings.get(key) for key in ("source", "annotations")):
            if isinstance(path, str) and Path(path).is_absolute() and Path(path).resolve().is_relative_to(folder):
                raise DatasetError(f"{path}: lies in {self.folder}, which --overwrite deletes; choose another number")

    def _check_same_settings(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if changed:
            raise DatasetError(
                f"{self.folder}: was converted with other settings ({', '.join(changed)}); start anew with --overwrite"
            )

    def _check_nothing_promoted(self, annotated: int | None) -> None:
        path = self.folder / "dataset.json"
        if annotated is not None and path.is_file() and read_json(path).get("numTraining") != annotated:
            raise DatasetError(
                f"{self.folder}: cases were promoted since its conversion, which would undo that; choose another number"
            )

    def has_case(self, case_id: str, role: Role, *, labelled: bool) -> bool:
        """Whether an earlier run has already written all files of a case."""
        paths = self.image_paths(case_id, role) + ([self.label_path(case_id, role)] if labelled else [])
        return all(path.is_file() for path in paths)

    def write_case(
        self,
        case_id: str,
        role: Role,
        images: Sequence[np.ndarray],
        label: np.ndarray | None = None,
        *,
        geometry: Geometry | None = None,
    ) -> None:
        """Check a case and write its channels and label; a file is there whole or not at all.

        Args:
            case_id: identifier; the files are named after it.
            role: decides the folder. Labelled cases need a label, unlabelled ones take none.
            images: one array a channel, `(rows, columns)` for pictures, `(slices, rows, columns)` for volumes.
            label: label values on the same grid.
            geometry: position of a volume in the patient.

        Raises:
            ImageError: channels missing, NaN or infinite intensities, a mask of another shape or with unknown labels.
            StorageError: the disk is full or read-only.
        """
        if len(images) != len(self.channel_names):
            raise ImageError(f"{case_id}: has {len(images)} channels, the dataset {len(self.channel_names)}")
        if (role is Role.LABELLED and label is None) or (role is Role.UNLABELLED and label is not None):
            raise ImageError(
                f"{case_id}: role {role.value} does not fit a case {'without' if label is None else 'with'} label"
            )
        for channel in images:
            check_finite(channel, case_id)
            check_same_grid(images[0], channel, case_id)
        if label is not None:
            check_same_grid(images[0], label, case_id)
            check_finite(label, f"{case_id} (mask)")
            check_label_values(label, label_values(self.labels), f"{case_id} (mask)")
            small = label.astype(np.uint8 if max(label_values(self.labels)) < 256 else np.uint16)
            write_image(self.label_path(case_id, role), small, geometry)
        for path, channel in zip(self.image_paths(case_id, role), images, strict=True):
            write_image(path, channel, geometry)

    def remove_others(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Delete all images and labels of cases that are not among the rows of the case table.

        Args:
            rows: one row a case, with `case_id` and `role`.
        """
        kept: set[Path] = set()
        for row in rows:
            case_id, role = str(row["case_id"]), Role(row["role"])
            kept.update(self.image_paths(case_id, role))
            if role is not Role.UNLABELLED:
                kept.add(self.label_path(case_id, role))
        for folder in self._case_folders():
            for path in folder.iterdir():
                if path not in kept:
                    path.unlink()

    def finish(self, rows: Iterable[dict[str, object]], *, jobs: int = 1, folds: int = 5) -> CaseTable:
        """Write cases.csv, the folds and dataset.json, then run nnU-Net's own integrity check.

        Args:
            rows: one row a case for the case table.
            jobs: processes for the integrity check.
            folds: cross-validation folds, grouped by subject.

        Raises:
            CaseTableError: a case stands twice.
            DatasetError: no annotated case, or nnU-Net's check found fault (dataset.json is taken away again).
        """
        table = CaseTable.from_rows(rows, str(self.folder / CASES))
        labelled = table.case_ids(Role.LABELLED)
        if not labelled:
            raise DatasetError(f"{self.folder}: no annotated case was found; nnU-Net needs at least one to plan")
        self._remove_leftovers()  # of a worker that was killed
        self._write_folds(table, labelled, folds)
        table.write(self.folder / CASES)
        write_json(self.folder / "dataset.json", self.dataset_json(len(labelled)))
        try:
            check_integrity(self.folder, jobs=jobs)
        except DatasetError:
            (self.folder / "dataset.json").unlink()
            raise
        write_json(self.folder / RECORD, {**read_json(self.folder / RECORD), "annotated": len(labelled)})
        return table

    def dataset_json(self, num_training: int) -> dict[str, Any]:
        """Content of dataset.json."""
        return {
            "channel_names": {str(number): name for number, name in enumerate(self.channel_names)},
            "labels": self.labels,
            "numTraining": num_training,
            "file_ending": self.file_ending,
            **({"overwrite_image_reader_writer": "NaturalImage2DIO"} if self.file_ending in NATURAL_ENDINGS else {}),
            **self.extra,
        }

    def _write_folds(self, table: CaseTable, labelled: list[str], folds: int) -> None:
        subjects = table.subjects()
        folder = base_folder(PREPROCESSED) / self.folder.name
        try:
            splits = grouped_splits({case: subjects[case] for case in labelled}, folds=folds)
        except DatasetError as error:
            logger.warning("%s: no folds written: %s", self.folder.name, error)
            (folder / SPLITS).unlink(missing_ok=True)  # those of an earlier conversion name other cases
            return
        write_splits(make_folder(folder), splits)


def check_integrity(folder: Path, *, jobs: int = 1) -> None:
    """Run nnU-Net's own check of a raw dataset (`--verify_dataset_integrity`).

    Raises:
        DatasetError: with the first fault that nnU-Net printed.
    """
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            verify_dataset_integrity(os.fspath(folder), max(1, jobs))
    except Exception as error:
        lines = [line for line in f"{printed.getvalue()}\n{error}".splitlines() if line.strip()]
        raise DatasetError(f"{folder}: nnU-Net's integrity check failed: {' '.join(lines[:6])}") from error

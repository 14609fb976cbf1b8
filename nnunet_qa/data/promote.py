"""Promoting annotated cases: from the unlabelled pool to the training cases, all of them or none.

Everything is checked before anything changes. The change is journalled (`promote.json` in the dataset folder), so that
neither a full disk nor a kill leaves half of it; see `nnunet_qa.data.journal`.
"""

from __future__ import annotations

import filecmp
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.existing import case_images, read_dataset_json, splits_files
from nnunet_qa.data.journal import FILE_NAME as JOURNAL
from nnunet_qa.data.journal import Change, Journal, locked, refuse_unsettled
from nnunet_qa.data.label_check import LabelChecker
from nnunet_qa.data.raw_dataset import FOLDERS
from nnunet_qa.data.splits import Split, check_splits, extend_splits, grouped_splits, read_splits, same_splits
from nnunet_qa.errors import CaseTableError, DatasetError, nearest
from nnunet_qa.progress import track

logger = logging.getLogger(__name__)

IMAGES_TR, LABELS_TR = FOLDERS[Role.LABELLED]
IMAGES_UN = FOLDERS[Role.UNLABELLED][0]


@dataclass(frozen=True)
class Promotion:
    """What was promoted, or would be.

    Attributes:
        cases: promoted cases, sorted.
        already: asked for, but in imagesTr with the very same label; left alone.
        waiting: asked for where a label was optional, and without one yet.
        annotated: number of annotated cases afterwards.
        pool: number of cases left in imagesUn.
        splits: the folds afterwards; None where there are too few subjects for any.
        undone: whether an interrupted promotion was undone first.
    """

    cases: tuple[str, ...]
    already: tuple[str, ...]
    waiting: tuple[str, ...]
    annotated: int
    pool: int
    splits: list[Split] | None
    undone: bool = False


def promote(
    dataset_folder: Path,
    labels_folder: Path,
    *,
    preprocessed_folder: Path,
    cases: Sequence[str] | None = None,
    labels_optional: bool = False,
    dry_run: bool = False,
) -> Promotion:
    """Move annotated cases from imagesUn to imagesTr and copy their labels to labelsTr.

    dataset.json (numTraining), cases.csv (role; where there is one) and splits_final.json follow. New cases join the
    fold of their subject, so that folds that models were trained with stay valid.

    Args:
        dataset_folder: `nnUNet_raw/DatasetXXX`.
        labels_folder: holds the labels, `<case_id><file_ending>`; they stay there.
        preprocessed_folder: `nnUNet_preprocessed/DatasetXXX`; it need not exist.
        cases: the cases; None for every label in `labels_folder`.
        labels_optional: leave out those of `cases` that have no label yet, instead of refusing.
        dry_run: check everything and change nothing.

    Raises:
        DatasetError: dataset.json lists its cases itself; a case is not in imagesUn; a label is missing, or another one
            is in labelsTr; the folds do not fit; another process is at it; or a dry run finds an interrupted promotion.
        ImageError: a label does not fit its image (see `LabelChecker.check`).
        CaseTableError: cases.csv does not know a case, or says that it is a test case.
        StorageError: a file could not be written; everything is as before.
    """
    with locked(dataset_folder):
        undone = False
        journal = Journal(dataset_folder / JOURNAL, {"raw": dataset_folder, "preprocessed": preprocessed_folder})
        if dry_run:
            refuse_unsettled(dataset_folder)
        else:
            undone = journal.recover()
        if undone:
            logger.warning("%s: an interrupted promotion was undone first", dataset_folder.name)
        planner = _Planner(dataset_folder, labels_folder, preprocessed_folder)
        asked = planner.asked(cases, labels_optional=labels_optional)
        promotion, change = planner.plan(*asked, undone=undone)
        if promotion.cases and not dry_run:
            journal.apply(change)
        return promotion


class _Planner:
    """Looks at everything and changes nothing."""

    def __init__(self, dataset_folder: Path, labels_folder: Path, preprocessed_folder: Path) -> None:
        self.folder, self.labels, self.preprocessed = dataset_folder, labels_folder, preprocessed_folder
        self.dataset_json = read_dataset_json(dataset_folder)
        if "dataset" in self.dataset_json:
            raise DatasetError(
                f'{dataset_folder / "dataset.json"}: lists its cases itself (entry "dataset") instead of keeping them '
                "in imagesTr; add the annotated cases to that entry by hand"
            )
        self.ending = str(self.dataset_json["file_ending"])
        self.pool = case_images(dataset_folder / IMAGES_UN, self.ending)
        self.annotated = case_images(dataset_folder / IMAGES_TR, self.ending)
        if not labels_folder.is_dir():
            raise DatasetError(f"{labels_folder}: no such folder; --labels takes the folder with the new labels")

    def asked(self, cases: Sequence[str] | None, *, labels_optional: bool) -> tuple[list[str], list[str], list[str]]:
        """Cases to promote, those that are promoted already, and those without a label."""
        present = sorted(
            path.name.removesuffix(self.ending)
            for path in self.labels.iterdir()
            if path.name.endswith(self.ending) and not path.name.startswith(".")
        )
        if cases is None and not present:
            others = sorted(path.name for path in self.labels.iterdir())
            found = f"found {others[0]}" if others else "it is empty"
            raise DatasetError(f"{self.labels}: no label <case_id>{self.ending} there ({found}); give another folder")
        wanted = present if cases is None else sorted(set(cases))
        missing = [case for case in wanted if case not in set(present)]
        if missing and (not labels_optional or len(missing) == len(wanted)):
            raise DatasetError(
                f"{self._label(missing[0])}: not found{nearest(missing[0], present)}; annotate the case first"
            )
        new: list[str] = []
        already: list[str] = []
        for case in (case for case in wanted if case not in set(missing)):
            (already if self._is_promoted(case) else new).append(case)
        return new, already, missing

    def plan(
        self, cases: list[str], already: list[str], waiting: list[str], *, undone: bool
    ) -> tuple[Promotion, Change]:
        """Check the cases, and what is to be done."""
        table = self._table(cases)
        subjects = self._subjects(table, cases)
        splits, folds = self._folds(subjects, cases)
        self._check_labels(cases)
        dataset_json = {**self.dataset_json, "numTraining": len(self.annotated) + len(cases)}
        contents = {**folds, "raw/dataset.json": _json(dataset_json)}
        if table is not None:
            contents[f"raw/{CASES}"] = table.with_role(cases, Role.LABELLED).frame.to_csv(index=False)
        change = Change(
            moves=[
                (f"raw/{IMAGES_UN}/{path.name}", f"raw/{IMAGES_TR}/{path.name}")
                for case in cases
                for path in self.pool[case]
            ],
            copies=[
                (self._label(case), f"raw/{LABELS_TR}/{case}{self.ending}")
                for case in cases
                if not self._lies_in_place(case)
            ],
            contents=contents,
        )
        promotion = Promotion(
            cases=tuple(cases),
            already=tuple(already),
            waiting=tuple(waiting),
            annotated=dataset_json["numTraining"],
            pool=len(self.pool) - len(cases),
            splits=splits,
            undone=undone,
        )
        return promotion, change

    def _label(self, case: str) -> Path:
        return self.labels / f"{case}{self.ending}"

    def _target(self, case: str) -> Path:
        return self.folder / LABELS_TR / f"{case}{self.ending}"

    def _lies_in_place(self, case: str) -> bool:
        """Whether the label was drawn in labelsTr itself."""
        return self._target(case).exists() and self._target(case).samefile(self._label(case))

    def _is_promoted(self, case: str) -> bool:
        """Whether a case is in imagesTr with the same label; otherwise it must be in imagesUn and nowhere else."""
        label, target = self._label(case), self._target(case)
        if case in self.annotated:
            if case in self.pool:
                raise DatasetError(
                    f'{self.folder}: the case "{case}" is in {IMAGES_UN} and in {IMAGES_TR}; remove one of them'
                )
            if target.is_file() and filecmp.cmp(label, target, shallow=False):
                return True
            raise DatasetError(
                f'{label}: the case "{case}" is in {IMAGES_TR} already, with another label; leave it out, or replace '
                f"{target} yourself"
            )
        if case not in self.pool:
            raise DatasetError(
                f'{label}: the case "{case}" is not in {self.folder / IMAGES_UN}{nearest(case, self.pool)}; rename the '
                "label after its case, or leave it out"
            )
        if target.exists() and not self._lies_in_place(case):
            raise DatasetError(f"{target}: is there already, though its image is in {IMAGES_UN}; remove it first")
        return False

    def _check_labels(self, cases: list[str]) -> None:
        if not cases:
            return
        checker = LabelChecker(self.dataset_json, next(iter({**self.annotated, **self.pool}.values()))[0])
        for case in track(cases, "checking labels", len(cases)):
            checker.check(self.pool[case], self._label(case))

    def _table(self, cases: list[str]) -> CaseTable | None:
        if not (self.folder / CASES).exists():
            return None
        table = CaseTable.read(self.folder / CASES)
        test = sorted(set(cases) & set(table.case_ids(Role.TEST)))
        if test:
            raise CaseTableError(
                f'{self.folder / CASES}: "{test[0]}" is a test case; training on it would spoil the test. Leave it '
                "out, or correct its role"
            )
        table.with_role(cases, Role.LABELLED)
        return table

    def _subjects(self, table: CaseTable | None, cases: list[str]) -> dict[str, str]:
        names = [*self.annotated, *cases]
        if table is None:
            return {case: case for case in names}
        known = table.subjects()
        for case in names:
            if case not in known:
                raise CaseTableError(
                    f'{self.folder / CASES}: the case "{case}" of {IMAGES_TR} is missing; write the table anew with '
                    "`nnunet-qa cases --overwrite`"
                )
        return {case: known[case] for case in names}

    def _folds(self, subjects: Mapping[str, str], cases: list[str]) -> tuple[list[Split] | None, dict[str, str]]:
        """The folds with the new cases, and the files that are to hold them."""
        files = splits_files(self.folder, self.preprocessed)
        old = {path: read_splits(path) for path in files}
        present = {path: splits for path, splits in old.items() if splits is not None}
        before = {case: subjects[case] for case in self.annotated}
        for path, splits in present.items():
            check_splits(splits, before, str(path))
        if not present:
            try:
                splits = grouped_splits(subjects)
            except DatasetError as error:
                logger.warning("%s: no folds written: %s", self.folder.name, error)
                return None, {}
            return splits, {self._key(files[0]): _json(splits)}
        first, *rest = present
        if any(not same_splits(present[first][: len(present[path])], present[path]) for path in rest):
            raise DatasetError(
                f"{first}: holds other folds than {rest[0]}; nnU-Net's planner would stop. Delete one of the two files"
            )
        splits = extend_splits(present[first], cases, subjects)
        if len(splits) < 5 <= len(set(subjects.values())):
            logger.warning(
                "%s has only %d folds; nnU-Net draws the missing ones at random, without regard to subjects. Train "
                "folds 0 to %d, or write five with `nnunet-qa cases --overwrite`",
                first,
                len(splits),
                len(splits) - 1,
            )
        lengths = {path: len(present.get(path, splits)) for path in files}
        return splits, {self._key(path): _json(splits[:length]) for path, length in lengths.items()}

    def _key(self, path: Path) -> str:
        return f"{'raw' if path.parent == self.folder else 'preprocessed'}/{path.name}"


def _json(content: Any) -> str:
    """As `nnunet_qa.files.write_json` writes it."""
    return json.dumps(content, indent=4) + "\n"

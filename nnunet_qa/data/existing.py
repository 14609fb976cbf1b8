"""Raw datasets that nnU-Net already knows: their cases by folder, a case table and subject-grouped folds for them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role, table_from_names
from nnunet_qa.data.journal import refuse_unsettled
from nnunet_qa.data.paths import read_json
from nnunet_qa.data.raw_dataset import FOLDERS
from nnunet_qa.data.splits import FILE_NAME as SPLITS
from nnunet_qa.data.splits import Split, grouped_splits, pseudo_labelled, read_splits, same_splits
from nnunet_qa.errors import CaseTableError, DatasetError
from nnunet_qa.files import write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Described:
    """What `describe_dataset` found and wrote.

    Attributes:
        table: the case table.
        splits: the folds; None where there are too few subjects for any.
        written: files that are new or were replaced.
    """

    table: CaseTable
    splits: list[Split] | None
    written: tuple[Path, ...]


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Read dataset.json and check that it has what nnU-Net needs to find and read cases.

    Raises:
        DatasetError: the file is missing, no JSON, or lacks an entry.
    """
    content = read_json(folder / "dataset.json")
    for key in ("labels", "file_ending", "channel_names"):
        if key not in content:
            raise DatasetError(f'{folder / "dataset.json"}: the entry "{key}" is missing; nnU-Net v2 needs it')
    return content


def case_images(folder: Path, file_ending: str) -> dict[str, list[Path]]:
    """Image files of each case in a folder, `<case>_<four digits><file_ending>`, channels in order, cases sorted.

    A folder that does not exist holds no case.
    """
    pattern = re.compile(r"(?P<case>[^.].*)_\d{4}" + re.escape(file_ending))
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = pattern.fullmatch(path.name)
        if match:
            found.setdefault(match["case"], []).append(path)
    return dict(sorted(found.items()))


def names_by_role(folder: Path, dataset_json: dict[str, Any]) -> dict[Role, list[str]]:
    """Case identifiers by role, from the file names in imagesTr, imagesUn and imagesTs.

    The annotated cases of a dataset.json with a `dataset` entry are those that it lists.

    Raises:
        DatasetError: there is neither an annotated nor an unlabelled case, an annotated one has no label, or a case
            stands in two folders.
    """
    ending = dataset_json["file_ending"]
    names = {role: list(case_images(folder / images, ending)) for role, (images, _) in FOLDERS.items()}
    if "dataset" in dataset_json:
        names[Role.LABELLED] = sorted(dataset_json["dataset"])
    else:
        labels = folder / FOLDERS[Role.LABELLED][1]
        for case in names[Role.LABELLED]:
            if not (labels / f"{case}{ending}").is_file():
                raise DatasetError(f"{labels / f'{case}{ending}'}: not found; every case in imagesTr needs a label")
    if not names[Role.LABELLED] and not names[Role.UNLABELLED]:
        raise DatasetError(
            f"{folder / 'imagesTr'}: holds no case with the ending {ending}, and neither does imagesUn; put annotated "
            "cases into the one or images without labels into the other"
        )
    roles = list(names)
    for number, role in enumerate(roles):
        for other in roles[number + 1 :]:
            both = sorted(set(names[role]) & set(names[other]))
            if both:
                raise DatasetError(
                    f'{folder}: the case "{both[0]}" is in {FOLDERS[role][0]} and in {FOLDERS[other][0]}; remove one'
                )
    return names


def splits_files(dataset_folder: Path, preprocessed_folder: Path) -> list[Path]:
    """Where folds are to be written: the preprocessed dataset, and the raw one if a `splits_final.json` lies there.

    nnU-Net's planner stops when these two files disagree.
    """
    raw = dataset_folder / SPLITS
    return [preprocessed_folder / SPLITS, *([raw] if raw.is_file() else [])]


def describe_dataset(
    dataset_folder: Path,
    *,
    preprocessed_folder: Path,
    subject_regex: str | None = None,
    overwrite: bool = False,
    folds: int = 5,
) -> Described:
    """Write cases.csv and subject-grouped folds for a raw dataset, from its file names; nothing changes on an error.

    Args:
        dataset_folder: `nnUNet_raw/DatasetXXX`.
        preprocessed_folder: `nnUNet_preprocessed/DatasetXXX`; it need not exist.
        subject_regex: see `nnunet_qa.cases.table_from_names`.
        overwrite: replace a case table or folds that say something else.
        folds: number of folds.

    Raises:
        CaseTableError: the expression does not fit the names, or another cases.csv is there.
        DatasetError: the dataset is incomplete, or other folds are there.
        StorageError: a file cannot be written.
    """
    refuse_unsettled(dataset_folder)
    table = table_from_names(names_by_role(dataset_folder, read_dataset_json(dataset_folder)), subject_regex)
    keep_table = _keeps_table(dataset_folder / CASES, table, overwrite=overwrite)
    files = splits_files(dataset_folder, preprocessed_folder)
    splits = _new_splits(table, files, folds=folds)
    if splits is not None:
        files = _files_to_replace(files, splits, overwrite=overwrite)
        for path in files:
            write_json(path, splits)
    if keep_table:
        table = CaseTable.read(dataset_folder / CASES)
    else:
        table.write(dataset_folder / CASES)
    written = [*([] if keep_table else [dataset_folder / CASES]), *(files if splits is not None else [])]
    return Described(table=table, splits=splits, written=tuple(written))


def _keeps_table(path: Path, table: CaseTable, *, overwrite: bool) -> bool:
    """Whether the case table that is there says the same (it may say more, a slice's index for example)."""
    if not path.exists():
        return False
    try:
        there = CaseTable.read(path)
    except CaseTableError:
        if overwrite:  # whatever it was
            return False
        raise
    if pseudo_labelled(there):
        raise CaseTableError(
            f"{path}: says which labels are predictions, which the file names do not; keep it, or inject again"
        )
    if overwrite:
        return False
    old, new = there.frame, table.frame
    for column in ("case_id", "role", "subject_id"):
        if old[column].tolist() != new[column].tolist():
            raise CaseTableError(
                f"{path}: is there already and differs from the file names in {column} "
                f"({_first_difference(old[column], new[column])}); keep it, or replace it with --overwrite"
            )
    return True


def _first_difference(old: Iterable[str], new: Iterable[str]) -> str:
    old, new = list(old), list(new)
    for here, there in zip(old, new, strict=False):
        if here != there:
            return f'"{here}" there, "{there}" by the names'
    return f"{len(old)} cases there, {len(new)} by the names"


def _new_splits(table: CaseTable, files: list[Path], *, folds: int) -> list[Split] | None:
    subjects = table.subjects()
    labelled = table.case_ids(Role.LABELLED)
    exist = any(path.exists() for path in files)
    if not labelled and not exist:
        return None  # nothing is annotated yet; `nnunet-qa promote` writes the folds
    try:
        return grouped_splits({case: subjects[case] for case in labelled}, folds=folds)
    except DatasetError as error:
        if folds < 2 or exist:
            raise
        logger.warning("no folds written: %s", error)
        return None


def _files_to_replace(files: list[Path], splits: list[Split], *, overwrite: bool) -> list[Path]:
    wanted = []
    for path in files:
        if not overwrite and path.exists():
            if same_splits(read_splits(path), splits):
                continue
            raise DatasetError(
                f"{path}: holds other folds than those grouped by subject; models may have been trained with them. "
                "Replace them with --overwrite"
            )
        wanted.append(path)
    return wanted

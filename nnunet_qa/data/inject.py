"""Injecting pseudo-labels: a new dataset of annotated cases and of the best predictions (paper 003, section 2.3).

Images and people's labels stay where they are: dataset.json names them in nnU-Net's entry `dataset`, and the pool that
is left in the entry `unlabelled`. Only the pseudo-labels are copied. The dataset is built beside its place and renamed
when it is whole; the source is never changed.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_qa import __version__
from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role, table_from_names
from nnunet_qa.config import FILE_NAME as SETTINGS
from nnunet_qa.data.existing import case_images, names_by_role, read_dataset_json
from nnunet_qa.data.journal import locked, refuse_unsettled
from nnunet_qa.data.label_check import LabelChecker
from nnunet_qa.data.pool import ENTRY, pool_images, referenced
from nnunet_qa.data.raw_dataset import FOLDERS
from nnunet_qa.data.splits import FILE_NAME as SPLITS
from nnunet_qa.data.splits import (
    HUMAN,
    LABEL_SOURCE,
    PSEUDO,
    Split,
    check_splits,
    grouped_splits,
    pseudo_labelled,
    read_splits,
    with_pseudo_labels,
)
from nnunet_qa.errors import CaseTableError, DatasetError, ImageError, nearest
from nnunet_qa.files import make_folder, storage_error, write_json
from nnunet_qa.progress import track

logger = logging.getLogger(__name__)

LABELS = "labelsPseudo"
RECORD = "injection.json"
PROVENANCE = ("pseudo_model", "pseudo_estimator", "pseudo_score", "pseudo_round")
"""Columns of cases.csv beside `label_source`: whose prediction a pseudo-label is, why it was taken, and when."""


@dataclass(frozen=True, kw_only=True)
class Injected:
    """What was written.

    Attributes:
        folder: the new raw dataset.
        human: number of cases with people's labels.
        pseudo: number of cases with pseudo-labels, those of the source included.
        pool: number of cases left in the pool.
        splits: the folds; None where there are too few subjects for any.
    """

    folder: Path
    human: int
    pseudo: int
    pool: int
    splits: list[Split] | None


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A training case of the new dataset."""

    images: list[Path]
    label: Path


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Raw and preprocessed folder of a dataset; the raw one while it is built."""

    raw: Path
    preprocessed: Path

    @property
    def unfinished(self) -> Path:
        return self.raw.with_name(f".partial-{self.raw.name}")

    @property
    def replaced(self) -> Path:
        return self.raw.with_name(f".replaced-{self.raw.name}")


def inject(
    source_folder: Path,
    target_folder: Path,
    ranking: pd.DataFrame,
    predictions: Path,
    *,
    source_preprocessed: Path,
    target_preprocessed: Path,
    round_number: int = 1,
    model: str | None = None,
    overwrite: bool = False,
) -> Injected:
    """Write a dataset in which every case of a ranking is a training case, with its prediction as label.

    Args:
        source_folder: `nnUNet_raw/DatasetXXX` with a pool. One that was itself injected keeps its pseudo-labels.
        target_folder: `nnUNet_raw/DatasetYYY` that is to be written.
        ranking: all rows are taken, see `nnunet_qa.selection.best_in_class_files.read_ranking`: `case_id`, `score`,
            `estimator` and, without `model`, `model`.
        predictions: folder with the predictions, `<case_id><file_ending>`.
        source_preprocessed: `nnUNet_preprocessed/DatasetXXX`; its folds are kept. It need not exist.
        target_preprocessed: `nnUNet_preprocessed/DatasetYYY`, where the folds go.
        round_number: which round of injection this is, for the case table.
        model: whose predictions they are, instead of what the ranking says.
        overwrite: replace what an earlier injection wrote there, preprocessed data included.

    Raises:
        DatasetError: the target is the source, is there already or is no injected dataset; the source is incomplete; a
            case of the ranking is not in its pool or has no prediction; the folds do not fit.
        ImageError: a prediction is empty, or does not fit its image (see `LabelChecker.check`).
        CaseTableError: cases.csv does not know a case, or a case of the ranking is of a subject who has test cases.
        StorageError: a file could not be written; no raw dataset is left half-written.
    """
    place = _Place(raw=target_folder, preprocessed=target_preprocessed)
    _check_place(place, source_folder, overwrite=overwrite)
    refuse_unsettled(source_folder)
    plan = _Plan(source_folder, source_preprocessed, place, ranking, predictions)
    table = plan.table(round_number=round_number, model=model)
    splits = plan.splits(table)
    plan.check_predictions()
    make_folder(place.unfinished)
    with locked(place.unfinished):
        try:
            for left in place.unfinished.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            plan.write(table, splits, {"round": round_number, "model": model or _one(ranking, "model")})
            _put_in_place(place, splits)
        except OSError as error:
            raise storage_error(error.filename2 or error.filename or place.raw, error) from error
        finally:
            shutil.rmtree(place.unfinished, ignore_errors=True)
    pseudo = len(pseudo_labelled(table))
    human = len(table.case_ids(Role.LABELLED)) - pseudo
    return Injected(folder=place.raw, human=human, pseudo=pseudo, pool=len(plan.pool), splits=splits)


class _Plan:
    """Looks at everything first, then writes the new raw dataset into its unfinished folder."""

    def __init__(
        self, folder: Path, preprocessed: Path, place: _Place, ranking: pd.DataFrame, predictions: Path
    ) -> None:
        self.folder, self.preprocessed, self.place = folder, preprocessed, place
        self.ranking, self.predictions = ranking.set_index("case_id"), predictions
        self.dataset_json = read_dataset_json(folder)
        self.ending = str(self.dataset_json["file_ending"])
        self.annotated = _annotated(folder, self.dataset_json)
        self.pool = pool_images(folder, self.dataset_json)
        if both := sorted(set(self.annotated) & set(self.pool)):
            raise DatasetError(f'{folder}: the case "{both[0]}" is a training case and in the pool; remove one of them')
        self.source_table = self._source_table()
        self.tested = self.source_table.of_tested_subjects()
        self.chosen = {case: self._taken(case) for case in self.ranking.index}

    def _source_table(self) -> CaseTable:
        path = self.folder / CASES
        if not path.is_file():
            logger.warning("%s: not found, so every case counts as a subject of its own", path)
            return table_from_names(names_by_role(self.folder, self.dataset_json))
        table = CaseTable.read(path)
        known = table.subjects()
        for case in (*self.annotated, *self.pool):
            if case not in known:
                raise CaseTableError(
                    f'{path}: the case "{case}" is missing{nearest(case, known)}; write the table anew with '
                    "`nnunet-qa cases --overwrite`"
                )
        return table

    def _taken(self, case: str) -> _Case:
        if case in self.annotated:
            raise DatasetError(
                f'{self.folder}: the case "{case}" of the ranking is a training case already; rank the pool that is '
                "left"
            )
        if case not in self.pool:
            raise DatasetError(
                f'{self.folder}: the case "{case}" of the ranking is not in its pool{nearest(case, self.pool)}; rank '
                "the pool of this dataset"
            )
        if case in self.tested:
            raise CaseTableError(
                f'{self.folder / CASES}: "{case}" is a test case, or its subject has one; training on it would spoil '
                "the test, so delete it from the ranking"
            )
        label = self.predictions / f"{case}{self.ending}"
        if not label.is_file():
            raise DatasetError(f"{label}: not found; give the folder with the predictions that were ranked")
        return _Case(images=self.pool.pop(case), label=label)

    def check_predictions(self) -> None:
        """Refuse predictions that do not fit their images or are empty, and annotated cases whose files are gone."""
        checker = LabelChecker(self.dataset_json, next(iter(self.chosen.values())).images[0])
        for case in track(self.chosen.values(), "checking predictions", len(self.chosen)):
            if not checker.check(case.images, case.label):
                raise ImageError(
                    f"{case.label}: is empty, and a network that trains on it learns to find nothing; delete its case "
                    "from the ranking"
                )
        for case in self.annotated.values():
            for path in (*case.images, case.label):
                if not path.is_file():
                    raise DatasetError(f"{path}: not found, though {self.folder} names it; put it back")

    def table(self, *, round_number: int, model: str | None) -> CaseTable:
        """The source's case table in which the chosen cases are training cases, with their provenance."""
        frame = self.source_table.with_role(self.chosen, Role.LABELLED).frame.copy()
        for column in (LABEL_SOURCE, *PROVENANCE):
            frame[column] = frame[column].astype(str) if column in frame.columns else ""
        labelled = frame["role"] == Role.LABELLED.value
        frame.loc[labelled & (frame[LABEL_SOURCE] == ""), LABEL_SOURCE] = HUMAN
        for index in frame.index[frame["case_id"].isin(list(self.chosen))]:
            row = self.ranking.loc[frame.loc[index, "case_id"]]
            about = (model or row["model"], row["estimator"], f"{row['score']:.6g}", str(round_number))
            frame.loc[index, [LABEL_SOURCE, *PROVENANCE]] = [PSEUDO, *about]
        return CaseTable(frame)

    def splits(self, table: CaseTable) -> list[Split] | None:
        """The source's folds, or new ones of people's labels, with pseudo-labels in the training parts."""
        pseudo, known = pseudo_labelled(table), table.subjects()
        annotated = {case: known[case] for case in self.annotated}
        for path in (self.preprocessed / SPLITS, self.folder / SPLITS):
            splits = read_splits(path)
            if splits is not None:
                check_splits(splits, annotated, str(path))
                return with_pseudo_labels(splits, pseudo, known)
        try:
            splits = grouped_splits({case: subject for case, subject in annotated.items() if case not in pseudo})
        except DatasetError as error:
            logger.warning("%s: no folds written: %s", self.place.raw.name, error)
            return None
        return with_pseudo_labels(splits, pseudo, known)

    def write(self, table: CaseTable, splits: list[Split] | None, about: dict[str, Any]) -> None:
        """Write every file of the new raw dataset; dataset.json is the last."""
        folder = self.place.unfinished
        labels, pseudo = make_folder(folder / LABELS), pseudo_labelled(table)
        cases = {}
        for case, own in {**self.annotated, **self.chosen}.items():
            label = _reference(own.label, self.place.raw)
            if case in pseudo:
                shutil.copyfile(own.label, labels / f"{case}{self.ending}")
                label = f"{LABELS}/{case}{self.ending}"
            cases[case] = {"images": [_reference(path, self.place.raw) for path in own.images], "label": label}
        pool = {case: [_reference(path, self.place.raw) for path in paths] for case, paths in self.pool.items()}
        table.write(folder / CASES)
        if splits is not None:
            # nnU-Net's planner copies it, so the folds hold where the preprocessed data is made anew
            write_json(folder / SPLITS, splits)
        if (self.folder / SETTINGS).is_file():
            shutil.copyfile(self.folder / SETTINGS, folder / SETTINGS)
        injected = {"source": self.folder.name, **about, "cases": sorted(self.chosen)}
        write_json(folder / RECORD, {"nnunet_qa": __version__, **injected})
        kept = {key: value for key, value in self.dataset_json.items() if key not in ("dataset", ENTRY)}
        write_json(
            folder / "dataset.json",
            {**kept, "numTraining": len(cases), "dataset": dict(sorted(cases.items())), ENTRY: pool},
        )


def _annotated(folder: Path, dataset_json: dict[str, Any]) -> dict[str, _Case]:
    """Training cases of the source with their files."""
    if "dataset" in dataset_json:
        return {
            case: _Case(
                images=[referenced(folder, name) for name in entry["images"]], label=referenced(folder, entry["label"])
            )
            for case, entry in dataset_json["dataset"].items()
        }
    images, labels = (folder / name for name in FOLDERS[Role.LABELLED])
    ending = str(dataset_json["file_ending"])
    return {
        case: _Case(images=paths, label=labels / f"{case}{ending}")
        for case, paths in case_images(images, ending).items()
    }


def _reference(path: Path, folder: Path) -> str:
    """How dataset.json names a file: relative within nnUNet_raw, so that this can be moved as a whole."""
    path, raw = Path(os.path.abspath(path)), Path(os.path.abspath(folder.parent))
    if not path.is_relative_to(raw):
        return path.as_posix()
    return Path(os.path.relpath(path, raw / folder.name)).as_posix()


def _one(ranking: pd.DataFrame, column: str) -> str:
    return ", ".join(dict.fromkeys(ranking[column]))


def _check_place(place: _Place, source: Path, *, overwrite: bool) -> None:
    """Refuse a target that is not ours to write."""
    if place.raw.resolve() == source.resolve():
        raise DatasetError(f"{source}: is the source itself; choose another number with --target")
    if place.raw.is_dir():
        if not (place.raw / RECORD).is_file():
            raise DatasetError(f"{place.raw}: exists and was not written by an injection; choose another number")
        if not overwrite:
            raise DatasetError(f"{place.raw}: exists; choose another number, or replace it with --force")
    if not overwrite and place.preprocessed.is_dir():
        # a run that was killed may have left the two files that an injection writes there
        more = sorted({path.name for path in place.preprocessed.iterdir()} - {SPLITS, "dataset.json"})
        if more:
            raise DatasetError(
                f"{place.preprocessed}: holds data of another dataset of this name ({more[0]}); choose another number, "
                "or replace it with --force"
            )


def _put_in_place(place: _Place, splits: list[Split] | None) -> None:
    """Let the unfinished dataset take its place; the raw folder is the last to change."""
    if place.preprocessed.is_dir():
        shutil.rmtree(place.preprocessed)  # of the dataset that is replaced: other labels under the same names
    # plans of the source can then be moved here with nnU-Net's own command, which needs its dataset.json
    make_folder(place.preprocessed)
    shutil.copyfile(place.unfinished / "dataset.json", place.preprocessed / "dataset.json")
    if splits is not None:
        write_json(place.preprocessed / SPLITS, splits)
    if place.replaced.is_dir():
        shutil.rmtree(place.replaced)
    if place.raw.is_dir():
        os.replace(place.raw, place.replaced)
    os.replace(place.unfinished, place.raw)
    shutil.rmtree(place.replaced, ignore_errors=True)

"""Files of best in class: what each estimator wrote is read, `ranking.csv` is written for `nnunet-qa inject`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.errors import CaseTableError, SelectionError, nearest
from nnunet_qa.files import write_csv
from nnunet_qa.quality.table import read_quality
from nnunet_qa.selection.best_in_class import COLUMNS, Estimator

logger = logging.getLogger(__name__)

FILE_NAME = "ranking.csv"
PROVENANCE = ("dataset", "model", "estimator")
"""Columns of a ranking that say what was ranked, whose predictions they are, and by what."""

_SOURCES = {
    Estimator.CODE: ("case_id", "predicted_code", "nnunet-qa discriminator predict", (-float("inf"), float("inf"))),
    Estimator.CURVES: ("acquisition_id", "p_erroneous", "nnunet-qa curve-classifier predict", (0, 1)),
    Estimator.ENSEMBLE: ("case_id", "pairwise_dice", "nnunet-qa pairwise-dice", (0, 1)),
}
"""Identifier, column and range of each estimator's file, and the command that writes it; Q has a reader of its own."""


def read_estimators(files: Mapping[Estimator, Path], cases: CaseTable) -> dict[str, pd.Series]:
    """Values of the unlabelled cases that all estimators have judged.

    Args:
        files: file of each estimator.
        cases: case table of the dataset that was predicted; it gives the frames of each acquisition.

    Returns:
        Values by case, in the estimators' own units; a value of an acquisition counts for each of its frames, and Q or
        the pairwise Dice of an empty prediction as 0.

    Raises:
        SelectionError: a file is missing, wrong, or they have no unlabelled case in common.
        CaseTableError: a file names a case or acquisition that the table does not know.
    """
    found = {estimator.value: _values(estimator, path, cases) for estimator, path in files.items()}
    pool = cases.case_ids(Role.UNLABELLED)
    if not pool:
        raise SelectionError(f"nothing to rank: {CASES} has no case with the role unlabelled")
    known = [case for case in pool if all(case in values.index for values in found.values())]
    if not known:
        names = " and ".join(str(path) for path in files.values())
        raise SelectionError(f"{names}: judge no unlabelled case of {CASES} together; score the pool that is left")
    if len(known) < len(pool):
        logger.warning("%d of %d unlabelled cases were not judged and are left out", len(pool) - len(known), len(pool))
    return {name: values.loc[known] for name, values in found.items()}


def write_ranking(path: Path, ranking: pd.DataFrame, *, dataset: str, model: str, estimator: str) -> None:
    """Write a ranking as CSV in one step.

    Args:
        path: where to.
        ranking: as from `best_in_class`, perhaps with the values of the estimators.
        dataset: full name of the dataset whose pool was ranked.
        model: whose predictions they are.
        estimator: what they were ranked by.
    """
    about = {"dataset": dataset, "model": model, "estimator": estimator}
    order = [*COLUMNS, *PROVENANCE, *(column for column in ranking.columns if column not in COLUMNS)]
    write_csv(path, ranking.assign(**about)[order].round(6))


def read_ranking(path: Path, *, dataset: str) -> pd.DataFrame:
    """Read a ranking of a dataset's pool, best first.

    Args:
        path: as `write_ranking` wrote it.
        dataset: full name of the dataset that is to be ranked there.

    Raises:
        SelectionError: the file is missing, empty or no CSV, lacks a column, names a case twice, has no score for one,
            or ranks the pool of another dataset.
    """
    table = _csv(path, "nnunet-qa best-in-class", text=("case_id", "subject_id", "acquisition_id", *PROVENANCE))
    for column in (*COLUMNS, *PROVENANCE):
        _need(table, column, path)
    _check_unique(table, "case_id", path)
    others = sorted(set(table["dataset"]) - {dataset})
    if others:
        raise SelectionError(
            f'{path}: ranks the pool of "{others[0]}", not of {dataset}; rank the predictions of {dataset}'
        )
    table["score"] = _numbers(table, "case_id", "score", path)
    return table.sort_values(["rank", "case_id"], ignore_index=True)


def _values(estimator: Estimator, path: Path, cases: CaseTable) -> pd.Series:
    """Values of one estimator by case."""
    if estimator is Estimator.Q:
        key, values = "case_id", _agreement(read_quality(path).set_index("case_id"), "q", path)
    else:
        key, column, command, bounds = _SOURCES[estimator]
        table = _csv(path, command, text=(key,))
        for name in (key, column):
            _need(table, name, path)
        _check_unique(table, key, path)
        table[column] = _numbers(table, key, column, path)
        wrong = ~table[column].between(*bounds)
        if wrong.any():
            name, value = table.loc[wrong, [key, column]].iloc[0]
            raise SelectionError(f'{path}: "{name}" has {column} = {value:g}, which is not between 0 and 1')
        table = table.set_index(key)
        values = _agreement(table, column, path) if estimator is Estimator.ENSEMBLE else table[column]
    acquisitions = cases.acquisitions()
    known = set(acquisitions.values() if key == "acquisition_id" else acquisitions)
    for name in values.index:
        if name not in known:
            raise CaseTableError(
                f'{path}: the {key.removesuffix("_id")} "{name}" is not in {CASES}{nearest(str(name), known)}; give '
                "the file of the dataset that was predicted"
            )
    if key == "case_id":
        return values
    return pd.Series({case: values[own] for case, own in acquisitions.items() if own in values.index})


def _agreement(table: pd.DataFrame, column: str, path: Path) -> pd.Series:
    """Values of an estimator; 0 where no output finds anything, for it calls that perfect agreement."""
    if "union_voxels" not in table.columns:
        return table[column]
    empty = table["union_voxels"] == 0
    if empty.any():
        logger.warning("%s: %d empty predictions count as %s = 0", path, empty.sum(), column)
    return table[column].mask(empty, 0.0)


def _csv(path: Path, command: str, *, text: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise SelectionError(f"{path}: not found; `{command}` writes it") from error
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SelectionError(f"{path}: is not a CSV file that can be read: {error}") from error
    if table.empty:
        raise SelectionError(f"{path}: holds no row; run `{command}` again")
    return table.fillna({column: "" for column in text if column in table.columns})


def _need(table: pd.DataFrame, column: str, path: Path) -> None:
    if column not in table.columns:
        raise SelectionError(f'{path}: the column "{column}" is missing{nearest(column, table.columns)}')


def _check_unique(table: pd.DataFrame, key: str, path: Path) -> None:
    doubled = table[key].duplicated()
    if doubled.any():
        raise SelectionError(f'{path}: "{table.loc[doubled, key].iloc[0]}" stands there more than once')


def _numbers(table: pd.DataFrame, key: str, column: str, path: Path) -> pd.Series:
    numbers = pd.to_numeric(table[column], errors="coerce")
    if numbers.isna().any():
        name, value = table.loc[numbers.isna(), [key, column]].iloc[0]
        raise SelectionError(f'{path}: "{name}" has {column} = "{value}", which is not a number')
    return numbers

"""Quality codes of segmentations: 0 success, 1 errors as published methods make them, 2 gross failure (paper 002).

People give codes by looking at a segmentation (`qa_codes.csv`); where the truth is known, codes also follow from the
Dice. Every code carries its source, so that the two kinds are never taken for one another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_qa.errors import ConfigError, SelectionError, nearest
from nnunet_qa.evaluation.segmentation import overlap
from nnunet_qa.files import write_csv

FILE_NAME = "qa_codes.csv"
COLUMNS = ("case_id", "code", "reviewer", "time", "source", "dice")
"""One row a case and source. `reviewer` and `time` are free text; `source` is a `CodeSource`, human where the file has
none; `dice` in [0, 1] is the mean over classes where the truth is known."""


class Code(IntEnum):
    """Quality of one segmentation: `MINOR` means errors that are consistent with published performance."""

    SUCCESS = 0
    MINOR = 1
    FAILURE = 2


class CodeSource(str, Enum):
    """Who or what gave a code.

    `human`: a person. The others follow from the Dice with the truth: `cross_validation` of predictions for validation
    cases, `dice` of predictions for any other cases, `simulated` of labels that were corrupted on purpose.
    """

    HUMAN = "human"
    CROSS_VALIDATION = "cross_validation"
    DICE = "dice"
    SIMULATED = "simulated"


@dataclass(frozen=True)
class CodeThresholds:
    """Dice from which a segmentation is a success, and below which it is a failure.

    Raises:
        ConfigError: not 0 < failure <= success <= 1.
    """

    success: float = 0.8
    failure: float = 0.5

    def __post_init__(self) -> None:
        """Check the order."""
        if not 0 < self.failure <= self.success <= 1:
            raise ConfigError(
                f"Dice thresholds of the quality codes: success {self.success:g}, failure {self.failure:g}; they must "
                "hold 0 < failure <= success <= 1"
            )

    def code(self, dice: float) -> Code:
        """Code of a segmentation with this Dice.

        Raises:
            ValueError: the Dice is not in [0, 1].

        >>> [CodeThresholds().code(dice).name for dice in (0.8, 0.5, 0.49)]
        ['SUCCESS', 'MINOR', 'FAILURE']
        """
        if not 0 <= dice <= 1:
            raise ValueError(f"Dice {dice} is not in [0, 1]")
        if dice >= self.success:
            return Code.SUCCESS
        return Code.FAILURE if dice < self.failure else Code.MINOR


def mean_dice(prediction: np.ndarray, truth: np.ndarray, classes: Sequence[Sequence[int]]) -> float:
    """Mean Dice of two label maps of one shape, over the classes that are in either; 1 where none is.

    In a patch that holds few of many classes, the absent ones would otherwise hide that the others are all wrong.

    Args:
        prediction: label map, any shape.
        truth: label map of the same shape.
        classes: label values of each class; several for a region.

    Raises:
        ValueError: the shapes differ, or there is no class.
    """
    if not classes:
        raise ValueError("there is no class to take the Dice of")
    counts = [overlap(prediction, truth, values=values) for values in classes]
    dice = [count.dice() for count in counts if count.true_positive + count.false_positive + count.false_negative]
    return float(np.mean(dice)) if dice else 1.0


def read_codes(path: Path, known_cases: Collection[str] | None = None) -> pd.DataFrame:
    """Read quality codes.

    Args:
        path: a `qa_codes.csv`; `case_id` and `code` must be there.
        known_cases: the cases that there are; None for any.

    Returns:
        The columns of `COLUMNS`, then any others of the file, sorted by case: `code` whole, `dice` NaN where unknown,
        the rest text, empty where missing.

    Raises:
        SelectionError: the file is missing, empty or no CSV, lacks a column, holds a code outside 0, 1, 2, an unknown
            source or case, a Dice outside [0, 1], or a case twice from one source.
    """
    frame = _validated(_read_table(path), str(path))
    if known_cases is not None:
        for case in frame["case_id"]:
            if case not in known_cases:
                raise SelectionError(
                    f'{path}: the case "{case}" is unknown{nearest(case, known_cases)}; remove its row'
                )
    return frame


def read_dice(path: Path, thresholds: CodeThresholds) -> pd.DataFrame:
    """Codes from the `dice` of each case in an `evaluation.csv`, of source `dice`; columns as in `read_codes`.

    Raises:
        SelectionError: the file is missing, empty or no CSV, lacks a column, or a case stands there twice or has no
            Dice in [0, 1].
    """
    frame = _read_table(path)
    for column in ("case_id", "dice"):
        _require(frame, column, str(path))
    dice = pd.to_numeric(frame["dice"], errors="coerce")
    _refuse(frame, ~dice.between(0, 1), "dice", str(path), "it must be between 0 and 1")
    codes = [thresholds.code(value) for value in dice]
    rows = pd.DataFrame({"case_id": frame["case_id"], "code": codes, "source": CodeSource.DICE.value, "dice": dice})
    return _validated(rows, str(path))


def write_codes(path: Path, frame: pd.DataFrame) -> None:
    """Write quality codes in one step; columns as in `read_codes`.

    Raises:
        SelectionError: the table is wrong in one of the ways that `read_codes` refuses.
        StorageError: the file cannot be written.
    """
    write_csv(path, _validated(frame, str(path)).round({"dice": 6}))


def _read_table(path: Path) -> pd.DataFrame:
    """A CSV file as texts."""
    try:
        # spreadsheets put a byte order mark before the first column
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SelectionError(f"{path}: not found") from error
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SelectionError(f"{path}: is not a CSV file that can be read: {error}") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas then takes the first fields for an index
        raise SelectionError(f"{path}: the rows have more fields than the header; put texts with a comma in quotes")
    return frame


def _validated(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    if frame.empty:
        raise SelectionError(f"{source}: holds no row; write one a case: case_id,code,reviewer,time")
    frame = frame.copy()
    for column in ("case_id", "code"):
        _require(frame, column, source)
    for column in ("case_id", "reviewer", "time", "source"):
        texts = frame[column] if column in frame.columns else pd.Series("", index=frame.index)
        frame[column] = texts.fillna("").map(lambda text: text.value if isinstance(text, Enum) else str(text).strip())
    if (frame["case_id"] == "").any():
        line = int((frame["case_id"] == "").to_numpy().argmax()) + 2  # as an editor counts: the header is line 1
        raise SelectionError(f"{source}: line {line} has no case_id")
    codes = pd.to_numeric(frame["code"], errors="coerce")
    _refuse(frame, ~codes.isin(list(Code)), "code", source, "codes are 0 success, 1 minor errors, 2 failure")
    frame["code"] = codes.astype(int)
    frame.loc[frame["source"] == "", "source"] = CodeSource.HUMAN.value
    sources = [known.value for known in CodeSource]
    _refuse(frame, ~frame["source"].isin(sources), "source", source, f"sources are {', '.join(sources)}")
    given = frame["dice"].replace("", np.nan) if "dice" in frame.columns else pd.Series(np.nan, index=frame.index)
    dice = pd.to_numeric(given, errors="coerce")
    _refuse(frame, given.notna() & ~dice.between(0, 1), "dice", source, "it must be between 0 and 1, or empty")
    frame["dice"] = dice.astype(float)
    doubled = frame.duplicated(["case_id", "source"])
    if doubled.any():
        case, kind = frame.loc[doubled, ["case_id", "source"]].iloc[0]
        raise SelectionError(f'{source}: the case "{case}" has more than one code of source {kind}; keep one row')
    order = [*COLUMNS, *(column for column in frame.columns if column not in COLUMNS)]
    return frame[order].sort_values(["case_id", "source"], ignore_index=True)


def _refuse(frame: pd.DataFrame, wrong: pd.Series, column: str, source: str, advice: str) -> None:
    if wrong.any():
        case, value = frame.loc[wrong, ["case_id", column]].iloc[0]
        raise SelectionError(f'{source}: the case "{case}" has {column} "{value}"; {advice}')


def _require(frame: pd.DataFrame, column: str, source: str) -> None:
    if column not in frame.columns:
        raise SelectionError(
            f'{source}: the column "{column}" is missing{nearest(column, frame.columns)}; '
            f"found: {', '.join(map(str, frame.columns)) or 'none'}"
        )

"""The quality table `quality.csv`: the scores of each case and of each of its slices."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from nnunet_qa.errors import SelectionError, nearest
from nnunet_qa.files import write_csv

FILE_NAME = "quality.csv"
COLUMNS = ("case_id", "role", "level", "slice_axis", "slice_index", "q")
"""First columns: `level` is `case` or `slice`; `slice_axis` counts the axes as nnU-Net reads an image (0 = z, first);
`q` in [0, 1] is the mean over classes of the Jaccard index of the two finest outputs. Then come `q_<label>` a class;
`union_voxels`, which either output gives to a class, and `disagreeing_voxels`, the union less the intersection, both as
nnU-Net resampled the image and summed over classes (a voxel to which they give different classes counts for each);
with `nnunet-qa score --entropy` `entropy`, the mean predictive entropy over the voxels in nats; and, where the truth is
known, `dice` and `dice_<label>`. Files of earlier versions lack some of these."""


def write_quality(path: Path, table: pd.DataFrame) -> None:
    """Write a quality table, cases first and then their slices, scores with six decimals, in one step."""
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise ValueError(f"columns missing from the quality table: {missing}")
    table = table[[*COLUMNS, *(column for column in table.columns if column not in COLUMNS)]]
    table = table.sort_values(["level", "case_id", "slice_index"], ignore_index=True)
    for column in ("slice_axis", "slice_index"):
        table[column] = table[column].astype("Int64")
    write_csv(path, table.round(6))


def read_quality(path: Path, level: Literal["case", "slice"] = "case") -> pd.DataFrame:
    """Read the rows of one level of a `quality.csv`, sorted by case.

    Raises:
        SelectionError: the file is missing, empty or no CSV, lacks a column, names a case twice, or holds a Q outside
            [0, 1].
    """
    try:
        table = pd.read_csv(path, dtype={"case_id": str, "role": str, "level": str}, keep_default_na=True)
    except FileNotFoundError as error:
        raise SelectionError(f"{path}: not found; `nnunet-qa score` or a QA training writes it") from error
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SelectionError(f"{path}: is not a CSV file that can be read: {error}") from error
    for column in COLUMNS:
        if column not in table.columns:
            raise SelectionError(f'{path}: the column "{column}" is missing{nearest(column, table.columns)}')
    table["role"] = table["role"].fillna("")
    table = table[table["level"] == level].sort_values(["case_id", "slice_index"], ignore_index=True)
    if table.empty:
        raise SelectionError(f"{path}: holds no row of level {level}; score some cases first")
    scores = pd.to_numeric(table["q"], errors="coerce")
    wrong = ~scores.between(0, 1)
    if wrong.any():
        case, value = table.loc[wrong, ["case_id", "q"]].iloc[0]
        raise SelectionError(f'{path}: the case "{case}" has q = {value}, which is not between 0 and 1')
    table["q"] = scores
    doubled = table.duplicated(["case_id", "slice_index"])
    if doubled.any():
        raise SelectionError(f'{path}: the case "{table["case_id"][doubled].iloc[0]}" stands there more than once')
    return table

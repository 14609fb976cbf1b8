"""Which acquisitions are good and which erroneous: `qc_labels.csv` of people, or the Dice where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import SelectionError, nearest
from nnunet_qa.quality.codes import CodeThresholds, read_dice
from nnunet_qa.quality.curves import Acquisition

FILE_NAME = "qc_labels.csv"
GOOD, ERRONEOUS = "good", "erroneous"


def read_qc_labels(path: Path) -> dict[str, bool]:
    """Read the labels of people: columns `case` (the acquisition) and `label` (good or erroneous); others are ignored.

    Returns:
        Whether each acquisition is erroneous.

    Raises:
        SelectionError: the file is missing, empty or no CSV, lacks a column, or an acquisition stands there twice or
            has another label.
    """
    try:
        # spreadsheets put a byte order mark before the first column
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SelectionError(f"{path}: not found; write one row an acquisition: case,label") from error
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SelectionError(f"{path}: is not a CSV file that can be read: {error}") from error
    for column in ("case", "label"):
        if column not in table.columns:
            raise SelectionError(f'{path}: the column "{column}" is missing{nearest(column, table.columns)}')
    if table.empty:
        raise SelectionError(f"{path}: holds no row; write one an acquisition: case,label")
    labels: dict[str, bool] = {}
    for case, label in zip(table["case"].str.strip(), table["label"].str.strip().str.lower(), strict=True):
        if label not in (GOOD, ERRONEOUS):
            raise SelectionError(
                f'{path}: "{case}" has the label "{label}"{nearest(label, (GOOD, ERRONEOUS))}; labels are good and '
                "erroneous"
            )
        if case in labels:
            raise SelectionError(f'{path}: "{case}" stands there more than once; keep one row')
        labels[case] = label == ERRONEOUS
    return labels


def labels_by_dice(path: Path, *, below: float, cases: CaseTable | None = None) -> dict[str, bool]:
    """Acquisitions whose mean Dice is low are erroneous.

    Args:
        path: table with `case_id` and `dice`, such as the `evaluation.csv` of `nnunet-qa evaluate`.
        below: mean Dice below which an acquisition is erroneous, in (0, 1].
        cases: says of which acquisition each case is a frame (`stack_id`, the subject where that is empty); without
            it, every case is an acquisition.

    Raises:
        SelectionError: `below` is not in (0, 1]; the table is missing, wrong, or names a case that `cases` lacks.
    """
    if not 0 < below <= 1:
        raise SelectionError(f"a Dice of {below:g} cannot part good from erroneous; it must be above 0 and at most 1")
    table = read_dice(path, CodeThresholds())
    acquisitions = table["case_id"]
    if cases is not None:
        acquisitions = acquisitions.map(cases.acquisitions())
        if acquisitions.isna().any():
            case = table.loc[acquisitions.isna(), "case_id"].iloc[0]
            raise SelectionError(f'{path}: the case "{case}" is not in the case table; take that of the same dataset')
    means = table["dice"].groupby(acquisitions.to_numpy()).mean()
    return {str(name): bool(dice < below) for name, dice in means.items()}


def labelled(acquisitions: Sequence[Acquisition], labels: Mapping[str, bool]) -> tuple[list[Acquisition], np.ndarray]:
    """The acquisitions that have a label, and whether each is erroneous.

    Raises:
        SelectionError: none has one.
    """
    chosen = [one for one in acquisitions if one.acquisition_id in labels]
    if not chosen:
        name = next(iter(labels))
        known = [one.acquisition_id for one in acquisitions]
        raise SelectionError(
            f'no acquisition has a label; "{name}" is labelled and is none of them{nearest(name, known)}'
        )
    return chosen, np.array([labels[one.acquisition_id] for one in chosen])

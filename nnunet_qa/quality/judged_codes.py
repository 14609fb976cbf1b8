"""How well predicted codes agree with given ones, and find failures beside Q (paper 002, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_qa.errors import SelectionError
from nnunet_qa.evaluation.failure_detection import FailureDetection, judge
from nnunet_qa.quality.discriminator import code_metrics
from nnunet_qa.quality.table import read_quality, write_quality


def metrics_by_source(predicted: np.ndarray, codes: np.ndarray, sources: Sequence[str]) -> dict[str, Any]:
    """`code_metrics` of all cases, and under `by_source` those of each source of codes.

    Args:
        predicted: floats `(cases)`.
        codes: 0, 1 or 2, `(cases)`.
        sources: source of each code.
    """
    names = np.asarray(sources)
    by_source = {name: code_metrics(predicted[names == name], codes[names == name]) for name in sorted(set(sources))}
    return {**code_metrics(predicted, codes), "by_source": by_source}


def judge_against_dice(
    table: pd.DataFrame, *, failure_dice: float, rng: np.random.Generator, resamples: int
) -> dict[str, dict[str, Any]]:
    """How well predicted codes, and Q where it is there, find segmentations of low Dice, on the same cases.

    Args:
        table: one row a case: `subject_id`, `dice` (cases without one are left out), `predicted_code` and perhaps `q`.
        failure_dice: Dice below which a segmentation has failed.
        rng: for the bootstrap over subjects.
        resamples: draws of the bootstrap; 0 for no intervals.

    Returns:
        For `qa_code` (as minus the predicted code, for higher is to be better) and `q` the fields of
        `FailureDetection`; None where a number is not defined, so that JSON can hold it. Empty where no case has a
        Dice.
    """
    known = table[table["dice"].notna()]
    if known.empty:
        return {}
    scores = {"qa_code": -known["predicted_code"], **({"q": known["q"]} if "q" in known.columns else {})}
    dice, subjects = known["dice"].to_numpy(dtype=np.float64), known["subject_id"].tolist()
    judged = {
        name: judge(
            score.to_numpy(dtype=np.float64),
            dice,
            subjects=subjects,
            rng=rng,
            failure_dice=failure_dice,
            resamples=resamples,
        )
        for name, score in scores.items()
    }
    return {name: _plain(detection) for name, detection in judged.items()}


def add_to_quality(path: Path, predicted: pd.DataFrame) -> None:
    """Give the cases of a `quality.csv` the column `qa_code`, their predicted code.

    Args:
        path: the table; its rows and other columns stay as they are.
        predicted: `case_id` and `predicted_code`.

    Raises:
        SelectionError: the table is wrong, or none of its cases was judged.
        StorageError: it cannot be written.
    """
    read_quality(path)  # refuses what is no quality table
    table = pd.read_csv(path, dtype={"case_id": str, "role": str, "level": str})
    codes = predicted.set_index("case_id")["predicted_code"]
    table["qa_code"] = table["case_id"].map(codes).where(table["level"] == "case")
    if table["qa_code"].isna().all():
        raise SelectionError(f"{path}: none of its cases was judged; judge the predictions that it scores")
    write_quality(path, table)


def _plain(detection: FailureDetection) -> dict[str, Any]:
    values = {name: _defined(value) for name, value in detection.values.items()}
    intervals = {name: [_defined(bound) for bound in bounds] for name, bounds in detection.intervals.items()}
    return {**vars(detection), "values": values, "intervals": intervals}


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value

"""From the Dice of each case to the figures of an evaluation: the table, its summary, and both as files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.errors import CaseTableError, SelectionError, nearest
from nnunet_qa.evaluation.failure_detection import FailureDetection, judge
from nnunet_qa.files import write_csv, write_json, write_text

TABLE, SUMMARY, TEXT = "evaluation.csv", "evaluation.json", "evaluation.md"
_NAMES = {
    "spearman": "Spearman of Q and Dice",
    "pearson": "Pearson of Q and Dice",
    "aurc": "AURC",
    "e_aurc": "e-AURC",
    "naurc": "nAURC",
}


@dataclass(frozen=True)
class Evaluation:
    """Figures of an evaluation.

    Attributes:
        cases: number of cases.
        subjects: number of subjects.
        all_cases: `mean`, `sd` (n - 1), `median` and number `n` of the Dice over all cases; a class that is in neither
            label map counts 1.
        foreground_cases: the same over the cases whose truth is not empty.
        classes: mean Dice of each class over all cases.
        q: how well Q detects failures; None where there are no scores.
    """

    cases: int
    subjects: int
    all_cases: dict[str, float]
    foreground_cases: dict[str, float]
    classes: dict[str, float]
    q: FailureDetection | None

    def rows(self) -> list[tuple[str, str]]:
        """Name and text of each figure, for a person."""
        rows = [("Cases", str(self.cases)), ("Subjects", str(self.subjects))]
        groups = (("all cases", self.all_cases), ("cases with foreground", self.foreground_cases))
        for name, figures in groups:
            text = f"{_number(figures['mean'])} ± {_number(figures['sd'])}, median {_number(figures['median'])}"
            rows.append((f"Dice, {name} (n = {figures['n']:.0f})", text))
        if len(self.classes) > 1:
            rows += [(f"Dice, {name}", _number(value)) for name, value in self.classes.items()]
        if self.q is not None:
            names = {**_NAMES, "auroc": f"AUROC of Dice below {self.q.failure_dice:g} ({self.q.failures} cases)"}
            for key, name in names.items():
                rows.append((name, _with_interval(self.q.values[key], self.q.intervals.get(key))))
        return rows


def join_quality(dice: pd.DataFrame, quality: pd.DataFrame) -> pd.DataFrame:
    """The rows of a quality table with Dice columns.

    Args:
        dice: result of `nnunet_qa.evaluation.folders.compare_folders`.
        quality: rows of level `case`, as `nnunet_qa.quality.table.read_quality` gives them; Dice columns that it holds
            are replaced.

    Raises:
        SelectionError: a compared case has no score, or a scored case was not compared.
    """
    for these, those, text in (
        (dice, quality, "has no row in quality.csv; score all predictions of the folder"),
        (quality, dice, "is in quality.csv and not in the folders; evaluate the folder that was scored"),
    ):
        missing = sorted(set(these["case_id"]) - set(those["case_id"]))
        if missing:
            raise SelectionError(f'the case "{missing[0]}" {text}')
    kept = quality.drop(
        columns=[column for column in quality.columns if column in dice.columns and column != "case_id"]
    )
    return kept.merge(dice, on="case_id", how="left", validate="one_to_one")


def subjects_of(case_ids: list[str], known: Mapping[str, str] | None) -> list[str]:
    """Subject of each case; every case is a subject of its own where none are known.

    Raises:
        CaseTableError: a case is not in the table.
    """
    if known is None:
        return case_ids
    for case in case_ids:
        if case not in known:
            raise CaseTableError(f'the case "{case}" is not in {CASES}{nearest(case, known)}; give the table it is in')
    return [known[case] for case in case_ids]


def evaluate(
    table: pd.DataFrame,
    *,
    classes: list[str],
    subjects: list[str],
    rng: np.random.Generator,
    failure_dice: float = 0.5,
    resamples: int = 1000,
) -> Evaluation:
    """Figures of an evaluation.

    Args:
        table: one row a case with `dice`, `dice_<class>`, `foreground` and, where there are scores, `q`.
        classes: names of the classes.
        subjects: subject of each row.
        rng: for the bootstrap.
        failure_dice: Dice below which a segmentation has failed.
        resamples: draws of the bootstrap.
    """
    dice = table["dice"].to_numpy(dtype=np.float64)
    q = None
    if "q" in table.columns:
        scores = table["q"].to_numpy(dtype=np.float64)
        q = judge(scores, dice, subjects=subjects, rng=rng, failure_dice=failure_dice, resamples=resamples)
    return Evaluation(
        cases=len(table),
        subjects=len(set(subjects)),
        all_cases=_figures(dice),
        foreground_cases=_figures(dice[table["foreground"].to_numpy(dtype=bool)]),
        classes={name: float(table[f"dice_{name}"].mean()) for name in classes},
        q=q,
    )


def write_evaluation(folder: Path, table: pd.DataFrame, evaluation: Evaluation, *, about: Mapping[str, str]) -> None:
    """Write `evaluation.csv`, `evaluation.json` and `evaluation.md`, each in one step.

    Args:
        folder: where to; created if needed.
        table: one row a case.
        evaluation: its figures.
        about: what was evaluated (folders, settings), for the two summaries.

    Raises:
        StorageError: a file cannot be written.
    """
    write_csv(folder / TABLE, table.round(6))
    write_json(folder / SUMMARY, _plain({"about": dict(about), **asdict(evaluation)}))
    lines = ["# Evaluation", "", *(f"- {name}: `{value}`" for name, value in about.items()), "", "| | |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in evaluation.rows()]
    lines += ["", "A class that is in neither label map counts as Dice 1. Dice: mean ± standard deviation over cases."]
    if evaluation.q is not None:
        lines.append(
            f"In brackets: {evaluation.q.level:.0%} bootstrap intervals over subjects. Risk is 1 - Dice; AURC "
            "is the area under its mean over the kept cases against coverage (lower is better), e-AURC its excess over "
            "the perfect ranking, nAURC 1 for the perfect ranking and 0 for chance."
        )
    write_text(folder / TEXT, "\n".join(lines) + "\n")


def _figures(values: np.ndarray) -> dict[str, float]:
    nan = float("nan")
    return {
        "n": len(values),
        "mean": float(values.mean()) if len(values) else nan,
        "sd": float(values.std(ddof=1)) if len(values) > 1 else nan,
        "median": float(np.median(values)) if len(values) else nan,
    }


def _number(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.4f}"


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    if interval is None or math.isnan(value) or math.isnan(interval[0]):
        return _number(value)
    return f"{_number(value)} ({_number(interval[0])} to {_number(interval[1])})"


def _plain(value: Any) -> Any:
    """The same for JSON, which has no NaN: null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

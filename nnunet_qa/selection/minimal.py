"""The minimal set S_m of paper 001 (Algorithm 1): every image whose two finest outputs agree less than q0.

Beside the paper's rule there are the rankings and the limits that it lacks: the worst class instead of the mean over
classes, the number of voxels in dispute, predictive entropy, diversity, and q0 chosen on validation cases.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import SelectionError
from nnunet_qa.files import write_csv
from nnunet_qa.selection.diversity import diverse_order
from nnunet_qa.selection.queue import candidates, check_limits

logger = logging.getLogger(__name__)

FILE_NAME = "minimal_set.csv"
COLUMNS = ("rank", "case_id", "subject_id", "q", "utility", "reason")


class Ranking(str, Enum):
    """What makes an image worth annotating. `q`: 1 - Q, the paper's. `worst_class`: 1 - the lowest Q of a class.

    `size`: voxels on which the two outputs disagree, so that large lesions count more. `entropy`: mean predictive
    entropy.
    """

    Q = "q"
    WORST_CLASS = "worst_class"
    SIZE = "size"
    ENTROPY = "entropy"


_COLUMN = {Ranking.SIZE: "disagreeing_voxels", Ranking.ENTROPY: "entropy"}


def minimal_set(
    table: pd.DataFrame,
    *,
    q0: float | None,
    ranking: Ranking = Ranking.Q,
    number: int | None = None,
    per_subject: int | None = None,
    roles: Collection[str] | None = None,
    cases: CaseTable | None = None,
    features: Mapping[str, np.ndarray] | None = None,
    annotated: np.ndarray | None = None,
) -> pd.DataFrame:
    """Choose S_m, most useful first; cases of equal utility in the order of their identifiers.

    The limits combine as in `nnunet_qa.selection.queue.annotation_queue`.

    Args:
        table: rows of level `case` of a quality.csv.
        q0: threshold in [0, 1]; a case at q0 is not chosen. It is compared with `decisive_q`. None chooses by number
            alone.
        ranking: what makes a case worth annotating.
        number: how many at most.
        per_subject: how many of one subject at most.
        roles: roles of the candidates, as for `annotation_queue`.
        cases: case table of the dataset, as for `annotation_queue`.
        features: vector of each case (`nnunet_qa.selection.diversity.thumbnail`); given, cases are chosen so that they
            differ from each other and from `annotated`. Without a limit on their number, or on that of a subject, this
            only orders them.
        annotated: vectors of the cases that are annotated already `(cases, features)`.

    Returns:
        Columns `rank` (from 1), `case_id`, `subject_id`, `q`, `utility` and `reason`. Fewer rows than `number` are
        returned, and without q0 a warning is logged, where there are no more candidates.

    Raises:
        SelectionError: S_m is empty, or it is everything and no number limits it; a column is missing; a limit is out
            of its range.
        CaseTableError: a scored case is not in the case table.
    """
    check_limits(q0, number, per_subject)
    if q0 is None and number is None:
        raise SelectionError("give q0, or a number of cases")
    rows = candidates(table, roles=roles, cases=cases)
    rows = rows.assign(utility=utility(rows, ranking))
    rows = rows.sort_values(["utility", "case_id"], ascending=[False, True], kind="stable", ignore_index=True)
    decisive = decisive_q(rows, ranking)
    chosen = rows if q0 is None else rows[decisive < q0]
    if q0 is not None:
        _check_size(decisive, len(chosen), q0, number=number, per_subject=per_subject)
    if features is not None:
        chosen = _diverse(chosen, features, annotated, number=number, per_subject=per_subject)
    elif per_subject is not None:
        chosen = chosen[chosen.groupby("subject_id").cumcount() < per_subject]
    if number is not None:
        if q0 is None and len(chosen) < number:
            logger.warning("%d cases were asked for, %d fit the limits", number, len(chosen))
        chosen = chosen.head(number)
    chosen = chosen.reset_index(drop=True)
    reason = [f"{decisive.name} below {q0:g}"] if q0 is not None else []
    reason += [f"ranked by {ranking.value}"] if number is not None else []
    reason += [f"at most {per_subject} a subject"] if per_subject is not None else []
    reason += ["diverse"] if features is not None else []
    return chosen.assign(rank=chosen.index + 1, reason=", ".join(reason))[list(COLUMNS)]


def _check_size(decisive: pd.Series, chosen: int, q0: float, *, number: int | None, per_subject: int | None) -> None:
    """Refuse a set that is empty, or everything that there is though nothing limits it."""
    if not chosen:
        hint = ", or give a number of cases instead" if number is None else ""
        raise SelectionError(
            f"the minimal set is empty: no candidate of {len(decisive)} has {decisive.name} below q0 = {q0:g} (the "
            f"lowest is {decisive.min():.4g}); the model agrees with itself on all of them. Raise q0{hint}"
        )
    if chosen == len(decisive) and number is None and per_subject is None:
        raise SelectionError(
            f"the minimal set is everything: all {chosen} candidates have {decisive.name} below q0 = {q0:g} (the "
            f"highest is {decisive.max():.4g}). Train the first model longer, lower q0, or limit the number of cases"
        )


def _diverse(
    chosen: pd.DataFrame,
    features: Mapping[str, np.ndarray],
    annotated: np.ndarray | None,
    *,
    number: int | None,
    per_subject: int | None,
) -> pd.DataFrame:
    """The chosen cases in an order in which each differs from those before it, within the limits."""
    order = diverse_order(
        chosen["utility"].to_numpy(),
        np.stack([features[case] for case in chosen["case_id"]]),
        annotated,
        number=number or len(chosen),
        subjects=chosen["subject_id"].tolist(),
        per_subject=per_subject,
    )
    return chosen.iloc[order]


def utility(rows: pd.DataFrame, ranking: Ranking) -> pd.Series:
    """Worth of annotating each case, higher is better.

    Args:
        rows: rows of a quality.csv.
        ranking: what makes a case worth annotating.

    Raises:
        SelectionError: the table lacks the column.
    """
    if ranking is Ranking.Q:
        return 1 - rows["q"]
    if ranking is Ranking.WORST_CLASS:
        return 1 - _worst_class(rows)
    column = _COLUMN[ranking]
    if column not in rows.columns or rows[column].isna().any():
        hint = " with --entropy" if ranking is Ranking.ENTROPY else ""
        raise SelectionError(f'the quality table has no column "{column}" for every case; score again{hint}')
    return rows[column].astype(float)


def decisive_q(rows: pd.DataFrame, ranking: Ranking) -> pd.Series:
    """What is compared with q0, and its name: Q of each case or, for the ranking by worst class, of that class.

    Raises:
        SelectionError: the table lacks the columns.
    """
    worst = ranking is Ranking.WORST_CLASS
    return _worst_class(rows).rename("Q of the worst class") if worst else rows["q"].rename("Q")


def _worst_class(rows: pd.DataFrame) -> pd.Series:
    """The lowest Q of a class of each case."""
    classes = [name for name in rows.columns if name.startswith("q_")]
    if not classes:
        raise SelectionError("the quality table has no Q by class (columns q_<class>); score again")
    return rows[classes].min(axis=1)


def q0_from_validation(table: pd.DataFrame, *, failure: float = 0.5) -> float:
    """The q0 that best tells failures from successes on cases whose true Dice is known.

    Maximises Youden's index, sensitivity + specificity - 1, of "Q below q0" for "Dice below `failure`". It lies midway
    between two Q of the table, with as few decimals, from 4 to 6, as part these: as printed it makes the same choice
    among Q of six decimals, which a quality.csv has.

    Args:
        table: columns `q` and `dice`, one row a validation case; cases without Dice do not count.
        failure: Dice in (0, 1] below which a prediction has failed.

    Raises:
        SelectionError: there is no Dice, the cases are all failures or all successes, or Q is no lower for failures.
    """
    if "dice" not in table.columns:
        raise SelectionError('q0 cannot be chosen: the table has no column "dice"; give the quality.csv of a training')
    known = table.dropna(subset=["dice"])
    failed = known["dice"].to_numpy() < failure
    if failed.all() or not failed.any():
        raise SelectionError(
            f"q0 cannot be chosen: {int(failed.sum())} of {len(failed)} validation cases have a Dice below "
            f"{failure:g}; choose another Dice for failures, or give q0"
        )
    false_alarms, found, thresholds = roc_curve(failed, -known["q"].to_numpy(), drop_intermediate=False)
    best = int(np.argmax(found - false_alarms))
    if best == 0:  # the threshold that takes nothing
        raise SelectionError("q0 cannot be chosen: Q is no lower for failed validation cases than for others; give q0")
    below = float(-thresholds[best])  # the highest Q that is to count as a failure
    above = float(known["q"][known["q"] > below].min())  # there is one: to take every case has an index of 0
    rounded = (round((below + above) / 2, decimals) for decimals in (4, 5, 6))
    return next((q0 for q0 in rounded if below < q0 < above), above)  # a case at q0 is not taken


def write_minimal_set(path: Path, table: pd.DataFrame) -> None:
    """Write S_m as CSV in one step, with six decimals; `nnunet-qa promote --queue` reads it."""
    write_csv(path, table.round({"q": 6, "utility": 6}))

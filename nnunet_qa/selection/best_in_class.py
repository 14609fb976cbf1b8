"""Best in class: the pool cases whose predictions may become training labels (paper 003, section 2.3).

The paper ranks whole acquisitions by the probability that their curves are good and takes the top 30. Here the ranking
may be any estimator of quality or a weighted mix of several, of acquisitions or of single cases.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.config import Unit
from nnunet_qa.errors import FloorError, SelectionError, nearest
from nnunet_qa.selection.queue import candidates, check_limits

logger = logging.getLogger(__name__)

COLUMNS = ("rank", "case_id", "subject_id", "acquisition_id", "score")
FIRST = "first"
"""Column of a table of scores with what the floor is compared with, see `score_table`."""

T = TypeVar("T", float, pd.Series)


class Estimator(str, Enum):
    """What a prediction can be ranked by without its truth.

    `q`: agreement Q of the two finest outputs. `code`: code that the discriminator predicts, 0 success to 2 failure.
    `curves`: probability of the curve classifier that an acquisition is erroneous. `ensemble`: mean Dice of all pairs
    of an ensemble's predictions.
    """

    Q = "q"
    CODE = "code"
    CURVES = "curves"
    ENSEMBLE = "ensemble"


def goodness(estimator: Estimator | str, values: T) -> T:
    """An estimator's values as scores of which higher is better: Q, minus the code, P(good), pairwise Dice.

    Raises:
        SelectionError: there is no such estimator.
    """
    kind = _known(estimator)
    if kind is Estimator.CODE:
        return -values
    return 1 - values if kind is Estimator.CURVES else values


def combined_score(tables: Mapping[str, pd.Series], weights: Mapping[str, float]) -> pd.Series:
    """A weighted mean of several estimators, each as the rank of its cases.

    Estimators come in units that do not compare: Q of most cases may lie between 0.95 and 1 while predicted codes
    spread from 0 to 2, and whichever spreads most would decide alone. Ranks spread all alike, and do not ask how an
    estimator is calibrated. What they lose, how much better one case is than the next, the floor can ask for.

    Args:
        tables: values of each estimator by case, in its own units (`Estimator`), for the same cases.
        weights: weight of each estimator, above 0; they need not sum to 1.

    Returns:
        Score by case in [0, 1]: 1 for a case that every estimator puts first, 0 for one that all put last. Cases of
        equal value share the mean of their ranks.

    Raises:
        SelectionError: nothing to combine, an unknown estimator, a weight without a table or the other way round, a
            weight that is not above 0, or a case that only some of the estimators know.

    >>> q = pd.Series({"a": 0.9, "b": 0.8, "c": 0.99})
    >>> combined_score({"q": q, "code": pd.Series({"a": 0.1, "b": 1.9, "c": 0.7})}, {"q": 1, "code": 1}).tolist()
    [0.75, 0.0, 0.75]
    """
    _check_weights(tables, weights)
    names = list(weights)
    index = tables[names[0]].index
    for name in names[1:]:
        alone = sorted(set(index) ^ set(tables[name].index))
        if alone:
            one, other = (names[0], name) if alone[0] in index else (name, names[0])
            raise SelectionError(
                f'the case "{alone[0]}" has a value of the estimator "{one}" and none of "{other}"; give values of the '
                "same cases"
            )
    total = sum(weights.values())
    parts = [weight / total * _ranks(goodness(name, tables[name].loc[index])) for name, weight in weights.items()]
    return pd.Series(np.sum(parts, axis=0), index=index)


def score_table(tables: Mapping[str, pd.Series], weights: Mapping[str, float]) -> pd.DataFrame:
    """What `best_in_class` ranks, from the estimators' values.

    Args:
        tables: see `combined_score`.
        weights: see `combined_score`; the first estimator is the one that the floor asks.

    Returns:
        One row a case: `case_id`; `score`, the `goodness` of the only estimator or the `combined_score` of several;
        `first`, the goodness of the first one; and the values of each estimator under its name.

    Raises:
        SelectionError: see `combined_score`.
    """
    combined = combined_score(tables, weights)
    names = list(weights)
    first = goodness(names[0], tables[names[0]])
    table = pd.DataFrame({"score": combined if len(names) > 1 else first, FIRST: first})
    table = table.assign(**{name: tables[name] for name in names})
    return table.rename_axis("case_id").reset_index()


def best_in_class(
    scores: pd.DataFrame,
    *,
    number: int,
    per_subject: int | None = None,
    floor: float | None = None,
    unit: Unit | str = Unit.CASE,
    cases: CaseTable | None = None,
    aggregate: Literal["min", "mean"] = "min",
) -> pd.DataFrame:
    """The cases with the best predictions, best first; of equal score in the order of their identifiers.

    The limits combine: first whatever reaches the floor, of these at most `per_subject` a subject, of these the best
    `number`.

    Args:
        scores: `case_id` and `score`, of which higher is better; where there is a column `first` (`score_table`), the
            floor is compared with that.
        number: how many cases, or acquisitions.
        per_subject: how many of one subject at most.
        floor: none below this is taken.
        unit: rank single cases, or acquisitions, of which all unlabelled frames are taken together.
        cases: case table of the dataset. It gives the subjects, the acquisitions and, because it is newer than the
            scores, the roles: only unlabelled cases are candidates, and a warning is logged where cases are left out
            because their subject has test cases. None makes every case a subject of its own.
        aggregate: the score of an acquisition is that of its worst frame, or the mean over its frames.

    Returns:
        `COLUMNS`, one row a case; the frames of an acquisition share `rank` (from 1) and `score`. Fewer than `number`
        are returned, and a warning is logged, where the limits leave no more.

    Raises:
        SelectionError: `number` is larger than the pool; a score is missing; a limit is out of its range or leaves
            nothing; acquisitions are asked for without a case table or have frames without score.
        CaseTableError: a scored case is not in the case table.
    """
    check_limits(None, number, per_subject)
    rows = candidates(
        scores if "role" in scores.columns else scores.assign(role=""),
        roles=None if cases is None else (Role.UNLABELLED.value,),
        cases=cases,
    )
    if cases is not None:
        rows = _without_tested_subjects(rows, cases)
    rows = rows.assign(floor=rows[FIRST] if FIRST in rows.columns else rows["score"])
    missing = ~np.isfinite(rows[["score", "floor"]].astype(float)).all(axis=1)
    if missing.any():
        raise SelectionError(f'the case "{rows.loc[missing, "case_id"].iloc[0]}" has no score; score it first')
    rows = _with_acquisitions(rows, Unit(unit), cases)
    units = rows.groupby("unit").agg({"score": aggregate, "floor": aggregate, "subject_id": "first"})
    if number > len(units):
        raise SelectionError(
            f"the best {number} {Unit(unit).value}s were asked for, but the pool has only {len(units)}; ask for at "
            f"most {len(units)}"
        )
    chosen = _limited(units, number=number, per_subject=per_subject, floor=floor)
    rows = rows.drop(columns="score").join(chosen[["rank", "score"]], on="unit", how="inner")
    return rows.sort_values(["rank", "case_id"], ignore_index=True)[list(COLUMNS)]


def _without_tested_subjects(rows: pd.DataFrame, cases: CaseTable) -> pd.DataFrame:
    tested = rows["case_id"].isin(cases.of_tested_subjects())
    if tested.any():
        logger.warning(
            "%d pool cases are left out, for their subjects have test cases, which training on them would spoil (%s)",
            tested.sum(),
            ", ".join(sorted(set(rows.loc[tested, "subject_id"]))),
        )
    return rows[~tested]


def _limited(units: pd.DataFrame, *, number: int, per_subject: int | None, floor: float | None) -> pd.DataFrame:
    """The best units with their ranks."""
    good = units if floor is None else units[units["floor"] >= floor]
    if good.empty:
        raise FloorError(
            f"nothing selected: no prediction reaches the floor {floor:g} (scores go from {units['floor'].min():.4g} "
            f"to {units['floor'].max():.4g}); lower it"
        )
    good = good.rename_axis("unit").reset_index().sort_values(["score", "unit"], ascending=[False, True])
    if per_subject is not None:
        good = good[good.groupby("subject_id").cumcount() < per_subject]
    if len(good) < number:
        logger.warning("the best %d were asked for, %d fit the limits", number, len(good))
    chosen = good.head(number).set_index("unit")
    return chosen.assign(rank=range(1, len(chosen) + 1))


def _with_acquisitions(rows: pd.DataFrame, unit: Unit, cases: CaseTable | None) -> pd.DataFrame:
    """Rows with their acquisition and what they are ranked as."""
    if cases is None:
        if unit is Unit.ACQUISITION:
            raise SelectionError("acquisitions are known from cases.csv alone; give the case table of the dataset")
        return rows.assign(acquisition_id=rows["case_id"], unit=rows["case_id"])
    known = cases.acquisitions()
    rows = rows.assign(acquisition_id=rows["case_id"].map(known))
    if unit is Unit.CASE:
        return rows.assign(unit=rows["case_id"])
    scored, wanted = set(rows["case_id"]), set(rows["acquisition_id"])
    for case in cases.case_ids(Role.UNLABELLED):
        if known[case] in wanted and case not in scored:
            raise SelectionError(
                f'the frame "{case}" of the acquisition "{known[case]}" has no score; predict and score all frames'
            )
    return rows.assign(unit=rows["acquisition_id"])


def _ranks(values: pd.Series) -> np.ndarray:
    """Ranks from 0, the lowest, to 1; a half where there is only one case."""
    if len(values) == 1:
        return np.array([0.5])
    ranks: np.ndarray = (rankdata(values) - 1) / (len(values) - 1)
    return ranks


def _known(estimator: Estimator | str) -> Estimator:
    names = [one.value for one in Estimator]
    if estimator not in names:
        raise SelectionError(
            f'unknown estimator "{estimator}"{nearest(str(estimator), names)}; there are {", ".join(names)}'
        )
    return Estimator(estimator)


def _check_weights(tables: Mapping[str, pd.Series], weights: Mapping[str, float]) -> None:
    if not weights:
        raise SelectionError("no estimator was given; give at least one")
    for name, weight in weights.items():
        _known(name)
        if name not in tables:
            raise SelectionError(f'the estimator "{name}" has a weight and no values; give its file too')
        if not weight > 0 or not np.isfinite(weight):
            raise SelectionError(f'the weight {weight:g} of "{name}" is not above 0; leave the estimator out instead')
    for name, values in tables.items():
        if name not in weights:
            raise SelectionError(f'the estimator "{name}" has values and no weight; give one, or leave it out')
        if not np.isfinite(values.astype(float)).all():
            case = values.index[~np.isfinite(values.astype(float))][0]
            raise SelectionError(f'the case "{case}" has no value of the estimator "{name}"; score it first')

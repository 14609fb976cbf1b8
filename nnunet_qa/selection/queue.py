"""The annotation queue: which predicted cases an annotator should look at first, by their quality score Q."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.errors import CaseTableError, SelectionError, nearest
from nnunet_qa.files import write_csv

logger = logging.getLogger(__name__)

FILE_NAME = "queue.csv"
COLUMNS = ("rank", "case_id", "subject_id", "q", "reason")


def annotation_queue(
    table: pd.DataFrame,
    *,
    threshold: float | None = None,
    number: int | None = None,
    per_subject: int | None = None,
    roles: Collection[str] | None = None,
    cases: CaseTable | None = None,
) -> pd.DataFrame:
    """Cases to annotate next, lowest Q first; cases of equal Q in the order of their identifiers.

    The limits combine: first every candidate with Q below `threshold`, of these at most `per_subject` a subject, of
    these the `number` with the lowest Q. A limit that is None does not limit.

    Args:
        table: rows of level `case`, as `nnunet_qa.quality.table.read_quality` gives them, with `case_id`, `role`, `q`.
        threshold: Q in [0, 1] below which a case is taken; a case at the threshold is not.
        number: how many cases at most.
        per_subject: how many cases of one subject at most.
        roles: roles of the candidates. None takes the unlabelled cases where there are any, else all cases.
        cases: case table of the dataset. It gives the subjects and, because it is newer than the scores, the roles, so
            that a case which was annotated after scoring is no candidate. None makes every case a subject of its own.

    Returns:
        Columns `rank` (from 1), `case_id`, `subject_id`, `q` and `reason`. Fewer rows than `number` are returned, and a
        warning is logged, where there are no more candidates.

    Raises:
        SelectionError: a limit is out of its range, or nothing is selected.
        CaseTableError: a scored case is not in the case table.
    """
    check_limits(threshold, number, per_subject)
    rows = candidates(table, roles=roles, cases=cases)
    rows = rows.sort_values(["q", "case_id"], kind="stable", ignore_index=True)
    queue = rows if threshold is None else rows[rows["q"] < threshold]
    if queue.empty:
        raise SelectionError(
            f"nothing selected: no candidate has Q below {threshold:g} (Q of the {len(rows)} candidates goes "
            f"from {rows['q'].min():.4g} to {rows['q'].max():.4g}); raise the threshold, or give a "
            "number of cases instead"
        )
    if per_subject is not None:
        queue = queue[queue.groupby("subject_id").cumcount() < per_subject]
    if number is not None:
        if len(queue) < number:
            logger.warning("%d cases were asked for, %d fit the limits", number, len(queue))
        queue = queue.head(number)
    queue = queue.reset_index(drop=True)
    queue["rank"] = queue.index + 1
    queue["reason"] = _reason(threshold, number, per_subject)
    return queue[list(COLUMNS)]


def write_queue(path: Path, queue: pd.DataFrame) -> None:
    """Write a queue as CSV in one step, Q with six decimals as in `quality.csv`."""
    write_csv(path, queue.round({"q": 6}))


def read_queue(path: Path) -> pd.DataFrame:
    """Read a `queue.csv`, a `minimal_set.csv` or an `initial_set.csv`, in the order of its rows.

    Only the column `case_id` is needed. Where there is a column `selected`, as in `initial_set.csv`, which has a row
    for every image, only the rows in which it is True count.

    Raises:
        SelectionError: the file is missing, empty or no CSV, has no column `case_id`, or a `selected` that is neither
            True nor False.
    """
    try:
        queue = pd.read_csv(path, dtype={"case_id": str, "subject_id": str})
    except FileNotFoundError as error:
        raise SelectionError(f"{path}: not found; `nnunet-qa select` writes it") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SelectionError(f"{path}: is not a CSV file that can be read: {error}") from error
    if "case_id" not in queue.columns:
        raise SelectionError(f'{path}: the column "case_id" is missing{nearest("case_id", queue.columns)}')
    if "selected" in queue.columns and not queue.empty:
        if queue["selected"].dtype != bool:
            raise SelectionError(f'{path}: the column "selected" must hold True or False in every row')
        queue = queue[queue["selected"]].reset_index(drop=True)
    if queue.empty:
        raise SelectionError(f"{path}: names no case; run `nnunet-qa select` again")
    return queue


def check_limits(threshold: float | None, number: int | None, per_subject: int | None) -> None:
    """Refuse limits outside their ranges.

    Raises:
        SelectionError: names the limit.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise SelectionError(f"the threshold {threshold:g} is not between 0 and 1, as Q is")
    for value, name in ((number, "number of cases"), (per_subject, "number of cases a subject")):
        if value is not None and value < 1:
            raise SelectionError(f"the {name} is {value}; it must be at least 1")


def candidates(
    table: pd.DataFrame, *, roles: Collection[str] | None = None, cases: CaseTable | None = None
) -> pd.DataFrame:
    """Rows of the cases that may be chosen, with their subjects; see `annotation_queue` for the arguments.

    Raises:
        SelectionError: there is no case, no case has one of the roles, or there is no such role.
        CaseTableError: a scored case is not in the case table.
    """
    rows = table.assign(subject_id=table["case_id"])
    if cases is not None:
        had_pool = (rows["role"] == Role.UNLABELLED.value).any()
        rows = _with_case_table(rows, cases)
        if had_pool and roles is None and not (rows["role"] == Role.UNLABELLED.value).any():
            raise SelectionError(
                "nothing selected: every case that was scored as unlabelled has been annotated since; score the pool "
                "that is left"
            )
    return _candidates(rows, roles)


def _with_case_table(rows: pd.DataFrame, cases: CaseTable) -> pd.DataFrame:
    subjects = cases.subjects()
    roles = dict(zip(cases.frame["case_id"], cases.frame["role"], strict=True))
    for case in rows["case_id"]:
        if case not in subjects:
            raise CaseTableError(
                f'the scored case "{case}" is not in {CASES}{nearest(case, subjects)}; give the table of the dataset '
                "that was scored"
            )
    return rows.assign(subject_id=rows["case_id"].map(subjects), role=rows["case_id"].map(roles))


def _candidates(rows: pd.DataFrame, roles: Collection[str] | None) -> pd.DataFrame:
    if rows.empty:
        raise SelectionError("nothing selected: there is no case to choose from; score some first")
    if roles is None:
        unlabelled = rows["role"] == Role.UNLABELLED.value
        return rows[unlabelled] if unlabelled.any() else rows
    known = [role.value for role in Role]
    for role in roles:
        if role not in known:
            raise SelectionError(f'unknown role "{role}"{nearest(role, known)}; roles are {", ".join(known)}')
    chosen = rows[rows["role"].isin(list(roles))]
    if chosen.empty:
        found = sorted({role or "none" for role in rows["role"]})
        raise SelectionError(
            f"nothing selected: no case has the role {' or '.join(sorted(roles))} (roles found: {', '.join(found)}); "
            "choose another role"
        )
    return chosen


def _reason(threshold: float | None, number: int | None, per_subject: int | None) -> str:
    parts = [] if threshold is None else [f"Q below {threshold:g}"]
    if number is not None:
        parts.append(f"among the {number} lowest")
    if per_subject is not None:
        parts.append(f"at most {per_subject} a subject")
    return ", ".join(parts) or "every candidate"

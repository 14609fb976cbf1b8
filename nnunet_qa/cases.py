"""The case table `cases.csv`: which case belongs to which subject, stack, slice and frame, and what it is used for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pandas as pd

from nnunet_qa.errors import CaseTableError, nearest
from nnunet_qa.files import write_csv

FILE_NAME = "cases.csv"
COLUMNS = ("case_id", "subject_id", "stack_id", "slice_index", "frame_index", "phase", "site", "role")
_TEXT = ("case_id", "subject_id", "stack_id", "phase", "site", "role")
_WHOLE = ("slice_index", "frame_index")


class Role(str, Enum):
    """What a case is used for."""

    LABELLED = "labelled"
    UNLABELLED = "unlabelled"
    TEST = "test"


@dataclass(frozen=True)
class CaseTable:
    """The cases of one raw dataset, one row a case, in the order of their identifiers.

    Attributes:
        frame: the columns of `COLUMNS`, then any that a conversion script added (a crop's offset, say). Texts are
            strings, empty where unknown; `slice_index` and `frame_index` are whole numbers, 0-based, or missing.
    """

    frame: pd.DataFrame

    @classmethod
    def from_rows(cls, rows: Iterable[dict[str, object]], source: str = FILE_NAME) -> CaseTable:
        """Build and validate a table; `subject_id` defaults to the case itself.

        Raises:
            CaseTableError: a case stands twice, has no identifier or an unknown role.
        """
        return cls._validated(pd.DataFrame(list(rows)), source)

    @classmethod
    def read(cls, path: Path) -> CaseTable:
        """Read and validate `cases.csv`.

        Raises:
            CaseTableError: the file is missing, is no CSV, lacks a column, or holds a wrong or doubled value.
        """
        try:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        except FileNotFoundError as error:
            raise CaseTableError(f"{path}: not found; `nnunet-qa cases` writes one from the file names") from error
        except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise CaseTableError(f"{path}: is not a CSV file that can be read: {error}") from error
        return cls._validated(frame, str(path))

    @classmethod
    def _validated(cls, frame: pd.DataFrame, source: str) -> CaseTable:
        frame = frame.copy()
        if "case_id" not in frame.columns or "role" not in frame.columns:
            missing = "case_id" if "case_id" not in frame.columns else "role"
            found = ", ".join(map(str, frame.columns))
            raise CaseTableError(f'{source}: the column "{missing}" is missing; found: {found or "none"}')
        for column in COLUMNS:
            if column not in frame.columns:
                frame[column] = ""
        for column in _TEXT:
            frame[column] = frame[column].fillna("").astype(str).str.strip()
        for column in _WHOLE:
            frame[column] = _whole_numbers(frame[column], column, source)
        if (frame["case_id"] == "").any():
            raise CaseTableError(f"{source}: row {_first(frame['case_id'] == '')} has no case_id")
        doubled = frame["case_id"].duplicated()
        if doubled.any():
            raise CaseTableError(
                f'{source}: the case "{frame["case_id"][doubled].iloc[0]}" stands there more than once'
            )
        roles = [role.value for role in Role]
        wrong = ~frame["role"].isin(roles)
        if wrong.any():
            case, role = frame.loc[wrong, ["case_id", "role"]].iloc[0]
            raise CaseTableError(
                f'{source}: the case "{case}" has the unknown role "{role}"{nearest(role, roles)}; '
                f"roles are {', '.join(roles)}"
            )
        no_subject = frame["subject_id"] == ""
        frame.loc[no_subject, "subject_id"] = frame.loc[no_subject, "case_id"]
        order = [*COLUMNS, *(column for column in frame.columns if column not in COLUMNS)]
        return cls(frame[order].sort_values("case_id", ignore_index=True))

    def write(self, path: Path) -> None:
        """Write the table as CSV in one step."""
        write_csv(path, self.frame)

    def __len__(self) -> int:
        return len(self.frame)

    def case_ids(self, role: Role | None = None) -> list[str]:
        """Identifiers of all cases, or of those with one role, sorted."""
        frame = self.frame if role is None else self.frame[self.frame["role"] == role.value]
        return frame["case_id"].tolist()

    def subjects(self) -> dict[str, str]:
        """Subject of every case."""
        return dict(zip(self.frame["case_id"], self.frame["subject_id"], strict=True))

    def acquisitions(self) -> dict[str, str]:
        """Acquisition of every case: its stack, or its subject where the table names no stack."""
        stacks = self.frame["stack_id"].where(self.frame["stack_id"] != "", self.frame["subject_id"])
        return dict(zip(self.frame["case_id"], stacks, strict=True))

    def of_tested_subjects(self) -> set[str]:
        """Cases of subjects of whom any case has the role test; what trains on one of them spoils the test."""
        tested = self.frame["subject_id"][self.frame["role"] == Role.TEST.value]
        return set(self.frame["case_id"][self.frame["subject_id"].isin(tested)])

    def with_role(self, case_ids: Iterable[str], role: Role) -> CaseTable:
        """A table in which the given cases have another role.

        Raises:
            CaseTableError: a case is not in the table.
        """
        wanted = list(case_ids)
        known = set(self.frame["case_id"])
        for case in wanted:
            if case not in known:
                raise CaseTableError(f'the case "{case}" is not in {FILE_NAME}{nearest(case, known)}')
        frame = self.frame.copy()
        frame.loc[frame["case_id"].isin(wanted), "role"] = role.value
        return CaseTable(frame)


def table_from_names(names: dict[Role, list[str]], subject_regex: str | None = None) -> CaseTable:
    r"""Build a table from case identifiers alone.

    Args:
        names: case identifiers by role.
        subject_regex: a regular expression found at the start of an identifier; its first group (or the whole match)
            is the subject. Without one, every case is a subject of its own.

    Raises:
        CaseTableError: the expression is wrong or does not match an identifier.

    >>> table_from_names({Role.LABELLED: ["S01_b2"], Role.UNLABELLED: ["S01_b1"]}, r"S\d+").subjects()
    {'S01_b1': 'S01', 'S01_b2': 'S01'}
    """
    try:
        pattern = re.compile(subject_regex) if subject_regex is not None else None
    except re.error as error:
        raise CaseTableError(f'"{subject_regex}" is not a regular expression: {error}') from error
    rows: list[dict[str, object]] = []
    for role, cases in names.items():
        for case in cases:
            subject = case
            if pattern is not None:
                match = pattern.match(case)
                if match is None:
                    raise CaseTableError(f'the case "{case}" does not match the subject expression "{subject_regex}"')
                subject = match.group(1) if pattern.groups else match.group(0)
            rows.append({"case_id": case, "subject_id": subject, "role": role.value})
    return CaseTable.from_rows(rows)


def _whole_numbers(column: pd.Series, name: str, source: str) -> pd.Series:
    texts = column.astype("string").replace("", pd.NA)
    numbers = pd.to_numeric(texts, errors="coerce").astype("Float64")
    wrong = texts.notna() & (numbers.isna() | (numbers % 1 != 0).fillna(True) | (numbers < 0).fillna(True))
    if wrong.any():
        raise CaseTableError(f'{source}: "{texts[wrong].iloc[0]}" in column "{name}" is not a whole number from 0 up')
    return numbers.astype("Int64")


def _first(mask: pd.Series) -> int:
    return int(mask.to_numpy().argmax()) + 2  # as a text editor counts: the header is line 1

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.cases import COLUMNS, CaseTable, Role, table_from_names
from nnunet_qa.errors import CaseTableError

ROWS = [
    {"case_id": "b", "subject_id": "S1", "role": "unlabelled", "slice_index": 4, "offset": "7"},
    {"case_id": "a", "subject_id": "", "role": "labelled", "slice_index": None, "site": "NA"},
    {"case_id": "c", "subject_id": "S1", "role": "test", "frame_index": "2.0"},
]


def test_rows_are_sorted_and_completed() -> None:
    table = CaseTable.from_rows(ROWS)
    assert len(table) == 3
    assert table.frame.columns.tolist() == [*COLUMNS, "offset"]
    assert table.case_ids() == ["a", "b", "c"]
    assert table.case_ids(Role.TEST) == ["c"]
    assert table.subjects() == {"a": "a", "b": "S1", "c": "S1"}
    assert table.frame["slice_index"].tolist() == [pd.NA, 4, pd.NA]
    assert table.frame["frame_index"].tolist() == [pd.NA, pd.NA, 2]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = CaseTable.from_rows(ROWS)
    table.write(tmp_path / "cases.csv")
    again = CaseTable.read(tmp_path / "cases.csv")
    again.write(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "cases.csv").read_bytes()
    assert again.frame["site"].tolist() == ["NA", "", ""]  # a text, not a missing value
    assert again.frame["slice_index"].tolist() == [pd.NA, 4, pd.NA]


def test_identifiers_of_digits_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("case_id,subject_id,role\n007,01,labelled\n")
    assert CaseTable.read(tmp_path / "cases.csv").subjects() == {"007": "01"}


def test_another_role() -> None:
    table = CaseTable.from_rows(ROWS)
    changed = table.with_role(["b"], Role.LABELLED)
    assert changed.case_ids(Role.LABELLED) == ["a", "b"]
    assert table.case_ids(Role.LABELLED) == ["a"]
    with pytest.raises(CaseTableError, match=r'the case "bb" is not in cases\.csv \(did you mean "b"\?\)'):
        table.with_role(["bb"], Role.LABELLED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a CSV file"),
        ('case_id,role\n"a,b\n', "is not a CSV file"),
        ("case,role\na,test\n", 'the column "case_id" is missing; found: case, role'),
        ("case_id\na\n", 'the column "role" is missing'),
        ("case_id,role\na,test\n,test\n", "row 3 has no case_id"),
        ("case_id,role\na,test\na ,test\n", 'the case "a" stands there more than once'),
        ("case_id,role\na,labeled\n", r'the unknown role "labeled" \(did you mean "labelled"\?\)'),
        ("case_id,role,slice_index\na,test,x\n", '"x" in column "slice_index" is not a whole number'),
        ("case_id,role,slice_index\na,test,1.5\n", '"1.5" in column "slice_index"'),
        ("case_id,role,frame_index\na,test,-1\n", '"-1" in column "frame_index"'),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(text)
    with pytest.raises(CaseTableError, match=message) as caught:
        CaseTable.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CaseTableError, match="not found; `nnunet-qa cases`"):
        CaseTable.read(tmp_path / "cases.csv")


@pytest.mark.parametrize(
    ("expression", "subjects"),
    [
        (None, {"S01_b2": "S01_b2", "S01_b1": "S01_b1", "S2_b1": "S2_b1"}),
        (r"S\d+", {"S01_b2": "S01", "S01_b1": "S01", "S2_b1": "S2"}),
        (r"S0?(\d+)_", {"S01_b2": "1", "S01_b1": "1", "S2_b1": "2"}),
    ],
)
def test_subjects_from_names(expression: str | None, subjects: dict[str, str]) -> None:
    table = table_from_names({Role.LABELLED: ["S01_b2"], Role.UNLABELLED: ["S01_b1", "S2_b1"]}, expression)
    assert table.subjects() == subjects
    assert table.case_ids(Role.UNLABELLED) == ["S01_b1", "S2_b1"]


@pytest.mark.parametrize(("expression", "text"), [("(", "is not a regular expression"), ("X", '"S1" does not match')])
def test_subject_expressions_that_do_not_fit(expression: str, text: str) -> None:
    with pytest.raises(CaseTableError, match=text):
        table_from_names({Role.TEST: ["S1"]}, expression)

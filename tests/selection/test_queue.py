from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import CaseTableError, SelectionError
from nnunet_qa.quality.table import read_quality, write_quality
from nnunet_qa.selection.queue import COLUMNS, annotation_queue, read_queue, write_queue

SCORES = {"S1_a": 0.4, "S1_b": 0.2, "S1_c": 0.3, "S2_a": 0.6, "S2_b": 0.3, "S3_a": 0.9}


def table(roles: dict[str, str] | None = None) -> pd.DataFrame:
    rows = [{"case_id": case, "role": (roles or {}).get(case, ""), "q": q} for case, q in SCORES.items()]
    return pd.DataFrame(rows).sample(frac=1, random_state=3)


def case_table(**roles: str) -> CaseTable:
    return CaseTable.from_rows(
        {"case_id": case, "subject_id": case[:2], "role": roles.get(case, "unlabelled")} for case in SCORES
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["S1_b", "S1_c", "S2_b", "S1_a", "S2_a", "S3_a"]),
        ({"number": 2}, ["S1_b", "S1_c"]),
        ({"threshold": 0.4}, ["S1_b", "S1_c", "S2_b"]),
        ({"threshold": 0.4, "number": 2}, ["S1_b", "S1_c"]),
        ({"per_subject": 1, "cases": case_table()}, ["S1_b", "S2_b", "S3_a"]),
        ({"per_subject": 2, "number": 4, "cases": case_table()}, ["S1_b", "S1_c", "S2_b", "S2_a"]),
        ({"per_subject": 1, "threshold": 0.5, "number": 2, "cases": case_table()}, ["S1_b", "S2_b"]),
        ({"per_subject": 1, "number": 3}, ["S1_b", "S1_c", "S2_b"]),
    ],
)
def test_the_lowest_come_first_within_the_limits(options: dict[str, Any], expected: list[str]) -> None:
    queue = annotation_queue(table(), **options)
    assert queue["case_id"].tolist() == expected
    assert queue["rank"].tolist() == list(range(1, len(expected) + 1))
    assert queue["q"].tolist() == [SCORES[case] for case in expected]
    assert tuple(queue.columns) == COLUMNS


def test_subjects_come_from_the_case_table() -> None:
    assert annotation_queue(table(), number=1)["subject_id"].tolist() == ["S1_b"]
    assert annotation_queue(table(), number=1, cases=case_table())["subject_id"].tolist() == ["S1"]


def test_the_reason_names_the_limits() -> None:
    queue = annotation_queue(table(), threshold=0.5, number=2, per_subject=1)
    assert set(queue["reason"]) == {"Q below 0.5, among the 2 lowest, at most 1 a subject"}
    assert set(annotation_queue(table())["reason"]) == {"every candidate"}


def test_unlabelled_cases_are_the_candidates_where_there_are_any() -> None:
    roles = {"S1_a": "unlabelled", "S2_a": "unlabelled", "S1_b": "labelled"}
    assert annotation_queue(table(roles))["case_id"].tolist() == ["S1_a", "S2_a"]
    assert annotation_queue(table(roles), roles=["labelled"])["case_id"].tolist() == ["S1_b"]
    both = annotation_queue(table(roles), roles=["labelled", "unlabelled"])
    assert both["case_id"].tolist() == ["S1_b", "S1_a", "S2_a"]


def test_a_case_that_was_annotated_after_scoring_is_no_candidate() -> None:
    scored = table(dict.fromkeys(SCORES, "unlabelled"))
    queue = annotation_queue(scored, number=1, cases=case_table(S1_b="labelled"))
    assert queue["case_id"].tolist() == ["S1_c"]
    everything = case_table(**dict.fromkeys(SCORES, "labelled"))
    with pytest.raises(SelectionError, match="has been annotated since"):
        annotation_queue(scored, number=1, cases=everything)
    assert len(annotation_queue(scored, roles=["labelled"], cases=everything)) == 6


def test_nothing_selected_says_which_scores_there_are() -> None:
    with pytest.raises(SelectionError, match=r"no candidate has Q below 0\.1 .* from 0\.2 to 0\.9"):
        annotation_queue(table(), threshold=0.1)
    with pytest.raises(SelectionError, match=r"no case has the role test \(roles found: none\)"):
        annotation_queue(table(), roles=["test"])


def test_fewer_than_asked_for_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert len(annotation_queue(table(), number=9)) == 6
    assert "9 cases were asked for, 6 fit" in caplog.text
    caplog.clear()
    assert len(annotation_queue(table(), number=6)) == 6
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"threshold": 1.5}, r"1\.5 is not between 0 and 1"),
        ({"threshold": -0.1}, "not between"),
        ({"number": 0}, "number of cases is 0"),
        ({"per_subject": 0}, "a subject is 0"),
    ],
)
def test_limits_out_of_range(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SelectionError, match=text):
        annotation_queue(table(), **options)


def test_a_case_that_the_table_does_not_know() -> None:
    known = CaseTable.from_rows([{"case_id": "S1_x", "role": "unlabelled"}])
    with pytest.raises(CaseTableError, match=r"is not in cases\.csv"):
        annotation_queue(table(), cases=known)


def test_written_and_read(tmp_path: Path) -> None:
    queue = annotation_queue(table().assign(q=lambda rows: rows["q"] / 3), number=3)
    write_queue(tmp_path / "queue.csv", queue)
    back = read_queue(tmp_path / "queue.csv")
    assert back["case_id"].tolist() == queue["case_id"].tolist()
    assert back["q"].tolist() == [0.066667, 0.1, 0.1]


def test_unreadable_queues(tmp_path: Path) -> None:
    path = tmp_path / "queue.csv"
    with pytest.raises(SelectionError, match="not found"):
        read_queue(path)
    for text, message in (("", "is not a CSV"), ("case\n1\n", 'did you mean "case"'), ("case_id\n", "names no case")):
        path.write_text(text)
        with pytest.raises(SelectionError, match=message):
            read_queue(path)


def test_a_quality_table_from_disk(tmp_path: Path) -> None:
    rows = [
        {"case_id": case, "role": "unlabelled", "level": "case", "slice_axis": None, "slice_index": None, "q": q}
        for case, q in SCORES.items()
    ]
    slices = [{**rows[0], "level": "slice", "slice_axis": 0, "slice_index": 0, "q": 0.0}]
    write_quality(tmp_path / "quality.csv", pd.DataFrame(rows + slices))
    queue = annotation_queue(read_quality(tmp_path / "quality.csv"), number=1)
    assert queue[["case_id", "q"]].to_numpy().tolist() == [["S1_b", 0.2]]

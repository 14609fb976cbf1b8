from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.data.splits import (
    check_splits,
    extend_splits,
    grouped_splits,
    pseudo_labelled,
    read_splits,
    same_splits,
    with_pseudo_labels,
    write_splits,
)
from nnunet_qa.errors import DatasetError

SUBJECTS = {f"S{number // 3}_{number % 3}": f"S{number // 3}" for number in range(21)}


def validated(splits: list[dict[str, list[str]]]) -> list[str]:
    return sorted(case for fold in splits for case in fold["val"])


@pytest.mark.parametrize(("folds", "expected"), [(2, 2), (5, 5), (9, 7)])
def test_each_case_is_validated_once_and_no_subject_is_parted(folds: int, expected: int) -> None:
    splits = grouped_splits(SUBJECTS, folds=folds)
    assert len(splits) == expected
    assert validated(splits) == sorted(SUBJECTS)
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == sorted(SUBJECTS)
        assert not {SUBJECTS[case] for case in fold["train"]} & {SUBJECTS[case] for case in fold["val"]}
    check_splits(splits, SUBJECTS, "here")


def test_folds_do_not_depend_on_the_order_of_the_cases() -> None:
    assert grouped_splits(dict(reversed(SUBJECTS.items()))) == grouped_splits(SUBJECTS)


def test_folds_are_plain_text_for_json() -> None:
    assert json.loads(json.dumps(grouped_splits(SUBJECTS))) == grouped_splits(SUBJECTS)


def test_one_subject_or_one_fold_is_refused() -> None:
    with pytest.raises(DatasetError, match="at least two"):
        grouped_splits({"a": "S", "b": "S"})
    with pytest.raises(DatasetError, match="at least 2"):
        grouped_splits(SUBJECTS, folds=1)


def test_extended_folds_validate_each_case_once_and_part_no_subject() -> None:
    new = {"S0_9": "S0", "N1_0": "N1", "N1_1": "N1", "N2_0": "N2"}
    old = grouped_splits(SUBJECTS)
    subjects = {**SUBJECTS, **new}
    splits = extend_splits(old, new, subjects)
    assert validated(splits) == sorted(subjects)
    check_splits(splits, subjects, "here")
    for before, after in zip(old, splits, strict=True):
        assert set(before["val"]) == set(after["val"]) - set(new)
        assert set(before["train"]) == set(after["train"]) - set(new)


def test_a_case_joins_the_fold_of_its_subject() -> None:
    old = [{"train": ["A1"], "val": ["B1"]}, {"train": ["B1"], "val": ["A1"]}]
    splits = extend_splits(old, ["A2"], {"A1": "A", "A2": "A", "B1": "B"})
    assert splits == [{"train": ["A1", "A2"], "val": ["B1"]}, {"train": ["B1"], "val": ["A1", "A2"]}]
    assert old[0]["train"] == ["A1"]


def test_a_new_subject_is_validated_where_fewest_are() -> None:
    old = [{"train": ["B1"], "val": ["A1", "A2"]}, {"train": ["A1", "A2"], "val": ["B1"]}]
    subjects = {"A1": "A", "A2": "A", "B1": "B", "N1": "N", "N2": "N"}
    splits = extend_splits(old, ["N2", "N1"], subjects)
    assert splits[1]["val"] == ["B1", "N1", "N2"]
    assert splits[0]["train"] == ["B1", "N1", "N2"]


def test_a_subject_that_is_validated_in_every_fold_is_not_parted() -> None:
    fixed = [{"train": ["A1"], "val": ["V1"]}, {"train": ["B1"], "val": ["V1"]}]
    subjects = {"A1": "A", "B1": "B", "V1": "V", "V2": "V"}
    splits = extend_splits(fixed, ["V2"], subjects)
    check_splits(splits, subjects, "here")
    assert [fold["val"] for fold in splits] == [["V1", "V2"], ["V1", "V2"]]


def test_a_subject_that_one_fold_leaves_out_is_not_parted() -> None:
    partial = [{"train": ["A1"], "val": []}, {"train": ["B1"], "val": ["C1"]}]
    subjects = {"A1": "A", "A2": "A", "B1": "B", "C1": "C"}
    splits = extend_splits(partial, ["A2"], subjects)
    check_splits(splits, subjects, "here")
    assert splits == [{"train": ["A1", "A2"], "val": []}, {"train": ["B1"], "val": ["C1"]}]


def test_a_subject_that_is_always_trained_on_stays_so() -> None:
    always = [{"train": ["A1", "B1"], "val": ["C1"]}, {"train": ["A1", "C1"], "val": ["B1"]}]
    subjects = {"A1": "A", "A2": "A", "B1": "B", "C1": "C"}
    splits = extend_splits(always, ["A2"], subjects)
    assert validated(splits) == ["B1", "C1"]
    assert all("A2" in fold["train"] for fold in splits)


def test_adding_a_case_twice_changes_nothing() -> None:
    once = extend_splits(grouped_splits(SUBJECTS), ["N1"], {**SUBJECTS, "N1": "N"})
    assert extend_splits(once, ["N1"], {**SUBJECTS, "N1": "N"}) == once


@pytest.mark.parametrize(
    ("splits", "text"),
    [
        ({}, "is not a list of folds"),
        ([], "is not a list of folds"),
        ([{"train": ["A1"]}], "is not a list of folds"),
        ([{"train": "A1", "val": []}], "is not a list of folds"),
        ([{"train": [["A1"]], "val": []}], "is not a list of folds"),
        ([{"train": ["A1", "X"], "val": []}], 'fold 0 names the case "X"'),
        ([{"train": ["A1"], "val": ["B1"]}, {"train": ["A1"], "val": ["A2"]}], 'fold 1 the subject "A"'),
    ],
)
def test_wrong_folds_are_refused(splits: object, text: str) -> None:
    with pytest.raises(DatasetError, match=text):
        check_splits(splits, {"A1": "A", "A2": "A", "B1": "B"}, "splits_final.json")


def test_same_splits_ignores_the_order_of_cases() -> None:
    one = [{"train": ["a", "b"], "val": ["c"]}]
    assert same_splits(one, [{"train": ["b", "a"], "val": ["c"]}])
    assert not same_splits(one, [{"train": ["a"], "val": ["c"]}])
    assert not same_splits(one, one * 2)
    assert not same_splits(one, {"train": []})
    assert not same_splits(one, [{"train": 3, "val": []}])


def test_splits_are_read_as_written(tmp_path: Path) -> None:
    splits = grouped_splits(SUBJECTS)
    path = write_splits(tmp_path, splits)
    assert path == tmp_path / "splits_final.json"
    assert read_splits(path) == splits
    assert read_splits(tmp_path / "none.json") is None
    path.write_text("[{")
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        read_splits(path)


def test_pseudo_labels_join_training_parts_alone() -> None:
    human = [{"train": ["A1", "B1"], "val": ["C1"]}, {"train": ["C1"], "val": ["A1"]}, {"train": ["A1"], "val": ["C1"]}]
    subjects = {"A1": "A", "A2": "A", "B1": "B", "B2": "B", "C1": "C", "C2": "C", "N1": "N"}
    found = with_pseudo_labels(human, ["A2", "B2", "C2", "N1"], subjects)
    # fold 0 validates C; fold 1 validates A and leaves B out, which others know; N is new
    assert found == [
        {"train": ["A1", "A2", "B1", "B2", "N1"], "val": ["C1"]},
        {"train": ["C1", "C2", "N1"], "val": ["A1"]},
        {"train": ["A1", "A2", "N1"], "val": ["C1"]},
    ]
    assert with_pseudo_labels(found, ["A2", "B2", "C2", "N1"], subjects) == found
    assert with_pseudo_labels(found, ["N1"], subjects)[1]["train"] == ["C1", "C2", "N1"]


def test_a_pseudo_label_that_folds_validate_is_taken_out() -> None:
    subjects = {"A1": "A", "B1": "B"}
    assert with_pseudo_labels([{"train": ["A1"], "val": ["B1"]}], ["B1"], subjects) == [
        {"train": ["A1", "B1"], "val": []}
    ]


def test_pseudo_labels_are_known_from_the_case_table() -> None:
    rows = [{"case_id": name, "role": "labelled"} for name in "abc"]
    assert pseudo_labelled(CaseTable.from_rows(rows)) == set()
    sources = ("human", "pseudo", "")
    marked = [{**row, "label_source": source} for row, source in zip(rows, sources, strict=True)]
    assert pseudo_labelled(CaseTable.from_rows(marked)) == {"b"}

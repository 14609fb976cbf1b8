from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import cases
from nnunet_qa.data.splits import check_splits
from nnunet_qa.errors import CaseTableError, DatasetError
from tests.small import NAME, run_command, snapshot, tiny_dataset, tiny_label, write_tiny

LABELLED = ("S1_a", "S1_b", "S2_a", "S3_a")


@pytest.fixture
def raw(fresh_folders: Path) -> Path:
    return tiny_dataset(fresh_folders, labelled=LABELLED, pool=("S4_a", "S4_b"), test=("S5_a",), table=False)


@pytest.fixture
def splits(fresh_folders: Path) -> Path:
    return fresh_folders / "nnUNet_preprocessed" / NAME / "splits_final.json"


def test_table_and_folds(raw: Path, splits: Path) -> None:
    result = run_command(cases, "-d", 301, "--subject-regex", r"(S\d)_")
    assert result.exit_code == 0
    table = CaseTable.read(raw / "cases.csv")
    assert {role: table.case_ids(role) for role in Role} == {
        Role.LABELLED: list(LABELLED),
        Role.UNLABELLED: ["S4_a", "S4_b"],
        Role.TEST: ["S5_a"],
    }
    assert table.subjects()["S1_b"] == "S1"
    written = json.loads(splits.read_text())
    assert len(written) == 3
    check_splits(written, {case: case[:2] for case in LABELLED}, "")
    assert sorted(case for fold in written for case in fold["val"]) == sorted(LABELLED)
    assert "unlabelled" in result.stdout
    assert str(splits) in result.stderr
    assert "subject of its own" not in result.stderr


def test_again_changes_nothing(raw: Path, fresh_folders: Path) -> None:
    run_command(cases, "-d", 301)
    before = snapshot(fresh_folders)
    result = run_command(cases, "-d", 301)
    assert result.exit_code == 0
    assert "nothing changed" in result.stderr
    assert "subject of its own" in result.stderr
    assert snapshot(fresh_folders) == before


def test_a_table_that_says_more_is_kept(raw: Path) -> None:
    run_command(cases, "-d", 301)
    text = (raw / "cases.csv").read_text().replace("S2_a,S2_a,,,,,", "S2_a,S2_a,vol1,7,,,Paris")
    (raw / "cases.csv").write_text(text)
    assert run_command(cases, "-d", 301).exit_code == 0
    assert (raw / "cases.csv").read_text() == text
    assert "Paris" in text


def test_the_number_of_folds(raw: Path, splits: Path) -> None:
    run_command(cases, "-d", 301, "--folds", 2)
    assert len(json.loads(splits.read_text())) == 2


def test_other_tables_and_folds_are_not_replaced_unasked(raw: Path, splits: Path) -> None:
    run_command(cases, "-d", 301)
    before = snapshot(raw, splits.parent)
    result = run_command(cases, "-d", 301, "--subject-regex", r"S\d")
    assert isinstance(result.exception, CaseTableError)
    assert 'differs from the file names in subject_id ("S1_a" there, "S1" by the names)' in str(result.exception)
    (raw / "cases.csv").unlink()
    result = run_command(cases, "-d", 301, "--subject-regex", r"S\d")
    assert isinstance(result.exception, DatasetError)
    assert "holds other folds" in str(result.exception)
    assert not (raw / "cases.csv").exists()
    assert before[f"{NAME}/splits_final.json"] == splits.read_bytes()
    assert run_command(cases, "-d", 301, "--subject-regex", r"S\d", "--overwrite").exit_code == 0
    assert CaseTable.read(raw / "cases.csv").subjects()["S1_a"] == "S1"
    assert len(json.loads(splits.read_text())) == 3


def test_a_case_that_came_later_is_pointed_out(raw: Path) -> None:
    run_command(cases, "-d", 301)
    write_tiny(raw / "imagesUn" / "S9_a_0000.png", tiny_label("S9_a"))
    result = run_command(cases, "-d", 301)
    assert "7 cases there, 8 by the names" in str(result.exception)


def test_folds_in_the_raw_folder_count_too(raw: Path, splits: Path) -> None:
    (raw / "splits_final.json").write_text('[{"train": ["S1_a"], "val": ["S2_a"]}]')
    result = run_command(cases, "-d", 301)
    assert str(raw / "splits_final.json") in str(result.exception)
    assert not splits.exists()
    assert run_command(cases, "-d", 301, "--overwrite").exit_code == 0
    assert (raw / "splits_final.json").read_bytes() == splits.read_bytes()


def test_one_subject_has_no_folds(raw: Path, splits: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run_command(cases, "-d", 301, "--subject-regex", "S").exit_code == 0
    assert "no folds written" in caplog.text
    assert not splits.exists()


def _no_label(raw: Path) -> None:
    (raw / "labelsTr" / "S2_a.png").unlink()


def _twice(raw: Path) -> None:
    write_tiny(raw / "imagesUn" / "S2_a_0000.png", tiny_label("S2_a"))


def test_a_dataset_that_begins_without_annotations(raw: Path, splits: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(raw / "imagesTr")
    shutil.rmtree(raw / "labelsTr")
    result = run_command(cases, "-d", 301, "--subject-regex", r"S\d")
    assert result.exit_code == 0, result.exception
    table = CaseTable.read(raw / "cases.csv")
    assert (table.case_ids(Role.LABELLED), table.case_ids(Role.UNLABELLED)) == ([], ["S4_a", "S4_b"])
    assert not splits.exists()
    assert not caplog.text


def _only_test_cases(raw: Path) -> None:
    for folder in ("imagesTr", "imagesUn"):
        shutil.rmtree(raw / folder)


def _old_json(raw: Path) -> None:
    path = raw / "dataset.json"
    path.write_text(path.read_text().replace("file_ending", "modality"))


def _unsettled(raw: Path) -> None:
    (raw / "promote.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_no_label, "S2_a.png: not found"),
        (_twice, '"S2_a" is in imagesTr and in imagesUn'),
        (_only_test_cases, "holds no case with the ending .png"),
        (_old_json, 'the entry "file_ending" is missing'),
        (_unsettled, "was interrupted; run `nnunet-qa promote` again"),
    ],
)
def test_faulty_datasets(raw: Path, spoil: object, text: str) -> None:
    spoil(raw)  # type: ignore[operator]
    result = run_command(cases, "-d", 301)
    assert isinstance(result.exception, DatasetError)
    assert text in str(result.exception)
    assert not (raw / "cases.csv").exists()


def test_an_expression_that_does_not_fit(raw: Path) -> None:
    result = run_command(cases, "-d", 301, "--subject-regex", "P")
    assert isinstance(result.exception, CaseTableError)


def test_cases_that_dataset_json_lists(raw: Path, splits: Path) -> None:
    content = json.loads((raw / "dataset.json").read_text())
    content["dataset"] = {f"L{number}": {"images": [], "label": ""} for number in range(3)}
    (raw / "dataset.json").write_text(json.dumps(content))
    assert run_command(cases, "-d", 301).exit_code == 0
    assert CaseTable.read(raw / "cases.csv").case_ids(Role.LABELLED) == ["L0", "L1", "L2"]

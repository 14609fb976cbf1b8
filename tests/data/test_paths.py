from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_qa.data import paths
from nnunet_qa.errors import DatasetError, EnvironmentVariableError


@pytest.fixture
def base(fresh_folders: Path) -> Path:
    for name in ("Dataset101_OCT", "Dataset102_US"):
        (fresh_folders / "nnUNet_raw" / name).mkdir()
        (fresh_folders / "nnUNet_raw" / name / "dataset.json").write_text("{}")
    return fresh_folders


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_base_folders(base: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    assert paths.base_folder(variable) == base / variable
    monkeypatch.setenv(variable, "")
    with pytest.raises(EnvironmentVariableError, match=f"{variable} is not set; run `export"):
        paths.base_folder(variable)


@pytest.mark.parametrize("given", ["101", "0101", "Dataset101_OCT"])
def test_names_by_number_and_name(base: Path, given: str) -> None:
    assert paths.dataset_name(given) == "Dataset101_OCT"
    assert paths.raw_dataset_folder(given) == base / "nnUNet_raw" / "Dataset101_OCT"


@pytest.mark.parametrize("given", ["OCT", "1000", "-1", "Dataset1_OCT", "../Dataset101_OCT", ""])
def test_names_that_are_none(base: Path, given: str) -> None:
    with pytest.raises(DatasetError, match="neither a dataset number"):
        paths.dataset_name(given)


def test_datasets_that_are_missing_or_ambiguous(base: Path) -> None:
    with pytest.raises(DatasetError, match=r"no dataset 7 \(Dataset007_"):
        paths.dataset_name("7")
    (base / "nnUNet_results" / "Dataset101_Other").mkdir()
    with pytest.raises(DatasetError, match="ambiguous: Dataset101_OCT, Dataset101_Other"):
        paths.dataset_name("101")


def test_a_dataset_that_only_has_results(base: Path) -> None:
    (base / "nnUNet_results" / "Dataset008_R").mkdir()
    assert paths.dataset_name("8") == "Dataset008_R"


def test_no_variable_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvironmentVariableError, match="are not set"):
        paths.dataset_name("101")
    assert paths.raw_dataset_folder_if_known("Dataset101_OCT") is None


def test_new_names(base: Path) -> None:
    assert paths.new_dataset_name(5, "My-Set_2") == "Dataset005_My-Set_2"
    assert paths.new_dataset_name(101, "OCT") == "Dataset101_OCT"
    with pytest.raises(DatasetError, match=r"the number 101 is taken by .*Dataset101_OCT"):
        paths.new_dataset_name(101, "Other")
    for number, name in ((0, "A"), (1000, "A"), (5, ""), (5, "a b"), (5, "-a")):
        with pytest.raises(DatasetError, match="is no dataset name"):
            paths.new_dataset_name(number, name)


def test_unfinished_and_unplanned_datasets(base: Path) -> None:
    (base / "nnUNet_raw" / "Dataset101_OCT" / "dataset.json").unlink()
    with pytest.raises(DatasetError, match=r"Dataset101_OCT: no dataset\.json there"):
        paths.raw_dataset_folder("101")
    with pytest.raises(DatasetError, match="run `nnUNetv2_plan_and_preprocess -d 102` first"):
        paths.preprocessed_dataset_folder("102")
    assert paths.raw_dataset_folder_if_known("Dataset102_US") == base / "nnUNet_raw" / "Dataset102_US"


def test_plans(base: Path) -> None:
    folder = base / "nnUNet_preprocessed" / "Dataset101_OCT"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    assert paths.preprocessed_dataset_folder("101") == folder
    with pytest.raises(DatasetError, match="found: none"):
        paths.read_plans("101", "nnUNetPlans")
    (folder / "nnUNetPlans.json").write_text(json.dumps({"plans_name": "nnUNetPlans"}))
    assert paths.read_plans("101", "nnUNetPlans") == {"plans_name": "nnUNetPlans"}
    with pytest.raises(DatasetError, match=r"found: nnUNetPlans\. Choose one with -p"):
        paths.read_plans("101", "other")


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DatasetError, match="not found"):
        paths.read_json(path)
    for text, message in (("{", "cannot be read as JSON"), ("[]", "must hold a JSON object, found a list")):
        path.write_text(text)
        with pytest.raises(DatasetError, match=message):
            paths.read_json(path)
    path.write_text('{"a": "µ"}', encoding="utf-8")
    assert paths.read_json(path) == {"a": "µ"}

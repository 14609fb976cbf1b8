"""Moved plans against those of nnU-Net's own command, which wants an annotated case at the target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnunetv2.experiment_planning.plans_for_pretraining import move_plans_between_datasets as stock

from nnunet_qa.cli import move_plans as command
from nnunet_qa.data.moved_plans import move_plans
from nnunet_qa.data.plans import PlansError
from nnunet_qa.errors import DatasetError
from tests.small import run_command, tiny_dataset

PLANS = {
    "dataset_name": "Dataset301_Tiny",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "configurations": {
        "2d": {"data_identifier": "nnUNetPlans_2d", "batch_size": 3},
        "other": {"data_identifier": "shared", "inherits_from": "2d"},
        "heir": {"inherits_from": "2d", "batch_size": 5},
    },
}


@pytest.fixture
def folders(fresh_folders: Path) -> Path:
    """Dataset 301 with plans, and 302 with unlabelled pictures only; the folder of preprocessed datasets."""
    source = tiny_dataset(fresh_folders)
    tiny_dataset(fresh_folders, name="Dataset302_Scans", labelled=(), table=False, labels={"background": 0})
    preprocessed = fresh_folders / "nnUNet_preprocessed"
    planned = preprocessed / "Dataset301_Tiny"
    planned.mkdir()
    (planned / "dataset.json").write_bytes((source / "dataset.json").read_bytes())
    (planned / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    (planned / "dataset_fingerprint.json").write_text('{"spacings": []}')
    return preprocessed


def test_as_nnunet_moves_them(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = move_plans("301", "302", plans="nnUNetPlans", identifier="From301")
    assert found == folders / "Dataset302_Scans" / "From301.json"
    raw = folders.parent / "nnUNet_raw"
    tiny_dataset(folders.parent, name="Dataset303_Annotated")
    (folders / "Dataset303_Annotated").mkdir()
    monkeypatch.setattr(stock, "nnUNet_preprocessed", str(folders))
    monkeypatch.setattr(stock, "nnUNet_raw", str(raw))
    stock.move_plans_between_datasets("Dataset301_Tiny", "Dataset303_Annotated", "nnUNetPlans", "From301")
    expected = json.loads((folders / "Dataset303_Annotated" / "From301.json").read_text())
    assert json.loads(found.read_text()) == expected | {"dataset_name": "Dataset302_Scans"}
    for name in ("dataset.json", "dataset_fingerprint.json"):
        assert (found.parent / name).is_file()
    assert json.loads((found.parent / "dataset.json").read_text())["labels"] == {"background": 0}


def test_the_command_and_a_second_run(folders: Path) -> None:
    for _ in range(2):
        result = run_command(command, "-s", 301, "-t", 302, "-tp", "From301")
        assert result.exit_code == 0, result.exception
        assert result.stdout.splitlines()[0] == str(folders / "Dataset302_Scans" / "From301.json")
    path = folders / "Dataset302_Scans" / "From301.json"
    path.write_text(json.dumps({**PLANS, "transpose_forward": [2, 0, 1]}))
    with pytest.raises(PlansError, match="other plans of this name exist; replace them with --overwrite or choose -tp"):
        move_plans("301", "302", plans="nnUNetPlans", identifier="From301")
    move_plans("301", "302", plans="nnUNetPlans", identifier="From301", overwrite=True)
    assert json.loads(path.read_text())["transpose_forward"] == [0, 1, 2]


def test_what_does_not_fit(folders: Path) -> None:
    tiny_dataset(folders.parent, name="Dataset304_Colour", channels=3, table=False)
    with pytest.raises(PlansError, match=r"Dataset304_Colour.*: 3 channel\(s\), and nnUNetPlans of .* are for 1"):
        move_plans("301", "304", plans="nnUNetPlans", identifier="From301")
    tiny_dataset(folders.parent, name="Dataset305_Empty", pool=(), table=False)
    with pytest.raises(DatasetError, match="imagesUn: no unlabelled image there"):
        move_plans("301", "305", plans="nnUNetPlans", identifier="From301")
    with pytest.raises(DatasetError, match=r"no such plans; found: nnUNetPlans"):
        move_plans("301", "302", plans="Other", identifier="From301")

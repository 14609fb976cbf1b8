"""No pseudo-label is validated, whatever the folds say and where there are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import DatasetError
from tests.phantom import trainer_of
from tests.trainers.semi import copied

PSEUDO = {"S0_c1", "S3_c0", "S3_c1"}


@pytest.fixture
def dataset(planned: dict[str, str], tmp_path: Path, results: Path, qa_yaml: Any, monkeypatch: Any) -> str:
    """The 2D phantom, in which one case of S0 and all of S3 have pseudo-labels."""
    qa_yaml("")
    raw = copied(planned["2d"], tmp_path, monkeypatch)
    frame = CaseTable.read(raw / "cases.csv").frame
    source = frame["case_id"].isin(PSEUDO).map({True: "pseudo", False: "human"})
    CaseTable(frame.assign(label_source=source)).write(raw / "cases.csv")
    return planned["2d"]


def splits(tmp_path: Path, dataset: str) -> Path:
    return tmp_path / "nnUNet_preprocessed" / dataset / "splits_final.json"


def test_folds_made_at_the_start(dataset: str, tmp_path: Path) -> None:
    splits(tmp_path, dataset).unlink()
    validated = []
    for fold in range(3):  # as many as there are subjects with people's labels
        train, validation = trainer_of(dataset, "2d", fold).do_split()
        validated += validation
        assert {"S3_c0", "S3_c1"} <= set(train)
        assert ("S0_c1" in train) == ("S0_c0" not in validation)
        assert not {case[:2] for case in train} & {case[:2] for case in validation}
    assert sorted(validated) == ["S0_c0", "S1_c0", "S1_c1", "S2_c0", "S2_c1"]
    assert len(json.loads(splits(tmp_path, dataset).read_text())) == 3


def test_folds_that_validate_a_pseudo_label_are_refused(dataset: str) -> None:
    """Those of the phantom know nothing of pseudo-labels."""
    wrong = r'fold \d validates the case "S\d_c\d", whose label is a pseudo-label'
    with pytest.raises(DatasetError, match=wrong):
        [trainer_of(dataset, "2d", fold).do_split() for fold in range(2)]


def test_fold_all_trains_on_them_and_validates_people(dataset: str, tmp_path: Path) -> None:
    train, validation = trainer_of(dataset, "2d", "all").do_split()
    assert len(train) == 8
    assert set(train) - set(validation) == PSEUDO
    shutil.rmtree(tmp_path / "nnUNet_raw")
    (tmp_path / "nnUNet_raw" / dataset).mkdir(parents=True)
    train, validation = trainer_of(dataset, "2d", "all").do_split()
    assert list(train) == list(validation)  # as nnU-Net does, where no case table says otherwise

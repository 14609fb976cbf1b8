"""What the experiment of paper 003 refuses before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nnunet_qa.config import Unit
from nnunet_qa.errors import CurveError, DatasetError, DependencyError, SelectionError
from nnunet_qa.experiments.semi_qc import CRF, FULL, HALF, TWO
from nnunet_qa.files import write_json
from nnunet_qa.quality.curves import LabelScheme
from tests.experiments.semi_qc_stand_ins import NAME, experiment_on, write_hearts


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hearts(tmp_path_factory.mktemp("semi_qc_refused"))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"number": 4}, SelectionError, "4 acquisitions are to join the training, but the pool of draw 0 has 3; lower"),
        ({"number": 13, "unit": Unit.CASE, "scheme": None}, SelectionError, "13 cases are to join .* has 12"),
        ({"unit": Unit.CASE}, SelectionError, "curves judge whole acquisitions; choose acquisitions too"),
        (
            {"scheme": LabelScheme.custom("lv=1")},
            SelectionError,
            'the label 2 is not in the label scheme "custom"; name another',
        ),
        ({"half": 0.1}, DatasetError, "5 subjects are left beside test and validation; 0 annotated ones are too few"),
        ({"half": 0.95}, DatasetError, "5 annotated ones are too few, or leave no pool. Change the half"),
        ({"test_folds": 9}, DatasetError, "8 subjects cannot be parted into 9 test folds"),
    ],
)
def test_what_could_not_be_run_is_refused_at_once(
    source: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        experiment_on(source, tmp_path / "out", **changes).check([0])
    assert not (tmp_path / "out").exists()


def test_an_arm_or_labels_that_are_not_there_are_refused_at_once(source: Path, tmp_path: Path) -> None:
    experiment_on(source, tmp_path / "out").check([0, 1], [TWO])
    with pytest.raises(SelectionError, match=r'unknown arm "half_bets" \(did you mean "half_best"\?\)'):
        experiment_on(source, tmp_path / "out").check([0], ["half_bets"])
    bare = with_table(source, tmp_path, pd.read_csv(source / "cases.csv").assign(role="unlabelled"))
    with pytest.raises(DatasetError, match=r"cases\.csv: no case is labelled"):
        experiment_on(bare, tmp_path / "out").check([0])
    assert not (tmp_path / "out").exists()


def with_table(source: Path, folder: Path, table: pd.DataFrame) -> Path:
    """What the check sees of the dataset, with another case table."""
    bare = folder / NAME
    bare.mkdir()
    (bare / "dataset.json").symlink_to(source / "dataset.json")
    table.to_csv(bare / "cases.csv", index=False)
    return bare


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.assign(frame_index=""), "P0_sa: a frame has no number; give frame_index"),
        # as `nnunet-qa phantom dataset` writes them: ED and ES are the only frames of labelled subjects
        (lambda table: table[table["phase"].notna()], r"P0_sa: frame 1 is missing in the case table \(the next is 2\)"),
        (lambda table: table[table["case_id"] != "P4_fr002"], "P4_sa: frame 2 is missing in the case table"),
        (lambda table: table[table["frame_index"] == 0], r"P0_sa: has 1 frame\(s\), which make no curve"),
        (
            lambda table: table.assign(frame_index=table["frame_index"].where(table["case_id"] != "P4_fr002", 1)),
            "P4_sa: frame 1 is there more than once",
        ),
        (
            lambda table: table.assign(role=table["role"].where(table["case_id"] != "P4_fr003", "unlabelled")),
            'P4_sa: the frame "P4_fr003" is unlabelled, not labelled',
        ),
    ],
)
def test_series_that_are_not_annotated_in_every_frame_are_refused_at_once(
    source: Path, tmp_path: Path, change: Any, said: str
) -> None:
    bare = with_table(source, tmp_path, change(pd.read_csv(source / "cases.csv")))
    with pytest.raises(CurveError, match=rf"cases\.csv: {said}.*--labelled-frames all") as caught:
        experiment_on(bare, tmp_path / "out").check([0])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    experiment_on(bare, tmp_path / "out", scheme=None).check([0], [HALF])  # no curves, nothing to complete


def test_series_without_any_annotated_frame_are_of_no_matter(source: Path, tmp_path: Path) -> None:
    table = pd.read_csv(source / "cases.csv")
    more = {"case_id": "U_fr005", "subject_id": "U", "stack_id": "U_sa", "frame_index": 5, "role": "unlabelled"}
    experiment_on(with_table(source, tmp_path, pd.concat([table, pd.DataFrame([more])])), tmp_path / "out").check([0])


def test_without_the_library_the_crf_is_refused_at_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    experiment = experiment_on(source, tmp_path / "out")
    for arms in (None, [FULL, CRF]):
        with pytest.raises(DependencyError, match=r"needs pydensecrf2.*pip install nnunet-qa\[crf\]"):
            experiment.check([0], arms)
    assert not (tmp_path / "out").exists()
    experiment.check([0], [TWO])
    write_json(experiment.runner.cell(CRF, 0).folder / "done.json", {})
    experiment.check([0])  # nothing is left for the library to do
    with pytest.raises(DependencyError):
        experiment.check([0, 1])

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.qc_labels import labelled, labels_by_dice, read_qc_labels
from tests.quality.easy_curves import acquisition


def written(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_of_people(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffcase,label,reviewer\na, good,K\n b ,Erroneous,K\n007,good,\n")
    assert read_qc_labels(path) == {"a": False, "b": True, "007": False}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("case,labels\na,good\n", 'the column "label" is missing (did you mean "labels"?)'),
        ("id,label\na,good\n", 'the column "case" is missing'),
        ("case,label\n", "holds no row"),
        ("", "is not a CSV file that can be read"),
        ("case,label\na,goood\n", '"a" has the label "goood" (did you mean "good"?); labels are good and erroneous'),
        ("case,label\na,\n", '"a" has the label ""; labels are'),
        ("case,label\na,good\na,erroneous\n", '"a" stands there more than once'),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SelectionError) as error:
        read_qc_labels(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"none\.csv: not found; write one row an acquisition: case,label"):
        read_qc_labels(tmp_path / "none.csv")


def test_labels_by_the_mean_dice_of_all_frames(tmp_path: Path) -> None:
    path = written(tmp_path, "case_id,dice\na_0,0.9\na_1,0.5\nb_0,0.6\nb_1,0.7\nc_0,1\n")
    rows = [
        {"case_id": f"{stack}_{frame}", "subject_id": f"s{stack}", "stack_id": stack if stack != "c" else "",
         "frame_index": frame, "role": "test"}
        for stack in "abc"
        for frame in (0, 1)
    ]  # fmt: skip
    cases = CaseTable.from_rows(rows)
    assert labels_by_dice(path, below=0.7, cases=cases) == {"a": False, "b": True, "sc": False}
    alone = labels_by_dice(path, below=0.7)
    assert alone == {"a_0": False, "a_1": True, "b_0": True, "b_1": False, "c_0": False}


def test_a_dice_table_of_another_dataset_is_refused(tmp_path: Path) -> None:
    cases = CaseTable.from_rows([{"case_id": "a_0", "role": "test"}])
    with pytest.raises(SelectionError, match='the case "x_0" is not in the case table'):
        labels_by_dice(written(tmp_path, "case_id,dice\na_0,1\nx_0,1\n"), below=0.7, cases=cases)
    for below in (0.0, 1.1):
        with pytest.raises(SelectionError, match="cannot part good from erroneous"):
            labels_by_dice(written(tmp_path, "case_id,dice\na_0,1\n"), below=below)
    with pytest.raises(SelectionError, match='"a_0" has dice "2"'):
        labels_by_dice(written(tmp_path, "case_id,dice\na_0,2\n"), below=0.5)


def test_acquisitions_without_a_label_are_left_out() -> None:
    some = [acquisition({"lv": np.ones((3, 1), dtype=np.int64)}, name=name) for name in ("a1", "b1", "c1")]
    chosen, erroneous = labelled(some, {"c1": True, "a1": False, "z": True})
    assert [one.acquisition_id for one in chosen] == ["a1", "c1"]
    assert erroneous.tolist() == [False, True]
    with pytest.raises(
        SelectionError, match=r'no acquisition has a label; "a2" is .* none of them \(did you mean "a1"'
    ):
        labelled(some, {"a2": True})

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import CaseTableError, SelectionError
from nnunet_qa.quality.table import write_quality
from nnunet_qa.selection.best_in_class import Estimator, best_in_class
from nnunet_qa.selection.best_in_class_files import read_estimators, read_ranking, write_ranking
from tests.selection.test_best_in_class import SCORES, cine_table

POOL = [f"{stack}_fr00{frame}" for stack in ("A1", "A2", "B1", "C") for frame in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of all estimators for the pool of `cine_table`; Q judges annotated cases too."""
    cases = [*POOL, "D1_fr000"]
    rows = {"case_id": cases, "role": "", "level": "case", "slice_axis": None, "slice_index": None}
    write_quality(tmp_path / "quality.csv", pd.DataFrame({**rows, "q": [n / 20 for n in range(13)]}))
    codes = pd.DataFrame({"case_id": POOL, "predicted_code": [n / 5 - 0.1 for n in range(12)], "code": 1, "model": "m"})
    codes.to_csv(tmp_path / "codes.csv", index=False)
    (tmp_path / "curves.csv").write_text("acquisition_id,p_erroneous\nA1,0.1\nA2,0.2\nB1,0.3\nC,0.4\nD1,0.5\n")
    pd.DataFrame({"case_id": POOL, "pairwise_dice": 0.5}).to_csv(tmp_path / "ensemble.csv", index=False)
    return tmp_path


def files(folder: Path) -> dict[Estimator, Path]:
    names = {"q": "quality.csv", "code": "codes.csv", "curves": "curves.csv", "ensemble": "ensemble.csv"}
    return {Estimator(name): folder / file for name, file in names.items()}


def test_values_of_every_estimator_by_case(folder: Path) -> None:
    found = read_estimators(files(folder), cine_table())
    assert list(found) == ["q", "code", "curves", "ensemble"]
    for values in found.values():
        assert values.index.tolist() == sorted(POOL)
    assert found["q"]["A2_fr000"] == 0.15
    assert found["code"]["A1_fr001"] == pytest.approx(0.1)
    assert found["curves"].to_dict() == {
        case: {"1": 0.1, "2": 0.2}.get(case[1], 0.4) if case[0] in "AC" else 0.3 for case in POOL
    }


def test_cases_that_one_estimator_has_not_judged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (folder / "curves.csv").write_text("acquisition_id,p_erroneous\nB1,0.3\n")
    found = read_estimators(files(folder), cine_table())
    assert found["q"].index.tolist() == ["B1_fr000", "B1_fr001", "B1_fr002"]
    assert "9 of 12 unlabelled cases were not judged" in caplog.text


def test_an_empty_prediction_does_not_come_first(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    table = pd.read_csv(folder / "quality.csv")
    table = table.assign(q=1.0, union_voxels=(table["case_id"] != "A1_fr001") * 5)
    table.to_csv(folder / "quality.csv", index=False)
    found = read_estimators({Estimator.Q: folder / "quality.csv"}, cine_table())["q"]
    assert found[found < 1].to_dict() == {"A1_fr001": 0.0}
    assert "1 empty predictions count as q = 0" in caplog.text
    pd.DataFrame({"case_id": POOL, "pairwise_dice": 1.0, "union_voxels": [5] * 11 + [0]}).to_csv(
        folder / "ensemble.csv", index=False
    )
    found = read_estimators({Estimator.ENSEMBLE: folder / "ensemble.csv"}, cine_table())["ensemble"]
    assert found[found < 1].to_dict() == {POOL[-1]: 0.0}
    assert "1 empty predictions count as pairwise_dice = 0" in caplog.text
    codes = pd.read_csv(folder / "codes.csv").assign(union_voxels=0)
    codes.to_csv(folder / "codes.csv", index=False)
    assert (read_estimators({Estimator.CODE: folder / "codes.csv"}, cine_table())["code"] != 0).all()  # 0 is the best


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "not found; `nnunet-qa curve-classifier predict` writes it"),
        ("", "is not a CSV"),
        ("acquisition_id,p_erroneous\n", "holds no row"),
        ("acquisition,p_erroneous\nA1,0.5\n", r'column "acquisition_id" is missing .did you mean "acquisition"'),
        ("acquisition_id,p\nA1,0.5\n", 'column "p_erroneous" is missing'),
        ("acquisition_id,p_erroneous\nA1,0.5\nA1,0.6\n", '"A1" stands there more than once'),
        ("acquisition_id,p_erroneous\nA1,\n", '"A1" has p_erroneous = "nan", which is not a number'),
        ("acquisition_id,p_erroneous\nA1,bad\n", 'p_erroneous = "bad"'),
        ("acquisition_id,p_erroneous\nA1,1.5\n", "p_erroneous = 1.5, which is not between 0 and 1"),
        ("acquisition_id,p_erroneous\nD1,0.5\n", "judge no unlabelled case of cases.csv"),
    ],
)
def test_files_that_are_wrong(folder: Path, content: str | None, text: str) -> None:
    path = folder / "curves.csv"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(SelectionError, match=text):
        read_estimators({Estimator.CURVES: path}, cine_table())


def test_files_of_another_dataset(folder: Path) -> None:
    (folder / "curves.csv").write_text("acquisition_id,p_erroneous\nZ9,0.5\n")
    with pytest.raises(CaseTableError, match=r'curves.csv: the acquisition "Z9" is not in cases.csv'):
        read_estimators({Estimator.CURVES: folder / "curves.csv"}, cine_table())
    (folder / "codes.csv").write_text("case_id,predicted_code\nA1_fr0,0.5\n")
    with pytest.raises(CaseTableError, match=r'the case "A1_fr0" is not in cases.csv .did you mean "A1_fr00'):
        read_estimators({Estimator.CODE: folder / "codes.csv"}, cine_table())


def test_an_empty_pool(folder: Path) -> None:
    table = CaseTable.from_rows([{"case_id": "A", "role": "labelled"}])
    (folder / "codes.csv").write_text("case_id,predicted_code\nA,0.5\n")
    with pytest.raises(SelectionError, match="no case with the role unlabelled"):
        read_estimators({Estimator.CODE: folder / "codes.csv"}, table)


def test_a_ranking_comes_back_as_it_was_written(tmp_path: Path) -> None:
    ranking = best_in_class(SCORES, number=2, unit="acquisition", cases=cine_table()).assign(q=0.25)
    write_ranking(tmp_path / "ranking.csv", ranking, dataset="Dataset111_Cine", model="fold_0", estimator="q")
    found = read_ranking(tmp_path / "ranking.csv", dataset="Dataset111_Cine")
    pd.testing.assert_frame_equal(found[list(ranking.columns)], ranking)
    assert found[["dataset", "model", "estimator"]].drop_duplicates().values.tolist() == [
        ["Dataset111_Cine", "fold_0", "q"]
    ]
    with pytest.raises(SelectionError, match='ranks the pool of "Dataset111_Cine", not of Dataset112_Other'):
        read_ranking(tmp_path / "ranking.csv", dataset="Dataset112_Other")
    found.drop(columns="model").to_csv(tmp_path / "ranking.csv", index=False)
    with pytest.raises(SelectionError, match='column "model" is missing'):
        read_ranking(tmp_path / "ranking.csv", dataset="Dataset111_Cine")
    with pytest.raises(SelectionError, match="not found; `nnunet-qa best-in-class` writes it"):
        read_ranking(tmp_path / "nowhere.csv", dataset="Dataset111_Cine")

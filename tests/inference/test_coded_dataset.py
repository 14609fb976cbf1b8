from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import DatasetError, ModelError, SelectionError
from nnunet_qa.inference.coded_dataset import CodedDataset, gather
from nnunet_qa.quality.codes import CodeThresholds
from tests.body import one_thread
from tests.inference.test_case_montages import source_of
from tests.inference.test_coded_cases import CASES, damaged

THRESHOLDS = CodeThresholds()
POOL = [f"P0_c{c}" for c in range(4)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def dataset(planned: dict[str, str]) -> CodedDataset:
    return CodedDataset.find("701", "nnUNetPlans")


@pytest.fixture
def predictions(planned: dict[str, str], tmp_path: Path) -> Path:
    return damaged(source_of(planned["2d"]), tmp_path / "predictions")


def codes_file(folder: Path, rows: dict[str, int]) -> Path:
    path = folder / "qa_codes.csv"
    path.write_text("case_id,code\n" + "".join(f"{case},{code}\n" for case, code in rows.items()))
    return path


def montages(dataset: CodedDataset, **given: Any) -> Any:
    nothing = {"predictions": None, "codes": None, "truths": None, "model": None, "per_code": None}
    drawer = dataset.renderer("2d", dataset.settings, slices=None)
    how: dict[str, Any] = {"thresholds": THRESHOLDS, "rng": np.random.default_rng(0), "jobs": 1}
    return gather(dataset, drawer, **{**nothing, **how, **given})


def test_people_and_dice_of_the_same_predictions(dataset: CodedDataset, predictions: Path, tmp_path: Path) -> None:
    codes = codes_file(tmp_path, {CASES[0]: 0, CASES[5]: 2})
    files, table = dataset.coded(predictions, codes=codes, truths=dataset.raw / "labelsTr", thresholds=THRESHOLDS)
    assert [case.case_id for case in files] == CASES
    assert [case.subject for case in files] == [case[:2] for case in CASES]
    people = table[table["source"] == "human"].set_index("case_id")
    by_dice = table[table["source"] == "dice"].set_index("case_id")
    assert people["code"].to_dict() == {CASES[0]: 0, CASES[5]: 2}
    assert people["dice"].to_dict() == by_dice["dice"].loc[people.index].to_dict()
    assert by_dice["code"].tolist() == [int(THRESHOLDS.code(dice)) for dice in by_dice["dice"]]


def test_predictions_without_a_truth_are_left_out(dataset: CodedDataset, predictions: Path) -> None:
    (predictions / f"{CASES[0]}.png").replace(predictions / f"{POOL[0]}.png")
    files, table = dataset.coded(predictions, codes=None, truths=dataset.raw / "labelsTr", thresholds=THRESHOLDS)
    assert table["case_id"].tolist() == [case.case_id for case in files] == CASES[1:]


def test_cross_validation(dataset: CodedDataset, predictions: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    for fold, cases in (("fold_0", CASES[:3]), ("fold_1", CASES[3:6]), ("fold_all", CASES[6:])):
        for case in cases:
            path = model / fold / "validation" / f"{case}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((predictions / f"{case}.png").read_bytes())
        (path.parent / "summary.json").write_text("{}")
    first, second = dataset.cross_validation(model, THRESHOLDS)
    assert first[1]["case_id"].tolist() == CASES[:3]
    assert second[1]["case_id"].tolist() == CASES[3:6]
    assert set(first[1]["source"]) == {"cross_validation"}
    assert second[0][0].labels == model / "fold_1" / "validation" / f"{CASES[3]}.png"
    with pytest.raises(ModelError, match="no fold_X/validation with predictions"):
        dataset.cross_validation(tmp_path, THRESHOLDS)


def test_cases_that_label_only_some_classes_are_left_out(dataset: CodedDataset, predictions: Path) -> None:
    assert dataset.table is not None
    frame = dataset.table.frame.assign(labelled_classes="")
    frame.loc[frame["case_id"].isin(CASES[:2]), "labelled_classes"] = "large"
    partial = replace(dataset, table=CaseTable(frame))
    assert [case.case_id for case in partial.annotated()] == CASES[2:]
    _, table = partial.coded(predictions, codes=None, truths=dataset.raw / "labelsTr", thresholds=THRESHOLDS)
    assert table["case_id"].tolist() == CASES[2:]
    frame["labelled_classes"] = "large"
    with pytest.raises(DatasetError, match="every case labels only some of the classes; use --no-simulate"):
        replace(dataset, table=CaseTable(frame)).annotated()


def test_everything_together(dataset: CodedDataset, predictions: Path, tmp_path: Path) -> None:
    codes = codes_file(tmp_path, {CASES[0]: 2, CASES[4]: 1})
    found = montages(dataset, predictions=predictions, codes=codes, per_code=1)
    assert found.sources == ("human",) * 2 + ("simulated",) * 24
    assert found.codes.tolist() == [2, 1, *[0, 1, 2] * 8]
    assert found.subjects[:4] == ("S0", "S2", "S0", "S0")
    assert np.isnan(found.dice[:2]).all()


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        ({CASES[0]: 0, CASES[3]: 1}, r"no case has code 2; the discriminator needs all three"),
        ({CASES[0]: 0, CASES[1]: 1}, r"no case has code 2"),
        ({CASES[0]: 0, "S9_z": 1}, r'qa_codes\.csv: the case "S9_z" is unknown'),
        ({CASES[0]: 3}, r'has code "3"; codes are 0 success'),
    ],
)
def test_too_few_or_wrong_codes(
    dataset: CodedDataset,
    predictions: Path,
    tmp_path: Path,
    codes: dict[str, int],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be drawn before the codes were looked at")

    monkeypatch.setattr("nnunet_qa.inference.coded_dataset.coded_montages", never)
    with pytest.raises(SelectionError, match=text):
        montages(dataset, predictions=predictions, codes=codes_file(tmp_path, codes))


def test_one_subject_only(dataset: CodedDataset, predictions: Path, tmp_path: Path) -> None:
    assert dataset.table is not None
    same = replace(dataset, table=CaseTable(dataset.table.frame.assign(subject_id="S0")))
    codes = codes_file(tmp_path, {CASES[0]: 0, CASES[3]: 1, CASES[5]: 2})
    with pytest.raises(SelectionError, match='all montages are of the subject "S0"'):
        montages(same, predictions=predictions, codes=codes)


def test_what_is_missing(dataset: CodedDataset, predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="there are no codes to learn from"):
        montages(dataset)
    with pytest.raises(SelectionError, match=r"qa_codes\.csv: name the folder of the predictions"):
        montages(dataset, codes=codes_file(tmp_path, {CASES[0]: 0}))
    with pytest.raises(SelectionError, match="give the codes of these predictions"):
        montages(dataset, predictions=predictions)
    with pytest.raises(DatasetError, match=r"holds no truth with the ending \.png"):
        montages(dataset, predictions=predictions, truths=tmp_path)
    with pytest.raises(DatasetError, match=r"P0_c0\.png: not found; predict the case first"):
        montages(dataset, predictions=predictions, codes=codes_file(tmp_path, {"P0_c0": 0}))

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.judged_codes import add_to_quality, judge_against_dice, metrics_by_source
from nnunet_qa.quality.table import read_quality, write_quality

RNG = np.random.default_rng(1)
DICE = RNG.uniform(0, 1, 30)
TABLE = pd.DataFrame(
    {
        "case_id": [f"case{k:02d}" for k in range(30)],
        "subject_id": [f"S{k // 3}" for k in range(30)],
        "dice": DICE,
        "predicted_code": 2 - 2 * DICE + RNG.normal(0, 0.4, 30),
        "q": DICE + RNG.normal(0, 0.2, 30),
    }
)


def test_metrics_of_each_source() -> None:
    codes = np.array([0, 0, 1, 2, 2, 1])
    predicted = np.array([-0.6, 0.7, 1.2, 1.4, 9.0, 0.4])
    rounded = [0, 1, 1, 1, 2, 0]
    metrics = metrics_by_source(predicted, codes, ["human"] * 4 + ["dice"] * 2)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(codes, rounded))
    assert metrics["recall"] == pytest.approx(recall_score(codes, rounded, average=None).tolist())
    human, dice = metrics["by_source"]["human"], metrics["by_source"]["dice"]
    assert (human["n"], dice["n"]) == (4, 2)
    assert human["accuracy"] == pytest.approx(accuracy_score(codes[:4], rounded[:4]))
    assert human["auroc"] == pytest.approx(roc_auc_score(codes[:4] == 0, -predicted[:4]))
    assert dice["auroc"] is None  # no success among them


def test_low_codes_and_high_q_are_good() -> None:
    judged = judge_against_dice(TABLE, failure_dice=0.5, rng=np.random.default_rng(0), resamples=50)
    assert list(judged) == ["qa_code", "q"]
    for name, sign in (("predicted_code", -1), ("q", 1)):
        values = judged["qa_code" if sign < 0 else "q"]["values"]
        assert values["spearman"] == pytest.approx(spearmanr(sign * TABLE[name], DICE).statistic)
        assert values["auroc"] == pytest.approx(roc_auc_score(DICE < 0.5, -sign * TABLE[name]))
        low, high = judged["qa_code" if sign < 0 else "q"]["intervals"]["spearman"]
        assert low < values["spearman"] < high
    assert judged["q"]["subjects"] == 10


def test_cases_without_a_dice_are_left_out() -> None:
    table = TABLE.drop(columns="q")
    table.loc[5:, "dice"] = np.nan
    judged = judge_against_dice(table, failure_dice=0.01, rng=np.random.default_rng(0), resamples=0)
    assert list(judged) == ["qa_code"]
    assert judged["qa_code"]["cases"] == 5
    assert judged["qa_code"]["values"]["auroc"] is None
    table["dice"] = np.nan
    assert judge_against_dice(table, failure_dice=0.5, rng=np.random.default_rng(0), resamples=0) == {}


def test_a_column_of_the_quality_table(tmp_path: Path) -> None:
    rows = [
        {"case_id": case, "role": "", "level": level, "slice_axis": place, "slice_index": place, "q": 0.5, "extra": 7}
        for case in ("0012", "b")
        for level, place in (("case", None), ("slice", 0))
    ]
    path = tmp_path / "quality.csv"
    write_quality(path, pd.DataFrame(rows))
    before = path.read_text()
    add_to_quality(path, pd.DataFrame({"case_id": ["0012", "z"], "predicted_code": [1.25, 0.0]}))
    table = read_quality(path).set_index("case_id")
    assert table["qa_code"].to_dict() == {"0012": 1.25, "b": pytest.approx(np.nan, nan_ok=True)}
    assert read_quality(path, "slice")["qa_code"].isna().all()
    assert [line.rpartition(",")[0] for line in path.read_text().splitlines()] == before.splitlines()
    with pytest.raises(SelectionError, match="none of its cases was judged"):
        add_to_quality(path, pd.DataFrame({"case_id": ["z"], "predicted_code": [0.0]}))

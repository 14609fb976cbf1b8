from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from nnunet_qa.errors import ConfigError, SelectionError
from nnunet_qa.quality.codes import (
    COLUMNS,
    Code,
    CodeSource,
    CodeThresholds,
    mean_dice,
    read_codes,
    read_dice,
    write_codes,
)

HEADER = "case_id,code,reviewer,time,source"


def table(path: Path, *lines: str, header: str = HEADER) -> Path:
    file = path / "qa_codes.csv"
    file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("dice", "code"), [(1, 0), (0.8, 0), (0.7999, 1), (0.5, 1), (0.4999, 2), (0, 2)], ids=lambda value: str(value)
)
def test_code_of_a_dice(dice: float, code: int) -> None:
    assert CodeThresholds().code(dice) == code


def test_other_thresholds() -> None:
    assert [CodeThresholds(0.95, 0.9).code(dice) for dice in (0.96, 0.92, 0.8)] == [0, 1, 2]
    assert [CodeThresholds(0.7, 0.7).code(dice) for dice in (0.7, 0.69)] == [0, 2]  # two codes only


@pytest.mark.parametrize(("success", "failure"), [(0.5, 0.8), (1.1, 0.5), (0.5, 0), (0.5, -1), (float("nan"), 0.5)])
def test_thresholds_that_contradict_each_other(success: float, failure: float) -> None:
    with pytest.raises(ConfigError, match="0 < failure <= success <= 1"):
        CodeThresholds(success, failure)


@pytest.mark.parametrize("dice", [float("nan"), -0.1, 1.1])
def test_what_is_no_dice(dice: float) -> None:
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        CodeThresholds().code(dice)


@pytest.mark.parametrize("shape", [(12, 14), (5, 6, 7)])
def test_mean_dice_by_scikit_learn(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 4, (2, *shape))
    expected = f1_score(truth.ravel(), prediction.ravel(), labels=[1, 2, 3], average=None)
    # class 4 is in neither and does not count
    assert mean_dice(prediction, truth, [(1,), (2,), (3,), (4,)]) == pytest.approx(expected.mean())
    whole = f1_score(truth.ravel() > 0, prediction.ravel() > 0)
    assert mean_dice(prediction, truth, [(1, 2, 3), (2,)]) == pytest.approx((whole + expected[1]) / 2)
    assert mean_dice(np.zeros_like(truth), truth, [(1,), *((value,) for value in range(10, 19))]) == 0.0
    assert mean_dice(np.zeros_like(truth), np.zeros_like(truth), [(1,), (2,)]) == 1.0
    with pytest.raises(ValueError, match="no class"):
        mean_dice(prediction, truth, [])


def test_codes_of_people(tmp_path: Path) -> None:
    path = table(tmp_path, "b,2,MK,2024-05-01T10:00", "007,0.0,,", header="\ufeffcase_id,code,reviewer,time")
    frame = read_codes(path, {"007", "b"})
    assert tuple(frame.columns) == COLUMNS
    assert frame["case_id"].tolist() == ["007", "b"]
    assert frame["code"].tolist() == [0, 2]
    assert frame["reviewer"].tolist() == ["", "MK"]
    assert frame["source"].tolist() == ["human", "human"]
    assert frame["dice"].isna().all()


def test_codes_from_the_dice(tmp_path: Path) -> None:
    dice = {"a": 0.9, "b": 0.6, "c": 0.1234567}
    rows = [
        {"case_id": case, "code": CodeThresholds().code(value), "source": CodeSource.CROSS_VALIDATION, "dice": value}
        for case, value in dice.items()
    ]
    path = tmp_path / "out" / "qa_codes.csv"
    write_codes(path, pd.DataFrame(rows).assign(note="n"))
    assert path.read_text().splitlines()[1] == "a,0,,,cross_validation,0.9,n"
    frame = read_codes(path)
    assert frame["code"].tolist() == [Code.SUCCESS, Code.MINOR, Code.FAILURE]
    assert frame["dice"].tolist() == pytest.approx([0.9, 0.6, 0.123457])
    assert frame["note"].tolist() == ["n"] * 3
    write_codes(tmp_path / "again.csv", frame)
    assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()


def test_codes_of_an_evaluation(tmp_path: Path) -> None:
    path = table(tmp_path, "b,0.85,0.7,x", "a,0.4999,0,y", "c,0.5,1,z", header="case_id,dice,dice_fluid,role")
    frame = read_dice(path, CodeThresholds())
    assert tuple(frame.columns) == COLUMNS
    assert dict(zip(frame["case_id"], frame["code"], strict=True)) == {"a": 2, "b": 0, "c": 1}
    assert frame["dice"].tolist() == [0.4999, 0.85, 0.5]
    assert set(frame["source"]) == {"dice"}
    assert read_dice(path, CodeThresholds(0.9, 0.6))["code"].tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    ("header", "lines", "text"),
    [
        ("case_id,dice", ["a,"], 'the case "a" has dice ""; it must be between 0 and 1'),
        ("case_id,dice", ["a,1.5"], 'has dice "1.5"'),
        ("case_id,dice", ["a,0.5", "a,0.6"], '"a" has more than one code'),
        ("case_id,dice_1", ["a,0.5"], 'the column "dice" is missing (did you mean "dice_1"?)'),
        ("case,dice", ["a,0.5"], 'the column "case_id" is missing'),
        ("case_id,dice", [], "holds no row"),
    ],
)
def test_evaluations_without_a_dice(tmp_path: Path, header: str, lines: list[str], text: str) -> None:
    path = table(tmp_path, *lines, header=header)
    with pytest.raises(SelectionError) as raised:
        read_dice(path, CodeThresholds())
    assert str(raised.value).startswith(f"{path}: ")
    assert text in str(raised.value)


def test_a_case_can_have_a_code_of_each_source(tmp_path: Path) -> None:
    frame = read_codes(table(tmp_path, "a,1,MK,,", "a,2,,,dice"))
    assert frame[["source", "code"]].to_numpy().tolist() == [["dice", 2], ["human", 1]]


@pytest.mark.parametrize(
    ("header", "lines", "text"),
    [
        (HEADER, ["a,3,,,"], 'the case "a" has code "3"; codes are 0 success'),
        (HEADER, ["a,-1,,,"], 'has code "-1"'),
        (HEADER, ["a,0.5,,,"], 'has code "0.5"'),
        (HEADER, ["a,good,,,"], 'has code "good"'),
        (HEADER, ["a,,,,"], 'has code ""'),
        (HEADER, ["a,0,,,", "b,1,,,robot"], 'the case "b" has source "robot"; sources are human, '),
        (HEADER, ["a,0,,,", ",1,,,"], "line 3 has no case_id"),
        (HEADER, ["a,0,X,,", "a,1,Y,,human"], '"a" has more than one code of source human; keep one'),
        (HEADER, ["cose1,0,,,"], 'the case "cose1" is unknown (did you mean "case1"?)'),
        (HEADER, [], "holds no row; write one a case"),
        ("case_id,codes", ["a,0"], 'the column "code" is missing (did you mean "codes"?)'),
        ("case_id;code", ["a;0"], 'the column "case_id" is missing'),
        (HEADER + ",dice", ["a,0,,,,1.2"], 'the case "a" has dice "1.2"; it must be between 0 and 1'),
        (HEADER + ",dice", ["a,0,,,,much"], 'has dice "much"'),
        (HEADER, ["a,0,K, M,,"], "more fields than the header; put texts with a comma in quotes"),
        (HEADER, ["a,0,K,,", "b,0,K, M,,"], "is not a CSV file that can be read"),
    ],
)
def test_mistakes(tmp_path: Path, header: str, lines: list[str], text: str) -> None:
    path = table(tmp_path, *lines, header=header)
    with pytest.raises(SelectionError) as raised:
        read_codes(path, {"a", "b", "case1"})
    assert str(raised.value).startswith(f"{path}: ")
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="not found"):
        read_codes(tmp_path / "none.csv")
    for content in (b"", b"case_id,code\n\xff\xfe,1\n"):
        (tmp_path / "bad.csv").write_bytes(content)
        with pytest.raises(SelectionError, match="not a CSV file that can be read"):
            read_codes(tmp_path / "bad.csv")


def test_nothing_wrong_is_written(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match='code "7"'):
        write_codes(tmp_path / "out.csv", pd.DataFrame([{"case_id": "a", "code": 7}]))
    assert not (tmp_path / "out.csv").exists()

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.cli import evaluate
from nnunet_qa.errors import ConfigError, NnunetQAError, SelectionError
from tests.small import run_command


def write(path: Path, *codes: int, source: str = "human") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"c{number},{code},{source}" for number, code in enumerate(codes)]
    path.write_text("\n".join(["case_id,code,source", *rows]))
    return path


def write_dice(path: Path, *dice: object) -> Path:
    path.write_text("\n".join(["case_id,dice", *(f"c{number},{value}" for number, value in enumerate(dice))]))
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write(tmp_path / "a.csv", 0, 2, 2, 2, 2, 2, 2, 1)
    write(tmp_path / "b.csv", 0, 0, 0, 0, 0, 0, 0, 1)
    write(tmp_path / "c.csv", 0, 2, 2, 2, 2, 2, 1, 1)
    write_dice(tmp_path / "a_dice.csv", 0.9, 0.75, 0.45)
    write_dice(tmp_path / "b_dice.csv", 0.95, 0.85, 0.55)
    return tmp_path


def test_three_arms(files: Path) -> None:
    arms = [word for name in "abc" for word in ("--arm", f"arm {name}={files / f'{name}.csv'}")]
    result = run_command(evaluate, "codes", *arms, "-o", files / "out")
    assert result.exit_code == 0, result.exception
    codes = pd.read_csv(files / "out" / "codes.csv")
    assert codes["code_arm b"].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    content = json.loads((files / "out" / "codes.json").read_text())
    assert content["about"]["arm c"] == str(files / "c.csv")
    assert content["reference"] == "arm a"
    assert [row["p_success"] for row in content["tests"]] == [2 / 2**6, None]
    assert [row["p_failure_holm"] for row in content["tests"]] == [4 / 2**6, 1.0]
    assert (files / "out" / "codes.png").read_bytes().startswith(b"\x89PNG")
    assert "7 (87.5%)" in result.stdout
    assert "7 (87.5%)" in (files / "out" / "codes.md").read_text()
    assert str(files / "out" / "codes.png") in result.stderr


@pytest.mark.parametrize(
    ("limits", "reference", "other"),
    [
        ([], [1, 1, 1], [2, 1, 0]),
        (["--success", 0.7], [2, 0, 1], [2, 1, 0]),
        (["--failure", 0.6, "--success", 0.9], [1, 1, 1], [1, 1, 1]),
    ],
)
def test_codes_from_the_dice(files: Path, limits: list[object], reference: list[int], other: list[int]) -> None:
    arms = ["--dice", f"a={files / 'a_dice.csv'}", "--dice", f"b={files / 'b_dice.csv'}"]
    result = run_command(evaluate, "codes", *arms, *limits, "-o", files)
    assert result.exit_code == 0, result.exception
    content = json.loads((files / "codes.json").read_text())
    assert content["source"] == "dice"
    assert [list(content["counts"][arm].values()) for arm in "ab"] == [reference, other]
    assert {"success from Dice", "failure below Dice"} <= set(content["about"])


def test_one_of_several_sources(files: Path) -> None:
    for name, code in (("a", 2), ("b", 0)):
        with (files / f"{name}.csv").open("a") as file:
            file.write(f"\nc0,{code},dice\nc1,{code},dice")
    arms = ["--arm", f"a={files / 'a.csv'}", "--arm", f"b={files / 'b.csv'}", "-o", files]
    assert "holds codes of the sources dice, human" in str(run_command(evaluate, "codes", *arms).exception)
    assert not (files / "codes.json").exists()
    assert run_command(evaluate, "codes", *arms, "--source", "dice").exit_code == 0
    assert json.loads((files / "codes.json").read_text())["counts"]["a"]["failure"] == 2
    assert run_command(evaluate, "codes", *arms, "--source", "human").exit_code == 0
    assert json.loads((files / "codes.json").read_text())["cases"] == 8


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        ("", SelectionError, "give the arms either with --arm NAME=qa_codes.csv or with --dice"),
        ("--arm a=a.csv --dice b=b_dice.csv", SelectionError, "either with --arm"),
        ("--arm a=a.csv", SelectionError, "at least two arms, found 1: a"),
        ("--arm a.csv --arm b=b.csv", SelectionError, '"a.csv": write NAME=FILE'),
        ("--arm =a.csv --arm b=b.csv", SelectionError, '"=a.csv": write NAME=FILE'),
        ("--arm a= --arm b=b.csv", SelectionError, '"a=": write NAME=FILE'),
        ("--arm a=a.csv --arm a=b.csv", SelectionError, 'two arms are called "a"'),
        ("--arm a=a.csv --arm b=none.csv", SelectionError, "none.csv: not found"),
        ("--arm a=a.csv --arm b=b.csv --success 0.9", SelectionError, "--success and --failure belong to --dice"),
        ("--arm a=a.csv --arm b=b.csv --source humans", SelectionError, 'did you mean "human"?'),
        ("--arm a=a.csv --arm b=b.csv --source dice", SelectionError, "a.csv: holds no code of source dice"),
        ("--dice a=a_dice.csv --dice b=b_dice.csv --source dice", SelectionError, "--source belongs to --arm"),
        ("--dice a=a_dice.csv --dice b=b_dice.csv --success 0.4", ConfigError, "success 0.4, failure 0.5; they must"),
        ("--dice a=a_dice.csv --dice b=a.csv", SelectionError, 'a.csv: the column "dice" is missing'),
        ("--dice a=a_dice.csv --dice b=wrong_dice.csv", SelectionError, '"c1" has dice ""; it must be between 0 and'),
        ("--arm a=a.csv --arm b=outside.csv", SelectionError, 'outside.csv: the case "c1" has code "3"'),
        ("--arm a=a.csv --arm b=twice.csv", SelectionError, 'twice.csv: the case "c0" has more than one code'),
        ("--arm a=a.csv --arm b=fewer.csv", SelectionError, '"c1" has a code in the arm "a" and none in the arm "b"'),
        ("--arm a=a.csv --arm b=by_dice.csv", SelectionError, 'arm "a" has codes of source human, the arm "b" of'),
    ],
)
def test_mistakes(
    files: Path, monkeypatch: pytest.MonkeyPatch, words: str, error: type[NnunetQAError], text: str
) -> None:
    monkeypatch.chdir(files)
    write(files / "outside.csv", 0, 3)
    write(files / "fewer.csv", 0)
    write(files / "by_dice.csv", 0, 0, 0, 0, 0, 0, 0, 0, source="dice")
    write_dice(files / "wrong_dice.csv", 0.9, "", 0.4)
    (files / "twice.csv").write_text("case_id,code\nc0,0\nc0,1\n")
    result = run_command(evaluate, "codes", *words.split(), "-o", files / "out")
    assert isinstance(result.exception, error)
    assert text in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (files / "out").exists()

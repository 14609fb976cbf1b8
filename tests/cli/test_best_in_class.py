from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.cli import best_in_class
from nnunet_qa.errors import CaseTableError, SelectionError
from nnunet_qa.quality.table import write_quality
from nnunet_qa.selection.best_in_class_files import read_ranking
from tests.small import NAME, run_command, tiny_dataset

POOL = ("S1_b", "S4_a", "S4_b", "S5_a")


@pytest.fixture
def base(fresh_folders: Path) -> Path:
    """Q and codes of the pool; the codes say the opposite of Q but for S5_a, the best of both."""
    raw = tiny_dataset(fresh_folders, pool=POOL)
    frame = CaseTable.read(raw / "cases.csv").frame
    CaseTable(frame.assign(stack_id=frame["case_id"].where(frame["case_id"] != "S5_a", ""))).write(raw / "cases.csv")
    cases = [*POOL, "S1_a"]
    rows = {"case_id": cases, "role": "", "level": "case", "slice_axis": None, "slice_index": None}
    write_quality(fresh_folders / "quality.csv", pd.DataFrame({**rows, "q": [0.6, 0.7, 0.8, 0.9, 1.0]}))
    codes = pd.DataFrame({"case_id": POOL, "predicted_code": [0.2, 0.4, 0.6, 0.1], "code": 0, "model": "m"})
    codes.to_csv(fresh_folders / "codes.csv", index=False)
    (fresh_folders / "curves.csv").write_text("acquisition_id,p_erroneous\nS1_b,0.5\nS4_a,0.1\nS4_b,0.2\nS5,0.9\n")
    return fresh_folders


def ranked(base: Path, *arguments: object) -> pd.DataFrame:
    result = run_command(best_in_class, "-d", 301, "--model", "fold_0", *arguments, "-o", base / "ranking.csv")
    assert result.exit_code == 0, result.exception
    return read_ranking(base / "ranking.csv", dataset=NAME)


def test_one_estimator(base: Path) -> None:
    table = ranked(base, "--quality", base / "quality.csv", "-k", 2)
    assert table["case_id"].tolist() == ["S5_a", "S4_b"]
    assert table["score"].tolist() == table["q"].tolist() == [0.9, 0.8]
    assert set(table["estimator"]) == {"q"}
    assert set(table["model"]) == {"fold_0"}


def test_a_floor_in_the_units_of_the_first_estimator(base: Path) -> None:
    files = ("--quality", base / "quality.csv", "--codes", base / "codes.csv")
    table = ranked(base, *files, "-k", 4, "--floor", "-0.4", "--weight", "code=1", "--weight", "q=3")
    assert table["case_id"].tolist() == ["S5_a", "S4_a", "S1_b"]  # S4_b has code 0.6
    assert table["score"].tolist() == [1.0, pytest.approx((3 * 1 + 1) / 12, abs=1e-6), pytest.approx(2 / 12, abs=1e-6)]
    assert set(table["estimator"]) == {"code:1 q:3"}
    assert ranked(base, *files, "-k", 4, "--floor", "0.75")["case_id"].tolist() == ["S5_a", "S4_b"]


def test_acquisitions_with_a_limit_for_each_subject(base: Path) -> None:
    given = ("--curves", base / "curves.csv", "--unit", "acquisition")
    assert ranked(base, *given, "-k", 3, "--per-subject", 1)["case_id"].tolist() == ["S4_a", "S1_b", "S5_a"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ([], SelectionError, "give at least one of --quality"),
        (["--quality", "quality.csv"], SelectionError, "best 30 cases were asked for, but the pool has only 4"),
        (
            ["--quality", "quality.csv", "--weight", "Q=1"],
            SelectionError,
            r'unknown estimator "Q" .did you mean "q"|"Q"',
        ),
        (["--quality", "quality.csv", "--weight", "q"], SelectionError, "give a number, as in --weight q=1"),
        (["--quality", "quality.csv", "--weight", "code=1"], SelectionError, '"code" has a weight and no values'),
        (["--codes", "nowhere.csv"], SelectionError, "nowhere.csv: not found; `nnunet-qa discriminator predict`"),
    ],
)
def test_mistakes(
    base: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: type[Exception], text: str
) -> None:
    monkeypatch.chdir(base)
    result = run_command(best_in_class, "-d", 301, "--model", "m", *arguments)
    assert isinstance(result.exception, error)
    assert result.exception is not None
    assert re.search(text, str(result.exception))
    assert not (base / "ranking.csv").exists()


def test_without_a_case_table(fresh_folders: Path) -> None:
    tiny_dataset(fresh_folders, table=False)
    result = run_command(best_in_class, "-d", 301, "--model", "m", "--codes", "codes.csv")
    assert isinstance(result.exception, CaseTableError)
    assert "nnunet-qa cases -d 301" in str(result.exception)

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.cli import select
from nnunet_qa.errors import CaseTableError, SelectionError
from nnunet_qa.quality.table import write_quality
from tests.small import NAME, run_command, tiny_dataset


@pytest.fixture
def quality(tmp_path: Path) -> Path:
    rows = [
        {"case_id": f"S{number // 3}_{number % 3}", "role": role, "level": "case", "slice_axis": None}
        | {"slice_index": None, "q": 0.01 * number + 0.2}
        for number, role in enumerate(["labelled"] * 3 + ["unlabelled"] * 27)
    ]
    write_quality(tmp_path / "quality.csv", pd.DataFrame(rows))
    return tmp_path / "quality.csv"


def chosen(path: Path) -> list[str]:
    return pd.read_csv(path)["case_id"].tolist()


def test_twenty_of_the_pool_without_any_option(quality: Path) -> None:
    result = run_command(select, "-q", quality)
    assert result.exit_code == 0
    assert chosen(quality.parent / "queue.csv")[:2] == ["S1_0", "S1_1"]
    assert len(chosen(quality.parent / "queue.csv")) == 20
    assert "Annotate next" in result.stdout
    assert "0.2300" in result.stdout
    assert "subject of its own" in result.stderr
    assert f"{quality.parent / 'queue.csv'}: 20 cases" in result.stderr


def test_a_threshold_alone_does_not_limit_the_number(quality: Path) -> None:
    run_command(select, "-q", quality, "--threshold", 0.47)
    assert len(chosen(quality.parent / "queue.csv")) == 24


def test_threshold_and_number(quality: Path, tmp_path: Path) -> None:
    result = run_command(select, "-q", quality, "--threshold", 0.245, "-n", 9, "-o", tmp_path / "other" / "q.csv")
    assert result.exit_code == 0
    assert chosen(tmp_path / "other" / "q.csv") == ["S1_0", "S1_1"]


def test_roles(quality: Path) -> None:
    run_command(select, "-q", quality, "--role", "labelled", "--role", "unlabelled", "-n", 4)
    assert chosen(quality.parent / "queue.csv") == ["S0_0", "S0_1", "S0_2", "S1_0"]
    with pytest.raises(SelectionError, match='did you mean "labelled"'):
        raise run_command(select, "-q", quality, "--role", "labeled").exception or AssertionError


def test_only_the_first_of_many_are_shown(quality: Path) -> None:
    result = run_command(select, "-q", quality, "-n", 25)
    assert "25 cases (the first 20 are shown)" in result.stderr
    assert "S8_0" not in result.stdout


def test_subjects_of_a_dataset(fresh_folders: Path) -> None:
    tiny_dataset(fresh_folders)
    rows = [
        {"case_id": case, "role": "", "level": "case", "slice_axis": None, "slice_index": None, "q": q}
        for case, q in {"S1_a": 0.0, "S1_b": 0.1, "S4_a": 0.2, "S4_b": 0.3}.items()
    ]
    path = fresh_folders / "quality.csv"
    write_quality(path, pd.DataFrame(rows))
    for option, value in (("-d", "301"), ("--cases", fresh_folders / "nnUNet_raw" / NAME / "cases.csv")):
        result = run_command(select, "-q", path, option, value, "--per-subject", 1, "-n", 2)
        assert result.exit_code == 0
        queue = pd.read_csv(fresh_folders / "queue.csv")
        assert queue[["case_id", "subject_id"]].to_numpy().tolist() == [["S1_b", "S1"], ["S4_a", "S4"]]
        assert "subject of its own" not in result.stderr
        (fresh_folders / "queue.csv").unlink()


def test_a_dataset_without_a_case_table(fresh_folders: Path, quality: Path) -> None:
    tiny_dataset(fresh_folders, table=False)
    result = run_command(select, "-q", quality, "-d", 301)
    assert isinstance(result.exception, CaseTableError)
    assert "nnunet-qa cases -d 301" in str(result.exception)


def test_nothing_below_the_threshold(quality: Path) -> None:
    result = run_command(select, "-q", quality, "--threshold", 0.1)
    assert isinstance(result.exception, SelectionError)
    assert not (quality.parent / "queue.csv").exists()

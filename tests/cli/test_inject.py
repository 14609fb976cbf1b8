from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.cli import cases, inject
from nnunet_qa.errors import CaseTableError, DatasetError, SelectionError
from nnunet_qa.selection.best_in_class import best_in_class
from nnunet_qa.selection.best_in_class_files import write_ranking
from tests.small import NAME, annotate, run_command, tiny_dataset


@pytest.fixture
def base(fresh_folders: Path) -> Path:
    tiny_dataset(fresh_folders)
    annotate(fresh_folders / "predictions", "S4_a", "S4_b")
    ranking = best_in_class(pd.DataFrame({"case_id": ["S4_a"], "score": [0.9]}), number=1)
    write_ranking(fresh_folders / "ranking.csv", ranking, dataset=NAME, model="fold_0", estimator="q")
    return fresh_folders


def arguments(base: Path, *more: object) -> tuple[object, ...]:
    return ("-d", 301, "--ranking", base / "ranking.csv", "--predictions", base / "predictions", *more)


def test_the_new_dataset_and_what_comes_next(base: Path) -> None:
    result = run_command(inject, *arguments(base, "--target", 401, "--round", 2))
    assert result.exit_code == 0, result.exception
    raw = base / "nnUNet_raw" / "Dataset401_Tiny"
    assert f"Wrote {raw}: 3 annotated cases and 1 with pseudo-labels." in result.stdout
    assert "Left in the pool: 2." in result.stdout
    assert "people alone): 3/1, 3/1, 3/1." in result.stdout
    assert "nnUNetv2_plan_and_preprocess -d 401" in result.stdout
    assert "nnUNetv2_move_plans_between_datasets -s 301 -t 401" in result.stdout
    row = CaseTable.read(raw / "cases.csv").frame.set_index("case_id").loc["S4_a"]
    assert row[["pseudo_model", "pseudo_score", "pseudo_round"]].tolist() == ["fold_0", "0.9", "2"]


def test_a_case_table_that_tells_pseudo_labels_is_not_written_anew(base: Path) -> None:
    assert run_command(inject, *arguments(base, "--target", 401)).exit_code == 0
    path = base / "nnUNet_raw" / "Dataset401_Tiny" / "cases.csv"
    before = path.read_bytes()
    result = run_command(cases, "-d", 401, "--overwrite")
    assert isinstance(result.exception, CaseTableError)
    assert "says which labels are predictions" in str(result.exception)
    assert path.read_bytes() == before


def test_another_name_model_and_force(base: Path) -> None:
    more = ("--target", 401, "--name", "Round1", "--model", "ensemble")
    assert run_command(inject, *arguments(base, *more)).exit_code == 0
    assert isinstance(run_command(inject, *arguments(base, *more)).exception, DatasetError)
    assert run_command(inject, *arguments(base, *more, "--force")).exit_code == 0
    raw = base / "nnUNet_raw" / "Dataset401_Round1"
    assert json.loads((raw / "injection.json").read_text())["model"] == "ensemble"
    assert "ensemble" in (raw / "cases.csv").read_text()


def test_mistakes(base: Path) -> None:
    same = run_command(inject, *arguments(base, "--target", 301))
    assert isinstance(same.exception, DatasetError)
    assert "is the source itself" in str(same.exception)
    taken = run_command(inject, *arguments(base, "--target", 401, "--name", "a b"))
    assert "is no dataset name" in str(taken.exception)
    tiny_dataset(base, name="Dataset302_Other")
    other = run_command(inject, *("-d", 302, *arguments(base, "--target", 401)[2:]))
    assert isinstance(other.exception, SelectionError)
    assert f'ranks the pool of "{NAME}", not of Dataset302_Other' in str(other.exception)
    assert not (base / "nnUNet_raw" / "Dataset401_Other").exists()

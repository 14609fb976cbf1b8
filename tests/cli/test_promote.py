from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_qa.cli import promote
from nnunet_qa.errors import DatasetError, EnvironmentVariableError, SelectionError
from tests.small import NAME, annotate, run_command, snapshot, tiny_dataset


@pytest.fixture
def base(fresh_folders: Path) -> Path:
    tiny_dataset(fresh_folders)
    annotate(fresh_folders / "labels", "S1_b", "S4_a")
    return fresh_folders


def promoted(base: Path) -> set[str]:
    names = {path.name[:4] for path in (base / "nnUNet_raw" / NAME / "imagesTr").iterdir()}
    return names - {"S1_a", "S2_a", "S3_a"}


def test_every_label_of_the_folder(base: Path) -> None:
    result = run_command(promote, "-d", 301, "--labels", base / "labels")
    assert result.exit_code == 0
    assert promoted(base) == {"S1_b", "S4_a"}
    assert "Promoted 2 cases: S1_b, S4_a." in result.stdout
    assert "Annotated cases: 5; left in imagesUn: 1." in result.stdout
    assert "Folds: 4, with" in result.stdout
    assert "Next: nnUNetv2_plan_and_preprocess -d 301." in result.stdout
    assert (base / "nnUNet_preprocessed" / NAME / "splits_final.json").is_file()


def test_planned_before(base: Path) -> None:
    (base / "nnUNet_preprocessed" / NAME).mkdir()
    (base / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json").write_text("{}")
    assert "Next: nnUNetv2_preprocess -d 301, or" in run_command(promote, "-d", 301, "--labels", base / "labels").stdout


def test_a_second_time(base: Path) -> None:
    run_command(promote, "-d", 301, "--labels", base / "labels")
    result = run_command(promote, "-d", 301, "--labels", base / "labels")
    assert result.exit_code == 0
    assert "2 cases were promoted before" in result.stdout
    assert "nothing changed" in result.stdout


def test_several_cases_after_one_option(base: Path) -> None:
    annotate(base / "labels", "S4_b")
    result = run_command(promote, "-d", NAME, "--labels", base / "labels", "--cases", "S1_b", "S4_b")
    assert result.exit_code == 0
    assert promoted(base) == {"S1_b", "S4_b"}


def test_the_option_repeated_and_last(base: Path) -> None:
    result = run_command(promote, "--cases", "S1_b", "--cases", "S4_a", "-d", 301, "--labels", base / "labels")
    assert result.exit_code == 0
    assert promoted(base) == {"S1_b", "S4_a"}


def test_cases_of_a_queue_that_have_a_label(base: Path) -> None:
    (base / "queue.csv").write_text("rank,case_id,subject_id,q,reason\n1,S4_b,S4,0.1,x\n2,S4_a,S4,0.2,x\n")
    result = run_command(promote, "-d", 301, "--labels", base / "labels", "--queue", base / "queue.csv")
    assert result.exit_code == 0
    assert promoted(base) == {"S4_a"}
    assert "1 cases of the queue have no label yet: S4_b." in result.stdout


def test_only_what_an_initial_set_selected(base: Path) -> None:
    (base / "initial_set.csv").write_text("case_id,selected,reason\nS1_b,False,dropped\nS4_a,True,kept\n")
    result = run_command(promote, "-d", 301, "--labels", base / "labels", "--queue", base / "initial_set.csv")
    assert result.exit_code == 0
    assert promoted(base) == {"S4_a"}
    assert "no label yet" not in result.stdout


@pytest.mark.parametrize(
    ("rows", "text"), [("S1_b,False\nS4_a,False\n", "names no case"), ("S1_b,yes\nS4_a,\n", "must hold True or False")]
)
def test_initial_sets_that_select_nothing(base: Path, rows: str, text: str) -> None:
    (base / "initial_set.csv").write_text(f"case_id,selected\n{rows}")
    result = run_command(promote, "-d", 301, "--labels", base / "labels", "--queue", base / "initial_set.csv")
    assert isinstance(result.exception, SelectionError)
    assert text in str(result.exception)


def test_the_first_annotated_cases(fresh_folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = tiny_dataset(fresh_folders, labelled=(), pool=("S1_a", "S1_b", "S2_a"))
    annotate(fresh_folders / "labels", "S1_a", "S1_b")
    result = run_command(promote, "-d", 301, "--labels", fresh_folders / "labels")
    assert result.exit_code == 0, result.exception
    assert "train with fold `all`" in caplog.text
    assert sorted(path.name for path in (raw / "labelsTr").iterdir()) == ["S1_a.png", "S1_b.png"]
    annotate(fresh_folders / "labels", "S2_a")
    result = run_command(promote, "-d", 301, "--labels", fresh_folders / "labels")
    assert "Annotated cases: 3; left in imagesUn: 0." in result.stdout
    assert "Folds: 2, with 2, 1 validation cases." in result.stdout


def test_a_dry_run(base: Path) -> None:
    before = snapshot(base / "nnUNet_raw", base / "nnUNet_preprocessed")
    result = run_command(promote, "-d", 301, "--labels", base / "labels", "--dry-run")
    assert result.exit_code == 0
    assert "Would promote 2 cases" in result.stdout
    assert "Next" not in result.stdout
    assert snapshot(base / "nnUNet_raw", base / "nnUNet_preprocessed") == before


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (["S1_b"], SelectionError, '"S1_b" is no option; name cases with --cases'),
        (["--cases", "S1_b", "--queue", "queue.csv"], SelectionError, "not both"),
        (["--queue", "nowhere.csv"], SelectionError, "nowhere.csv: not found"),
        (["--cases", "S9_z"], DatasetError, "S9_z.png: not found"),
    ],
)
def test_mistakes(base: Path, arguments: list[str], error: type[Exception], text: str) -> None:
    result = run_command(promote, "-d", 301, "--labels", base / "labels", *arguments)
    assert isinstance(result.exception, error)
    assert text in str(result.exception)
    assert not promoted(base)


def test_without_the_preprocessed_folder(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    result = run_command(promote, "-d", NAME, "--labels", base / "labels")
    assert isinstance(result.exception, EnvironmentVariableError)

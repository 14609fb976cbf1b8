from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from skimage.io import imread
from typer.testing import Result

from nnunet_qa.cli import app as whole
from nnunet_qa.cli import select
from nnunet_qa.data.images import write_image
from nnunet_qa.errors import DatasetError, SelectionError
from nnunet_qa.quality.table import write_quality
from nnunet_qa.selection.queue import read_queue
from tests.small import run_command, tiny_dataset


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_quality(
        path, pd.DataFrame([{"level": "case", "slice_axis": None, "slice_index": None, **row} for row in rows])
    )
    return path


@pytest.fixture
def quality(tmp_path: Path) -> Path:
    rows = [
        {
            "case_id": f"S{number // 3}_{number % 3}",
            "role": "unlabelled",
            "q": 0.04 * number,
            "q_x": 0.5 - 0.01 * number,
        }
        for number in range(25)
    ]
    return write(tmp_path / "quality.csv", [*rows, {"case_id": "L", "role": "labelled", "q": 0.0, "q_x": 0.0}])


def minimal(*arguments: object) -> Result:
    return run_command(select, "minimal", *arguments)


def chosen(folder: Path) -> list[str]:
    return read_queue(folder / "minimal_set.csv")["case_id"].tolist()


def error(*arguments: object) -> str:
    result = minimal(*arguments)
    assert result.exit_code != 0
    assert result.exception is not None
    if not isinstance(result.exception, (SelectionError, DatasetError)):
        raise result.exception
    return str(result.exception)


def test_every_case_below_q0_is_written_drawn_and_shown(quality: Path, tmp_path: Path) -> None:
    result = minimal("-q", quality)
    assert result.exit_code == 0, result.exception
    assert chosen(tmp_path) == [f"S{number // 3}_{number % 3}" for number in range(23)]  # Q below 0.9, not the labelled
    assert imread(tmp_path / "minimal_set.png").ndim == 3
    assert "annotate these 23" in result.stdout
    assert "S7_0" not in result.stdout
    assert "q0 = 0.9" in result.stderr
    assert "23 cases (the first 20 are shown)" in result.stderr


def test_the_options_reach_the_choice(quality: Path, tmp_path: Path) -> None:
    assert minimal("-q", quality, "--q0", 0.1, "-o", tmp_path / "other").exit_code == 0
    assert chosen(tmp_path / "other") == ["S0_0", "S0_1", "S0_2"]
    assert minimal("-q", quality, "--q0", 0.4, "-n", 2, "--by", "worst_class").exit_code == 0
    assert chosen(tmp_path) == ["S8_0", "S7_2"]
    assert minimal("-q", quality, "--role", "labelled", "--q0", 0.4, "-n", 2).exit_code == 0
    assert chosen(tmp_path) == ["L"]


def test_a_number_alone_goes_by_the_ranking_whatever_q_is(quality: Path, tmp_path: Path) -> None:
    result = minimal("-q", quality, "-n", 25)
    assert result.exit_code == 0, result.exception
    assert len(chosen(tmp_path)) == 25
    assert "q0" not in result.stderr
    assert minimal("-q", quality, "--per-subject", 1).exit_code == 0
    assert chosen(tmp_path)[-1] == "S7_1"  # Q below 0.9
    assert error("-q", quality, "--q0", 0, "-n", 3).endswith("Raise q0")


def test_q0_from_validation(quality: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"case_id": str(number), "role": "labelled", "q": q, "dice": dice}
        for number, (q, dice) in enumerate([(0.1, 0.2), (0.2, 0.6), (0.5, 0.9), (0.9, 0.95)])
    ]
    path = write(tmp_path / "training.csv", rows)
    result = minimal("-q", quality, "--q0-from", path)
    assert "q0 = 0.15." in result.stderr
    assert chosen(tmp_path) == ["S0_0", "S0_1", "S0_2", "S1_0"]  # Q up to 0.12
    assert minimal("-q", quality, "--q0-from", path, "--failure-dice", 0.7).exit_code == 0
    assert chosen(tmp_path)[-1] == "S2_2"  # Q up to 0.32, for q0 is 0.35
    assert "not both" in error("-q", quality, "--q0-from", path, "--q0", 0.5)
    assert "0 of 4 validation cases" in error("-q", quality, "--q0-from", path, "--failure-dice", 0.1)


@pytest.mark.parametrize(
    ("q0", "kept", "text"),
    [
        ("0.5", lambda rows: rows["q"] > 0.7, "the minimal set is empty"),
        ("0.9", lambda rows: rows["q"] < 0.7, "the minimal set is everything"),
    ],
)
def test_nothing_and_everything_are_one_line_and_status_2(
    quality: Path,
    q0: str,
    kept: Any,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pd.read_csv(quality)[kept].to_csv(quality, index=False)
    monkeypatch.setattr(sys, "argv", ["nnunet-qa", "select", "minimal", "-q", str(quality), "--q0", q0])
    with pytest.raises(SystemExit) as stopped:
        whole.main()
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"nnunet-qa: error: {text}")
    assert not (quality.parent / "minimal_set.csv").exists()


def test_roles_are_spelt_out(quality: Path) -> None:
    assert 'did you mean "unlabelled"' in error("-q", quality, "--role", "labelled", "--role", "unlabeled")


@pytest.fixture
def looks(fresh_folders: Path) -> Path:
    """Here S4_a looks like the annotated S2_a, S4_b and S4_c are one image, and S5_a is like nothing else."""
    raw = tiny_dataset(fresh_folders, pool=("S4_a", "S4_b", "S4_c", "S5_a"))
    annotated = raw / "imagesTr" / "S2_a_0000.png"
    for name in ("S4_a", "S4_c"):
        source = annotated if name == "S4_a" else raw / "imagesUn" / "S4_b_0000.png"
        (raw / "imagesUn" / f"{name}_0000.png").write_bytes(source.read_bytes())
    picture = np.zeros((6, 8), np.uint8)
    picture[:, 4:] = 200
    write_image(raw / "imagesUn" / "S5_a_0000.png", picture)
    rows: list[dict[str, Any]] = [
        {"case_id": case, "role": role, "q": q}
        for case, role, q in (
            ("S2_a", "labelled", 0.0),  # scored too, as a training scores its validation cases
            ("S4_a", "unlabelled", 0.1),
            ("S4_b", "unlabelled", 0.2),
            ("S4_c", "unlabelled", 0.21),
            ("S5_a", "unlabelled", 0.6),
        )
    ]
    return write(fresh_folders / "quality.csv", rows)


def test_diverse_takes_neither_what_is_annotated_nor_one_image_twice(looks: Path) -> None:
    assert minimal("-q", looks, "-d", 301, "-n", 2).exit_code == 0
    assert chosen(looks.parent) == ["S4_a", "S4_b"]
    result = minimal("-q", looks, "-d", 301, "-n", 2, "--diverse")
    assert result.exit_code == 0, result.exception
    assert sorted(chosen(looks.parent)) == ["S4_b", "S5_a"]
    table = pd.read_csv(looks.parent / "minimal_set.csv")
    assert set(table["subject_id"]) == {"S4", "S5"}


def test_diverse_needs_the_images(looks: Path, fresh_folders: Path) -> None:
    assert "give their dataset with -d" in error("-q", looks, "--diverse")
    (fresh_folders / "nnUNet_raw" / "Dataset301_Tiny" / "imagesUn" / "S4_b_0000.png").unlink()
    assert "the scored case S4_b has no image" in error("-q", looks, "-d", 301, "-n", 2, "--diverse")

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_qa.cli import app, montage
from nnunet_qa.errors import DatasetError, ImageError, SelectionError
from tests.small import NAME, run_command, tiny_dataset, tiny_label, write_tiny

CASES = ("S1_a", "S2_a")
DESCRIBED = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "fluid": 1, "drusen": 2},
    "file_ending": ".nii.gz",
}


def folders(base: Path) -> tuple[object, ...]:
    """Predictions of two volumes beside their dataset.json, and their images; the options that name them."""
    rng = np.random.default_rng(0)
    for case in CASES:
        write_tiny(base / "images" / f"{case}_0000.nii.gz", rng.integers(-300, 300, (12, 10, 10)).astype(np.int16))
        write_tiny(base / "images" / f"{case}_0001.nii.gz", rng.integers(0, 9, (12, 10, 10)).astype(np.int16))
        write_tiny(base / "predictions" / f"{case}.nii.gz", rng.integers(0, 3, (12, 10, 10)).astype(np.uint8))
    (base / "predictions" / "dataset.json").write_text(json.dumps(DESCRIBED))
    return ("-p", base / "predictions", "-i", base / "images", "-o", base / "out", "--jobs", 1)


def picture(base: Path, case: str = CASES[0]) -> np.ndarray:
    with Image.open(base / "out" / f"{case}.png") as found:
        return np.asarray(found)


def test_a_picture_a_case(tmp_path: Path) -> None:
    options = folders(tmp_path)
    result = run_command(montage, *options)
    assert result.exit_code == 0, result.exception
    assert f"Drew 2 pictures in {tmp_path / 'out'}." in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{case}.png" for case in CASES]
    assert picture(tmp_path).shape == (3 * 168, 4 * 168, 3)
    again = run_command(montage, *options)
    assert "Drew 0 pictures" in again.stderr
    assert "2 were up to date" in again.stderr
    assert "Drew 2 pictures" in run_command(montage, *options, "--overwrite").stderr


def test_options_change_the_picture(tmp_path: Path) -> None:
    options = folders(tmp_path)
    seen = []
    for more in (
        (),
        ("--window", -100, 100),
        ("--channel", 1),
        ("--view", "coronal"),
        ("--grid", 2, 3),
        ("--tile", 60),
        ("--legend",),
    ):
        result = run_command(montage, *options, *more)
        assert result.exit_code == 0, (more, result.exception)
        seen.append(picture(tmp_path))
    plain, window, channel, coronal, grid, tile, legend = seen
    for other in (window, channel):
        assert other.shape == plain.shape
        assert (other != plain).any()
    assert coronal.shape == (3 * 168, 4 * 36, 3)  # 12 slices + frame of 2 mm, 10 columns + frame of 0.5 mm
    assert grid.shape == (2 * 168, 3 * 168, 3)
    assert tile.shape == (3 * 60, 4 * 60, 3)
    assert legend.shape[0] > plain.shape[0]
    np.testing.assert_array_equal(legend[: len(plain)], plain)


def test_a_dataset_gives_the_labels(fresh_folders: Path) -> None:
    raw = tiny_dataset(fresh_folders, labelled=(), pool=(), test=CASES, table=False)
    for case in CASES:
        write_tiny(fresh_folders / "predictions" / f"{case}.png", tiny_label(case))
    options = ("-p", fresh_folders / "predictions", "-i", raw / "imagesTs", "-o", fresh_folders / "out", "--jobs", 1)
    for more in (("-d", 301), ("-d", NAME), ("--dataset-json", raw / "dataset.json")):
        result = run_command(montage, *options, *more, "--overwrite")
        assert result.exit_code == 0, result.exception
        assert picture(fresh_folders).shape == (6, 8, 3)


def test_without_labels_of_the_dataset(tmp_path: Path) -> None:
    options = folders(tmp_path)
    (tmp_path / "predictions" / "dataset.json").unlink()
    result = run_command(montage, *options)
    assert isinstance(result.exception, DatasetError)
    assert "name the dataset with -d" in str(result.exception)


def test_a_channel_that_is_not_there(tmp_path: Path) -> None:
    result = run_command(montage, *folders(tmp_path), "--channel", 2)
    assert isinstance(result.exception, DatasetError)
    assert "S1_a_0002.nii.gz: not found" in str(result.exception)


def test_a_prediction_of_another_shape(tmp_path: Path) -> None:
    options = folders(tmp_path)
    write_tiny(tmp_path / "predictions" / "S2_a.nii.gz", np.zeros((11, 10, 10), np.uint8))
    result = run_command(montage, *options)
    assert isinstance(result.exception, ImageError)
    assert "S2_a.nii.gz: the mask has shape (11, 10, 10)" in str(result.exception)
    assert (tmp_path / "out" / "S1_a.png").is_file()  # the rerun goes on behind it


def test_a_window_the_wrong_way_round(tmp_path: Path) -> None:
    result = run_command(montage, *folders(tmp_path), "--window", 275, -175)
    assert isinstance(result.exception, SelectionError)
    assert "the lower one first" in str(result.exception)


@pytest.mark.parametrize("option", [("--window", "low"), ("--view", "oblique"), ("--grid", 3), ("--tile", 0)])
def test_options_that_cannot_be_read(tmp_path: Path, option: tuple[object, ...]) -> None:
    assert run_command(montage, *folders(tmp_path), *option).exit_code == 2


def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = folders(tmp_path)
    (tmp_path / "images" / "S1_a_0000.nii.gz").write_bytes(b"no image")
    monkeypatch.setattr(sys, "argv", ["nnunet-qa", "montage", *map(str, options)])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"nnunet-qa: error: {tmp_path / 'images' / 'S1_a_0000.nii.gz'}: cannot be read")

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

from nnunet_qa.cli import crf
from nnunet_qa.data.images import read_volume
from nnunet_qa.errors import CRFError, DatasetError, NnunetQAError
from nnunet_qa.inference.crf import CRFSettings
from tests.shifted import save_probabilities, shifted_dataset
from tests.small import run_command

FEW = ("--trials", 8, "--jobs", 1)


def run(command: str, *arguments: object) -> Result:
    return run_command(crf, "crf", command, *arguments)


@pytest.fixture
def base(fresh_folders: Path) -> Path:
    shifted_dataset(fresh_folders)
    return fresh_folders


def test_tune_and_apply(base: Path) -> None:
    found = run("tune", "-d", 401, "-p", base / "validation", "-o", base / "crf.json", *FEW)
    assert found.exit_code == 0, found.exception
    content = json.loads((base / "crf.json").read_text())
    settings = CRFSettings.read(base / "crf.json")
    assert not settings.does_nothing
    tuned = content["tuned"]
    assert (tuned["cases"], tuned["subjects"], tuned["trials"]) == (8, 4, 9)
    assert f"{tuned['dice_before']:.4f} as predicted" in found.stderr
    assert f"({tuned['gain']:+.4f}) with the best of 8 settings" in found.stderr
    assert f"did not choose the settings: {tuned['held_out_gain']:+.4f} (95% interval" in found.stderr
    assert "is not shown" not in found.stderr
    assert len(pd.read_csv(base / "crf_trials.csv")) == 72

    images = base / "nnUNet_raw" / "Dataset401_Squares" / "imagesTs"
    done = run("apply", "-p", base / "predictions", "-i", images, "-o", base / "out", "-s", base / "crf.json")
    assert done.exit_code == 0, done.exception
    assert f"1 refined masks are in {base / 'out'}" in done.stderr
    mask = read_volume(base / "out" / "T0_0.nii.gz")[0]
    truth = read_volume(images.parent / "labelsTs" / "T0_0.nii.gz")[0]
    with np.load(base / "predictions" / "T0_0.npz") as content:
        before = content["probabilities"].argmax(0)
    assert (mask != truth).sum() < 0.5 * (before != truth).sum()

    again = run("tune", "-d", 401, "-p", base / "validation", "-o", base / "crf.json", *FEW)
    assert again.exit_code == 0
    assert json.loads((base / "crf.json").read_text())["tuned"] == tuned
    by_slice = run("tune", "-d", 401, "-p", base / "validation", "-o", base / "two.json", *FEW, "--mode", "2d")
    assert by_slice.exit_code == 0
    assert CRFSettings.read(base / "two.json").mode == "2d"


def test_what_cannot_be_improved_stays(base: Path) -> None:
    labels = base / "nnUNet_raw" / "Dataset401_Squares" / "labelsTr"
    for path in (base / "validation").iterdir():
        truth = read_volume(labels / f"{path.stem}.nii.gz")[0]
        path.unlink()
        save_probabilities(path, np.stack([1 - truth, truth]).astype(np.float32))
    found = run("tune", "-d", 401, "-p", base / "validation", "-o", base / "crf.json", *FEW)
    assert "No drawn setting is better than none" in found.stderr
    assert CRFSettings.read(base / "crf.json").does_nothing
    images = base / "nnUNet_raw" / "Dataset401_Squares" / "imagesTs"
    done = run("apply", "-p", base / "predictions", "-i", images, "-o", base / "out", "-s", base / "crf.json")
    assert "these settings change nothing" in done.stderr
    with np.load(base / "predictions" / "T0_0.npz") as content:
        np.testing.assert_array_equal(read_volume(base / "out" / "T0_0.nii.gz")[0], content["probabilities"].argmax(0))


def test_one_subject_says_nothing_about_others(base: Path) -> None:
    for path in (base / "validation").iterdir():
        if not path.name.startswith("S1"):
            path.unlink()
    found = run("tune", "-d", 401, "-p", base / "validation", "-o", base / "crf.json", *FEW)
    assert "With one subject nothing can be said about others" in found.stderr


def test_untuned_settings_are_said_to_be(base: Path) -> None:
    images = base / "nnUNet_raw" / "Dataset401_Squares" / "imagesTs"
    (base / "predictions" / "dataset.json").unlink()
    arguments = ("-p", base / "predictions", "-i", images, "-o", base / "out")
    missing = run("apply", *arguments).exception
    assert isinstance(missing, DatasetError)
    assert "name the dataset with -d" in str(missing)
    done = run("apply", *arguments, "-d", 401, "--jobs", 1)
    assert done.exit_code == 0, done.exception
    assert "The settings are not tuned" in done.stderr


def test_mistakes_in_the_options(base: Path) -> None:
    tune = ("tune", "-d", 401, "-p", base / "validation", "-o")
    (base / "mine.json").write_text("{}")
    for arguments, kind, said in (
        ((*tune, base / "crf.json", "--mode", "4d"), CRFError, '--mode "4d": must be one of 2d, 3d'),
        ((*tune, base / "crf.yaml"), CRFError, "ends in .json"),
        ((*tune, base / "mine.json"), CRFError, "mine.json: is there already and has no mine_trials.csv beside it"),
        ((*tune[:3], "-p", base / "none", "-o", base / "crf.json"), DatasetError, "none: no such folder"),
        (("tune", "-d", 499, *tune[3:], base / "crf.json"), DatasetError, "no dataset 499"),
        (
            ("apply", "-p", base / "predictions", "-i", base, "-o", base / "out", "-s", base / "none.json"),
            CRFError,
            "none.json: not found",
        ),
    ):
        error = run(*arguments).exception
        assert isinstance(error, kind), (arguments, error)
        assert isinstance(error, NnunetQAError)
        assert said in str(error)
        assert "\n" not in str(error)
    assert (base / "mine.json").read_text() == "{}"

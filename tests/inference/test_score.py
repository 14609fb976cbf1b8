from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.io import imread, imsave

import nnunet_qa.cli.score as command
from nnunet_qa.data.paths import raw_dataset_folder
from nnunet_qa.errors import DatasetError, ImageError, ModelError
from nnunet_qa.inference.score import (
    ScoreOptions,
    _check_previous_stage,
    _check_trained_outputs,
    find_case_table,
    score_folder,
)
from tests.inference.test_predictor import with_dropout, write_model
from tests.phantom import run, tree
from tests.small import run_command

CPU = torch.device("cpu")
QUICK = {"processes": 1, "mirroring": False}


def score(model: Path, images: Path, output: Path, **options: Any) -> Path | None:
    further = {name: options.pop(name) for name in ("cases", "overwrite") if name in options}
    chosen = ScoreOptions(**{**QUICK, **options})
    return score_folder(model, images, output, chosen, device=CPU, show_progress=False, **further)


@pytest.fixture
def model(planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    return write_model(tmp_path / planned["2d"], planned["2d"], "2d", 2)


@pytest.fixture
def images(planned: dict[str, str]) -> Path:
    return raw_dataset_folder(planned["2d"]) / "imagesUn"


def test_segmentations_are_those_of_nnunetv2_predict(
    planned: dict[str, str], model: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ours"
    everything = {"mirroring": True, "save_probabilities": True, "save_second": True}
    table = score(model, images, out, cases=find_case_table(images), **everything)
    folders = ("-i", str(images), "-o", str(tmp_path / "stock"))
    which = ("-d", "701", "-c", "2d", "-tr", "QAsemiTrainer", "-f", "0", "1", "-device", "cpu", "--save_probabilities")
    run("nnUNetv2_predict", *folders, *which, nnUNet_n_proc_DA="1")
    for path in sorted((tmp_path / "stock").glob("*.png")):
        np.testing.assert_array_equal(imread(out / path.name), imread(path))
        for file in (out, tmp_path / "stock"):
            assert (file / f"{path.stem}.npz").is_file()
        ours, stock = (np.load(folder / f"{path.stem}.npz")["probabilities"] for folder in (out, tmp_path / "stock"))
        np.testing.assert_array_equal(ours, stock)
        assert imread(out / "second_output" / path.name).shape == imread(path).shape
    assert (out / "dataset.json").is_file()
    assert (out / "plans.json").is_file()
    frame = pd.read_csv(table)
    assert frame["case_id"].tolist() == [f"P0_c{n}" for n in range(4)]
    assert set(frame["role"]) == {"unlabelled"}
    assert frame["q"].between(0, 1).all()


def test_parts_give_the_same_table_as_one_run(model: Path, images: Path, tmp_path: Path) -> None:
    one = score(model, images, tmp_path / "one")
    assert score(model, images, tmp_path / "parts", num_parts=2, part_id=0) is None
    assert not (tmp_path / "parts" / "quality.csv").exists()
    two = score(model, images, tmp_path / "parts", num_parts=2, part_id=1)
    assert one is not None
    assert two is not None
    assert one.read_bytes() == two.read_bytes()


SCRIPT = """
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
import torch
from nnunet_qa.inference.score import ScoreOptions, score_folder
if __name__ == "__main__":
    model, images, output = map(Path, sys.argv[1:])
    options = ScoreOptions(processes=1, mirroring=False, save_second=True)
    score_folder(model, images, output, options, device=torch.device("cpu"), show_progress=False)
"""


def test_a_killed_run_goes_on_to_the_same_files(model: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(1)
    for number in range(20):
        imsave(images / f"C{number:02d}_0000.png", rng.integers(0, 255, (48, 64), dtype=np.uint8), check_contrast=False)
    (tmp_path / "script.py").write_text(SCRIPT)

    def command(name: str) -> list[str]:
        return [sys.executable, str(tmp_path / "script.py"), str(model), str(images), str(tmp_path / name)]

    subprocess.run(command("undisturbed"), check=True, capture_output=True)
    killed = tmp_path / "killed"
    moments = ((".quality/*.json", 1), (".partial/0/*.png", 3), (".quality/*.json", 20))
    for pattern, wanted in moments:
        process = subprocess.Popen(
            command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and len(list(killed.glob(pattern))) < wanted:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (killed / "quality.csv").exists(), "the kill came too late to test anything"
        for path in killed.glob("*.png"):
            imread(path)  # whatever is in its place is whole
    subprocess.run(command("killed"), check=True, capture_output=True)
    assert tree(killed) == tree(tmp_path / "undisturbed")


def test_a_finished_run_does_nothing_and_overwrite_predicts_again(model: Path, images: Path, tmp_path: Path) -> None:
    table = score(model, images, tmp_path / "out")
    assert table is not None
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    score(model, images, tmp_path / "out")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")} == before
    score(model, images, tmp_path / "out", overwrite=True)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert all(after[name] > before[name] for name in before)


def test_predictions_of_another_model_are_not_mixed(model: Path, images: Path, tmp_path: Path) -> None:
    score(model, images, tmp_path / "out", folds=("0",))
    with pytest.raises(DatasetError, match=r"other predictions \(folds, weights\)"):
        score(model, images, tmp_path / "out", folds=("1",))


def test_missing_models_and_folds_are_named(model: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no trained model"):
        score(tmp_path / "nothing", images, tmp_path / "out")
    with pytest.raises(ModelError, match=r"fold_7/checkpoint_final\.pth: not found"):
        score(model, images, tmp_path / "out", folds=("7",))
    with pytest.raises(ModelError, match="no fold with best"):
        score(model, images, tmp_path / "out", checkpoint="best")
    with pytest.raises(DatasetError, match="part 3 of 2"):
        score(model, images, tmp_path / "out", num_parts=2, part_id=3)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_a_truncated_image_are_named(model: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no image named like"):
        score(model, tmp_path / "empty", tmp_path / "out")
    shutil.copytree(images, tmp_path / "images")
    bad = tmp_path / "images" / "P0_c1_0000.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(ImageError, match=r"P0_c1_0000\.png.*cannot be read"):
        score(model, tmp_path / "images", tmp_path / "out")
    assert not (tmp_path / "out" / "quality.csv").exists()
    shutil.copy(images / bad.name, bad)
    assert score(model, tmp_path / "images", tmp_path / "out") is not None


def test_a_cascaded_model_wants_the_previous_stage(tmp_path: Path) -> None:
    predictor = SimpleNamespace(configuration_manager=SimpleNamespace(previous_stage_name="3d_lowres"))
    with pytest.raises(ModelError, match="continues from 3d_lowres"):
        _check_previous_stage(predictor, None, ["A"], ".nii.gz")  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=r"A\.nii\.gz: not found; predict the case with 3d_lowres first"):
        _check_previous_stage(predictor, str(tmp_path), ["A"], ".nii.gz")  # type: ignore[arg-type]
    (tmp_path / "A.nii.gz").touch()
    _check_previous_stage(predictor, str(tmp_path), ["A"], ".nii.gz")  # type: ignore[arg-type]


def test_a_damaged_checkpoint_is_one_line(model: Path, images: Path, tmp_path: Path) -> None:
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        score(model, images, tmp_path / "out", folds=("0",))


def test_a_retrained_model_and_other_images_are_noticed(model: Path, images: Path, tmp_path: Path) -> None:
    score(model, images, tmp_path / "out", folds=("0",))
    shutil.copytree(images, tmp_path / "images")
    with pytest.raises(DatasetError, match=r"other predictions \(images\)"):
        score(model, tmp_path / "images", tmp_path / "out", folds=("0",))
    shutil.copy(model / "fold_1" / "checkpoint_final.pth", model / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(DatasetError, match=r"other predictions \(weights\)"):
        score(model, images, tmp_path / "out", folds=("0",))


def test_old_files_do_not_pass_for_new_ones(model: Path, images: Path, tmp_path: Path) -> None:
    """A run that dies after the rows and before the segmentation of a case must not take an older segmentation."""
    out = tmp_path / "out"
    expected = score(model, images, tmp_path / "expected", folds=("0",))
    assert expected is not None
    out.mkdir()
    for path in images.glob("*.png"):  # predictions of another tool
        imsave(out / path.name.replace("_0000", ""), np.ones((48, 64), np.uint8), check_contrast=False)
    score(model, images, out, folds=("0",))
    for path in (tmp_path / "expected").glob("*.png"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_outputs_that_were_not_trained_are_refused(model: Path, images: Path, tmp_path: Path) -> None:
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainerNoDeepSupervision"}, path)
    with pytest.raises(ModelError, match="trained fewer than two outputs"):
        score(model, images, tmp_path / "out", folds=("0",))
    assert not (tmp_path / "out").exists()


def test_entropy_and_dropout_are_options_of_the_command(model: Path, images: Path, tmp_path: Path) -> None:
    with_dropout(model, "2d")
    which = ("-d", "701", "-c", "2d", "-f", "0", "-device", "cpu", "--disable_tta", "--jobs", "1")
    result = run_command(
        command, "-i", images, "-o", tmp_path / "one", *which, "--entropy", "--mc-dropout", "--seed", "1"
    )
    assert result.exit_code == 0, result.output
    one = pd.read_csv(tmp_path / "one" / "quality.csv")
    assert one["entropy"].between(0, np.log(3)).all()
    sampled = {"folds": ("0",), "entropy": True, "mc_dropout": True}
    two = score(model, images, tmp_path / "two", **sampled, seed=2)
    assert two is not None
    assert not pd.read_csv(two)["entropy"].equals(one["entropy"])
    assert score(model, images, tmp_path / "one", **sampled, seed=1) is not None  # the same settings: nothing to do
    for changed, named in (({"seed": 2}, "seed"), ({"seed": 1, "entropy": False}, "entropy")):
        with pytest.raises(DatasetError, match=rf"other predictions \({named}\)"):
            score(model, images, tmp_path / "one", **{**sampled, **changed})


def test_dropout_that_is_not_there_is_refused_before_anything_is_written(
    model: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no dropout layer"):
        score(model, images, tmp_path / "out", mc_dropout=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("trainer", "outputs", "refused"),
    [
        ("QAsemiTrainer", 2, False),
        ("QAsemiTrainer_5epochs", 2, False),
        ("QUNetPlusPlusTrainer", 2, False),
        ("QUNetPlusPlusTrainer", 1, True),
        ("nnUNetTrainer", 2, True),
        ("nnUNetTrainer", 3, False),
        ("nnUNetTrainerNoDeepSupervision", 3, True),
    ],
)
def test_trainers_that_leave_the_second_output_untrained_are_refused(
    planned: dict[str, str], trainer: str, outputs: int, refused: bool
) -> None:
    network = SimpleNamespace(decoder=SimpleNamespace(seg_layers=range(outputs)))
    predictor = SimpleNamespace(network=network, trainer_name=trainer)
    with pytest.raises(ModelError, match=f"{trainer} trained fewer") if refused else nullcontext():
        _check_trained_outputs(predictor, Path("model"))  # type: ignore[arg-type]

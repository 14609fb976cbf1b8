"""The loop, command by command, nnU-Net's and ours, on a phantom."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from skimage.io import imread, imsave

from tests.phantom import BIN, run

pytestmark = pytest.mark.e2e
SETTINGS = """
training: {epochs: 1, iterations_per_epoch: 2, val_iterations_per_epoch: 1}
pool: {batches_per_epoch: 1, jobs: 1}
qa_loss: {simulation: {patches: 4, epochs: 1}}
"""


@pytest.fixture
def dataset(planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the planned 2D phantom, with a pool, that the test may change."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(Path(os.environ[variable]) / planned["2d"], tmp_path / variable / planned["2d"])
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    (tmp_path / "nnUNet_raw" / planned["2d"] / "qa.yaml").write_text(SETTINGS)
    return planned["2d"]


def test_the_whole_loop_runs_as_commands(dataset: str, tmp_path: Path) -> None:
    raw, results = tmp_path / "nnUNet_raw" / dataset, tmp_path / "nnUNet_results" / dataset
    model = results / "QAsemiTrainer__nnUNetPlans__2d"
    trained = ("-tr", "QAsemiTrainer")
    for fold in ("0", "1"):
        run("nnUNetv2_train", "701", "2d", fold, *trained, "-device", "cpu", "--npz")
        assert (model / f"fold_{fold}" / "quality.csv").is_file()
        assert (model / f"fold_{fold}" / "queue.csv").is_file()
    run("nnUNetv2_find_best_configuration", "701", "-c", "2d", *trained, "-f", "0", "1", "--disable_ensembling")
    assert (results / "inference_information.json").is_file()

    which = ("-d", "701", "-c", "2d", *trained, "-f", "0", "-device", "cpu")
    run("nnUNetv2_predict", "-i", str(raw / "imagesTs"), "-o", str(tmp_path / "stock"), *which)
    labels, stock = str(raw / "labelsTs"), str(tmp_path / "stock")
    run(
        "nnUNetv2_evaluate_folder", labels, stock, "-djfile", str(raw / "dataset.json"), "-pfile", f"{stock}/plans.json"
    )
    summary = json.loads((tmp_path / "stock" / "summary.json").read_text())

    ours = tmp_path / "ours"
    run("nnunet-qa", "score", "-i", str(raw / "imagesTs"), "-o", str(ours), *which, "--jobs", "1")
    for path in (tmp_path / "stock").glob("*.png"):
        np.testing.assert_array_equal(imread(ours / path.name), imread(path))
    run("nnunet-qa", "evaluate", "-p", str(ours), "-gt", labels, "-d", "701", "--resamples", "20", "--jobs", "1")
    evaluated = pd.read_csv(ours / "evaluation.csv").set_index("case_id")
    for entry in summary["metric_per_case"]:
        dice = entry["metrics"]["2"]["Dice"]
        found = evaluated.loc[Path(entry["prediction_file"]).stem, "dice_large"]
        assert found == pytest.approx(1.0 if dice is None or np.isnan(dice) else dice, abs=1e-5)

    queue = tmp_path / "queue.csv"
    run("nnunet-qa", "select", "-q", str(model / "fold_0" / "quality.csv"), "-d", "701", "-n", "2", "-o", str(queue))
    chosen = pd.read_csv(queue)["case_id"].tolist()
    assert len(chosen) == 2
    (tmp_path / "annotated").mkdir()
    for case in chosen:
        label = (imread(raw / "imagesUn" / f"{case}_0000.png") > 150).astype(np.uint8)
        imsave(tmp_path / "annotated" / f"{case}.png", label, check_contrast=False)
    run("nnunet-qa", "promote", "-d", "701", "--labels", str(tmp_path / "annotated"), "--queue", str(queue))
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 10
    run("nnUNetv2_preprocess", "-d", "701", "-c", "2d", "-np", "2")
    run("nnunet-qa", "pool", "-d", "701", "-c", "2d", "--jobs", "1")
    pool = tmp_path / "nnUNet_preprocessed" / dataset / "nnUNetPlans_2d_unlabelled"
    assert len(list(pool.glob("*.pkl"))) == 2
    again = run("nnUNetv2_train", "701", "2d", "0", *trained, "-device", "cpu")
    assert "unlabelled pool: 2 cases" in again.stdout


def test_a_mistake_in_qa_yaml_is_one_line_below_nnunets_command_too(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "nnUNet_raw" / dataset / "qa.yaml").write_text("queues: {number: 3}")
    command = [str(BIN / "nnUNetv2_train"), "701", "2d", "0", "-tr", "QAsemiTrainer", "-device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith('qa.yaml: unknown key "queues" (did you mean "queue"?)')
    assert "Traceback" not in done.stderr


def test_commands_that_cannot_run_say_so_in_one_line(dataset: str, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "nnUNet_preprocessed" / dataset)
    raw = str(tmp_path / "nnUNet_raw" / dataset / "imagesTs")
    unset = {name: value for name, value in os.environ.items() if name != "nnUNet_results"}
    cases = [
        (["pool", "-d", "701"], os.environ, "has not been planned"),
        (["pool", "-d", "555"], os.environ, "no dataset 555"),
        (["score", "-i", raw, "-o", str(tmp_path / "o"), "-d", "701", "-c", "2d"], os.environ, "no trained model"),
        (["score", "-i", raw, "-o", str(tmp_path / "o"), "-d", "701", "-c", "2d"], unset, "nnUNet_results is not set"),
    ]
    for arguments, environment, text in cases:
        done = subprocess.run(
            [str(BIN / "nnunet-qa"), *arguments], capture_output=True, text=True, check=False, env=dict(environment)
        )
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert text in done.stderr
    assert not (tmp_path / "o").exists()


def test_the_demo_runs_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nnunet_qa.experiments.demo as module

    monkeypatch.setattr(module, "SETTINGS", SETTINGS)
    demo = module.Demo(tmp_path / "demo", jobs=2)
    demo.begin()
    steps = demo.run()
    while next(steps).name != "train":
        pass
    steps.close()  # as if stopped before the training
    resumed = module.Demo(tmp_path / "demo", jobs=2)
    resumed.begin()
    assert [step.name for step in resumed.run()] == [step.name for step in resumed.steps()]
    log = (tmp_path / "demo" / "demo.log").read_text()
    assert log.count("$ nnUNetv2_plan_and_preprocess") == 1
    picture = resumed.picture()
    assert imread(picture).shape[0] > 200
    assert len(pd.read_csv(tmp_path / "demo" / "queue.csv")) > 0
    with pytest.raises(module.DatasetError, match="something else"):
        module.Demo(tmp_path).begin()

"""The commands of docs/qu-net-plus-plus.md, one after the other as they stand there, from a dataset without labels."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import cases, promote, select
from nnunet_qa.quality.table import write_quality
from nnunet_qa.selection.queue import read_queue
from tests.phantom import draw, plan, run
from tests.small import run_command, write_tiny

PAGE = Path(__file__).parents[2] / "docs" / "qu-net-plus-plus.md"
NAME = "Dataset201_Scans"
MODULES = {"cases": cases, "promote": promote, "select": select}
SUBJECTS, EACH = 6, 6
SETTINGS = """
training: {epochs: 1, iterations_per_epoch: 2, val_iterations_per_epoch: 1}
pool: {batches_per_epoch: 1, jobs: 1}
qa_loss: {simulation: {patches: 4, epochs: 1}}
"""
MORE = {
    "nnUNetv2_train": ("-device", "cpu"),
    "nnUNetv2_predict": ("-device", "cpu", "-npp", "1", "-nps", "1"),
    "nnUNetv2_preprocess": ("-np", "2"),
    "score": ("-device", "cpu", "--jobs", "1"),
}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(os.path.expandvars(line)) for block in blocks for line in block.splitlines()]


@pytest.fixture
def raw(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset with the page's dataset.json and nothing but images; their labels lie in `truth`."""
    monkeypatch.chdir(fresh_folders)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    folder = fresh_folders / "nnUNet_raw" / NAME
    rng = np.random.default_rng(0)
    for case in (f"S{subject:02d}_{number:03d}" for subject in range(SUBJECTS) for number in range(EACH)):
        image, label = draw((48, 64), rng)
        if case.endswith("4"):
            image = gaussian_filter(image, 3)
        if case.endswith("5"):
            image = image + rng.normal(0, 40, image.shape)
        write_tiny(folder / "imagesUn" / f"{case}_0000.png", image.clip(0, 255).astype(np.uint8))
        write_tiny(fresh_folders / "truth" / f"{case}.png", (label > 0).astype(np.uint8))
    (described,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "dataset.json").write_text(described)
    return folder


def annotate(queue: Path) -> list[str]:
    """What a person does: save a label of each case that is to be annotated."""
    wanted: list[str] = read_queue(queue)["case_id"].tolist()
    Path("annotated").mkdir(exist_ok=True)
    for case in wanted:
        shutil.copy(f"truth/{case}.png", "annotated")
    return wanted


def made_up_scores(raw: Path) -> None:
    left = CaseTable.read(raw / "cases.csv").case_ids(Role.UNLABELLED)
    rows = [
        {"case_id": case, "role": "unlabelled", "level": "case", "slice_axis": None, "slice_index": None, "q": q}
        for case, q in zip(left, np.linspace(0.5, 1, len(left)), strict=True)
    ]
    write_quality(Path("predictions") / "quality.csv", pd.DataFrame(rows))


def test_what_is_annotated_becomes_training_cases(raw: Path) -> None:
    annotated: list[str] = []
    for tool, command, *arguments in commands():
        if tool == "nnunet-qa" and command == "score":
            made_up_scores(raw)
        elif tool == "nnunet-qa":
            if command == "promote":
                annotated += annotate(Path(arguments[-1]))
            result = run_command(MODULES[command], *arguments)
            assert result.exit_code == 0, (command, arguments, result.exception)
            assert CaseTable.read(raw / "cases.csv").case_ids(Role.LABELLED) == sorted(annotated)
    initial, minimal = pd.read_csv("initial/initial_set.csv"), pd.read_csv("predictions/minimal_set.csv")
    assert len(initial) == SUBJECTS * EACH
    assert initial["selected"].sum() == 8
    assert annotated == [*initial["case_id"][initial["selected"]], *minimal["case_id"]]
    assert (minimal["q"] < 0.9).all()
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == len(annotated)
    assert Path("initial/initial_set.png").is_file()
    assert Path("predictions/minimal_set.png").is_file()
    (folds,) = Path("nnUNet_preprocessed", NAME).glob("splits_final.json")
    validated = sorted(case for fold in json.loads(folds.read_text()) for case in fold["val"])
    assert validated == sorted(annotated)


@pytest.mark.e2e
def test_every_command_of_the_page(raw: Path) -> None:
    (raw / "qa.yaml").write_text(SETTINGS)
    Path("new_images").mkdir()
    shutil.copy(raw / "imagesUn" / "S00_000_0000.png", "new_images")
    said = {}
    for words in commands():
        if words[0] == "nnUNetv2_plan_and_preprocess":
            assert words == ["nnUNetv2_plan_and_preprocess", "-d", "201", "-c", "2d"]
            plan([201], ["2d"])  # the same command, and narrow networks
        elif words[0] == "mv":
            shutil.move(*words[1:])
        else:
            if words[1] == "promote":
                annotate(Path(words[-1]))
            said[words[0]] = run(*words, *MORE.get(words[0], ()), *MORE.get(words[1], ())).stdout
    assert "Loading pretrained weights" in said["nnUNetv2_train"]
    results = Path("nnUNet_results", NAME)
    first, last = (
        torch.load(results / folder / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
        for folder in ("first_round", "QUNetPlusPlusTrainer__nnUNetPlans__2d")
    )
    start = next(key for key in first if "seg_layers" not in key and first[key].ndim == 4)
    assert 0 < (first[start] - last[start]).abs().max() < 0.5 * first[start].abs().max()
    assert Path("final/S00_000.png").is_file()

"""The commands of docs/inject.md, nnU-Net's and ours, one after the other as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import best_in_class, inject, pairwise_dice
from nnunet_qa.quality.table import read_quality, write_quality
from tests.phantom import run
from tests.small import run_command, snapshot

pytestmark = pytest.mark.e2e
PAGE = Path(__file__).parents[2] / "docs" / "inject.md"
MODULES = {"best-in-class": best_in_class, "inject": inject, "pairwise-dice": pairwise_dice}
NEW = "Dataset211_Phantom"
MORE = {
    "extract_fingerprint": ("-np", "1"),
    "preprocess": ("-np", "1"),
    "plan_and_preprocess": ("-npfp", "1", "-np", "1"),
    "train": ("-device", "cpu"),
}
"""What is added to nnU-Net's commands so that the test is quick: by default they start eight processes each."""
POOL = [f"P0_c{number}" for number in range(4)]
SETTINGS = """
training: {epochs: 1, iterations_per_epoch: 1, val_iterations_per_epoch: 1}
pool: {batches_per_epoch: 1, jobs: 1}
qa_loss: {enabled: false}
"""


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(os.path.expandvars(line)) for block in blocks for line in block.splitlines()]


@pytest.fixture
def session_raw(planned: dict[str, str]) -> Path:
    """Raw folder of the planned 2D phantom, asked for before the test has folders of its own."""
    return Path(os.environ["nnUNet_raw"]) / planned["2d"]


def prepare(session_raw: Path, base: Path) -> Path:
    """The planned 2D phantom as dataset 111, with predictions of its pool by two folds; its raw folder."""
    name = "Dataset111_Phantom"
    raw, preprocessed = base / "nnUNet_raw" / name, base / "nnUNet_preprocessed" / name
    shutil.copytree(session_raw, raw)
    shutil.copytree(session_raw.parents[1] / "nnUNet_preprocessed" / session_raw.name, preprocessed)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps({**plans, "dataset_name": name}))
    (raw / "qa.yaml").write_text(SETTINGS)
    for folder, labels in (
        ("predictions", "S0_c0 S0_c1 S1_c0 S1_c1"),
        ("predictions_fold_1", "S0_c0 S0_c1 S1_c0 S2_c0"),
    ):
        (base / folder).mkdir()
        for case, label in zip(POOL, labels.split(), strict=True):
            shutil.copy(raw / "labelsTr" / f"{label}.png", base / folder / f"{case}.png")
    rows = {"case_id": POOL, "role": "unlabelled", "level": "case", "slice_axis": None, "slice_index": None}
    write_quality(base / "predictions" / "quality.csv", pd.DataFrame({**rows, "q": [0.6, 0.7, 0.8, 0.9]}))
    return raw


def second_round(base: Path) -> None:
    """What the page leaves to the reader: predictions and ranking of the pool that is left."""
    shutil.copytree(base / "predictions", base / "predictions_2")
    run_command(
        best_in_class, "-d", 211, "--model", "round_1", "--quality", "predictions/quality.csv", "-k", 1,
        "-o", "ranking_2.csv",
    )  # fmt: skip


def test_every_command_of_the_page(session_raw: Path, fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = fresh_folders
    raw = prepare(session_raw, base)
    monkeypatch.chdir(base)
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    before = snapshot(raw)
    models = base / "nnUNet_results"
    model = models / NEW / "QAsemiTrainer__nnUNetPlans__2d"
    seen = []
    for tool, *arguments in commands():
        seen.append(tool if tool != "nnunet-qa" else arguments[0])
        if tool == "nnunet-qa":
            if arguments[1:3] == ["-d", "211"]:
                second_round(base)
            result = run_command(MODULES[arguments[0]], *arguments[1:])
            assert result.exit_code == 0, (arguments, result.exception)
            continue
        name = tool.removeprefix("nnUNetv2_")
        if "-pretrained_weights" in arguments:
            shutil.copytree(models / NEW, models / "Dataset111_Phantom")  # stands for the model that predicted
        # without processes of its own the loader is quick, but planning breaks
        done = run(tool, *arguments, *MORE.get(name, ()), nnUNet_n_proc_DA="0" if name == "train" else "1")
        assert name != "train" or "unlabelled pool: 2 cases" in done.stdout
        assert "--verify_dataset_integrity" not in arguments or "your dataset is most likely OK" in done.stdout
    assert [tool.removeprefix("nnUNetv2_") for tool in seen] == [
        *("pairwise-dice", "best-in-class", "best-in-class", "inject"),
        *("extract_fingerprint", "move_plans_between_datasets", "preprocess", "train", "train"),
        *("plan_and_preprocess", "inject"),
    ]
    assert snapshot(raw) == before
    # pairwise Dice is 1 for the first three; of these Q prefers the second and the third
    chosen = ["P0_c1", "P0_c2"]
    new = CaseTable.read(base / "nnUNet_raw" / NEW / "cases.csv")
    assert sorted(new.frame["case_id"][new.frame["label_source"] == "pseudo"]) == chosen
    assert set(new.frame["pseudo_estimator"]) == {"", "ensemble:2 q:1"}
    people = set(CaseTable.read(raw / "cases.csv").case_ids(Role.LABELLED))
    preprocessed = base / "nnUNet_preprocessed" / NEW
    assert {path.stem for path in (preprocessed / "gt_segmentations").iterdir()} == {*people, *chosen}
    folds = json.loads((preprocessed / "splits_final.json").read_text())
    validated = {path.stem for path in (model / "fold_0" / "validation").glob("*.png")}
    assert validated == set(folds[0]["val"]) <= people
    assert set(chosen) <= set(folds[0]["train"])
    table = read_quality(model / "fold_0" / "quality.csv")
    assert set(table["case_id"][table["role"] == "unlabelled"]) == set(POOL) - set(chosen)
    again = CaseTable.read(base / "nnUNet_raw" / "Dataset212_Phantom" / "cases.csv").frame
    assert again["pseudo_round"].value_counts().to_dict() == {"": len(again) - 3, "1": 2, "2": 1}

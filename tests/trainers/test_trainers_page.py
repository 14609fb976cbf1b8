"""docs/trainers.md: its commands, one after the other as they stand there, and the trainers that it names."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import nnunet_qa.trainers as trainers
from nnunet_qa.data.paths import preprocessed_dataset_folder
from tests.phantom import run, write_dataset

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
SETTINGS = """
training: {epochs: 1, iterations_per_epoch: 1, val_iterations_per_epoch: 1}
pool: {enabled: false}
"""
MORE = {
    "nnUNetv2_plan_and_preprocess": ("-npfp", "2", "-np", "2"),
    "nnUNetv2_train": ("-device", "cpu"),
    "nnUNetv2_predict": ("-device", "cpu", "-npp", "1", "-nps", "1"),
}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def narrow(plans: str) -> None:
    """Narrow networks and small batches, so that the test is quick; the FCN's width is its own."""
    path = preprocessed_dataset_folder("101") / f"{plans}.json"
    content = json.loads(path.read_text())
    configuration = content["configurations"]["2d"]
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [4] * arguments["n_stages"]
    configuration["batch_size"] = 2
    path.write_text(json.dumps(content))


def test_every_trainer_stands_on_the_page() -> None:
    named: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        names = re.findall(r"`(\w+)`", row)
        named |= {names[0] + name if name.startswith("_") else name for name in names}
    assert named == {name for name in trainers.__all__ if name != "one_line_errors"}


@pytest.mark.e2e
def test_every_command_of_the_page(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    raw = fresh_folders / "nnUNet_raw" / write_dataset(101, "Aorta", dimensions=2, pool=0, seed=5)
    (raw / "qa.yaml").write_text(SETTINGS)
    shutil.copytree(raw / "imagesTs", "images")
    for words in commands():
        run(*words, *MORE[words[0]])
        if words[0] == "nnUNetv2_plan_and_preprocess":
            narrow("nnUNetResEncUNetMPlans" if "-pl" in words else "nnUNetPlans")
    for folder in ("predictions", "residual"):
        assert sorted(path.name for path in Path(folder).glob("*.png")) == ["T0_c0.png", "T0_c1.png"]
    models = sorted(path.name for path in Path("nnUNet_results", "Dataset101_Aorta").iterdir())
    assert models == ["FCNTrainer__nnUNetPlans__2d", "QAsemiTrainer__nnUNetResEncUNetMPlans__2d"]

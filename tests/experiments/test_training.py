from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import nnunet_qa.experiments.runner as runner
from nnunet_qa.experiments.budget import Budget
from nnunet_qa.experiments.holdout import Holdout, Parts
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.experiments.training import Training

BUDGET = Budget(iterations=6, iterations_per_epoch=2, val_iterations_per_epoch=1, initial_lr=0.03, mirroring=False)


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    """A training whose commands are only remembered, in `calls` of the fixture below."""
    parts = Parts(("a", "b"), ("c",), ("d",))
    holdout = Holdout(tmp_path / "Dataset007_X", tmp_path / "holdout", parts, "2d", BUDGET)
    cell = Cell("arm", 3, tmp_path / "cell", {"HOME": "/h"})
    cell.folder.mkdir()
    monkeypatch.setattr(Holdout, "populate", lambda self, *arguments: None)
    return Training(cell=cell, holdout=holdout, trainer="T", plans="P", device="cpu", jobs=2)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    found: list[tuple[list[str], dict[str, str]]] = []

    def remember(command: Any, *, environment: Any, log: Path, lock: int | None = None) -> None:
        found.append((list(command), dict(environment)))

    monkeypatch.setattr(runner, "run_command", remember)
    return found


def test_a_training_gets_its_settings_and_weights(training: Training, calls: list[Any], tmp_path: Path) -> None:
    training.train(["a"], stages=2, weights=tmp_path / "w.pth")
    ((command, environment),) = calls
    assert command[:4] == ["nnUNetv2_train", "7", "2d", "0"]
    assert command[4:] == ["-tr", "T", "-p", "P", "-device", "cpu", "-pretrained_weights", str(tmp_path / "w.pth")]
    assert environment["HOME"] == "/h"
    settings = yaml.safe_load(Path(environment["nnUNet_qa_config"]).read_text())
    expected = {"epochs": 6, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1, "initial_lr": 0.03}
    assert settings["training"] == expected
    training.train(["a"], stages=2)  # done before
    assert len(calls) == 1


def test_further_settings_are_added_and_replace_whole_sections(training: Training, calls: list[Any]) -> None:
    training.train(["a"], stages=1)
    plain = yaml.safe_load((training.cell.folder / "qa.yaml").read_text())
    assert plain["scoring"] == {"every_epoch": False, "final": False}
    settings = {"head_weights": "all", "scoring": {"every_epoch": True}, "qa_loss": {"weight": 0.3, "views": [0, 1]}}
    replace(training, settings=settings).train(["a"], stages=1)
    changed = yaml.safe_load((training.cell.folder / "qa.yaml").read_text())
    assert changed == {"training": plain["training"], **settings}


@pytest.mark.parametrize("name", ["latest", "final"])
def test_a_stopped_training_goes_on_instead_of_starting_from_the_weights(
    training: Training, calls: list[Any], tmp_path: Path, name: str
) -> None:
    training.checkpoint.parent.mkdir(parents=True)
    (training.checkpoint.parent / f"checkpoint_{name}.pth").write_bytes(b"")
    training.train(["a"], stages=1, weights=tmp_path / "w.pth")
    assert calls[0][0][-1] == "--c"
    assert "-pretrained_weights" not in calls[0][0]


def test_prediction_and_scoring_name_the_model_and_the_images(
    training: Training, calls: list[Any], tmp_path: Path
) -> None:
    training.predict("imagesTs")
    training.score("imagesTr", "--entropy")
    raw, cell = tmp_path / "holdout" / "nnUNet_raw" / "Dataset007_X", tmp_path / "cell"
    model = ["-d", "7", "-c", "2d", "-f", "0", "-tr", "T", "-p", "P", "-device", "cpu", "--disable_tta"]
    predict, score = (command for command, _ in calls)
    assert predict[:5] == ["nnUNetv2_predict", "-i", str(raw / "imagesTs"), "-o", str(cell / "imagesTs")]
    assert predict[5 : 5 + len(model)] == model
    assert score[:6] == ["nnunet-qa", "score", "-i", str(raw / "imagesTr"), "-o", str(cell / "imagesTr")]
    assert score[6:] == [*model, "--jobs", "2", "--entropy"]
    assert training.model == cell / "nnUNet_results" / "Dataset007_X" / "T__P__2d"

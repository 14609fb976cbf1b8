"""The experiment of paper 002 on a phantom, with stand-ins for nnU-Net's commands: they are quick, and what comes out
is known.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from skimage.io import imread, imsave

from nnunet_qa.experiments import runner
from nnunet_qa.experiments.budget import Budget
from nnunet_qa.experiments.qa_loss import Protocol, QALossExperiment
from nnunet_qa.files import write_json
from nnunet_qa.quality.codes import CodeThresholds
from nnunet_qa.quality.table import write_quality
from tests.phantom import write_dataset

TINY = Budget(iterations=8, iterations_per_epoch=1, val_iterations_per_epoch=1, features=(4, 8, 16), batch_size=2)
LABELLED = 4
"""Of the ten cases of the pool: nine subjects of two cases, three of them for testing and one for validation."""
KEPT = {"supervised": 0.4, "qa_loss": 0.6, "mean_teacher": 0.3, "cross_pseudo": 0.5}
"""Part of the true foreground that an arm finds in an average case; 0.45 for the others."""
STOPPED = "the labelled Dice fell from 0.800 (epoch 1) to 0.600 while the QA loss fell from 1.000 to 0.500"


@contextmanager
def phantom(base: Path) -> Iterator[Path]:
    """The raw dataset, with nnU-Net's variables set meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (base / name).mkdir(exist_ok=True)
            patch.setenv(name, str(base / name))
        yield base / "nnUNet_raw" / write_dataset(761, "QALoss", dimensions=2, pool=0, seed=3, subjects=9)


def experiment_on(source: Path, folder: Path, **changes: Any) -> QALossExperiment:
    """The experiment with its settings changed."""
    settings = {"budget": TINY, "labelled": LABELLED, "thresholds": CodeThresholds(0.7, 0.5), **changes}
    return QALossExperiment(source=source, folder=folder, protocol=Protocol(**settings))


def kept_of(arm: str, case: str) -> float:
    """Part of the true foreground of a case that an arm finds; nothing else is predicted."""
    spread = zlib.crc32(case.encode()) % 100 / 100 - 0.5
    return min(1.0, KEPT.get(arm, 0.45) + 0.6 * spread)


def q_of(arm: str, case: str) -> float:
    """Q of a case; it has little to do with the Dice."""
    return zlib.crc32(f"{arm}{case}".encode()) % 1000 / 1000


@dataclass
class Commands:
    """Stands in for `run_command`.

    Attributes:
        ran: every command, with the content of the `qa.yaml` it was given.
        stopped: arms whose guard stops the QA loss.
    """

    ran: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)
    stopped: tuple[str, ...] = ()

    def __call__(
        self, command: Sequence[str], *, environment: Mapping[str, str], log: Path, lock: int | None = None
    ) -> None:
        named = environment.get("nnUNet_qa_config")
        settings = yaml.safe_load(Path(named).read_text()) if named else {}
        self.ran.append((list(command), settings))
        if command[0] == "nnUNetv2_plan_and_preprocess":
            name = next(Path(environment["nnUNet_raw"]).iterdir()).name
            plans = Path(environment["nnUNet_preprocessed"]) / name / "nnUNetPlans.json"
            write_json(plans, {"configurations": {"2d": {}, "3d_fullres": {}}})
        elif command[0] == "nnUNetv2_train":
            self._train(command, environment, settings)
        elif command[:2] == ("nnunet-qa", "score"):
            _score(command)

    def _train(self, command: Sequence[str], environment: Mapping[str, str], settings: dict[str, Any]) -> None:
        options = dict(zip(command[4::2], command[5::2], strict=True))
        name = next(Path(environment["nnUNet_raw"]).iterdir()).name
        model = f"{options['-tr']}__{options['-p']}__{command[2]}"
        fold = Path(environment["nnUNet_results"]) / name / model / "fold_0"
        fold.mkdir(parents=True)
        write_json(fold.parent / "plans.json", {"dataset_name": name})
        epochs, arm = settings["training"]["epochs"], fold.parents[4].name
        logged = {"ema_fg_dice": [KEPT.get(arm, 0.45) * (epoch + 1) / epochs for epoch in range(epochs)]}
        lines = [f"2026-01-01 00:00:0{epoch}.5: Epoch {epoch} " for epoch in range(epochs)]
        if "qa_loss" in settings:
            logged |= {"qa_loss": [1 / (epoch + 1) for epoch in range(epochs)], "disagreement_pool": [0.25] * epochs}
            if settings["qa_loss"].get("discriminator") is None:
                write_discriminator(fold / "discriminator.pt")
        if arm in self.stopped:
            logged["qa_loss"][5:] = [float("nan")] * (epochs - 5)
            lines.insert(6, f"2026-01-01 00:00:05.6: QA loss: stopped by its guard: {STOPPED} ")
        (fold / "training_log_2026_1_1_00_00_00.txt").write_text("\n".join(lines) + "\n")
        torch.save({"logging": logged}, fold / "checkpoint_final.pth")


def write_discriminator(path: Path) -> None:
    """A file, and the description beside it."""
    path.write_bytes(b"")
    found = {"n": 30, "accuracy": 0.7, "rmse": 0.55, "auroc": None}
    history = [{"epoch": epoch, "train_rmse": 1 / epoch, "validation_rmse": 1.5 / epoch} for epoch in (1, 2, 3)]
    metrics = {part: {**found, "by_source": {"simulated": found}} for part in ("validation", "test")}
    path.with_suffix(".json").write_text(json.dumps({"best_epoch": 3, "history": history, "metrics": metrics}))


def _score(command: Sequence[str]) -> None:
    options = dict(zip(command[2::2], command[3::2], strict=True))
    images, output = Path(options["-i"]), Path(options["-o"])
    output.mkdir()
    arm, rows = output.parents[1].name, []
    for image in sorted(images.iterdir()):
        case = image.name.removesuffix("_0000.png")
        truth = imread(images.parent / "labelsTs" / f"{case}.png")
        imsave(output / f"{case}.png", predicted(truth, kept_of(arm, case)), check_contrast=False)
        row = {"case_id": case, "role": "test", "level": "case", "slice_axis": None, "slice_index": None}
        rows.append({**row, "q": q_of(arm, case)})
    write_quality(output / "quality.csv", pd.DataFrame(rows))


def predicted(truth: np.ndarray, kept: float) -> np.ndarray:
    """The first voxels of each class, so many as the part says."""
    found = np.zeros_like(truth)
    for value in (1, 2):
        places = np.flatnonzero(truth == value)
        found.flat[places[: round(kept * len(places))]] = value
    return found


@contextmanager
def stand_ins(*, stopped: tuple[str, ...] = ()) -> Iterator[Commands]:
    """The stand-ins in place of the commands."""
    commands = Commands(stopped=stopped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_command", commands)
        yield commands


def run(experiment: QALossExperiment, arms: Sequence[str], seeds: Sequence[int] = (0,)) -> None:
    """Run cells to their end."""
    experiment.runner.begin()
    for _ in experiment.runner.run(arms, seeds):
        pass

"""Training and predicting in a cell of an experiment, with nnU-Net's commands and ours, resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from nnunet_qa.config import ENVIRONMENT_VARIABLE
from nnunet_qa.config_limited_data import InteractionConfig
from nnunet_qa.environment import FOLDERS
from nnunet_qa.experiments.holdout import Holdout
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.files import write_text


@dataclass(frozen=True, kw_only=True)
class Training:
    """The model of one cell.

    Attributes:
        cell: where it is trained.
        holdout: the data, with the budget.
        trainer: name of the trainer.
        plans: name of the plans.
        device: `cpu`, `cuda` or `mps`.
        jobs: processes of each command.
        settings: further sections of `qa.yaml`.
    """

    cell: Cell
    holdout: Holdout
    trainer: str
    plans: str
    device: str
    jobs: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """`nnUNet_results/DatasetXXX/<trainer>__<plans>__<configuration>` of the cell."""
        name = f"{self.trainer}__{self.plans}__{self.holdout.configuration}"
        return self.cell.folder / FOLDERS[2] / self.holdout.source.name / name

    @property
    def checkpoint(self) -> Path:
        """Weights after the training."""
        return self.model / "fold_0" / "checkpoint_final.pth"

    def train(
        self,
        cases: Sequence[str],
        *,
        stages: int,
        weights: Path | None = None,
        earlier: Cell | None = None,
        npz: bool = False,
    ) -> None:
        """Train fold 0 on the given cases; a training that was stopped goes on.

        Args:
            cases: identifiers of pool cases.
            stages: how many stages of the budget.
            weights: for `-pretrained_weights`; nnU-Net takes all of them but the output layers, which begin anew.
            earlier: a cell whose plans this one uses.
            npz: keep the probabilities of the validation cases.

        Raises:
            DependencyError: the command failed.
        """
        self.holdout.populate(self.cell, cases, earlier)
        self.go_on(stages=stages, weights=weights, npz=npz)

    def go_on(self, *, stages: int, weights: Path | None = None, npz: bool = False) -> None:
        """As `train`, on the data that lie in the cell's own nnU-Net folders."""
        settings = self.cell.folder / "qa.yaml"
        write_text(settings, self._settings(stages))
        how = ["-tr", self.trainer, "-p", self.plans, "-device", self.device]
        # nnU-Net's own --c goes on from the final checkpoint with the validation that it still owes
        if any((self.checkpoint.parent / f"checkpoint_{name}.pth").is_file() for name in ("final", "latest")):
            how.append("--c")
        elif weights is not None:
            how += ["-pretrained_weights", str(weights)]
        if npz:
            how.append("--npz")
        cell = replace(self.cell, environment={**self.cell.environment, ENVIRONMENT_VARIABLE: str(settings)})
        cell.call("train", "nnUNetv2_train", self.holdout.number, self.holdout.configuration, "0", *how)

    def predict(self, images: str) -> None:
        """Predict a folder of the raw dataset, such as `imagesTs`, into one of that name, with nnU-Net's command."""
        self.cell.call(f"predict-{images}", "nnUNetv2_predict", *self._what(images), "-npp", "1", "-nps", "1")

    def score(self, images: str, *more: str) -> None:
        """Predict and score a folder of the raw dataset into one of that name."""
        self.cell.call(f"score-{images}", "nnunet-qa", "score", *self._what(images), "--jobs", str(self.jobs), *more)

    def interact(self, images: str, clicks: int) -> Path:
        """Segment a folder of the raw dataset, such as `imagesTs`, with so many simulated clicks each.

        The user begins as in the training, and overlooks the same small errors.

        Returns:
            The table with the Dice after each click, see docs/interact.md.
        """
        labels = self.holdout.raw / images.replace("images", "labels")
        trained = InteractionConfig(**self.settings.get("interaction", {}))
        user = ("--mode", trained.mode.value, "--least-error", str(trained.least_error))
        simulated = ("--simulate", str(labels), "--number", str(clicks), *user)
        self.cell.call(f"interact-{images}", "nnunet-qa", "interact", *self._what(images), *simulated)
        return self.cell.folder / images / "dice.csv"

    def _what(self, images: str) -> list[str]:
        tta = [] if self.holdout.budget.mirroring else ["--disable_tta"]
        return [*self._model(images), *tta]

    def _model(self, images: str) -> list[str]:
        folders = ["-i", str(self.holdout.raw / images), "-o", str(self.cell.folder / images)]
        model = ["-d", self.holdout.number, "-c", self.holdout.configuration, "-f", "0", "-tr", self.trainer]
        return [*folders, *model, "-p", self.plans, "-device", self.device]

    def _settings(self, stages: int) -> str:
        """`qa.yaml` of this training."""
        budget = self.holdout.budget
        training = {
            "epochs": budget.epochs(stages),
            "iterations_per_epoch": budget.iterations_per_epoch,
            "val_iterations_per_epoch": budget.val_iterations_per_epoch,
            "initial_lr": budget.initial_lr,
        }
        scoring = {"every_epoch": False, "final": False}
        return yaml.safe_dump({"training": training, "scoring": scoring, **self.settings})

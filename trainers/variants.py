"""Trainers with fixed numbers of epochs, named as nnU-Net names its own; they win over `training.epochs`."""

from __future__ import annotations

import torch

from .fcn import FCNTrainer
from .qa_semi_trainer import QAsemiTrainer


class QAsemiTrainer_5epochs(QAsemiTrainer):
    """QAsemiTrainer for 5 epochs."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 5


class QAsemiTrainer_50epochs(QAsemiTrainer):
    """QAsemiTrainer for 50 epochs."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 50


class QAsemiTrainer_250epochs(QAsemiTrainer):
    """QAsemiTrainer for 250 epochs."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 250


class FCNTrainer_5epochs(FCNTrainer):
    """FCNTrainer for 5 epochs."""

    def _apply_training_settings(self) -> None:
        super()._apply_training_settings()
        self.num_epochs = 5


class FCNTrainer_50epochs(FCNTrainer):
    """FCNTrainer for 50 epochs."""

    def _apply_training_settings(self) -> None:
        super()._apply_training_settings()
        self.num_epochs = 50


class FCNTrainer_250epochs(FCNTrainer):
    """FCNTrainer for 250 epochs."""

    def _apply_training_settings(self) -> None:
        super()._apply_training_settings()
        self.num_epochs = 250

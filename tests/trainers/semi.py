"""Quick settings, discriminators and datasets for the tests of the trainers that learn from the pool."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from nnunet_qa.config import QAConfig
from nnunet_qa.data.paths import raw_dataset_folder
from nnunet_qa.inference.predictor import class_names
from nnunet_qa.inference.qa_montage import renderer_of
from nnunet_qa.networks.discriminator import resnet18_regressor
from nnunet_qa.quality.discriminator import Discriminator, frozen
from nnunet_qa.quality.discriminator_file import save

QUICK: dict[str, Any] = {
    "training": {"epochs": 2, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1},
    "pool": {"batches_per_epoch": 1, "jobs": 1},
}
TINY = {"patches": 4, "per_code": 1, "epochs": 1}
"""A discriminator that is fitted in a moment."""


def settings(**sections: Any) -> str:
    """A `qa.yaml` for a short training."""
    return yaml.safe_dump({**QUICK, **sections})


def seed(number: int = 7) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def write_discriminator(
    trainer: Any, path: Path, *, slices: int | None = None, code: float | None = None, **changes: Any
) -> Path:
    """A discriminator with random weights that fits a trainer.

    Args:
        trainer: whose montages it is for.
        path: where to.
        slices: of a case, where a 2D configuration is trained on volumes.
        code: what it always says; None for whatever its weights say.
        changes: `dataset`, `classes` or `output` of the montage, to make it unfit.
    """
    manager, configuration = trainer.plans_manager, trainer.configuration_manager
    spec = renderer_of(manager, configuration, trainer.dataset_json, trainer.config.qa_loss, slices=slices).specs[0]
    if "output" in changes:
        spec = replace(spec, output=changes["output"])
    names = changes.get("classes", class_names(trainer.dataset_json, trainer.label_manager))
    made = Discriminator(spec, names)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(11)
        network = resnet18_regressor()
    if code is not None:
        torch.nn.init.zeros_(network.fc.weight)
        torch.nn.init.constant_(network.fc.bias, code)
    made.network_, made.best_epoch_, made.metrics_ = frozen(network), 1, {}
    made.history_ = pd.DataFrame([{"epoch": 1, "train_rmse": 1.0, "validation_rmse": 1.0}])
    made.parts_ = pd.DataFrame([{"case_id": "a", "subject": "A", "part": "train"}])
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(made, path, dataset=changes.get("dataset", manager.dataset_name), about={})


def change(trainer: Any, section: str, **values: Any) -> None:
    """Give a trainer other settings."""
    content = trainer.config.model_dump()
    content[section].update(values)
    trainer.config = QAConfig.model_validate(content)


def begin_epoch(trainer: Any, epoch: int = 0) -> None:
    """What nnU-Net's loop does before the first step of an epoch."""
    trainer.current_epoch = epoch
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()


def one_step(trainer: Any) -> dict[str, Any]:
    result: dict[str, Any] = trainer.train_step(next(trainer.dataloader_train))
    return result


@contextmanager
def started(trainer: Any) -> Iterator[Any]:
    """A trainer whose training has begun."""
    trainer.on_train_start()
    try:
        yield trainer
    finally:
        trainer._close_pool_loader()
        if getattr(trainer, "_pool_batches", None) is not None:
            trainer._pool_batches.close()


class NoLoss(torch.nn.Module):
    """A loss of annotated images that asks for nothing."""

    def forward(self, output: list[torch.Tensor], target: Any) -> torch.Tensor:
        return 0 * torch.stack([one.float().sum() for one in output]).sum()


def copied(dataset: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a planned dataset, which the test may change; its raw folder."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(Path(os.environ[variable]) / dataset, folder / variable / dataset)
        monkeypatch.setenv(variable, str(folder / variable))
    return folder / "nnUNet_raw" / dataset


def regions_with_pool(planned: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the planned dataset with regions, with the pool of the other 2D one."""
    pool = raw_dataset_folder(planned["2d"]) / "imagesUn"
    shutil.copytree(pool, copied(planned["regions"], folder, monkeypatch) / "imagesUn", dirs_exist_ok=True)
    return planned["regions"]


def logs(trainer: Any) -> str:
    """What a trainer has written to its log file."""
    return Path(trainer.log_file).read_text(encoding="utf-8")

"""The loss of each output of a network with deep supervision, epoch by epoch (paper 001, Figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn

from nnunet_qa.files import write_csv

from .pool_trainer import PoolTrainer

FILE_NAME = "level_losses.csv"


class LevelLosses(DeepSupervisionWrapper):
    """The weighted sum of the losses of all outputs, which also remembers each.

    Args:
        loss: loss of one output.
        weights: weight of each output, finest first.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float]) -> None:
        super().__init__(loss, list(weights))
        self.remembered: list[torch.Tensor] = []

    def forward(self, *args: Any) -> torch.Tensor:
        """Loss of a batch; `args` are lists with one entry an output, finest first."""
        losses = [self.loss(*inputs) for inputs in zip(*args, strict=True)]
        self.remembered.append(torch.stack(losses).detach())
        # an output of weight 0 must have no gradient at all: with one of 0 its weights would still decay
        weighted = [weight * loss for weight, loss in zip(self.weight_factors, losses, strict=True) if weight != 0]
        return torch.stack(weighted).sum()

    def collect(self) -> list[float]:
        """Mean loss of each output since the last call, coarsest level first as the paper counts them."""
        means = torch.stack(self.remembered).float().mean(0).tolist() if self.remembered else []
        self.remembered = []
        return means[::-1]


def add_epoch(path: Path, epoch: int, part: str, losses: Sequence[float]) -> None:
    """Add a row `epoch, part, level_1, level_2, …` to a CSV file; rows of this epoch or later ones are replaced.

    Args:
        path: `level_losses.csv`.
        epoch: from 0.
        part: `train` or `validation`.
        losses: mean loss of each level, coarsest first.
    """
    row = {"epoch": epoch, "part": part, **{f"level_{level}": loss for level, loss in enumerate(losses, start=1)}}
    new = pd.DataFrame([row])
    if path.is_file():
        old = pd.read_csv(path)
        kept = old[(old["epoch"] < epoch) | ((old["epoch"] == epoch) & (old["part"] != part))]
        new = pd.concat([kept, new], ignore_index=True)
    write_csv(path, new.round(6))


class LevelLossesTrainer(PoolTrainer):
    """PoolTrainer that writes `level_losses.csv` where its loss is a LevelLosses; the base of QU-Net++'s trainers."""

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As nnU-Net's; adds the loss of each level to `level_losses.csv` (under DDP: of rank 0's batches)."""
        super().on_train_epoch_end(train_outputs)
        self._write_level_losses("train")

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As PoolTrainer's; adds the loss of each level to `level_losses.csv`."""
        super().on_validation_epoch_end(val_outputs)
        self._write_level_losses("validation")

    def _write_level_losses(self, part: str) -> None:
        if isinstance(self.loss, LevelLosses) and (losses := self.loss.collect()) and self.local_rank == 0:
            add_epoch(Path(self.output_folder) / FILE_NAME, self.current_epoch, part, losses)

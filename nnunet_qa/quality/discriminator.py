"""The QA discriminator: a network that gives a montage the code that a person would give it (paper 002).

Codes are drawn in equal proportion, subjects are split 80/10/10, the mean squared error is minimised by Adam and the
epoch of the lowest validation RMSE is kept. Afterwards the network is frozen: it judges predictions (`predict`), or
steers a segmentation network through the gradient of its code with respect to the picture (`codes_of`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score
from torch import nn
from torch.nn.functional import mse_loss

from nnunet_qa.errors import ModelError
from nnunet_qa.networks.discriminator import resnet18_regressor
from nnunet_qa.progress import track
from nnunet_qa.quality.coded_montages import TEST, TRAIN, VALIDATION, CodedMontages, equal_draw, subject_parts
from nnunet_qa.quality.codes import Code
from nnunet_qa.quality.montage import MontageSpec

_CHUNK = 64  # pictures judged at a time


class Discriminator:
    """Regression from montage to quality code, with scikit-learn's verbs.

    Args:
        spec: what the montages look like.
        classes: names of the foreground classes, in the order of the palette.
        learning_rate: of Adam.
        batch_size: pictures a step, at least 2, for batch norm.
        epochs: at most so many.
        patience: epochs without a lower validation RMSE after which fitting stops.
        steps_per_epoch: None for as many as go through the training pictures once.
        noise: standard deviation of the Gaussian noise on the pictures while fitting; black is 0 and white 1.
        seed: of initial weights, split, draws and noise.
        weights: file of pretrained weights, see `resnet18_regressor`.
        device: where the network is.

    Attributes:
        network_: the network, frozen and in evaluation mode.
        history_: one row an epoch: `epoch` (from 1), `train_rmse` (over the batches drawn), `validation_rmse`.
        best_epoch_: the epoch whose weights were kept.
        parts_: one row a case: `case_id`, `subject`, `part` (train, validation, test).
        metrics_: `score` of the validation and the test montages, by part.

    Raises:
        ValueError: a number is out of its range.
    """

    network_: nn.Module
    history_: pd.DataFrame
    best_epoch_: int
    parts_: pd.DataFrame
    metrics_: dict[str, dict[str, Any]]

    def __init__(
        self,
        spec: MontageSpec,
        classes: Sequence[str],
        *,
        learning_rate: float = 1e-4,
        batch_size: int = 16,
        epochs: int = 200,
        patience: int = 20,
        steps_per_epoch: int | None = None,
        noise: float = 0.0,
        seed: int = 0,
        weights: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        counts = {"epochs": epochs, "patience": patience, "steps_per_epoch": steps_per_epoch}
        for name, number in counts.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, found {number}")
        if batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, found {batch_size}")
        if not learning_rate > 0 or not noise >= 0:
            raise ValueError(f"learning_rate must be above 0 and noise at least 0, found {learning_rate} and {noise}")
        self.spec, self.classes = spec, tuple(classes)
        self.learning_rate, self.batch_size, self.noise = learning_rate, batch_size, noise
        self.epochs, self.patience, self.steps_per_epoch = epochs, patience, steps_per_epoch
        self.seed, self.weights, self.device = seed, weights, torch.device(device)

    def fit(self, montages: CodedMontages, *, test: bool = True) -> Discriminator:
        """Learn the codes of montages; torch's global generators stay as they are.

        Args:
            montages: of at least two subjects and with every code.
            test: keep a tenth of the subjects for the test; else they are fitted too.

        Raises:
            SelectionError: a code is missing, or there are too few subjects for a split.
            ModelError: the pretrained weights cannot be used, or no epoch had a finite validation error.
        """
        rng = np.random.default_rng(self.seed)
        parts = subject_parts(montages.subjects, montages.codes, rng, test=test)
        train, validation = (montages.subset(np.flatnonzero(parts == part)) for part in (TRAIN, VALIDATION))
        network = self._new_network()
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        noise = torch.Generator(self.device).manual_seed(self.seed)
        history: list[dict[str, float]] = []
        best, best_epoch, best_weights = math.inf, 0, None
        for epoch in track(range(1, self.epochs + 1), "Fitting the discriminator", self.epochs):
            train_rmse = self._train_epoch(network, optimizer, train, rng, noise)
            rmse = _rmse(self._judge(network, validation.pictures), validation.codes)
            if not math.isfinite(train_rmse + rmse):
                break  # the weights are lost
            history.append({"epoch": epoch, "train_rmse": train_rmse, "validation_rmse": rmse})
            if rmse < best:
                best, best_epoch, best_weights = rmse, epoch, copy.deepcopy(network.state_dict())
            elif epoch - best_epoch >= self.patience:
                break
        if best_weights is None:
            raise ModelError("the discriminator did not converge: no finite validation error; lower its learning rate")
        network.load_state_dict(best_weights)
        self.network_ = frozen(network)
        self.history_, self.best_epoch_ = pd.DataFrame(history), best_epoch
        table = pd.DataFrame({"case_id": montages.case_ids, "subject": montages.subjects, "part": parts})
        self.parts_ = table.drop_duplicates(ignore_index=True)
        self.metrics_ = {
            part: self.score(montages.subset(np.flatnonzero(parts == part)))
            for part in (VALIDATION, TEST)
            if (parts == part).any()
        }
        return self

    def codes_of(self, pictures: torch.Tensor) -> torch.Tensor:
        """Codes of pictures, differentiable with respect to them; the weights get no gradient.

        Args:
            pictures: `(batch, 3, rows, columns)` in [0, 1], any float type, on the discriminator's device. The network
                computes in half precision where autocast is on.

        Returns:
            Float32 `(batch)`, unbounded; 0 is success, 2 is failure.

        Raises:
            ModelError: the discriminator has not been fitted.
        """
        return _forward(self._fitted(), pictures)

    def predict(self, pictures: torch.Tensor) -> np.ndarray:
        """Codes of pictures, float64 `(pictures)`, unbounded.

        Args:
            pictures: `(pictures, 3, rows, columns)`, on any device: uint8, or floats in [0, 1].

        Raises:
            ModelError: the discriminator has not been fitted, or the pictures have another size than its montages.
        """
        network = self._fitted()
        if tuple(pictures.shape[1:]) != (3, *self.spec.size):
            raise ModelError(
                f"pictures of {tuple(pictures.shape[2:])} pixels, but the discriminator was made for {self.spec.size}; "
                "render them with its montage spec"
            )
        return self._judge(network, pictures)

    def score(self, montages: CodedMontages) -> dict[str, Any]:
        """`code_metrics` of the predictions for montages, and under `by_source` those of each source of codes."""
        predicted = self.predict(montages.pictures)
        sources = np.array(montages.sources)
        of = {source: sources == source for source in sorted(set(montages.sources))}
        by_source = {source: code_metrics(predicted[here], montages.codes[here]) for source, here in of.items()}
        return {**code_metrics(predicted, montages.codes), "by_source": by_source}

    def _fitted(self) -> nn.Module:
        if not hasattr(self, "network_"):
            raise ModelError("the discriminator has not been fitted; call fit, or load one")
        return self.network_

    def _new_network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would also set the GPUs'
            network = resnet18_regressor(self.weights)
        return network.to(self.device)

    def _train_epoch(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        train: CodedMontages,
        rng: np.random.Generator,
        noise: torch.Generator,
    ) -> float:
        """One epoch; the RMSE over its batches."""
        network.train()
        steps = self.steps_per_epoch or math.ceil(len(train) / self.batch_size)
        drawn = torch.from_numpy(equal_draw(train.codes, steps * self.batch_size, rng))
        codes = torch.from_numpy(train.codes)
        squared = torch.zeros((), device=self.device)
        for batch in drawn.split(self.batch_size):
            pictures = _unit(train.pictures[batch].to(self.device))
            if self.noise > 0:
                drops = torch.randn(pictures.shape, generator=noise, device=self.device)
                pictures = pictures + self.noise * drops
            loss = mse_loss(_forward(network, pictures), codes[batch].to(self.device, torch.float32))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            squared += loss.detach()
        return math.sqrt(squared.item() / steps)

    @torch.no_grad()
    def _judge(self, network: nn.Module, pictures: torch.Tensor) -> np.ndarray:
        network.eval()
        judged = [_forward(network, _unit(chunk.to(self.device))).cpu() for chunk in pictures.split(_CHUNK)]
        return torch.cat(judged).double().numpy()


def frozen(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, so that batch norm keeps its statistics, and without gradients of weights."""
    network.zero_grad(set_to_none=True)
    return network.eval().requires_grad_(False)


def code_metrics(predicted: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """How well predicted codes agree with given ones.

    Args:
        predicted: floats `(cases)`; rounded to the nearest code for all but RMSE and AUROC.
        codes: 0, 1 or 2, `(cases)`.

    Returns:
        `n`, `accuracy`, `rmse`, `confusion` (3 × 3 counts, rows are given codes, columns predicted ones), `recall` (of
        each code) and `auroc` (success against the rest). None where a number is not defined, so that JSON can hold it.
    """
    predicted, codes = np.asarray(predicted, dtype=np.float64), np.asarray(codes, dtype=np.int64)
    rounded = np.clip(np.rint(predicted), min(Code), max(Code)).astype(np.int64)
    table = confusion_matrix(codes, rounded, labels=list(Code)) if len(codes) else np.zeros((3, 3), dtype=np.int64)
    good = codes == Code.SUCCESS
    return {
        "n": len(codes),
        "accuracy": float((rounded == codes).mean()) if len(codes) else None,
        "rmse": _rmse(predicted, codes) if len(codes) else None,
        "confusion": table.tolist(),
        "recall": [float(row[code] / row.sum()) if row.sum() else None for code, row in enumerate(table)],
        "auroc": float(roc_auc_score(good, -predicted)) if 0 < good.sum() < len(good) else None,
    }


def _unit(pictures: torch.Tensor) -> torch.Tensor:
    """Bytes as floats in [0, 1]; floats as they are."""
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures


def _forward(network: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    return network(pictures.float()).squeeze(1).float()


def _rmse(predicted: np.ndarray, codes: np.ndarray) -> float:
    return float(np.sqrt(np.mean((predicted - codes) ** 2)))

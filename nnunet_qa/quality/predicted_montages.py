"""Pictures of what a network predicts for annotated images, coded by the Dice that it reaches there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.coded_montages import CodedMontages, CodedPatch, render
from nnunet_qa.quality.codes import CodeSource, CodeThresholds
from nnunet_qa.quality.montage import MontageSpec


def predicted_montages(
    predictions: Iterable[tuple[CodedPatch, np.ndarray]],
    *,
    spec: MontageSpec,
    classes: Mapping[str, tuple[int, ...]],
    regions: bool,
    thresholds: CodeThresholds,
    source: CodeSource,
) -> CodedMontages:
    """Render predictions of annotated images and code them by their Dice.

    Args:
        predictions: annotated images, each with the probabilities of the foreground classes `(classes, *spatial)`.
        spec: what the pictures look like.
        classes: label values of each foreground class or region, in the order of the probabilities.
        regions: each class is decided alone, at 0.5; else the most probable one, the background included, wins.
        thresholds: Dice of each code.
        source: what the codes are to be called.

    Raises:
        SelectionError: there is no prediction, or `spec` does not fit the images.
    """
    pictures, dice, names = [], [], []
    for patch, probabilities in predictions:
        truth = np.stack([np.isin(patch.labels, values) for values in classes.values()])
        pictures.append(render(patch.image, probabilities, spec))
        dice.append(_mean_dice(_decided(probabilities, regions=regions), truth))
        names.append((patch.subject, patch.case_id))
    if not pictures:
        raise SelectionError("there is no prediction to make montages of; give at least one")
    return CodedMontages(
        pictures=torch.stack(pictures),
        codes=np.array([int(thresholds.code(value)) for value in dice], dtype=np.int64),
        dice=np.array(dice, dtype=np.float64),
        subjects=tuple(subject for subject, _ in names),
        case_ids=tuple(case for _, case in names),
        sources=(source.value,) * len(names),
    )


def _decided(probabilities: np.ndarray, *, regions: bool) -> np.ndarray:
    """Boolean masks `(classes, *spatial)`."""
    if regions:
        return probabilities > 0.5
    background = 1 - probabilities.sum(0, keepdims=True)
    winner = np.concatenate([background, probabilities]).argmax(0)
    return np.stack([winner == number for number in range(1, len(probabilities) + 1)])


def _mean_dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean Dice over the classes that are in either; 1 where there is none."""
    axes = tuple(range(1, truth.ndim))
    total = prediction.sum(axes) + truth.sum(axes)
    shared = (prediction & truth).sum(axes)
    there = total > 0
    return float((2 * shared[there] / total[there]).mean()) if there.any() else 1.0

"""Overlap of a predicted and a true label map by class: a label or, as in nnU-Net, a region of several labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

BACKGROUND, IGNORE = "background", "ignore"


class Empty(str, Enum):
    """What a ratio is where its class is in neither label map: `one` (rightly left empty) or `nan` (says nothing)."""

    ONE = "one"
    NAN = "nan"


@dataclass(frozen=True)
class Overlap:
    """Voxels of one class: in both label maps, only in the prediction, only in the truth."""

    true_positive: int
    false_positive: int
    false_negative: int

    def dice(self, empty: Empty = Empty.ONE) -> float:
        """2 TP / (2 TP + FP + FN), in [0, 1]."""
        both = 2 * self.true_positive
        return self._ratio(both, both + self.false_positive + self.false_negative, empty)

    def jaccard(self, empty: Empty = Empty.ONE) -> float:
        """TP / (TP + FP + FN), in [0, 1]."""
        return self._ratio(self.true_positive, self.true_positive + self.false_positive + self.false_negative, empty)

    def precision(self, empty: Empty = Empty.ONE) -> float:
        """TP / (TP + FP), in [0, 1]; 0 where nothing is predicted though there is something."""
        return self._ratio(self.true_positive, self.true_positive + self.false_positive, empty)

    def recall(self, empty: Empty = Empty.ONE) -> float:
        """TP / (TP + FN), in [0, 1]; 0 where something is predicted though there is nothing."""
        return self._ratio(self.true_positive, self.true_positive + self.false_negative, empty)

    @property
    def in_truth(self) -> bool:
        """Whether the class is in the truth at all."""
        return self.true_positive + self.false_negative > 0

    def _ratio(self, numerator: int, denominator: int, empty: Empty) -> float:
        if self.true_positive + self.false_positive + self.false_negative == 0:
            return 1.0 if empty is Empty.ONE else float("nan")
        return numerator / denominator if denominator else 0.0


def overlap(prediction: np.ndarray, truth: np.ndarray, *, values: Sequence[int], ignore: int | None = None) -> Overlap:
    """Count the voxels of one class.

    Args:
        prediction: label map, any shape.
        truth: label map of the same shape.
        values: label values that make up the class; several for a region.
        ignore: label value of the truth that marks voxels which do not count.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one shape, found {prediction.shape} and {truth.shape}")
    predicted, real = np.isin(prediction, values), np.isin(truth, values)
    if ignore is not None:
        counts = truth != ignore
        predicted, real = predicted & counts, real & counts
    shared = int(np.count_nonzero(predicted & real))
    return Overlap(shared, int(np.count_nonzero(predicted)) - shared, int(np.count_nonzero(real)) - shared)


def overlaps(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    classes: Mapping[str, Sequence[int]],
    ignore: int | None = None,
) -> dict[str, Overlap]:
    """Count the voxels of each class; see `overlap` and, for the classes, `foreground_classes`."""
    return {name: overlap(prediction, truth, values=values, ignore=ignore) for name, values in classes.items()}


def foreground_classes(labels: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Label values of each class that counts, from the `labels` entry of a dataset.json.

    Background (value 0, whatever its name) and the label called `ignore` are left out, as nnU-Net does.

    >>> foreground_classes({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
    {'whole': (1, 2), 'core': (2,)}
    """
    classes = {}
    for name, value in labels.items():
        values = tuple(int(part) for part in (value if isinstance(value, (list, tuple)) else (value,)))
        if name != IGNORE and set(values) != {0}:
            classes[name] = values
    return classes


def ignore_value(labels: Mapping[str, Any]) -> int | None:
    """Value of the label called `ignore` in a dataset.json, if there is one."""
    return int(labels[IGNORE]) if IGNORE in labels else None

"""Where to cut a score of errors, by the weighted Youden index, and how well the cut works (paper 003, section 2).

J_w = 2·(w·sensitivity + (1 − w)·specificity) − 1. Erroneous segmentations are the positive class; a weight above 0.5
says that missing one is worse than looking at a good one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

_SAME = 1e-12  # two indices that differ by rounding alone


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A threshold and what it does to the scores that it was chosen on.

    Attributes:
        threshold: scores from here up are called erroneous.
        sensitivity: share of the erroneous that are called so; NaN where there is none.
        specificity: share of the good that are not; NaN where there is none.
        j: weighted Youden index, in [-1, 1].
    """

    threshold: float
    sensitivity: float
    specificity: float
    j: float


def weighted_youden(
    scores: np.ndarray, erroneous: np.ndarray, *, weight: float = 0.7, least_sensitivity: float = 0.0
) -> OperatingPoint:
    """The threshold with the highest weighted Youden index of those that are sensitive enough, in O(n log n).

    All thresholds between two neighbouring scores have the same index; the one in the middle is taken, since new cases
    do not fall on the scores seen. Of several with the same index, the one of highest sensitivity and then of highest
    specificity is taken. Where one class is missing, its rate counts as 1: nothing of it can be called wrongly.

    Args:
        scores: `(cases)`, finite, the higher the more likely erroneous.
        erroneous: `(cases)`, true or false.
        weight: of the sensitivity, in [0, 1].
        least_sensitivity: thresholds with a lower sensitivity on these scores are not taken, in [0, 1].

    Returns:
        The operating point. The lowest score is its threshold where calling everything erroneous is best, and a number
        just above the highest where calling nothing so is.

    Raises:
        ValueError: no case, different lengths, a score that is not finite, or a weight or sensitivity outside
            [0, 1].

    >>> weighted_youden(np.array([0.1, 0.4, 0.6, 0.9]), np.array([False, False, True, True])).threshold
    0.5
    """
    scores, erroneous = _checked(scores, erroneous)
    for name, number in {"weight": weight, "least_sensitivity": least_sensitivity}.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in [0, 1], found {number}")
    values, place = np.unique(scores, return_inverse=True)
    positives, negatives = int(erroneous.sum()), int((~erroneous).sum())
    # entry i belongs to the cut below values[i]; the last one calls nothing erroneous
    below = np.concatenate([[0], np.cumsum(np.bincount(place, weights=erroneous))])
    passed = np.concatenate([[0], np.cumsum(np.bincount(place, weights=~erroneous))])
    sensitivity = 1 - below / positives if positives else np.ones(len(below))
    specificity = passed / negatives if negatives else np.ones(len(passed))
    index = 2 * (weight * sensitivity + (1 - weight) * specificity) - 1
    index[sensitivity < least_sensitivity - _SAME] = -np.inf  # the first cut, with a sensitivity of 1, always stays
    best = np.flatnonzero(index >= index.max() - _SAME)
    cut = best[np.lexsort((specificity[best], sensitivity[best]))[-1]]
    return OperatingPoint(
        threshold=_between(values, int(cut)),
        sensitivity=float(sensitivity[cut]) if positives else float("nan"),
        specificity=float(specificity[cut]) if negatives else float("nan"),
        j=float(index[cut]),
    )


def auroc(scores: np.ndarray, erroneous: np.ndarray) -> float:
    """Area under the ROC curve of the score as a detector of errors, in [0, 1]; NaN where a class is missing."""
    scores, erroneous = _checked(scores, erroneous)
    return float(roc_auc_score(erroneous, scores)) if 0 < erroneous.sum() < len(erroneous) else float("nan")


def rates(scores: np.ndarray, erroneous: np.ndarray, *, threshold: float) -> dict[str, Any]:
    """How well a threshold tells the erroneous from the good.

    Args:
        scores: `(cases)`, finite.
        erroneous: `(cases)`, true or false.
        threshold: scores from here up are called erroneous.

    Returns:
        `n`, `erroneous`, `caught`, `missed`, `false_alarms`, `passed` (counts); `auroc`; `sensitivity` and
        `specificity`, and under `<name>_95` their exact (Clopper–Pearson) 95 % intervals, which take cases as
        independent. None where a number is not defined, so that JSON can hold it.
    """
    scores, erroneous = _checked(scores, erroneous)
    called = scores >= threshold
    caught, passed = int((called & erroneous).sum()), int((~called & ~erroneous).sum())
    positives, negatives = int(erroneous.sum()), int((~erroneous).sum())
    area = auroc(scores, erroneous)
    return {
        "n": len(scores),
        "erroneous": positives,
        "caught": caught,
        "missed": positives - caught,
        "false_alarms": negatives - passed,
        "passed": passed,
        "auroc": None if np.isnan(area) else area,
        "sensitivity": caught / positives if positives else None,
        "sensitivity_95": clopper_pearson(caught, positives),
        "specificity": passed / negatives if negatives else None,
        "specificity_95": clopper_pearson(passed, negatives),
    }


def clopper_pearson(count: int, cases: int) -> list[float] | None:
    """Exact 95 % interval of a share, or None of no cases.

    >>> [round(bound, 3) for bound in clopper_pearson(19, 20)]
    [0.751, 0.999]
    """
    if cases == 0:
        return None
    interval = binomtest(count, cases).proportion_ci(confidence_level=0.95, method="exact")
    return [float(interval.low), float(interval.high)]


def _between(values: np.ndarray, cut: int) -> float:
    """The threshold that calls `values[cut:]` erroneous; `values` are distinct and increasing."""
    if cut == 0:
        return float(values[0])
    if cut == len(values):
        return float(np.nextafter(values[-1], np.inf))
    low, high = float(values[cut - 1]), float(values[cut])
    middle = low + (high - low) / 2
    return middle if middle > low else high  # there may be no number between them


def _checked(scores: np.ndarray, erroneous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, erroneous = np.asarray(scores, dtype=np.float64), np.asarray(erroneous, dtype=bool)
    if scores.ndim != 1 or scores.shape != erroneous.shape or not len(scores):
        raise ValueError(f"one score and one label a case are needed, found {scores.shape} and {erroneous.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    return scores, erroneous

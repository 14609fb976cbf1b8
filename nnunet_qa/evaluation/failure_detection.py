"""How well a quality score finds failed segmentations: risk-coverage curves, correlations, AUROC of failures.

The risk of a case is 1 - Dice. Coverage is the share of cases that is kept when the cases of lowest confidence are set
aside. Area under the risk-coverage curve: El-Yaniv and Wiener 2010 (JMLR 11); its excess over the best ranking: Geifman
et al. 2019 (ICLR).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class FailureDetection:
    """How well a score detects failures.

    Attributes:
        cases: number of cases.
        subjects: number of subjects.
        failures: number of cases with Dice below `failure_dice`.
        failure_dice: Dice below which a segmentation has failed.
        values: `spearman`, `pearson`, `aurc`, `e_aurc`, `naurc`, `auroc`; NaN where one is not defined.
        intervals: lower and upper bound of each; NaN where not defined.
        level: of the intervals, 0.95 for 95 %.
    """

    cases: int
    subjects: int
    failures: int
    failure_dice: float
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    level: float = 0.95


def risk_coverage(confidence: np.ndarray, risk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve of the mean risk of the kept cases against coverage.

    Cases are kept in the order of falling confidence. Cases of equal confidence have no order: the curve is the mean
    over all their orders, which equals giving each the mean risk of its ties.

    Args:
        confidence: `(cases)`, higher is better.
        risk: `(cases)`.

    Returns:
        Coverage `(cases + 1)` = 0, 1/n, …, 1, and the mean risk there. At coverage 0, where no case is left, the curve
        goes on level from 1/n.

    Raises:
        ValueError: no case, different lengths, or NaN.
    """
    confidence, risk = _checked(confidence, risk)
    _, group = np.unique(-confidence, return_inverse=True)
    tied = np.bincount(group, weights=risk) / np.bincount(group)
    kept = np.arange(1, len(risk) + 1)
    mean = np.cumsum(tied[np.sort(group)]) / kept
    return np.concatenate([[0.0], kept / len(risk)]), np.concatenate([mean[:1], mean])


def aurc(confidence: np.ndarray, risk: np.ndarray) -> float:
    """Area under `risk_coverage` by the trapezoid rule over coverage 0 to 1, in [0, 1] for risks in [0, 1].

    The lower, the better. A score that says nothing has the mean risk as its expected area.
    """
    coverage, mean = risk_coverage(confidence, risk)
    return float(np.sum(np.diff(coverage) * (mean[1:] + mean[:-1]) / 2))


def optimal_aurc(risk: np.ndarray) -> float:
    """`aurc` of the perfect ranking, by the risk itself."""
    risk = np.asarray(risk, dtype=np.float64)
    return aurc(-risk, risk)


def e_aurc(confidence: np.ndarray, risk: np.ndarray) -> float:
    """Excess of `aurc` over the perfect ranking; 0 is perfect."""
    return aurc(confidence, risk) - optimal_aurc(risk)


def naurc(confidence: np.ndarray, risk: np.ndarray) -> float:
    """(mean risk - AURC) / (mean risk - optimal AURC): 1 is perfect, 0 as good as chance, negative worse.

    NaN where all risks are equal, so that no ranking is better than another.
    """
    confidence, risk = _checked(confidence, risk)
    if np.ptp(risk) == 0:
        return float("nan")
    mean = float(np.mean(risk))
    return (mean - aurc(confidence, risk)) / (mean - optimal_aurc(risk))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation, in [-1, 1]; NaN for fewer than two cases or where either is constant."""
    return _correlation(stats.spearmanr, first, second)


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation, in [-1, 1]; NaN for fewer than two cases or where either is constant."""
    return _correlation(stats.pearsonr, first, second)


def auroc_of_failures(q: np.ndarray, dice: np.ndarray, *, failure_dice: float) -> float:
    """Area under the ROC curve of low `q` as a detector of Dice below `failure_dice`, in [0, 1]; ties count half.

    NaN where every case fails or none does.
    """
    q, dice = _checked(q, dice)
    failed = dice < failure_dice
    return float(roc_auc_score(failed, -q)) if 0 < failed.sum() < len(failed) else float("nan")


def metrics_of(failure_dice: float) -> dict[str, Metric]:
    """The metrics of `FailureDetection` by name, as functions of Q and Dice."""
    return {
        "spearman": spearman,
        "pearson": pearson,
        "aurc": lambda q, dice: aurc(q, 1 - dice),
        "e_aurc": lambda q, dice: e_aurc(q, 1 - dice),
        "naurc": lambda q, dice: naurc(q, 1 - dice),
        "auroc": lambda q, dice: auroc_of_failures(q, dice, failure_dice=failure_dice),
    }


def bootstrap_interval(
    metric: Metric,
    q: np.ndarray,
    dice: np.ndarray,
    *,
    subjects: Sequence[Hashable],
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric; whole subjects are drawn with replacement, as their cases depend.

    Args:
        metric: function of Q and Dice.
        q: `(cases)`.
        dice: `(cases)`.
        subjects: subject of each case.
        rng: where the draws come from.
        resamples: number of draws.
        level: share of the draws inside, in (0, 1).

    Returns:
        Lower and upper bound. Draws for which the metric is not defined are left out; NaN for fewer than two subjects,
        or where it is defined for fewer than half of the draws.
    """
    groups = _rows_by_subject(subjects)
    nothing = (float("nan"), float("nan"))
    if len(groups) < 2:
        return nothing
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([groups[number] for number in rng.integers(len(groups), size=len(groups))])
        drawn.append(metric(q[rows], dice[rows]))
    defined = np.array(drawn)[np.isfinite(drawn)]
    if len(defined) < max(1, resamples / 2):
        return nothing
    lower, upper = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)


def judge(
    q: np.ndarray,
    dice: np.ndarray,
    *,
    subjects: Sequence[Hashable],
    rng: np.random.Generator,
    failure_dice: float = 0.5,
    resamples: int = 1000,
    level: float = 0.95,
) -> FailureDetection:
    """Judge a quality score against the true Dice.

    Args:
        q: `(cases)`, higher is better, any scale.
        dice: `(cases)`, in [0, 1].
        subjects: subject of each case.
        rng: for the bootstrap.
        failure_dice: Dice below which a segmentation has failed.
        resamples: draws of the bootstrap; 0 for no intervals.
        level: of the intervals.

    Raises:
        ValueError: no case, different lengths, NaN, or Dice outside [0, 1].
    """
    q, dice = _checked(q, dice)
    if len(subjects) != len(q):
        raise ValueError(f"{len(subjects)} subjects for {len(q)} cases")
    if dice.min() < 0 or dice.max() > 1:
        raise ValueError(f"Dice must be in [0, 1], found {dice.min():g} to {dice.max():g}")
    metrics = metrics_of(failure_dice)
    intervals = {
        name: bootstrap_interval(metric, q, dice, subjects=subjects, rng=rng, resamples=resamples, level=level)
        for name, metric in metrics.items()
        if resamples
    }
    return FailureDetection(
        cases=len(q),
        subjects=len(set(subjects)),
        failures=int((dice < failure_dice).sum()),
        failure_dice=failure_dice,
        values={name: metric(q, dice) for name, metric in metrics.items()},
        intervals=intervals,
        level=level,
    )


def _checked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"two lists of one length are needed, found shapes {first.shape} and {second.shape}")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("a score, Dice or risk is NaN; leave such cases out")
    return first, second


def _correlation(function: Callable[..., tuple[float, float]], first: np.ndarray, second: np.ndarray) -> float:
    first, second = _checked(first, second)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nearly constant input
        return float(function(first, second)[0])


def _rows_by_subject(subjects: Sequence[Hashable]) -> list[np.ndarray]:
    rows: dict[Hashable, list[int]] = {}
    for number, subject in enumerate(subjects):
        rows.setdefault(subject, []).append(number)
    return [np.array(part) for part in rows.values()]

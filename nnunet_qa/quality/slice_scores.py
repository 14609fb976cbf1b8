"""What the body-part scores of one scan's slices tell: whether they grow, and where a range of scores lies.

Scores are noisy from slice to slice while the body is not, so a place is looked up in the increasing curve that is
closest to the scores (isotonic regression): it passes every score at one place only. A running median before that takes
out single slices that are far off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter
from scipy.stats import spearmanr
from sklearn.isotonic import isotonic_regression

from nnunet_qa.errors import SelectionError

_MEDIAN = 5  # slices
_SMOOTHING = 10.0  # mm, standard deviation; neighbouring slices may be less than 1 mm apart


@dataclass(frozen=True, kw_only=True)
class Monotonicity:
    """How well scores follow the order of the slices; slices without a score do not count.

    Attributes:
        slices: all slices.
        scored: slices with a score.
        spearman: rank correlation of score and order, in [−1, 1]; NaN with fewer than two different scores.
        increasing: share of neighbouring slices of which the second has the higher score.
        increasing_smoothed: the same after Gaussian smoothing with a standard deviation of 10 mm.
    """

    slices: int
    scored: int
    spearman: float
    increasing: float
    increasing_smoothed: float


@dataclass(frozen=True, kw_only=True)
class SlabRange:
    """Where a range of scores lies in a scan.

    Attributes:
        start: depth of its lower score, or of the first scored slice if that is higher; in mm, as the depths given.
        end: depth of its upper score, or of the last scored slice if that is lower.
        covered: share of the range of scores that lies in the scan, in (0, 1].
    """

    start: float
    end: float
    covered: float


def monotonicity(scores: np.ndarray, depth: np.ndarray) -> Monotonicity:
    """Compare scores `(slices,)`, NaN for none, with the order of the slices; `depth` in mm is increasing."""
    known = np.isfinite(scores)
    some, places = scores[known], depth[known]
    different = len(some) > 1 and np.ptp(some) > 0
    return Monotonicity(
        slices=len(scores),
        scored=len(some),
        spearman=float(spearmanr(places, some).statistic) if different else np.nan,
        increasing=_share_increasing(some),
        increasing_smoothed=_share_increasing(_smoothed(some, places)),
    )


def increasing_fit(scores: np.ndarray) -> np.ndarray:
    """The increasing curve `(slices,)` closest to the running median of the scores over 5 slices, by least squares.

    Scores are finite; beyond the ends they are taken as mirrored.
    """
    return isotonic_regression(median_filter(scores.astype(np.float64), _MEDIAN)) if len(scores) else scores


def slab_range(scores: np.ndarray, depth: np.ndarray, *, low: float, high: float) -> SlabRange:
    """Find where the scores of a scan pass from `low` to `high`.

    Args:
        scores: `(slices,)`, NaN for none.
        depth: of each slice in mm, increasing.
        low: score at which the slab begins.
        high: score at which it ends, above `low`.

    Raises:
        SelectionError: no part of the range lies in the scan.
    """
    known = np.isfinite(scores)
    fit, places = increasing_fit(scores[known]), depth[known]
    if not len(fit) or fit[-1] <= low or fit[0] >= high:
        found = f"its scores run from {fit[0]:.1f} to {fit[-1]:.1f}" if len(fit) else "none of its slices has a score"
        raise SelectionError(f"nothing of it lies between the scores {low:g} and {high:g}: {found}")
    after = int(np.argmax(fit >= low))
    before = len(fit) - 1 - int(np.argmax(fit[::-1] <= high))
    return SlabRange(
        start=_crossing(fit, places, after - 1, low) if after else float(places[0]),
        end=_crossing(fit, places, before, high) if before < len(fit) - 1 else float(places[-1]),
        covered=float((min(high, fit[-1]) - max(low, fit[0])) / (high - low)),
    )


def _crossing(fit: np.ndarray, places: np.ndarray, before: int, score: float) -> float:
    """Depth of a score that lies between a slice and the next."""
    return float(np.interp(score, fit[before : before + 2], places[before : before + 2]))


def _smoothed(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    weights = np.exp(-0.5 * ((places[:, None] - places) / _SMOOTHING) ** 2)
    return weights @ scores / weights.sum(axis=1)


def _share_increasing(scores: np.ndarray) -> float:
    return float((np.diff(scores) > 0).mean()) if len(scores) > 1 else np.nan

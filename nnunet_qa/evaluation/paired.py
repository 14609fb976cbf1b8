"""Paired comparison of the arms of an experiment with one of them, by subject, with the tests adjusted over the arms.

Images of one subject depend on each other, and so do the same images under several seeds: so the interval draws whole
subjects, and the tests take one number a subject. Both say how far the difference would hold for other subjects with
the draws that were made; `seeds_better` says how far it holds for other draws. With n subjects the smallest p of the
Wilcoxon test is 2 / 2^n, so fewer than six can never reach 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from nnunet_qa.errors import SelectionError, nearest
from nnunet_qa.evaluation.failure_detection import bootstrap_interval

_TESTS = ("p_wilcoxon", "p_t")
_KEYS = ["seed", "case_id"]


def compare(
    frame: pd.DataFrame,
    *,
    reference: str,
    metric: str,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> pd.DataFrame:
    """Compare each arm with the reference, case by case.

    Args:
        frame: one row an arm, seed and case: `arm`, `seed`, `subject_id`, `case_id` and the metric.
        reference: the arm that the others are compared with.
        metric: column with the values, higher is better.
        rng: for the bootstrap.
        resamples: draws of the bootstrap.
        level: of the intervals, 0.95 for 95 %.

    Returns:
        One row for each other arm, in the order of the frame: `arm`, `reference`, `metric`; numbers of `pairs`,
        `subjects` and `seeds`; `mean` and `reference_mean` over the pairs and their `difference` with its interval
        `low` to `high`; `p_wilcoxon` (signed rank) and `p_t` (paired t) on the mean differences of the subjects, and
        both adjusted by `holm` as `p_wilcoxon_holm` and `p_t_holm`; `seeds_better`, the number of seeds in which the
        mean of the arm is above that of the reference. A p is NaN where there are fewer than two subjects or nothing
        differs, that of the t test also where every subject differs by the same; an interval is NaN for one subject.

    Raises:
        SelectionError: a column or the reference is missing, a value is NaN, a case stands twice or with two subjects,
            or a case of one arm has no partner in the reference or the other way round.
    """
    _check(frame, reference, metric)
    base = frame[frame["arm"] == reference].set_index(_KEYS)
    rows = []
    for arm in frame["arm"].unique():
        if arm != reference:
            pairs = _paired(str(arm), frame[frame["arm"] == arm].set_index(_KEYS), reference, base, metric)
            row: dict[str, Any] = {"arm": arm, "reference": reference, "metric": metric}
            rows.append(row | _comparison(pairs, rng=rng, resamples=resamples, level=level))
    if not rows:
        raise SelectionError(f'there is no arm but the reference "{reference}"; nothing can be compared')
    table = pd.DataFrame(rows)
    for test in _TESTS:
        table[f"{test}_holm"] = holm(table[test].to_numpy())
    return table


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values adjusted for their number by Holm's step-down method (1979, Scandinavian Journal of Statistics 6).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may come below the one before it, or above
    1. NaN stay NaN and do not count.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * values[order]))
    return adjusted


def _check(frame: pd.DataFrame, reference: str, metric: str) -> None:
    for column in ("arm", "subject_id", *_KEYS, metric):
        if column not in frame.columns:
            raise SelectionError(f'the column "{column}" is missing; found: {", ".join(map(str, frame.columns))}')
    arms = [str(arm) for arm in frame["arm"].unique()]
    if reference not in arms:
        raise SelectionError(f'there is no arm "{reference}"{nearest(reference, arms)}; found: {", ".join(arms)}')
    wrong = {
        "stands there more than once": frame.duplicated(["arm", *_KEYS]),
        f"has no {metric}": frame[metric].isna(),
        "has more than one subject": frame.groupby("case_id")["subject_id"].transform("nunique") != 1,
    }
    for what, rows in wrong.items():
        if rows.any():
            row = frame[rows].iloc[0]
            raise SelectionError(f"{_place(row['arm'], row['seed'], row['case_id'])} {what}; correct the table")


def _paired(arm: str, ours: pd.DataFrame, reference: str, base: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Value of the arm and of the reference for each seed and case, with the subject."""
    for these, name, those, other in ((ours, arm, base, reference), (base, reference, ours, arm)):
        alone = these.index.difference(those.index)
        if len(alone):
            seed, case = alone[0]
            raise SelectionError(
                f'{_place(name, seed, case)} has no partner in the arm "{other}" ({len(alone)} such cases); finish '
                "both arms, or leave out the seeds that one of them lacks"
            )
    pairs = ours[["subject_id", metric]].rename(columns={metric: "value"})
    return pairs.assign(base=base[metric].reindex(ours.index)).reset_index()


def _place(arm: str, seed: int, case: str) -> str:
    return f'arm "{arm}", seed {seed}: the case "{case}"'


def _comparison(pairs: pd.DataFrame, *, rng: np.random.Generator, resamples: int, level: float) -> dict[str, Any]:
    value, base = (pairs[column].to_numpy(dtype=np.float64) for column in ("value", "base"))
    low, high = bootstrap_interval(
        lambda ours, theirs: float(np.mean(ours - theirs)),
        value,
        base,
        subjects=pairs["subject_id"].tolist(),
        rng=rng,
        resamples=resamples,
        level=level,
    )
    by_subject = pairs.assign(difference=value - base).groupby("subject_id")["difference"].mean().to_numpy()
    by_seed = pairs.groupby("seed")[["value", "base"]].mean()
    return {
        "pairs": len(pairs),
        "subjects": len(by_subject),
        "seeds": len(by_seed),
        "mean": float(value.mean()),
        "reference_mean": float(base.mean()),
        "difference": float(np.mean(value - base)),
        "low": low,
        "high": high,
        **dict(zip(_TESTS, _p_values(by_subject), strict=True)),
        "seeds_better": int((by_seed["value"] > by_seed["base"]).sum()),
    }


def _p_values(differences: np.ndarray) -> tuple[float, float]:
    """Two-sided p of the signed-rank and of the paired t test."""
    if len(differences) < 2 or not differences.any():
        return float("nan"), float("nan")
    alike = bool(np.isclose(np.ptp(differences), 0, atol=1e-12))  # no spread, no t
    t = float("nan") if alike else float(stats.ttest_1samp(differences, 0.0).pvalue)
    return float(stats.wilcoxon(differences).pvalue), t

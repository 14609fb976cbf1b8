"""The initial set S0 of QU-Net++: sharp and clean images, of which no two are alike in CoV and mean of their region.

The paper leaves out how it reduces the images that pass both thresholds to fewer than ten but for a distance ε0 that it
does not state. Here both axes are standardised over those images, and ε0 is given, or found from the number wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_qa.errors import SelectionError, nearest
from nnunet_qa.files import write_csv
from nnunet_qa.quality.image_quality import METRICS, Definition

FILE_NAME = "initial_set.csv"
FIGURE_NAME = "initial_set.png"
DEFAULT_EPSILON = 0.3
"""Standard deviations of CoV and ROI mean over the images that pass both thresholds."""
LIMITED = ("blurriness", "psnr_inv")
"""The metrics that have thresholds; their bounds stand in the columns `<metric>_lowest` and `<metric>_highest`."""
_SAMPLE = 4000  # images of which all distances are held at a time: 64 MB
_PERCENTILES = {"blurriness": (20, 80), "psnr_inv": (10, 90)}


def initial_set(
    table: pd.DataFrame,
    *,
    definition: Definition = Definition.PAPER,
    quantiles: tuple[float, float] | None = None,
    epsilon: float | None = None,
    target_size: int | None = None,
    subjects: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Choose S0 among measured images.

    First the thresholds: by the paper, blurriness and PSNR-inv both below their means over all images (or below their
    quantiles); by the reference code, blurriness within its percentiles 20 to 80 and PSNR within 10 to 90. Then the
    filter: sharpest first, an image is kept if none that was kept before is closer than epsilon in (CoV, ROI mean),
    both standardised over the images that passed; so of two alike the sharper one stays.

    Args:
        table: what `nnunet_qa.quality.measure.measure_cases` returns; only the rows of level `case` count.
        definition: the definition with which it was measured.
        quantiles: of blurriness and of PSNR-inv, in (0, 1], instead of the means; for the paper's definition only.
        epsilon: distance of the filter, at least 0, in standard deviations; 0 keeps all, None is `DEFAULT_EPSILON`.
        target_size: find the epsilon that leaves so many images, instead. Where no epsilon does, or the search finds
            none, the largest found that leaves more is taken and the least sharp of them are dropped.
        subjects: subject of each case, for the column `subject_id`; without it, every case is a subject of its own.

    Returns:
        All cases in the order given: `case_id`, `subject_id`, the four metrics, the bounds of the thresholds
        (`blurriness_lowest`, … ; missing where there is none), `epsilon`, `selected` and `reason`.

    Raises:
        SelectionError: the table has no case or lacks a value, a setting is out of its range, no image passes both
            thresholds, or fewer than `target_size` do.
    """
    _check(table, definition, quantiles, epsilon, target_size)
    cases = table[table["level"] == "case"].reset_index(drop=True)
    chosen = cases[["case_id"]].copy()
    chosen["subject_id"] = [_subject(case, subjects) for case in cases["case_id"]]
    chosen[list(METRICS)] = cases[list(METRICS)].astype(float)
    names = _add_bounds(chosen, definition, quantiles)
    failures = _failures(chosen, names)
    candidates = chosen[[not failure for failure in failures]]
    if len(candidates) < (target_size or 1):
        raise SelectionError(_too_few(chosen, names, len(candidates), definition, target_size))
    sharpest = candidates.sort_values(
        ["blurriness", "case_id"], ascending=[definition is Definition.PAPER, True], kind="stable"
    )
    points = _standardised(sharpest)
    if target_size is not None:
        epsilon = _epsilon_for(points, target_size)
    elif epsilon is None:
        epsilon = DEFAULT_EPSILON
    reasons = _filter(sharpest["case_id"].tolist(), points, epsilon, target_size)
    chosen["epsilon"] = epsilon
    chosen["reason"] = [failure or reasons[case] for case, failure in zip(chosen["case_id"], failures, strict=True)]
    chosen.insert(chosen.columns.get_loc("reason"), "selected", chosen["reason"].str.startswith("kept"))
    return chosen


def write_initial_set(path: Path, table: pd.DataFrame) -> None:
    """Write what `initial_set` returned as CSV in one step, numbers with eight significant digits."""
    rounded = table.copy()
    for column in rounded.select_dtypes("float"):
        rounded[column] = [float(f"{value:.8g}") for value in rounded[column]]
    write_csv(path, rounded)


def _check(
    table: pd.DataFrame,
    definition: Definition,
    quantiles: tuple[float, float] | None,
    epsilon: float | None,
    target_size: int | None,
) -> None:
    for column in ("case_id", "level", *METRICS):
        if column not in table.columns:
            raise SelectionError(f'the table of image quality has no column "{column}"{nearest(column, table.columns)}')
    cases = table[table["level"] == "case"]
    if cases.empty:
        raise SelectionError("the table of image quality has no row of level case; measure some images first")
    doubled = cases["case_id"].duplicated()
    if doubled.any():
        raise SelectionError(f'the case "{cases["case_id"][doubled].iloc[0]}" stands more than once in the table')
    for metric in METRICS:
        missing = ~np.isfinite(cases[metric].astype(float))
        if missing.any():
            raise SelectionError(f'the case "{cases["case_id"][missing].iloc[0]}" has no {metric}; measure it again')
    if quantiles is not None:
        if definition is not Definition.PAPER:
            raise SelectionError("quantiles go with the paper's definition; the reference code has its own percentiles")
        if not all(0 < value <= 1 for value in quantiles):
            raise SelectionError(f"the quantiles {quantiles[0]:g} and {quantiles[1]:g} must lie above 0 and up to 1")
    if epsilon is not None and target_size is not None:
        raise SelectionError("give either an epsilon or a target size, which finds the epsilon")
    if epsilon is not None and not 0 <= epsilon < np.inf:
        raise SelectionError(f"the epsilon is {epsilon:g}; it must be 0 or more")
    if target_size is not None and target_size < 1:
        raise SelectionError(f"the target size is {target_size}; it must be at least 1")


def _subject(case: str, subjects: Mapping[str, str] | None) -> str:
    return case if subjects is None else subjects.get(case, case)


def _add_bounds(chosen: pd.DataFrame, definition: Definition, quantiles: tuple[float, float] | None) -> dict[str, str]:
    """Add the columns of the bounds; returns what the bounds of each metric are called."""
    names = {}
    for number, metric in enumerate(LIMITED):
        values = chosen[metric]
        if definition is Definition.REFERENCE_CODE:
            low, high = _PERCENTILES[metric]
            names[metric] = f"percentiles {low} to {high}"
            bounds = (values.quantile(low / 100), values.quantile(high / 100))
        elif quantiles is not None:
            names[metric] = f"quantile {quantiles[number]:g}"
            bounds = (np.nan, values.quantile(quantiles[number]))
        else:
            names[metric] = "mean"
            bounds = (np.nan, values.mean())
        chosen[f"{metric}_lowest"], chosen[f"{metric}_highest"] = bounds
    return names


def _failures(chosen: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """Why each case fails the thresholds; empty where it passes. Bounds on one side exclude, on two sides include."""
    failures = []
    for _, row in chosen.iterrows():
        parts = []
        for metric in LIMITED:
            value, low, high = row[metric], row[f"{metric}_lowest"], row[f"{metric}_highest"]
            if np.isnan(low):
                if not value < high:
                    parts.append(f"{metric} {value:.4g} not below the {names[metric]} {high:.4g}")
            elif not low <= value <= high:
                parts.append(f"{metric} {value:.4g} outside the {names[metric]} ({low:.4g} to {high:.4g})")
        failures.append(f"dropped: {', '.join(parts)}" if parts else "")
    return failures


def _says(chosen: pd.DataFrame, names: Mapping[str, str]) -> str:
    """The thresholds in words."""
    parts = []
    for metric in LIMITED:
        low, high = chosen[f"{metric}_lowest"].iloc[0], chosen[f"{metric}_highest"].iloc[0]
        span = f"below {high:.4g}" if np.isnan(low) else f"from {low:.4g} to {high:.4g}"
        parts.append(f"{metric} {span}, {names[metric]}")
    return "; ".join(parts)


def _too_few(
    chosen: pd.DataFrame, names: Mapping[str, str], passed: int, definition: Definition, target_size: int | None
) -> str:
    hint = ", or give higher quantiles" if definition is Definition.PAPER else ""
    says = f"({_says(chosen, names)})"
    if not passed:
        return f"none of the {len(chosen)} images passes both thresholds {says}; measure more images{hint}"
    return (
        f"{target_size} images were asked for, but only {passed} of {len(chosen)} pass both thresholds {says}; "
        f"ask for fewer{hint}"
    )


def _standardised(candidates: pd.DataFrame) -> np.ndarray:
    """CoV and ROI mean of every candidate `(candidates, 2)`, each in its standard deviation over the candidates."""
    points = candidates[["cov", "roi_mean"]].to_numpy(dtype=float)
    spread = points.std(axis=0)
    return points / np.where(spread > 0, spread, 1)


def _distances(points: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distance of each point to another one. Never all pairs at once: of 20,000 images they would fill 3 GB."""
    return np.asarray(np.hypot(points[:, 0] - other[0], points[:, 1] - other[1]))


def _kept(points: np.ndarray, epsilon: float, most: int | None = None) -> np.ndarray:
    """Indices that the filter keeps, first come first kept, increasing; only the first `most` where that is given."""
    kept: list[int] = []
    left = np.arange(len(points))
    while left.size and len(kept) != most:
        first, left = left[0], left[1:]
        kept.append(first)
        left = left[_distances(points[left], points[first]) >= epsilon]
    return np.array(kept)


def _epsilon_for(points: np.ndarray, target_size: int) -> float:
    """An epsilon that leaves `target_size`, or the one at which the number falls from above to below it.

    The number left changes only where epsilon passes a distance, so one value between every two distances is enough; of
    very many images, the distances of every second, third, … say where to look. The number does not always fall as
    epsilon grows: the search may miss an exact one.
    """
    some = points[:: -(-len(points) // _SAMPLE)]
    steps = np.unique(np.concatenate([_distances(some[n + 1 :], some[n]) for n in range(len(some))]))
    between = (steps[1:] + steps[:-1]) / 2
    # at 0 nobody is dropped; above the last distance one is left
    tried = np.concatenate([[0.0], steps[:1] / 2, between, steps[-1:] * 2])
    low, high = 0, len(tried) - 1
    while low < high:
        middle = (low + high + 1) // 2
        left = len(_kept(points, tried[middle], target_size + 1))
        if left == target_size:
            return float(tried[middle])
        low, high = (middle, high) if left > target_size else (low, middle - 1)
    return float(tried[low])


def _filter(cases: list[str], points: np.ndarray, epsilon: float, target_size: int | None) -> dict[str, str]:
    """Reason for each candidate, sharpest first."""
    kept = _kept(points, epsilon)
    reasons = dict.fromkeys(cases, f"kept: passes both thresholds, no sharper image within epsilon {epsilon:.4g}")
    for index in np.setdiff1d(np.arange(len(cases)), kept):
        sharper = kept[kept < index]
        closest = cases[sharper[np.argmin(_distances(points[sharper], points[index]))]]
        reasons[cases[index]] = f"dropped: within epsilon {epsilon:.4g} of the sharper case {closest}"
    for index in kept[target_size:] if target_size is not None else ():
        reasons[cases[index]] = f"dropped: less sharp than the {target_size} that were asked for"
    return reasons

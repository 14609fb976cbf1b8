"""Tables and ROC curves of `benchmarks.curve_qc`: each draw is judged by classifiers of the other draws.

So neither a subject nor a segmentation network that made a judged series had a part in what judges it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_qa.experiments.tables import markdown_table, mean_sd
from nnunet_qa.files import write_csv, write_text
from nnunet_qa.quality.curve_classifier import CurveLSTM
from nnunet_qa.quality.curve_estimator import CurveEstimator
from nnunet_qa.quality.curve_logistic import CurveLogistic
from nnunet_qa.quality.curve_rules import CurveRules
from nnunet_qa.quality.curves import Acquisition
from nnunet_qa.quality.operating_point import clopper_pearson, rates, weighted_youden
from nnunet_qa.reports.curve_classifier_figures import Judged, roc_picture

THRESHOLDS: Mapping[str, Mapping[str, float]] = {
    "w = 0.7": {"weight": 0.7},
    "sensitivity of 0.95": {"least_sensitivity": 0.95},
    "sensitivity of 0.98": {"least_sensitivity": 0.98},
}
"""How the threshold is chosen, in cross-validation over the series that fit the classifier."""
CLASSIFIERS: Mapping[str, Callable[[], CurveEstimator]] = {
    "LSTM": CurveLSTM,
    "LSTM, sizes": lambda: CurveLSTM(sizes=True),
    "LSTM, sizes and slices": lambda: CurveLSTM(sizes=True, slices=True),
    "logistic regression": CurveLogistic,
    "rules": CurveRules,
}
_DRAWN = "sensitivity of 0.95"
_KEY = ["threshold", "classifier"]
_STEP = 0.1  # of Dice, in the table by Dice


@dataclass(frozen=True)
class Series:
    """A predicted series.

    Attributes:
        acquisition: its curves.
        dice: mean over its frames and classes.
        network: which network predicted it.
    """

    acquisition: Acquisition
    dice: float
    network: str


def report(folder: Path, draws: Mapping[int, Sequence[Series]], *, below: float) -> Path:
    """Fit, judge, and write tables and figures to a folder.

    Args:
        folder: where to.
        draws: the series of each draw, two draws at least.
        below: Dice below which a series is erroneous.

    Returns:
        The page with the tables.
    """
    judged, series = list[dict[str, Any]](), list[pd.DataFrame]()
    for seed in draws:
        learnt = [each for other, found in draws.items() if other != seed for each in found]
        acquisitions, erroneous = _labelled(draws[seed], below)
        seen = _labelled(learnt, below)
        shown = dict[str, Judged]()
        for name, classifier in CLASSIFIERS.items():
            fitted = classifier().fit(*seen)
            scores = fitted.predict_proba(acquisitions)
            for way, options in THRESHOLDS.items():
                # what fit does with these options, without fitting again
                threshold = weighted_youden(fitted.validation_scores_, seen[1], **options).threshold
                about = {"seed": seed, "threshold": way, "classifier": name}
                judged.append({**about, **rates(scores, erroneous, threshold=threshold)})
                series.append(_judged(draws[seed], scores, scores >= threshold).assign(**about))
                if way == _DRAWN:
                    shown[name] = Judged(scores=scores, erroneous=erroneous, threshold=threshold)
        roc_picture(folder / f"roc_{seed}.png", shown, heading=f"Draw {seed} by classifiers of the others, {_DRAWN}")
    rows, every = pd.DataFrame(judged), pd.concat(series, ignore_index=True)
    write_csv(folder / "classifiers.csv", rows.drop(columns=["sensitivity_95", "specificity_95"]).round(4))
    write_csv(folder / "series.csv", every.round(4))
    page = folder / "README.md"
    tables = (_pooled(rows), _by_dice(every, below), _by_network(every, below))
    write_text(page, "\n\n".join(map(_markdown, tables)) + "\n")
    return page


def _labelled(series: Sequence[Series], below: float) -> tuple[list[Acquisition], np.ndarray]:
    return [one.acquisition for one in series], np.array([one.dice < below for one in series])


def _judged(series: Sequence[Series], scores: np.ndarray, called: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "network": [one.network for one in series],
            "acquisition_id": [one.acquisition.acquisition_id for one in series],
            "dice": [one.dice for one in series],
            "p_erroneous": scores,
            "called": called.astype(int),
        }
    )


def _pooled(judged: pd.DataFrame) -> pd.DataFrame:
    """One row a threshold and classifier: series of all draws counted together, AUROC as mean (SD) over the draws."""
    rows = []
    for (way, name), part in judged.groupby(_KEY, sort=False):
        erroneous = int(part["erroneous"].sum())
        rows.append(
            {
                "threshold": way,
                "classifier": name,
                "AUROC": mean_sd(part["auroc"]),
                "sensitivity (95%)": _rate(int(part["caught"].sum()), erroneous),
                "specificity (95%)": _rate(int(part["passed"].sum()), int(part["n"].sum()) - erroneous),
                "lowest sensitivity of a draw": f"{part['sensitivity'].min():.3f}",
            }
        )
    return pd.DataFrame(rows)


def _by_dice(series: pd.DataFrame, below: float) -> pd.DataFrame:
    """Share of the series that is called erroneous, by their true Dice."""
    edges = [0, *(edge for edge in (below + step * _STEP for step in (-2, -1, 0, 1)) if 0 < edge < 1), 1.01]
    names = [f"Dice {low:.1f}–{min(high, 1):.1f}" for low, high in pairwise(edges)]
    bins = pd.cut(series["dice"], edges, right=False, labels=names)
    counts = bins.value_counts() // series.groupby(_KEY).ngroups
    shares = series.groupby([*_KEY, bins], sort=False, observed=True)["called"].mean().unstack("dice")
    shares = shares[[name for name in names if name in shares]].round(3)
    return shares.rename(columns={name: f"{name} ({counts[name]})" for name in names}).reset_index()


def _by_network(series: pd.DataFrame, below: float) -> pd.DataFrame:
    once = series.drop_duplicates(["seed", "network", "acquisition_id"])
    parts = once.assign(erroneous=once["dice"] < below).groupby(["seed", "network"])
    found = parts.agg(series=("dice", "size"), dice=("dice", "mean"), erroneous=("erroneous", "sum"))
    return found.round(3).reset_index()


def _markdown(table: pd.DataFrame) -> str:
    return markdown_table(list(table.columns), table.astype(str).to_numpy().tolist())


def _rate(count: int, cases: int) -> str:
    interval = clopper_pearson(count, cases)
    if interval is None:
        return "no such series"
    return f"{count / cases:.3f} ({interval[0]:.3f} to {interval[1]:.3f}), {count} of {cases}"

"""ROC curves of curve classifiers with their operating points (paper 003, quality control)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from nnunet_qa.quality.operating_point import rates
from nnunet_qa.reports.figures import save_figure

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores of one classifier.

    Attributes:
        scores: `(acquisitions)`, the higher the more likely erroneous.
        erroneous: `(acquisitions)`, true or false; both must occur.
        threshold: scores from here up are called erroneous.
    """

    scores: np.ndarray
    erroneous: np.ndarray
    threshold: float


def roc_picture(path: Path, classifiers: Mapping[str, Judged], *, heading: str = "") -> Path:
    """Draw the ROC curve of each classifier, with a cross (95 % intervals) where its threshold lies.

    Args:
        path: where to; written as PNG in one step.
        classifiers: what to draw, by name.
        heading: title.

    Returns:
        `path`.

    Raises:
        ValueError: no classifier, or all acquisitions of one are good, or all erroneous.
        StorageError: the file could not be written.
    """
    if not classifiers:
        raise ValueError("there is no classifier to draw")
    figure = Figure(figsize=(5.6, 5.8), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, linestyle="--")
    for number, (name, judged) in enumerate(classifiers.items()):
        found = rates(judged.scores, judged.erroneous, threshold=judged.threshold)
        if found["auroc"] is None:
            raise ValueError(f"{name}: a ROC curve needs good and erroneous acquisitions")
        colour = _COLOURS[number % len(_COLOURS)]
        alarms, caught, _ = roc_curve(judged.erroneous, judged.scores, drop_intermediate=False)
        text = (
            f"{name}: AUROC {found['auroc']:.3f}, sensitivity {found['sensitivity']:.2f}, "
            f"specificity {found['specificity']:.2f}"
        )
        axes.plot(alarms, caught, color=colour, linewidth=1.5, label=text)
        place = (1 - found["specificity"], found["sensitivity"])
        low, high = found["specificity_95"], found["sensitivity_95"]
        axes.errorbar(
            *place,
            xerr=[[place[0] - (1 - low[1])], [1 - low[0] - place[0]]],
            yerr=[[place[1] - high[0]], [high[1] - place[1]]],
            color=colour,
            marker="o",
            linewidth=1,
            capsize=2,
        )
    axes.set(xlabel="1 − specificity (good called erroneous)", ylabel="sensitivity (erroneous found)", aspect="equal")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(heading, fontsize=11)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    return save_figure(figure, path)

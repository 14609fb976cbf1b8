"""The figure of body-part scores along scans (paper 002, section 2.1)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from nnunet_qa.reports.figures import save_figure

_LINE, _WORST = "#0072B2", ("#D55E00", "#E69F00", "#CC79A7")


def score_curves(path: Path, scores: pd.DataFrame, scans: pd.DataFrame) -> Path:
    """Draw the score of each slice by its distance from the first scored one, a line a scan; write PNG in one step.

    Args:
        path: where to.
        scores: columns case_id, position_mm and score, slices in order.
        scans: columns case_id and spearman; the three scans with the lowest are named.

    Returns:
        `path`.

    Raises:
        StorageError: the file could not be written.
    """
    figure = Figure(figsize=(7.2, 5.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    worst = scans.sort_values("spearman", kind="stable").head(len(_WORST))
    named = dict(zip(worst["case_id"], _WORST, strict=False))
    rank = scans.set_index("case_id")["spearman"]
    for case, slices in scores.dropna(subset=["score"]).groupby("case_id", sort=False):
        distance = (slices["position_mm"] - slices["position_mm"].iloc[0]).abs()
        colour = named.get(case)
        style = {"color": colour, "linewidth": 1.4, "zorder": 3} if colour else {"color": _LINE, "linewidth": 0.8}
        label = f"{case} (ρ = {rank[case]:.2f})" if colour else None
        axes.plot(distance, slices["score"], alpha=1 if colour else 0.5, label=label, **style)
    axes.set_xlabel("distance from the first scored slice in mm")
    axes.set_ylabel("body-part score")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    title = f"{len(scans)} scans, Spearman's ρ with the order: median {rank.median():.3f}"
    axes.set_title(title, fontsize=11)
    axes.legend(title="lowest ρ", frameon=False, fontsize=9)
    return save_figure(figure, path)

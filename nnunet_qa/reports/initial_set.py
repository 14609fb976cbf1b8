"""The initial set S0 as a picture, after Figure 3 of QU-Net++: PSNR-inv over blurriness, with the selected quadrant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from nnunet_qa.quality.image_quality import Definition
from nnunet_qa.reports.figures import save_figure
from nnunet_qa.selection.initial import LIMITED

_LABELS = {
    Definition.PAPER: ("blurriness (lower is sharper)", "PSNR-inv (lower is cleaner)"),
    Definition.REFERENCE_CODE: ("variance of the Laplacian (higher is sharper)", "PSNR in dB (higher is cleaner)"),
}
_QUADRANT, _LINE = "#009E73", "#4D4D4D"
_SPAN = 10  # an axis whose largest value is more than so many times the smallest is logarithmic


def initial_set_picture(
    path: Path, table: pd.DataFrame, *, definition: Definition = Definition.PAPER, heading: str = ""
) -> Path:
    """Draw every image by blurriness and PSNR-inv, and write the picture as PNG in one step.

    Args:
        path: where to.
        table: what `nnunet_qa.selection.initial.initial_set` returned.
        definition: the definition with which it was measured; it names the axes.
        heading: first line of the title.

    Returns:
        `path`.

    Raises:
        StorageError: the file could not be written.
    """
    figure = Figure(figsize=(6.4, 5.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    horizontal, vertical = LIMITED
    for metric, label, axis in zip(LIMITED, _LABELS[definition], ("x", "y"), strict=True):
        axes.set(**{f"{axis}label": label})
        if table[metric].min() > 0 and table[metric].max() > _SPAN * table[metric].min():
            axes.set(**{f"{axis}scale": "log"})
            ruler = getattr(axes, f"{axis}axis")
            ruler.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ruler.set_major_formatter("{x:g}")
            ruler.set_minor_formatter(NullFormatter())
    passes = _within(table, horizontal) & _within(table, vertical)
    layers: list[tuple[str, pd.Series, dict[str, Any]]] = [
        ("outside the thresholds", ~passes, {"s": 26, "color": "#B3B3B3", "edgecolors": "white", "linewidths": 0.5}),
        (
            "inside, like a sharper one",
            passes & ~table["selected"],
            {"s": 38, "facecolors": "white", "edgecolors": "#D55E00", "linewidths": 1.4, "marker": "D"},
        ),
        (
            "initial set",
            table["selected"],
            {"s": 110, "color": "#0072B2", "edgecolors": "white", "linewidths": 0.8, "marker": "*"},
        ),
    ]
    for number, (label, rows, style) in enumerate(layers):
        points = table[rows]
        name = f"{label} ({len(points)})"
        axes.scatter(points[horizontal], points[vertical], label=name, zorder=3 + number, **style)
    _draw_thresholds(axes, table)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    epsilon = table["epsilon"].iloc[0]
    title = f"{int(table['selected'].sum())} of {len(table)} images selected, ε₀ = {epsilon:.2g}"
    axes.set_title("\n".join(filter(None, (heading, title))), fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, handletextpad=0.3)
    return save_figure(figure, path)


def _within(table: pd.DataFrame, metric: str) -> pd.Series:
    """Whether each image passes the threshold of one metric: below one bound, or within two."""
    lowest, highest = table[f"{metric}_lowest"], table[f"{metric}_highest"]
    return (lowest.isna() & (table[metric] < highest)) | table[metric].between(lowest, highest)


def _draw_thresholds(axes: Any, table: pd.DataFrame) -> None:
    """Lines at the bounds, and the part of the picture that they select shaded."""
    corners = []
    for metric, line, limits in zip(
        LIMITED, (axes.axvline, axes.axhline), (axes.get_xlim(), axes.get_ylim()), strict=True
    ):
        lowest, highest = (table[f"{metric}_{end}"].iloc[0] for end in ("lowest", "highest"))
        for bound in (lowest, highest):
            if not np.isnan(bound):
                line(bound, color=_LINE, linewidth=1, linestyle=(0, (5, 3)), zorder=2)
        corners.append((limits[0] if np.isnan(lowest) else lowest, highest))
        axes.set(**{"xlim" if line == axes.axvline else "ylim": limits})
    (left, right), (bottom, top) = corners
    axes.add_patch(
        Rectangle((left, bottom), right - left, top - bottom, facecolor=_QUADRANT, alpha=0.12, linewidth=0, zorder=1)
    )

"""Figure of a QA loss over the epochs, beside what tells whether the network fools the discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nnunet_qa.reports.figures import save_figure

QUANTITIES = {
    "qa_loss": "QA loss on the pool",
    "dice": "pseudo Dice on validation cases, smoothed",
    "disagreement": "disagreement on the pool, 1 − Q",
}
"""Columns of the table that is drawn, one panel each."""
_REFERENCE = "#999999"
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_STYLES = ("-", (0, (4, 1.5)))


def qa_loss_picture(
    path: Path, curves: pd.DataFrame, *, reference: str, stopped: Mapping[tuple[str, int], int], heading: str = ""
) -> Path:
    """Draw each of `QUANTITIES` over the epochs: a thin line a seed, a thick one for their mean.

    A QA loss that falls while the Dice falls or the disagreement rises is a discriminator that is being fooled.

    Args:
        path: where to; written as PNG in one step.
        curves: one row an `arm`, `seed` and `epoch`, with the columns of `QUANTITIES`; NaN where not measured. Arms
            are drawn in the order of the table.
        reference: the arm without a QA loss, drawn in gray; it may be missing.
        stopped: epoch in which the guard stopped an arm and seed; marked with a cross.
        heading: text above.

    Returns:
        `path`.

    Raises:
        ValueError: there is no row.
        StorageError: the file could not be written.
    """
    if curves.empty:
        raise ValueError("at least one epoch is needed")
    arms = [str(arm) for arm in curves["arm"].unique()]
    others = [arm for arm in arms if arm != reference]
    styles = {arm: (_COLOURS[k % len(_COLOURS)], _STYLES[k // len(_COLOURS) % 2]) for k, arm in enumerate(others)}
    styles[reference] = (_REFERENCE, "-")
    figure = Figure(figsize=(12.5, 4.1), dpi=130, layout="constrained")
    for axes, (column, label) in zip(figure.subplots(1, len(QUANTITIES), sharex=True), QUANTITIES.items(), strict=True):
        for arm in arms:
            table = curves[curves["arm"] == arm].pivot(index="epoch", columns="seed", values=column)
            if table.isna().to_numpy().all():
                continue
            colour, style = styles[arm]
            mark = "o" if len(table) == 1 else ""  # a single epoch makes no line
            axes.plot(table.index, table, color=colour, linewidth=0.7, alpha=0.55, linestyle=style)
            axes.plot(table.index, table.mean(axis=1), color=colour, linewidth=2.0, linestyle=style, marker=mark)
            for seed in table.columns:
                if (epoch := stopped.get((arm, seed))) is not None and epoch in table.index:
                    known = table[seed].loc[:epoch].dropna()  # no QA loss is logged any more
                    axes.plot(epoch, known.iloc[-1], "X", color=colour, markersize=9, markeredgecolor="white")
        axes.set(xlabel="epoch", title=label)
        axes.title.set_fontsize(10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=styles[arm][0], linestyle=styles[arm][1], linewidth=2, label=arm) for arm in arms]
    if any(arm in styles for arm, _ in stopped):
        cross: dict[str, Any] = {"color": "0.3", "markersize": 9, "markeredgecolor": "white", "linestyle": "none"}
        handles.append(Line2D([], [], marker="X", label="stopped by its guard", **cross))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=9)
    if heading:
        figure.suptitle(heading, fontsize=11)
    return save_figure(figure, path)

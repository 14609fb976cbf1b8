"""Figure of the Dice against the clicks that a user made (paper 004)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nnunet_qa.reports.figures import save_figure

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")


def dice_against_clicks(path: Path, table: pd.DataFrame, *, heading: str = "") -> Path:
    """Draw the Dice of each class over the rounds of clicks: a thin line a case, a thick one for their mean.

    A case at which nothing was left to click keeps its last Dice in later rounds.

    Args:
        path: where to; written as PNG in one step.
        table: one row a `case_id`, `round` and `label`, with `dice`.
        heading: text above.

    Returns:
        `path`.

    Raises:
        ValueError: there is no row.
        StorageError: the file could not be written.
    """
    if table.empty:
        raise ValueError("at least one case is needed")
    figure = Figure(figsize=(5.6, 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    handles = []
    for number, label in enumerate(table["label"].unique()):
        colour = _COLOURS[number % len(_COLOURS)]
        dice = rounds(table[table["label"] == label])
        axes.plot(dice.index, dice, color=colour, linewidth=0.7, alpha=0.4)
        axes.plot(dice.index, dice.mean(axis=1), color=colour, linewidth=2.2, marker="o", markersize=4)
        handles.append(Line2D([], [], color=colour, linewidth=2.2, label=f"{label}, {dice.shape[1]} cases"))
    axes.set(xlabel="rounds of clicks", ylabel="Dice", ylim=(-0.02, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), frameon=False, fontsize=9)
    if heading:
        figure.suptitle(heading, fontsize=11)
    return save_figure(figure, path)


def rounds(table: pd.DataFrame) -> pd.DataFrame:
    """Dice of one class by round (rows) and case (columns); a case that ended early keeps its last.

    >>> rows = [("a", 0, 0.5), ("a", 1, 0.75), ("b", 0, 1.0)]
    >>> rounds(pd.DataFrame(rows, columns=["case_id", "round", "dice"])).loc[1].to_list()
    [0.75, 1.0]
    """
    return table.pivot(index="round", columns="case_id", values="dice").sort_index().ffill()

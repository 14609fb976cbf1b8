"""The picture of a minimal set: Q of every candidate, and where q0 cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nnunet_qa.reports.figures import save_figure
from nnunet_qa.selection.minimal import Ranking, decisive_q

CHOSEN, LEFT = "#D55E00", "#B0B7BF"


def minimal_set_picture(
    path: Path, table: pd.DataFrame, chosen: pd.DataFrame, *, q0: float | None, ranking: Ranking = Ranking.Q
) -> Path:
    """Draw Q of all candidates from the lowest to the highest, the chosen ones marked.

    Args:
        path: where to.
        table: columns `case_id` and `q` of all candidates, and those by class for the ranking by worst class.
        chosen: the minimal set, with `case_id`.
        q0: threshold in [0, 1]; None draws no line.
        ranking: with which S_m was chosen; it says which Q is compared with q0 and drawn.

    Returns:
        `path`.

    Raises:
        SelectionError: the table lacks Q by class.
        StorageError: the file could not be written.
    """
    decisive = decisive_q(table, ranking)
    ranked = table.assign(q=decisive).sort_values(["q", "case_id"], ignore_index=True)
    inside = ranked["case_id"].isin(chosen["case_id"]).to_numpy()
    place = np.arange(1, len(ranked) + 1)
    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    for where, colour, text in ((~inside, LEFT, "not chosen"), (inside, CHOSEN, "S_m")):
        axes.scatter(place[where], ranked["q"][where], s=16, color=colour, label=f"{text} ({int(where.sum())})")
    if q0 is not None:
        axes.axhline(q0, color="0.3", linewidth=1, linestyle="--", label=f"q0 = {q0:g}")
    axes.set(xlabel="cases, lowest first", ylabel=decisive.name, ylim=(-0.03, 1.03))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return save_figure(figure, path)

"""Figures of the QA discriminator: its learning curve (Figure 3 of paper 002) and which codes it takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_qa.reports.figures import save_figure

TRAIN, VALIDATION, BEST = "#56B4E9", "#0072B2", "#D55E00"
_MARKED = 40  # epochs up to which each has a dot
CODE_NAMES = ("0 success", "1 minor errors", "2 failure")


def learning_curve_picture(path: Path, history: pd.DataFrame, *, best_epoch: int, heading: str = "") -> Path:
    """Draw the RMSE of training and validation by epoch, with an arrow at the epoch whose weights were kept.

    Args:
        path: where to; written as PNG in one step.
        history: `history_` of a discriminator: `epoch`, `train_rmse`, `validation_rmse`.
        best_epoch: one of the epochs.
        heading: first line of the title.

    Returns:
        `path`.

    Raises:
        ValueError: `best_epoch` is none of the epochs.
        StorageError: the file could not be written.
    """
    best = history.loc[history["epoch"] == best_epoch, "validation_rmse"]
    if best.empty:
        raise ValueError(f"epoch {best_epoch} is none of the {len(history)} epochs of the history")
    rmse = float(best.iloc[0])
    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    marker = "." if len(history) <= _MARKED else ""
    for column, colour, text in (("train_rmse", TRAIN, "training"), ("validation_rmse", VALIDATION, "validation")):
        axes.plot(history["epoch"], history[column], color=colour, linewidth=1.4, marker=marker, label=text)
    highest = float(history[["train_rmse", "validation_rmse"]].to_numpy().max())
    axes.annotate(
        "",
        xy=(best_epoch, rmse),
        xytext=(0, 50),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-|>", "color": BEST, "linewidth": 1.8, "shrinkB": 2},
        zorder=5,
    )
    axes.plot([], [], color=BEST, marker="v", linestyle="none", label=f"kept: epoch {best_epoch}")
    axes.set(xlabel="epoch", ylabel="RMSE of the code", ylim=(0, 1.3 * highest))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    kept = f"validation RMSE {rmse:.3f} at epoch {best_epoch} of {len(history)}"
    axes.set_title("\n".join(filter(None, (heading, kept))), fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    return save_figure(figure, path)


def confusion_picture(path: Path, confusion: Sequence[Sequence[int]], *, heading: str = "") -> Path:
    """Draw which codes are predicted for which given ones: counts, and their share of the row as shade.

    Args:
        path: where to; written as PNG in one step.
        confusion: 3 × 3 counts, rows are given codes and columns predicted ones; see `code_metrics`.
        heading: first line of the title.

    Returns:
        `path`.

    Raises:
        ValueError: the table is not 3 × 3.
        StorageError: the file could not be written.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    size = len(CODE_NAMES)
    if counts.shape != (size, size):
        raise ValueError(f"the confusion of three codes is 3 x 3, found {counts.shape}")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5.0, 4.4), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for given, predicted in np.ndindex(size, size):
        share = shares[given, predicted]
        text = f"{counts[given, predicted]}\n{100 * share:.0f} %" if counts[given].any() else "0"
        axes.text(predicted, given, text, ha="center", va="center", color="white" if share > 0.5 else "0.15")
    axes.set(xlabel="predicted code", ylabel="given code")
    axes.set_xticks(range(size), CODE_NAMES)
    axes.set_yticks(range(size), CODE_NAMES, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    total = int(counts.sum())
    accuracy = f"accuracy {100 * np.trace(counts) / total:.1f} % of {total}" if total else "no montages"
    axes.set_title("\n".join(filter(None, (heading, accuracy))), fontsize=11)
    return save_figure(figure, path)

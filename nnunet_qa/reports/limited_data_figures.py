"""Figures of the experiment of paper 004: Dice against annotated patients, against steps, and against clicks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from nnunet_qa.reports.figures import save_figure

_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def patients_picture(path: Path, results: pd.DataFrame, *, titles: Mapping[str, str]) -> Path:
    """Draw the test Dice of each group against the number of annotated patients, with the range over the draws.

    Args:
        path: where to; written as PNG in one step.
        results: one row a `group`, `patients` and `seed`, with `dice`.
        titles: names of the groups, in the order in which they are drawn.

    Returns:
        `path`.

    Raises:
        StorageError: the file could not be written.
    """
    figure = Figure(figsize=(7.5, 4.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    for group, style in _styles(results["group"], titles).items():
        own = results[results["group"] == group]
        means = own.groupby("patients")["dice"].agg(["mean", "min", "max"]).sort_index()
        axes.plot(means.index, means["mean"], label=titles[group], **style)
        axes.fill_between(means.index, means["min"], means["max"], color=style["color"], alpha=0.12, linewidth=0)
        axes.plot(own["patients"], own["dice"], linestyle="none", **{**style, "markersize": 3, "alpha": 0.5})
    axes.set_xscale("log")
    patients = sorted(results["patients"].unique())
    axes.xaxis.set_major_locator(FixedLocator(patients))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(patients, [str(number) for number in patients])
    axes.set(xlabel="annotated patients", ylabel="test Dice (line: mean, band: range over draws)")
    return _finish(figure, axes, path)


def convergence_picture(path: Path, curves: pd.DataFrame, *, titles: Mapping[str, str]) -> Path:
    """Draw the best validation Dice so far against the steps, one panel a group, one line a size (mean over draws).

    Args:
        path: where to; written as PNG in one step.
        curves: one row a `group`, `size`, `seed` and `step`, with `best_dice`.
        titles: names of the groups, in the order in which they are drawn.

    Returns:
        `path`.

    Raises:
        StorageError: the file could not be written.
    """
    groups = [group for group in titles if group in set(curves["group"])]
    sizes = list(dict.fromkeys(curves["size"]))
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows + 0.4), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    lines = {}
    for axes, group in zip(grid, groups, strict=False):
        for index, size in enumerate(sizes):
            own = curves[(curves["group"] == group) & (curves["size"] == size)]
            if not own.empty:
                mean = own.groupby("step")["best_dice"].mean()
                shade = str(0.75 * (1 - index / max(1, len(sizes) - 1)))
                mark = "o" if len(mean) == 1 else ""
                lines[size] = axes.plot(mean.index, mean, color=shade, linewidth=1.6, marker=mark)[0]
        axes.set(title=titles[group], xlabel="step")
        axes.title.set_fontsize(10)
        _plain(axes)
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    grid[0].set_ylabel("best validation Dice so far")
    labels = [_counted(size, "patient") for size in lines]
    figure.legend(
        lines.values(), labels, loc="outside lower center", ncols=min(6, len(lines)), frameon=False, fontsize=9
    )
    return save_figure(figure, path)


def clicks_picture(path: Path, table: pd.DataFrame, *, titles: Mapping[str, str]) -> Path:
    """Draw the test Dice against the number of clicks, one panel a group, one line a size (mean over draws).

    Args:
        path: where to; written as PNG in one step.
        table: one row a `group`, `size`, `patients`, `clicks` and `seed`, with `dice`.
        titles: names of the groups, in the order in which they are drawn.

    Returns:
        `path`.

    Raises:
        StorageError: the file could not be written.
    """
    groups = [group for group in titles if group in set(table["group"])]
    figure = Figure(figsize=(4.6 * len(groups), 3.8), dpi=130, layout="constrained")
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False, sharey=True)[0], groups, strict=True):
        own = table[table["group"] == group]
        sizes = own.groupby("size")["patients"].mean().sort_values().index
        for index, size in enumerate(sizes):
            mean = own[own["size"] == size].groupby("clicks")["dice"].mean()
            shade = str(0.75 * (1 - index / max(1, len(sizes) - 1)))
            axes.plot(mean.index, mean, color=shade, marker="o", markersize=4, label=_counted(size, "patient"))
        axes.set(xlabel="clicks", title=titles[group])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
        _plain(axes)
    figure.axes[0].set_ylabel("test Dice")
    return save_figure(figure, path)


def _styles(present: pd.Series, titles: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    looks = zip(titles, _COLOURS, _MARKERS, strict=False)
    known = set(present)
    return {group: {"color": colour, "marker": mark} for group, colour, mark in looks if group in known}


def _finish(figure: Figure, axes: Any, path: Path) -> Path:
    _plain(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save_figure(figure, path)


def _plain(axes: Any) -> None:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _counted(number: object, what: str) -> str:
    return f"{number} {what}{'' if str(number) == '1' else 's'}"

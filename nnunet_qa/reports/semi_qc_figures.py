"""Figures of the experiment of paper 003: change of Dice against its start (Figure 2), and contours (Figure 3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import linregress

from nnunet_qa.reports.figures import save_figure
from nnunet_qa.reports.segmentation_figures import ErrorPanel

_COLUMNS = 3
_INCHES = 2.2
_MARGIN = 0.35  # of the object, shown around it
_COLOURS = ("#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#E69F00")
_STYLES = {"prediction": "-", "truth": (0, (1.5, 1.2))}


def change_slope(base: np.ndarray, change: np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and two-sided p of the regression of a change on where it began; NaN where there is none.

    >>> change_slope(np.array([0.2, 0.4, 0.6]), np.array([0.2, 0.1, 0.0]))[0]
    -0.5
    """
    if len(base) < 3 or np.ptp(base) == 0:
        return (float("nan"),) * 3
    found = linregress(base, change)
    return float(found.slope), float(found.intercept), float(found.pvalue)


def change_picture(path: Path, changes: Mapping[str, pd.DataFrame], *, base: str, heading: str = "") -> Path:
    """Draw the change of the Dice of each case over the Dice it began with, with the regression line (Figure 2).

    A method that only helps where the first model was good, or only evens out what was bad, shows as a slope; but so
    does chance, for a case that was bad by chance gets better by chance.

    Args:
        path: where to; written as PNG in one step.
        changes: by the name of each arm, one row a case: `base` and `change`.
        base: name of the arm that the change starts from, for the axes.
        heading: text above.

    Returns:
        `path`.

    Raises:
        ValueError: there is no arm.
        StorageError: the file could not be written.
    """
    if not changes:
        raise ValueError("at least one arm is needed")
    columns = min(_COLUMNS, len(changes))
    rows = math.ceil(len(changes) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows + 0.3 * bool(heading)), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for place, (name, table) in zip(grid.flat, changes.items(), strict=False):
        start, change = (table[column].to_numpy(dtype=np.float64) for column in ("base", "change"))
        place.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        place.plot(start, change, "o", color="#0072B2", markersize=4, alpha=0.7, markeredgewidth=0)
        slope, intercept, _ = change_slope(start, change)
        if not math.isnan(slope):
            ends = np.array([start.min(), start.max()])
            place.plot(ends, intercept + slope * ends, color="#D55E00", linewidth=1.6)
        text = "" if math.isnan(slope) else f"\nslope {slope:+.2f}, mean {change.mean():+.3f}"
        place.set_title(f"{name}{text}", fontsize=9)
        place.grid(color="0.9", linewidth=0.8)
        place.set_axisbelow(True)
        place.spines[["top", "right"]].set_visible(False)
    for place in grid.flat[len(changes) :]:
        place.set_axis_off()
    figure.supxlabel(f"Dice of: {base}", fontsize=10)
    figure.supylabel("change of Dice", fontsize=10)
    if heading:
        figure.suptitle(heading, fontsize=11)
    return save_figure(figure, path)


def contours_picture(path: Path, panels: Mapping[str, Sequence[ErrorPanel]], *, heading: str = "") -> Path:
    """Draw the contours of prediction and truth, a row a case and a column an arm, cut to the object (Figure 3).

    Args:
        path: where to; written as PNG in one step.
        panels: those of each row by its name. All of a row are of one case, and of a volume its slice with most true
            foreground is shown.
        heading: text above.

    Returns:
        `path`.

    Raises:
        ValueError: there is no panel.
        StorageError: the file could not be written.
    """
    columns = max((len(row) for row in panels.values()), default=0)
    if columns == 0:
        raise ValueError("at least one panel is needed")
    size = (_INCHES * columns + 0.3, (_INCHES + 0.35) * len(panels) + 0.5 + 0.3 * bool(heading))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(len(panels), columns, squeeze=False)
    values = sorted({int(v) for row in panels.values() for one in row for v in np.unique(one.truth) if v > 0})
    colours = {value: _COLOURS[number % len(_COLOURS)] for number, value in enumerate(values)}
    for places, (name, row) in zip(grid, panels.items(), strict=True):
        for place, panel in itertools.zip_longest(places, row):
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
            if panel is not None:
                _draw(place, panel, colours)
        places[0].set_ylabel(name, fontsize=10)
    handles = [
        Line2D([], [], color="0.2", linestyle=style, label=text, linewidth=1.6) for text, style in _STYLES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    if heading:
        figure.suptitle(heading, fontsize=11)
    return save_figure(figure, path)


def _draw(place: Any, panel: ErrorPanel, colours: Mapping[int, str]) -> None:
    image, prediction, truth = panel.image, panel.prediction, panel.truth
    if image.ndim == 3:
        index = int(np.argmax((truth > 0).sum(axis=(1, 2))))
        image, prediction, truth = image[index], prediction[index], truth[index]
    box = _box(np.isin(truth, list(colours)))
    low, high = np.percentile(image, [0.5, 99.5])
    place.imshow(image[box], cmap="gray", vmin=low, vmax=max(high, low + 1e-9))
    for value, colour in colours.items():
        for labels, name in ((prediction, "prediction"), (truth, "truth")):
            inside = (labels[box] == value).astype(np.float32)
            if inside.any():
                padded = np.pad(inside, 1)  # contours of what touches the edge stay closed
                rows, columns = (np.arange(size) - 1 for size in padded.shape)
                lines = place.contour(columns, rows, padded, [0.5], colors=[colour], linewidths=[1.4])
                lines.set_linestyle([_STYLES[name]])
    place.set_title(f"{panel.case_id}\nDice={panel.dice:.2f}", fontsize=8)


def _box(inside: np.ndarray) -> tuple[slice, ...]:
    """The rectangle around what is inside, with a margin; everything where nothing is."""
    if not inside.any():
        return (slice(None), slice(None))
    box = []
    for axis, size in enumerate(inside.shape):
        (found,) = np.nonzero(inside.any(axis=1 - axis))
        first, last = int(found[0]), int(found[-1]) + 1
        margin = max(4, round(_MARGIN * (last - first)))
        box.append(slice(max(0, first - margin), min(size, last + margin)))
    return tuple(box)

"""Figures of QU-Net++: outputs of the levels (Figure 5), their losses (6), errors of single images (7), and all arms.

Figures are made without pyplot, as in `nnunet_qa.reports.figures`, and written as PNG in one step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nnunet_qa.errors import ImageError
from nnunet_qa.evaluation.segmentation import overlap
from nnunet_qa.reports.figures import save_figure

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "#FF00FF", "#0000FF", "#FF0000"
"""Colours of the paper's Figure 7: magenta, blue, red."""
_CLASSES = ("#FFFFFF", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00")
_LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_OPACITY = 0.85
_INCHES = 2.4


@dataclass(frozen=True, kw_only=True)
class ErrorPanel:
    """One case of an `errors_picture`.

    Attributes:
        case_id: for the title.
        dice: for the title.
        image: `(rows, columns)` or `(slices, rows, columns)`, any intensities. Of a volume, the slice is shown in which
            the truth (the prediction, where the truth is empty) has most foreground.
        prediction: label values of the same shape, 0 for background.
        truth: label values of the same shape.
    """

    case_id: str
    dice: float
    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray


def level_outputs_picture(
    path: Path, image: np.ndarray, levels: Sequence[np.ndarray], truth: np.ndarray, *, title: str, q: float
) -> Path:
    """Draw an image, the output of each level, each with its Jaccard index to the next, and the truth (Figure 5).

    Args:
        path: where to.
        image: `(rows, columns)`, or `(slices, rows, columns)`, of which the slice with most true foreground is drawn.
        levels: outputs of the same shape, finest last: label values, or the probability of foreground in a float type,
            drawn in grey and counted as foreground above 0.5.
        truth: label values of the same shape.
        title: text above, such as the case; Q and, for a volume, the slice are added.
        q: quality estimated from the two finest outputs.

    Returns:
        `path`.

    Raises:
        ValueError: there is no level.
        ImageError: the shapes differ, or are neither 2D nor 3D.
        StorageError: the file could not be written.
    """
    if not levels:
        raise ValueError("at least one level is needed")
    labels = [_labels(level) for level in levels]
    index = _shown_slice(title, image, truth, *reversed(labels))
    # Agreement is that of the whole volume, as Q is, not that of the slice that is drawn.
    agreement = [_jaccard(first, second) for first, second in itertools.pairwise([*labels, truth])]
    flat, true, *shown = (array if index is None else array[index] for array in (image, truth, *levels))
    classes = max(2, 1 + max(int(array.max(initial=0)) for array in (truth, *labels)))
    followers = [*(f"L{number}" for number in range(2, len(levels) + 1)), "truth"]
    texts = [
        f"L{n}, J to {other} {value:.2f}" for n, (other, value) in enumerate(zip(followers, agreement, strict=True), 1)
    ]
    pictures = [_grey(flat), *(_output(level, classes) for level in shown), _label_colours(true, classes)]
    figure, places = _grid(len(pictures), flat.shape)
    for place, picture, text in zip(places, pictures, ("image", *texts, "truth"), strict=False):
        _show(place, picture, text)
    where = "" if index is None else f"  slice {index}"
    figure.suptitle(f"{title}{where}  Q={q:.2f}", fontsize=11)
    return save_figure(figure, path)


def level_losses_picture(path: Path, losses: pd.DataFrame, *, heading: str = "") -> Path:
    """Draw the loss of each level over the epochs (Figure 6).

    Args:
        path: where to.
        losses: one row an epoch, indexed by it; one column a level, whose name goes into the legend.
        heading: text above.

    Returns:
        `path`.

    Raises:
        ValueError: no epoch or no level.
        StorageError: the file could not be written.
    """
    if losses.empty:
        raise ValueError("at least one epoch and one level are needed")
    figure = Figure(figsize=(6.4, 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(losses.columns):
        # a single epoch makes no line
        mark = "o" if len(losses) == 1 else ""
        colour = _LINES[number % len(_LINES)]
        axes.plot(losses.index, losses[name], label=str(name), color=colour, marker=mark, linewidth=1.6)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _tidy(axes, heading)
    axes.legend(frameon=False, fontsize=9)
    return save_figure(figure, path)


def error_colours(image: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """A grey image with the errors of a segmentation in colours.

    Magenta: foreground of the right class. Blue: foreground where there is none. Red: foreground that was missed or
    given another class.

    Args:
        image: `(rows, columns)`, any intensities.
        prediction: label values of the same shape, 0 for background.
        truth: label values of the same shape.

    Returns:
        `(rows, columns, 3)`, in [0, 1].
    """
    picture = _grey(image)
    real = truth > 0
    for where, colour in (
        (real & (prediction == truth), TRUE_POSITIVE),
        ((prediction > 0) & ~real, FALSE_POSITIVE),
        (real & (prediction != truth), FALSE_NEGATIVE),
    ):
        picture[where] = (1 - _OPACITY) * picture[where] + _OPACITY * np.array(to_rgb(colour))
    return picture


def errors_picture(path: Path, panels: Mapping[str, Sequence[ErrorPanel]], *, heading: str = "") -> Path:
    """Draw cases with their errors in the colours of `error_colours`, a row for each group (Figure 7).

    Args:
        path: where to.
        panels: the cases of each row by its name, such as `best` and `worst`.
        heading: text above.

    Returns:
        `path`.

    Raises:
        ValueError: there is no panel.
        ImageError: arrays of a panel differ in shape or are neither 2D nor 3D.
        StorageError: the file could not be written.
    """
    columns = max((len(row) for row in panels.values()), default=0)
    if columns == 0:
        raise ValueError("at least one panel is needed")
    drawn = {name: [_error_picture(panel) for panel in row] for name, row in panels.items()}
    ratio = max(picture.shape[0] / picture.shape[1] for row in drawn.values() for picture, _ in row)
    across = 3 if columns > 2 else 1  # entries of the legend that fit side by side
    height = (_INCHES * ratio + 0.35) * len(drawn) + 0.15 + 0.6 / across + 0.3 * bool(heading)
    figure = Figure(figsize=(_INCHES * max(2, columns) + 0.3, height), dpi=130, layout="constrained")
    grid = figure.subplots(len(drawn), columns, squeeze=False)
    for places, (name, row) in zip(grid, drawn.items(), strict=True):
        for place, (picture, text) in itertools.zip_longest(places, row, fillvalue=(None, "")):
            _show(place, picture, text)
        places[0].set_ylabel(name, fontsize=11)
    several = any(max(panel.truth.max(), panel.prediction.max()) > 1 for row in panels.values() for panel in row)
    missed = "false negative or wrong class" if several else "false negative"
    legend = {"true positive": TRUE_POSITIVE, "false positive": FALSE_POSITIVE, missed: FALSE_NEGATIVE}
    handles = [Patch(color=colour, label=text) for text, colour in legend.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=across, frameon=False, fontsize=9)
    if heading:
        figure.suptitle(heading, fontsize=11)
    return save_figure(figure, path)


def arms_picture(path: Path, table: pd.DataFrame, *, score: str = "dice", heading: str = "") -> Path:
    """Draw the score of each arm: a dot for every seed, their mean, and a bar of one standard deviation about it.

    Args:
        path: where to.
        table: one row an arm and seed: `arm`, `annotated` (number of annotated images) and the score, in [0, 1]. Arms
            are drawn from top to bottom in the order of the table.
        score: column with the score.
        heading: text above.

    Returns:
        `path`.

    Raises:
        ValueError: there is no row.
        StorageError: the file could not be written.
    """
    if table.empty:
        raise ValueError("at least one arm is needed")
    groups = [(str(arm), rows) for arm, rows in table.groupby("arm", sort=False)]
    figure = Figure(figsize=(7.2, 1.3 + 0.45 * len(groups)), dpi=130, layout="constrained")
    axes = figure.subplots()
    for place, (_, rows) in enumerate(groups):
        values = rows[score].to_numpy(dtype=np.float64)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        # fixed steps, so that seeds of equal score stay apart
        height = place + 0.24 + 0.08 * np.linspace(-1, 1, len(values)) * (len(values) > 1)
        axes.scatter(values, height, s=22, color="#56B4E9", edgecolors="white", linewidths=0.5, zorder=2)
        axes.errorbar(values.mean(), place, xerr=spread, fmt="D", color="#0072B2", capsize=4, markersize=6, zorder=3)
    axes.set_yticks(range(len(groups)), [f"{arm} ({_count(rows['annotated'])})" for arm, rows in groups])
    axes.set_ylim(len(groups) - 0.4, -0.5)
    axes.set_xlabel(score.replace("_", " ").capitalize())
    _tidy(axes, heading)
    return save_figure(figure, path)


def _count(annotated: pd.Series) -> str:
    low, high = int(annotated.min()), int(annotated.max())
    return f"{low} images" if low == high else f"{low} to {high} images"


def _tidy(axes: Any, heading: str) -> None:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if heading:
        axes.set_title(heading, fontsize=11)


def _labels(level: np.ndarray) -> np.ndarray:
    """Label values of an output of either kind."""
    return (level > 0.5).astype(np.uint8) if np.issubdtype(level.dtype, np.floating) else level


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over the classes that are in either label map; 1 where both are empty."""
    values = sorted({*np.unique(first).tolist(), *np.unique(second).tolist()} - {0})
    return float(np.mean([overlap(first, second, values=[value]).jaccard() for value in values])) if values else 1.0


def _shown_slice(name: str, image: np.ndarray, *labels: np.ndarray) -> int | None:
    """The slice of a volume with most foreground in the first of the label maps that has any; None for a 2D image."""
    shapes = [array.shape for array in (image, *labels)]
    if len(set(shapes)) != 1 or image.ndim not in (2, 3):
        text = ", ".join(map(str, dict.fromkeys(shapes)))
        raise ImageError(f"{name}: image and label maps must have one shape of 2 or 3 axes, found {text}")
    if image.ndim == 2:
        return None
    holding = next((array for array in labels if array.any()), labels[0])
    return int(np.argmax((holding > 0).sum(axis=(1, 2))))


def _error_picture(panel: ErrorPanel) -> tuple[np.ndarray, str]:
    """Picture and title of a panel."""
    index = _shown_slice(panel.case_id, panel.image, panel.truth, panel.prediction)
    arrays = (panel.image, panel.prediction, panel.truth)
    image, prediction, truth = arrays if index is None else (array[index] for array in arrays)
    where = "" if index is None else f"  slice {index}"
    return error_colours(image, prediction, truth), f"{panel.case_id}{where}\nDice={panel.dice:.2f}"


def _grey(image: np.ndarray) -> np.ndarray:
    """Intensities between the 0.5th and the 99.5th percentile as grey `(rows, columns, 3)` in [0, 1]."""
    low, high = np.percentile(image, [0.5, 99.5])
    values = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-9), 0, 1)
    return np.repeat(values[..., None], 3, axis=-1)


def _output(level: np.ndarray, classes: int) -> np.ndarray:
    if np.issubdtype(level.dtype, np.floating):
        return np.repeat(np.clip(level, 0, 1)[..., None], 3, axis=-1)
    return _label_colours(level, classes)


def _label_colours(labels: np.ndarray, classes: int) -> np.ndarray:
    """Label values as colours on black: white for a single class."""
    names = _CLASSES[:1] if classes == 2 else _CLASSES[1:]
    palette = np.array([(0.0, 0.0, 0.0), *(to_rgb(names[value % len(names)]) for value in range(classes - 1))])
    return palette[labels.astype(np.intp)]


def _grid(count: int, shape: tuple[int, ...]) -> tuple[Figure, list[Any]]:
    """A figure with one place a picture: in one row, or in two where pictures are much wider than high."""
    ratio = shape[0] / shape[1]
    rows = 2 if ratio < 0.6 and count > 3 else 1
    columns = math.ceil(count / rows)
    figure = Figure(figsize=(_INCHES * columns, (_INCHES * ratio + 0.3) * rows + 0.35), dpi=130, layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place in places[count:]:
        place.set_axis_off()
    return figure, places


def _show(place: Any, picture: np.ndarray | None, text: str) -> None:
    if picture is not None:
        place.imshow(picture, interpolation="nearest")
    place.set(xticks=[], yticks=[])
    place.spines[:].set_visible(False)
    place.set_title(text, fontsize=9)

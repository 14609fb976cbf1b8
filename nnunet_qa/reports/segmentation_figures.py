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
from nnunet_qa.evaluation.segmentation import overlaps
from nnunet_qa.reports.figures import save_figure

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "#FF00FF", "#0000FF", "#FF0000"
"""Colours of the paper's Figure 7: magenta, blue, red."""
IGNORED = "#808080"
"""Colour of voxels whose truth is the ignore label."""
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
        ignore: label value of the truth that marks voxels which do not count.
    """

    case_id: str
    dice: float
    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray
    ignore: int | None = None


def level_outputs_picture(
    path: Path,
    image: np.ndarray,
    levels: Sequence[np.ndarray],
    truth: np.ndarray,
    *,
    title: str,
    q: float,
    classes: Mapping[str, Sequence[int]],
    ignore: int | None = None,
) -> Path:
    """Draw an image, the output of each level, each with its Jaccard index to the next, and the truth (Figure 5).

    The index is defined as Q is: the mean over all classes, of which one that both leave empty counts 1. So that of the
    two finest outputs is Q, where the image was not resampled for the network.

    Args:
        path: where to.
        image: `(rows, columns)`, or `(slices, rows, columns)`, of which the slice with most true foreground is drawn.
        levels: label values that the outputs give, of the same shape, finest last.
        truth: label values of the same shape.
        title: text above, such as the case; Q and, for a volume, the slice are added.
        q: quality estimated from the two finest outputs.
        classes: label values of each class that counts, see `foreground_classes`.
        ignore: label value of the truth that marks voxels which do not count.

    Returns:
        `path`.

    Raises:
        ValueError: there is no level.
        ImageError: the shapes differ, or are neither 2D nor 3D.
        StorageError: the file could not be written.
    """
    if not levels:
        raise ValueError("at least one level is needed")
    index = _shown_slice(title, image, _without(truth, ignore), *reversed(levels))
    # Agreement is that of the whole volume, as Q is, not that of the slice that is drawn.
    agreement = []
    for first, second in itertools.pairwise([*levels, truth]):
        counts = overlaps(first, second, classes=classes, ignore=ignore)
        agreement.append(float(np.mean([one.jaccard() for one in counts.values()])))
    flat, true, *shown = (array if index is None else array[index] for array in (image, truth, *levels))
    single = all(_without(array, ignore).max(initial=0) <= 1 for array in (truth, *levels))
    followers = [*(f"L{number}" for number in range(2, len(levels) + 1)), "truth"]
    texts = [
        f"L{n}, J to {other} {value:.2f}" for n, (other, value) in enumerate(zip(followers, agreement, strict=True), 1)
    ]
    pictures = [_grey(flat), *(_label_colours(array, single=single, ignore=ignore) for array in (*shown, true))]
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


def error_colours(
    image: np.ndarray, prediction: np.ndarray, truth: np.ndarray, *, ignore: int | None = None
) -> np.ndarray:
    """A grey image with the errors of a segmentation in colours.

    Magenta: foreground of the right class. Blue: foreground where there is none. Red: foreground that was missed or
    given another class. Flat grey: what does not count.

    Args:
        image: `(rows, columns)`, any intensities.
        prediction: label values of the same shape, 0 for background.
        truth: label values of the same shape.
        ignore: label value of the truth that marks voxels which do not count.

    Returns:
        `(rows, columns, 3)`, in [0, 1].
    """
    picture = _grey(image)
    ignored = np.zeros(truth.shape, bool) if ignore is None else truth == ignore
    real = (truth > 0) & ~ignored
    for where, colour in (
        (real & (prediction == truth), TRUE_POSITIVE),
        ((prediction > 0) & ~real & ~ignored, FALSE_POSITIVE),
        (real & (prediction != truth), FALSE_NEGATIVE),
        (ignored, IGNORED),
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
    everything = [panel for row in panels.values() for panel in row]
    several = any(max(_without(one.truth, one.ignore).max(), one.prediction.max()) > 1 for one in everything)
    missed = "false negative or wrong class" if several else "false negative"
    legend = {"true positive": TRUE_POSITIVE, "false positive": FALSE_POSITIVE, missed: FALSE_NEGATIVE}
    if any(one.ignore is not None and (one.truth == one.ignore).any() for one in everything):
        legend["ignored"] = IGNORED
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


def _without(labels: np.ndarray, ignore: int | None) -> np.ndarray:
    """Label values with background in place of the ignore label."""
    return labels if ignore is None else np.where(labels == ignore, 0, labels)


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
    index = _shown_slice(panel.case_id, panel.image, _without(panel.truth, panel.ignore), panel.prediction)
    arrays = (panel.image, panel.prediction, panel.truth)
    image, prediction, truth = arrays if index is None else (array[index] for array in arrays)
    where = "" if index is None else f"  slice {index}"
    picture = error_colours(image, prediction, truth, ignore=panel.ignore)
    return picture, f"{panel.case_id}{where}\nDice={panel.dice:.2f}"


def _grey(image: np.ndarray) -> np.ndarray:
    """Intensities between the 0.5th and the 99.5th percentile as grey `(rows, columns, 3)` in [0, 1]."""
    low, high = np.percentile(image, [0.5, 99.5])
    values = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-9), 0, 1)
    return np.repeat(values[..., None], 3, axis=-1)


def _label_colours(labels: np.ndarray, *, single: bool, ignore: int | None) -> np.ndarray:
    """Label values as colours on black: white for a single class, grey for what does not count."""
    names = _CLASSES[:1] if single else _CLASSES[1:]
    values = labels.astype(np.intp)
    colours = [to_rgb(names[value % len(names)]) for value in range(values.max(initial=0))]
    picture = np.array([(0.0, 0.0, 0.0), *colours])[values]
    if ignore is not None:
        picture[values == ignore] = to_rgb(IGNORED)
    return picture


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

"""Pictures for people: where two outputs of a network disagree, and how the quality Q goes with the true Dice.

Colours are from the palette of Okabe and Ito (2008), which people with colour-blindness can tell apart. Figures are
made without pyplot, so that nothing here needs a display or touches the figures of the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scipy.stats import spearmanr

from nnunet_qa.errors import ImageError
from nnunet_qa.files import replacing

FINEST, SECOND, TRUTH = "#56B4E9", "#D55E00", "#F0E442"
_SUBJECTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_CLASS_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
# Thickest below: where contours coincide, each of them still shows beside the one above it.
_LAYERS = (("finest", "finest output", FINEST, 2.6), ("second", "second output", SECOND, 1.3))
_TRUTH_LAYER = ("truth", "ground truth", TRUTH, 1.3)
_MAX_LEGEND = 21
_PANEL_INCHES = 2.9
_LONG_TITLE = 34


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One case of a `disagreement_picture`.

    Attributes:
        title: text above it, see `panel_title`.
        image: `(rows, columns)`, or a volume of three axes, any intensities.
        finest: label values of the finest output, of the same shape; 0 is background.
        second: label values of the second output, of the same shape.
        truth: label values of the ground truth, of the same shape, where it is known.
        slice_axis: the axis of a volume along which slices are counted (0 = z, first).
        slice_index: which slice of a volume; None for the one in which the two outputs differ in most voxels (the one
            with most foreground where they do not differ).
        spacing: distance between rows and between columns, in any unit; a pixel is drawn with this aspect.
    """

    title: str
    image: np.ndarray
    finest: np.ndarray
    second: np.ndarray
    truth: np.ndarray | None = None
    slice_axis: int = 0
    slice_index: int | None = None
    spacing: tuple[float, float] = (1.0, 1.0)


def panel_title(case_id: str, q: float, *, dice: float | None = None) -> str:
    """Title of a panel; a Dice that is missing or NaN is left out.

    >>> panel_title("S01_b2", 0.43, dice=0.614)
    'S01_b2  Q=0.43  Dice=0.61'
    """
    known = dice is not None and not math.isnan(dice)
    return f"{case_id}  Q={q:.2f}" + (f"  Dice={dice:.2f}" if known else "")


def disagreement_picture(
    path: Path,
    panels: Sequence[Panel],
    *,
    heading: str = "",
    class_names: Sequence[str] | None = None,
    limit: int = 12,
    columns: int = 4,
) -> Path:
    """Draw cases side by side, each with the contours of the two outputs, and write them as PNG in one step.

    A colour is an output; where there are several classes, up to four, the style of a line is the class.

    Args:
        path: where to.
        panels: one a case, in the order in which they are drawn (lowest Q first, as a rule).
        heading: text above all panels.
        class_names: name of class 1, 2, …, for the legend; numbers without it.
        limit: draw at most so many of the panels.
        columns: panels in a row, at most.

    Returns:
        `path`.

    Raises:
        ValueError: no panel, or a limit or number of columns below 1.
        ImageError: arrays of a panel differ in shape, have neither two nor three axes, or lack the slice.
        StorageError: the file could not be written.
    """
    if not panels or limit < 1 or columns < 1:
        raise ValueError(f"{len(panels)} panels, limit {limit}, columns {columns}: each must be at least 1")
    shown = [_sliced(panel) for panel in panels[:limit]]
    classes = sorted({value for panel in shown for layer in _masks(panel) for value in np.unique(layer).tolist()} - {0})
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    # The height of a row follows the tallest picture in it, within reason, so that wide scans leave no empty bands.
    ratios = [min(2.0, max(0.4, _height_to_width(panel))) for panel in shown]
    titles = 0.45 if any(len(panel.title) > _LONG_TITLE for panel in shown) else 0.28
    heights = [_PANEL_INCHES * max(ratios[row * columns : (row + 1) * columns]) + titles for row in range(rows)]
    handles = _legend(shown, classes, class_names)
    width = max(2, columns) * _PANEL_INCHES
    per_line = max(1, int(width / (0.75 + 0.075 * max(len(str(handle.get_label())) for handle in handles))))
    left_out = f"{len(shown)} of {len(panels)} cases" if len(shown) < len(panels) else ""
    text = ", ".join(filter(None, (heading, left_out)))
    height = sum(heights) + 0.2 * math.ceil(len(handles) / per_line) + 0.15 + 0.3 * bool(text)
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for place, panel in zip(grid.flat, shown, strict=False):
        _draw_panel(place, panel, classes)
    for place in grid.flat[len(shown) :]:
        place.set_axis_off()
    if text:
        figure.suptitle(text, fontsize=12)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=per_line, frameon=False, fontsize=9, handlelength=3
    )
    return save_figure(figure, path)


def scatter_q_dice(
    path: Path, q: Sequence[float], dice: Sequence[float], *, subjects: Sequence[str] | None = None, heading: str = ""
) -> Path:
    """Draw Q against the true Dice, one point a case, with Spearman's rank correlation in the title.

    Args:
        path: where to; written as PNG in one step.
        q: estimated quality of each case, in [0, 1].
        dice: true Dice of each case, in [0, 1]; a case where it is NaN is left out and counted in the title.
        subjects: subject of each case; each gets its colour and marker (beyond 49 they repeat). The legend is drawn for
            up to 21 subjects.
        heading: first line of the title.

    Returns:
        `path`.

    Raises:
        ValueError: the lengths differ, or no case has both numbers.
        StorageError: the file could not be written.
    """
    estimated, true = np.asarray(q, dtype=float), np.asarray(dice, dtype=float)
    names = np.asarray(subjects if subjects is not None else [""] * len(estimated), dtype=str)
    if not len(estimated) == len(true) == len(names):
        raise ValueError(f"{len(estimated)} values of Q, {len(true)} of Dice and {len(names)} subjects")
    known = np.isfinite(estimated) & np.isfinite(true)
    if not known.any():
        raise ValueError("no case with both Q and Dice")
    left_out = int((~known).sum())
    estimated, true, names = estimated[known], true[known], names[known]

    every = sorted(set(names))
    legend = subjects is not None and len(every) <= _MAX_LEGEND
    figure = Figure(figsize=(7.2 if legend else 5.4, 5.0), dpi=130, layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(every):
        of_subject = names == name
        axes.scatter(
            true[of_subject],
            estimated[of_subject],
            s=36,
            # The marker moves on with every subject, not only with every round of colours: two cues instead of one.
            color=_SUBJECTS[number % len(_SUBJECTS)],
            marker=_MARKERS[(number + number // len(_SUBJECTS)) % len(_MARKERS)],
            edgecolors="white",
            linewidths=0.6,
            label=name,
        )
    axes.set_xlabel("Dice with the ground truth")
    axes.set_ylabel("Q (agreement of the two finest outputs)")
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("\n".join(filter(None, (heading, _correlation(estimated, true, left_out)))), fontsize=11)
    if legend:
        figure.legend(loc="outside right upper", title="subject", frameon=False, fontsize=9)
    return save_figure(figure, path)


def _correlation(q: np.ndarray, dice: np.ndarray, left_out: int) -> str:
    constant = len(q) < 3 or np.ptp(q) == 0 or np.ptp(dice) == 0
    rho = "undefined" if constant else f"{spearmanr(q, dice).statistic:.2f}".replace("-", "\N{MINUS SIGN}")
    missing = f", {left_out} without Dice or Q" if left_out else ""
    return f"Spearman's ρ = {rho}, {len(q)} case{'s' if len(q) != 1 else ''}{missing}"


def _masks(panel: Panel) -> list[np.ndarray]:
    return [panel.finest, panel.second, *([panel.truth] if panel.truth is not None else [])]


def _height_to_width(panel: Panel) -> float:
    rows, columns = panel.image.shape
    return rows * panel.spacing[0] / (columns * panel.spacing[1])


def _sliced(panel: Panel) -> Panel:
    """The panel with the 2D arrays that are drawn, checked; the number of a slice goes into the title."""
    shape = panel.image.shape
    if any(mask.shape != shape for mask in _masks(panel)):
        shapes = ", ".join(str(array.shape) for array in (panel.image, *_masks(panel)))
        raise ImageError(f"{panel.title}: image and masks must have the same shape, found {shapes}")
    if len(shape) == 2:
        return panel
    if len(shape) != 3 or not 0 <= panel.slice_axis < 3:
        raise ImageError(f"{panel.title}: must have 2 axes, or 3 and a slice axis 0, 1 or 2; found {shape}")
    index = panel.slice_index
    if index is None:
        differ = _per_slice(panel.finest != panel.second, panel.slice_axis)
        foreground = _per_slice((panel.finest > 0) | (panel.second > 0), panel.slice_axis)
        index = int(np.argmax(differ if differ.any() else foreground))
    if not 0 <= index < shape[panel.slice_axis]:
        raise ImageError(f"{panel.title}: has no slice {index}; there are {shape[panel.slice_axis]}, counted from 0")
    image, finest, second, *truth = (
        np.take(array, index, axis=panel.slice_axis) for array in (panel.image, *_masks(panel))
    )
    return Panel(
        title=f"{panel.title}  slice {index}",
        image=image,
        finest=finest,
        second=second,
        truth=truth[0] if truth else None,
        spacing=panel.spacing,
    )


def _per_slice(where: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(where, axis, 0).reshape(where.shape[axis], -1).sum(axis=1)


def _draw_panel(place: Any, panel: Panel, classes: Sequence[int]) -> None:
    finite = panel.image[np.isfinite(panel.image)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    aspect = panel.spacing[0] / panel.spacing[1]
    place.imshow(panel.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-9), aspect=aspect)
    for field, _, colour, width in (*_LAYERS, _TRUTH_LAYER):
        mask = getattr(panel, field)
        for number, value in enumerate(classes if mask is not None else ()):
            _contour(place, mask == value, colour, width, _class_style(number, classes))
    # The contour of a structure at the border lies half a pixel outside.
    rows, columns = panel.image.shape
    place.set(xlim=(-1, columns), ylim=(rows, -1), xticks=[], yticks=[])
    place.spines[:].set_visible(False)
    # Names of cases can be long: the numbers then go to a line of their own.
    case, _, numbers = panel.title.partition("  ")
    place.set_title(panel.title if len(panel.title) <= _LONG_TITLE else f"{case}\n{numbers}", fontsize=9)


def _contour(place: Any, inside: np.ndarray, colour: str, width: float, style: Any) -> None:
    if not inside.any():
        return
    padded = np.pad(inside, 1).astype(np.float32)
    rows, columns = inside.shape
    lines = place.contour(
        np.arange(-1, columns + 1), np.arange(-1, rows + 1), padded, [0.5], colors=[colour], linewidths=[width]
    )
    lines.set_linestyle([style])
    lines.set_path_effects([withStroke(linewidth=width + 1.0, foreground=(0, 0, 0, 0.45))])


def _class_style(number: int, classes: Sequence[int]) -> Any:
    return _CLASS_STYLES[number] if len(classes) <= len(_CLASS_STYLES) else "-"


def _legend(panels: Sequence[Panel], classes: Sequence[int], names: Sequence[str] | None) -> list[Line2D]:
    layers = [*_LAYERS, *([_TRUTH_LAYER] if any(panel.truth is not None for panel in panels) else [])]
    handles = [Line2D([], [], color=colour, linewidth=width, label=text) for _, text, colour, width in layers]
    for handle in handles:
        handle.set_path_effects([withStroke(linewidth=handle.get_linewidth() + 1.0, foreground=(0, 0, 0, 0.45))])
    if 1 < len(classes) <= len(_CLASS_STYLES):
        for number, value in enumerate(classes):
            name = names[value - 1] if names is not None and value <= len(names) else f"class {value}"
            handles.append(Line2D([], [], color="0.25", linewidth=1.6, linestyle=_CLASS_STYLES[number], label=name))
    return handles


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG in one step.

    Raises:
        StorageError: the disk is full or read-only.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path

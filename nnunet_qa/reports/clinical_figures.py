"""Figures of curves and clinical measures: one series over its cycle, and the agreement of two ways of measuring.

The second is a Bland–Altman plot, as paper 003 (semiQCSeg) compares its measures with manual ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nnunet_qa.evaluation.clinical import bland_altman, known_pairs, measures, phases
from nnunet_qa.quality.curves import UNITS, Acquisition
from nnunet_qa.reports.figures import save_figure

_COLOURS = {
    "lv": "#D55E00",
    "myocardium": "#009E73",
    "rv": "#0072B2",
    "ascending_aorta": "#D55E00",
    "descending_aorta": "#0072B2",
}
_OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SUFFIXES = {
    "_ml": "mL",
    "_g": "g",
    "_percent": "%",
    "_mm2": "mm²",
    "_per_1000_mmhg": "10⁻³ mmHg⁻¹",
}


def curve_picture(path: Path, acquisition: Acquisition, *, heading: str = "") -> Path:
    """Draw the curves of a series over its cycle, with its clinical measures; ventricles with the frames ED and ES.

    Args:
        path: where to; written as PNG in one step.
        acquisition: the series. Time is in ms where the time between frames is known, else in frames.
        heading: first line of the title; the identifier of the acquisition where empty.

    Returns:
        `path`.

    Raises:
        StorageError: the file could not be written.
    """
    figure = Figure(figsize=(6.8, 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    step = 1.0 if acquisition.frame_time is None else acquisition.frame_time * 1e3
    time = np.arange(acquisition.frames) * step
    others = iter(_OTHERS * len(acquisition.pixels))
    for structure, curve in acquisition.curves().items():
        colour = _COLOURS.get(structure) or next(others)
        axes.plot(time, curve, color=colour, linewidth=1.6, marker=".", markersize=4, label=structure.replace("_", " "))
    volumes = acquisition.scheme.kind == "volume"
    if volumes:
        for frame, name in zip(phases(acquisition), ("ED", "ES"), strict=True):
            axes.axvline(time[frame], color="0.6", linewidth=1, linestyle="--", zorder=0)
            axes.annotate(
                *(name, (time[frame], 1)),
                xycoords=("data", "axes fraction"),
                xytext=(3, -10),
                textcoords="offset points",
                color="0.35",
                fontsize=9,
            )
    axes.set(
        xlabel="frame" if acquisition.frame_time is None else "time (ms)",
        ylabel=f"{acquisition.scheme.kind} ({UNITS[acquisition.scheme.kind]})",
    )
    axes.set_ylim(0, max(1.0, 1.1 * axes.get_ylim()[1]))
    axes.grid(color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    shown = ("lvef_percent", "rvef_percent", "lvm_g") if volumes else ()
    found = [
        f"{measure_label(name)[0]} {value:.0f} {measure_label(name)[1]}"
        for name, value in measures(acquisition).items()
        if (name in shown or name.endswith("strain_percent")) and np.isfinite(value)
    ]
    axes.set_title("\n".join(filter(None, (heading or acquisition.acquisition_id, ", ".join(found)))), fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    return save_figure(figure, path)


def bland_altman_picture(
    path: Path, ours: Sequence[float], manual: Sequence[float], *, measure: str, heading: str = ""
) -> Path:
    """Draw the differences of pairs of values over their means, with bias and limits of agreement.

    Args:
        path: where to; written as PNG in one step.
        ours: one value a series.
        manual: the values to compare them with, in the same order; pairs with a NaN are left out.
        measure: key of the measure, such as "lvedv_ml"; gives name and unit.
        heading: first line of the title; the name of the measure where empty.

    Returns:
        `path`.

    Raises:
        CurveError: no pair is known on both sides.
        StorageError: the file could not be written.
    """
    agreement = bland_altman(ours, manual)
    first, second = known_pairs(ours, manual)
    name, unit = measure_label(measure)
    figure = Figure(figsize=(5.6, 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.plot((first + second) / 2, first - second, "o", color="#0072B2", markersize=5, alpha=0.8)
    axes.axhline(agreement.bias, color="#D55E00", linewidth=1.4, label=f"bias {agreement.bias:.2f} {unit}")
    if agreement.n > 1:
        limits = f"limits of agreement {agreement.lower:.2f} to {agreement.upper:.2f} {unit}"
        for value, label in ((agreement.lower, limits), (agreement.upper, None)):
            axes.axhline(value, color="#D55E00", linewidth=1.2, linestyle="--", label=label)
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xlabel=f"mean of ours and manual ({unit})", ylabel=f"ours − manual ({unit})")
    axes.margins(y=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{heading or name}, n = {agreement.n}", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
    return save_figure(figure, path)


def measure_label(measure: str) -> tuple[str, str]:
    """Name and unit of a measure, for people.

    >>> measure_label("lvedv_ml")
    ('LVEDV', 'mL')
    >>> measure_label("ascending_aorta_max_mm2")
    ('ascending aorta max', 'mm²')
    """
    for suffix, unit in _SUFFIXES.items():
        if measure.endswith(suffix):
            name = measure.removesuffix(suffix)
            return (name.upper() if "_" not in name else name.replace("_", " ")), unit
    return measure, ""

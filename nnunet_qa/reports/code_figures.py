"""Quality codes of several arms as bars, after Figure 4 of paper 002 (QA discriminator)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nnunet_qa.evaluation.codes import NAMES, TESTED, CodeComparison
from nnunet_qa.reports.figures import save_figure

_REFERENCE = "#999999"
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
_GROUP = 0.84  # width of the bars of one code


def codes_picture(path: Path, comparison: CodeComparison, *, heading: str = "") -> Path:
    """Draw how many scans have each code in each arm, and write the picture as PNG in one step.

    Stars over a bar of success or failure tell the p of McNemar's exact test against the reference, adjusted over the
    arms by Holm's method.

    Args:
        path: where to.
        comparison: what `nnunet_qa.evaluation.codes.compare_codes` returned.
        heading: first line of the title.

    Returns:
        `path`.

    Raises:
        StorageError: the file could not be written.
    """
    arms, cases = list(comparison.counts.columns), len(comparison.codes)
    width = _GROUP / len(arms)
    figure = Figure(figsize=(max(6.4, 1.6 + 0.5 * len(NAMES) * len(arms)), 4.8), dpi=130, layout="constrained")
    axes = figure.subplots()
    for number, arm in enumerate(arms):
        places = np.arange(len(NAMES)) + (number - (len(arms) - 1) / 2) * width
        colour = _COLOURS[(number - 1) % len(_COLOURS)] if number else _REFERENCE
        bars = axes.bar(places, comparison.counts[arm], 0.92 * width, color=colour, label=str(arm))
        texts = [
            f"{stars(comparison, str(arm), code)}\n{count}\n{count / cases:.0%}"
            for code, count in comparison.counts[arm].items()
        ]
        axes.bar_label(bars, [text.strip() for text in texts], fontsize=8, padding=2)
    axes.set_xticks(range(len(NAMES)), [f"{code} {name}" for code, name in NAMES.items()])
    axes.set_ylabel("scans")
    axes.margins(y=0.16)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("\n".join(filter(None, (heading, f"{cases} scans, codes: {comparison.source}"))), fontsize=11)
    figure.legend(loc="outside lower center", ncols=min(5, len(arms)), frameon=False, fontsize=9)
    limits = ", ".join(f"{mark} p < {limit:g}" for limit, mark in reversed(_STARS))
    axes.set_xlabel(f"against {comparison.reference} (McNemar, Holm): {limits}", fontsize=8, color="0.3")
    return save_figure(figure, path)


def stars(comparison: CodeComparison, arm: str, code: int) -> str:
    """The significance mark of an arm for one code; empty for the reference, minor errors and p from 0.05 up."""
    row = comparison.tests[comparison.tests["arm"] == arm]
    for what, tested in TESTED.items():
        if tested == code and len(row):
            p = float(row[f"p_{what}_holm"].iloc[0])
            return next((mark for limit, mark in _STARS if p < limit), "")
    return ""

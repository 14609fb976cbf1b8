from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from nnunet_qa.evaluation.codes import CodeComparison, compare_codes
from nnunet_qa.reports import code_figures
from nnunet_qa.reports.code_figures import codes_picture, stars


def compared(*changes: int) -> CodeComparison:
    """A reference of 20 scans of each code; in each arm so many of the failures become a success."""
    reference = np.repeat([0, 1, 2], 20)
    arms = {"reference": reference}
    for number, change in enumerate(changes):
        codes = reference.copy()
        codes[40 : 40 + change] = 0
        arms[f"arm {number}"] = codes
    names = [f"c{number}" for number in range(60)]
    return compare_codes(
        {arm: pd.DataFrame({"case_id": names, "code": codes, "source": "human"}) for arm, codes in arms.items()}
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = code_figures.save_figure

    def kept(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(code_figures, "save_figure", kept)
    return figures


def test_bars_and_marks(tmp_path: Path, drawn: list[Figure]) -> None:
    comparison = compared(0, 9, 14)
    path = codes_picture(tmp_path / "out" / "codes.png", comparison, heading="Three arms")
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[20, 20, 20], [20, 20, 20], [29, 20, 11], [34, 20, 6]]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bars in axes.containers for bar in bars)
    assert all(right < left for (_, right), (left, _) in pairwise(edges))
    assert [text.get_text() for text in axes.texts][:6] == ["20\n33%"] * 6  # no mark without a difference
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0 success", "1 minor errors", "2 failure"]
    assert axes.get_title() == "Three arms\n60 scans, codes: human"
    assert "against reference (McNemar, Holm)" in axes.get_xlabel()
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["reference", "arm 0", "arm 1", "arm 2"]


@pytest.mark.parametrize(("change", "mark"), [(5, ""), (6, "*"), (8, "**"), (11, "***")])
def test_marks_follow_the_p(change: int, mark: str) -> None:
    comparison = compared(change)  # p = 2 / 2^change
    assert stars(comparison, "arm 0", 0) == stars(comparison, "arm 0", 2) == mark
    assert stars(comparison, "arm 0", 1) == ""
    assert stars(comparison, "reference", 0) == ""


def test_marks_follow_the_adjusted_p() -> None:
    assert stars(compared(6), "arm 0", 0) == "*"
    assert stars(compared(6, 6, 6), "arm 0", 0) == ""


def test_marks_stand_over_their_bars(tmp_path: Path, drawn: list[Figure]) -> None:
    codes_picture(tmp_path / "codes.png", compared(8))
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    assert texts == ["20\n33%", "20\n33%", "20\n33%", "**\n28\n47%", "20\n33%", "**\n12\n20%"]

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from PIL import Image

from nnunet_qa.reports.body_part import score_curves


def test_a_line_a_scan_and_the_worst_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = pd.DataFrame(
        {
            "case_id": np.repeat(["a", "b", "c", "d"], 5),
            "position_mm": np.tile([100.0, 97, 94, 91, 88], 4),
            "score": [np.nan, 1, 2, 3, 4, 0, 2, 1, 3, 5, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1],
        }
    )
    scans = pd.DataFrame({"case_id": ["a", "b", "c", "d"], "spearman": [1.0, 0.9, 1.0, -1.0]})
    drawn = []
    plot = Axes.plot

    def watched(self: Axes, x: pd.Series, y: pd.Series, **style: object) -> object:
        drawn.append((x.tolist(), y.tolist(), style["label"]))
        return plot(self, x, y, **style)

    monkeypatch.setattr(Axes, "plot", watched)
    path = score_curves(tmp_path / "out" / "body_part.png", scores, scans)
    assert Image.open(path).size[0] > 600
    assert drawn[0] == ([0, 3, 6, 9], [1, 2, 3, 4], "a (ρ = 1.00)")
    assert [label for _, _, label in drawn] == ["a (ρ = 1.00)", "b (ρ = 0.90)", None, "d (ρ = -1.00)"]

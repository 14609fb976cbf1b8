from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from skimage import io

from nnunet_qa.errors import StorageError
from nnunet_qa.reports import qa_loss_figures as figures
from nnunet_qa.reports.qa_loss_figures import qa_loss_picture

GRAY = "#999999"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    kept: list[Figure] = []
    save = figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: (kept.append(figure), save(figure, path))[1])
    return kept


def log(arm: str, seed: int, qa: list[float], dice: list[float], disagreement: list[float]) -> pd.DataFrame:
    columns = {"qa_loss": qa, "dice": dice, "disagreement": disagreement}
    return pd.DataFrame({"arm": arm, "seed": seed, "epoch": range(len(qa)), **columns})


NOTHING = [float("nan")] * 3
CURVES = pd.concat(
    [
        log("base", 0, NOTHING, [0.1, 0.2, 0.3], NOTHING),
        log("qa", 0, [1.0, 0.5, float("nan")], [0.2, 0.4, 0.6], [0.9, 0.8, 0.7]),
        log("qa", 1, [3.0, 1.5, 1.0], [0.4, 0.6, 0.8], [0.7, 0.6, 0.5]),
    ]
)


def lines(figure: Figure, place: int, width: float) -> list[tuple[str, list[float]]]:
    """Colour and values of the lines of a panel that have this width."""
    found = [line for line in figure.axes[place].lines if line.get_linewidth() == width and line.get_marker() != "X"]
    return [(to_hex(line.get_color()).upper(), np.asarray(line.get_ydata()).tolist()) for line in found]


def test_each_quantity_has_a_panel_with_a_line_a_seed_and_their_mean(tmp_path: Path, drawn: list[Figure]) -> None:
    path = qa_loss_picture(tmp_path / "a.png", CURVES, reference="base", stopped={}, heading="seen")
    assert io.imread(path).std() > 0
    (figure,) = drawn
    assert figure.get_suptitle() == "seen"
    assert [axes.get_title() for axes in figure.axes] == list(figures.QUANTITIES.values())
    qa, dice, disagreement = (lines(figure, place, 2.0) for place in range(3))
    ((colour, values),) = qa  # the reference has no QA loss
    np.testing.assert_allclose(values, [2.0, 1.0, 1.0])
    assert dice == [(GRAY, [0.1, 0.2, 0.3]), (colour, pytest.approx([0.3, 0.5, 0.7]))]
    assert disagreement == [(colour, pytest.approx([0.8, 0.7, 0.6]))]
    thin = [values for _, values in lines(figure, 0, 0.7)]
    np.testing.assert_allclose(thin, [[1.0, 0.5, np.nan], [3.0, 1.5, 1.0]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "qa"]


def test_where_the_guard_stopped_there_is_a_cross(tmp_path: Path, drawn: list[Figure]) -> None:
    qa_loss_picture(tmp_path / "a.png", CURVES, reference="base", stopped={("qa", 0): 2})
    (figure,) = drawn
    crosses = [[line for line in axes.lines if line.get_marker() == "X"] for axes in figure.axes]
    places = [(line.get_xdata()[0], line.get_ydata()[0]) for panel in crosses for line in panel]
    assert places == [(2, 0.5), (2, 0.6), (2, 0.7)]  # the last QA loss that was logged
    assert figure.legends[0].get_texts()[-1].get_text() == "stopped by its guard"


def test_a_single_epoch_is_a_dot(tmp_path: Path, drawn: list[Figure]) -> None:
    qa_loss_picture(tmp_path / "a.png", CURVES[CURVES["epoch"] == 0], reference="base", stopped={})
    assert [line.get_marker() for line in drawn[0].axes[1].lines if line.get_linewidth() == 2.0] == ["o", "o"]


def test_nothing_to_draw_and_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one epoch"):
        qa_loss_picture(tmp_path / "a.png", CURVES[:0], reference="base", stopped={})
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError):
        qa_loss_picture(blocked / "a.png", CURVES, reference="base", stopped={})

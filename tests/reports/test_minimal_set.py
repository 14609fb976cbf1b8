from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from skimage.io import imread

from nnunet_qa.errors import StorageError
from nnunet_qa.reports import minimal_set as module
from nnunet_qa.reports.minimal_set import minimal_set_picture
from nnunet_qa.selection.minimal import Ranking
from tests.reports.drawn import remember_figures

TABLE = pd.DataFrame({"case_id": ["b", "a", "c", "d"], "q": [0.3, 0.9, 0.1, 0.95]})
CHOSEN = pd.DataFrame({"case_id": ["c", "b"]})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return remember_figures(monkeypatch, module)


def test_every_candidate_is_drawn_in_the_order_of_q(tmp_path: Path, drawn: list[Figure]) -> None:
    path = minimal_set_picture(tmp_path / "a.png", TABLE, CHOSEN, q0=0.5)
    assert imread(path).ndim == 3
    axes = drawn[0].axes[0]
    left, chosen = (np.asarray(points.get_offsets()).tolist() for points in axes.collections)
    assert chosen == [[1, 0.1], [2, 0.3]]
    assert left == [[3, 0.9], [4, 0.95]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["not chosen (2)", "S_m (2)", "q0 = 0.5"]
    assert list(np.asarray(axes.lines[0].get_ydata())) == [0.5, 0.5]


def test_the_q_that_decides_is_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    table = TABLE.assign(q_x=[0.5, 0.05, 0.8, 0.9], q_y=[0.1, 0.95, 0.7, 1.0])
    minimal_set_picture(tmp_path / "a.png", table, TABLE[1:2], q0=0.1, ranking=Ranking.WORST_CLASS)
    axes = drawn[0].axes[0]
    left, chosen = (np.asarray(points.get_offsets()).tolist() for points in axes.collections)
    assert chosen == [[1, 0.05]]
    assert left == [[2, 0.1], [3, 0.7], [4, 0.9]]
    assert axes.get_ylabel() == "Q of the worst class"


def test_no_line_without_q0_and_nothing_need_be_left(tmp_path: Path, drawn: list[Figure]) -> None:
    minimal_set_picture(tmp_path / "a.png", TABLE, TABLE, q0=None)
    axes = drawn[0].axes[0]
    assert not axes.lines
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["not chosen (0)", "S_m (4)"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        minimal_set_picture(tmp_path / "file" / "a.png", TABLE, CHOSEN, q0=0.5)

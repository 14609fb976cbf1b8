from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_qa.errors import StorageError
from nnunet_qa.reports import curve_classifier_figures as module
from nnunet_qa.reports.curve_classifier_figures import Judged, roc_picture

ERRONEOUS = np.array([True, True, False, False, False])
SCORES = np.array([0.9, 0.4, 0.6, 0.2, 0.1])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = module.save_figure

    def kept(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(module, "save_figure", kept)
    return figures


def judged(threshold: float = 0.5, scores: np.ndarray = SCORES) -> Judged:
    return Judged(scores=scores, erroneous=ERRONEOUS, threshold=threshold)


def test_curves_and_operating_points(tmp_path: Path, drawn: list[Figure]) -> None:
    path = roc_picture(tmp_path / "roc.png", {"a": judged(), "b": judged(0.0, -SCORES)}, heading="5 acquisitions")
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    lines = {str(line.get_label()): line for line in axes.lines if "AUROC" in str(line.get_label())}
    assert list(lines) == [
        "a: AUROC 0.833, sensitivity 0.50, specificity 0.67",
        "b: AUROC 0.167, sensitivity 0.00, specificity 1.00",
    ]
    first, _ = lines.values()
    np.testing.assert_allclose(first.get_xydata(), [[0, 0], [0, 0.5], [1 / 3, 0.5], [1 / 3, 1], [2 / 3, 1], [1, 1]])
    points = [container.lines[0].get_xydata()[0] for container in axes.containers]
    np.testing.assert_allclose(points, [[1 / 3, 0.5], [0, 0]])
    across, up = (bars.get_segments()[0] for bars in axes.containers[0].lines[2])
    np.testing.assert_allclose(up[:, 1], [0.0126, 0.9874], atol=1e-4)  # 1 of 2
    np.testing.assert_allclose(across[:, 0], [1 - 0.9916, 1 - 0.0943], atol=1e-4)  # 2 of 3
    assert axes.get_title() == "5 acquisitions"
    assert len(drawn[0].legends[0].get_texts()) == 2


def test_what_makes_no_curve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no classifier"):
        roc_picture(tmp_path / "roc.png", {})
    one_class = Judged(scores=SCORES, erroneous=np.zeros(5, dtype=bool), threshold=0.5)
    with pytest.raises(ValueError, match="a: a ROC curve needs good and erroneous"):
        roc_picture(tmp_path / "roc.png", {"a": one_class})
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        roc_picture(tmp_path / "file" / "roc.png", {"a": judged()})

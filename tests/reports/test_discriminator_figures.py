from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from skimage.io import imread

from nnunet_qa.errors import StorageError
from nnunet_qa.reports import discriminator_figures as module
from nnunet_qa.reports.discriminator_figures import confusion_picture, learning_curve_picture
from tests.reports.drawn import remember_figures

HISTORY = pd.DataFrame({"epoch": [1, 2, 3], "train_rmse": [0.9, 0.5, 0.3], "validation_rmse": [0.8, 0.4, 0.6]})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return remember_figures(monkeypatch, module)


def test_the_learning_curve_shows_both_errors_and_the_kept_epoch(tmp_path: Path, drawn: list[Figure]) -> None:
    path = learning_curve_picture(tmp_path / "a.png", HISTORY, best_epoch=2, heading="Dataset701")
    picture = imread(path)[..., :3] / 255
    axes = drawn[0].axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines) == ["training", "validation", "kept: epoch 2"]
    for name, column in (("training", "train_rmse"), ("validation", "validation_rmse")):
        np.testing.assert_array_equal(lines[name].get_ydata(), HISTORY[column])
    assert axes.get_title() == "Dataset701\nvalidation RMSE 0.400 at epoch 2 of 3"
    (arrow,) = axes.texts
    assert arrow.xy == (2, 0.4)
    # the tip of the arrow is drawn right above the point
    x, y = axes.transData.transform((2, 0.4))
    above = picture[len(picture) - int(y) - 15 : len(picture) - int(y) - 5, int(x)]
    assert (above[:, 0] - above[:, 2] > 0.5).any(), "no orange"


def test_a_history_without_the_kept_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epoch 4 is none of the 3 epochs"):
        learning_curve_picture(tmp_path / "a.png", HISTORY, best_epoch=4)
    assert not list(tmp_path.iterdir())


def test_the_confusion_shows_counts_and_shares_of_given_codes(tmp_path: Path, drawn: list[Figure]) -> None:
    path = confusion_picture(tmp_path / "a.png", [[3, 1, 0], [0, 0, 0], [2, 2, 4]], heading="test montages")
    picture = imread(path)[..., :3] / 255
    axes = drawn[0].axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}  # (predicted, given)
    assert texts == {
        (0, 0): "3\n75 %",
        (1, 0): "1\n25 %",
        (2, 0): "0\n0 %",
        **{(k, 1): "0" for k in range(3)},  # no share of nothing
        (0, 2): "2\n25 %",
        (1, 2): "2\n25 %",
        (2, 2): "4\n50 %",
    }
    assert axes.get_title() == "test montages\naccuracy 58.3 % of 12"  # 7 of 12
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted code", "given code")

    def brightness(predicted: float, given: float) -> float:
        x, y = axes.transData.transform((predicted, given))
        return float(picture[len(picture) - 1 - int(y), int(x)].mean())

    # beside the text: the greater the share, the darker
    assert brightness(0.4, 0) < brightness(2.4, 2) < brightness(1.4, 0) < brightness(2.4, 0)


def test_an_empty_confusion_is_drawn_and_a_wrong_one_refused(tmp_path: Path, drawn: list[Figure]) -> None:
    confusion_picture(tmp_path / "a.png", [[0] * 3] * 3)
    assert drawn[0].axes[0].get_title() == "no montages"
    with pytest.raises(ValueError, match=r"3 x 3, found \(2, 2\)"):
        confusion_picture(tmp_path / "b.png", [[1, 0], [0, 1]])


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        confusion_picture(tmp_path / "file" / "a.png", [[0] * 3] * 3)

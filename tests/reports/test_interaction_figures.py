from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from skimage.io import imread

from nnunet_qa.reports.interaction_figures import dice_against_clicks, rounds


def table() -> pd.DataFrame:
    rows = [("a", 0, "left", 0.2), ("a", 1, "left", 0.8), ("a", 2, "left", 0.9), ("b", 0, "left", 0.6)]
    return pd.DataFrame([*rows, ("a", 0, "right", 0.1)], columns=["case_id", "round", "label", "dice"])


def test_a_case_that_ended_early_keeps_its_last_dice() -> None:
    left = rounds(table().query("label == 'left'"))
    assert left["b"].to_list() == [0.6, 0.6, 0.6]
    np.testing.assert_allclose(left.mean(axis=1), [0.4, 0.7, 0.75])


def test_the_picture_shows_every_class(tmp_path: Path) -> None:
    pictures = []
    for number, some in enumerate((table(), table().query("label == 'left'"))):
        path = dice_against_clicks(tmp_path / f"{number}.png", some, heading="test")
        pictures.append(imread(path)[..., :3].reshape(-1, 3))
    blue, orange = (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)
    assert all((picture == blue).all(axis=1).sum() > 50 for picture in pictures)
    assert [(picture == orange).all(axis=1).any() for picture in pictures] == [True, False]
    with pytest.raises(ValueError, match="at least one case"):
        dice_against_clicks(tmp_path / "none.png", table().iloc[:0])

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage.io import imread

from nnunet_qa.pretext.picture import restoration_picture


def test_rows_columns_and_the_middle_slice(tmp_path: Path) -> None:
    black, white = np.zeros((2, 8, 8)), np.ones((2, 8, 8))
    volume = np.zeros((1, 5, 8, 8))
    volume[:, 2] = 1
    path = restoration_picture(tmp_path / "restored.png", [[black, white], [volume, black]], ["a", "b"])
    assert path == tmp_path / "restored.png"
    picture = imread(path)[..., 0] / 255.0
    rows, columns = picture.shape
    places = [(round(rows * y), round(columns * x)) for y in (0.3, 0.75) for x in (0.25, 0.75)]
    assert [picture[place] for place in places] == [0, 1, 1, 0]
    assert list(tmp_path.iterdir()) == [path]

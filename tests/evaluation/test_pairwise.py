from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import dice as dissimilarity

from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.evaluation.folders import Protocol
from nnunet_qa.evaluation.pairwise import pairwise_dice
from tests.small import write_tiny

PROTOCOL = Protocol.of({"labels": {"background": 0, "fluid": 1, "drusen": 2}, "file_ending": ".png"}, "test")


def member(folder: Path, seed: int, *cases: str, shape: tuple[int, int] = (6, 8)) -> Path:
    rng = np.random.default_rng(seed)
    for case in cases:
        write_tiny(folder / f"{case}.png", rng.integers(0, 3, shape).astype(np.uint8))
    return folder


def test_the_mean_over_all_pairs(tmp_path: Path) -> None:
    from skimage.io import imread

    folders = [member(tmp_path / str(seed), seed, "a", "b") for seed in range(3)]
    found = pairwise_dice(folders, protocol=PROTOCOL).set_index("case_id")
    assert found.index.tolist() == ["a", "b"]
    for case in ("a", "b"):
        maps = [imread(folder / f"{case}.png").ravel() for folder in folders]
        for value, name in ((1, "fluid"), (2, "drusen")):
            expected = np.mean([1 - dissimilarity(x == value, y == value) for x, y in combinations(maps, 2)])
            assert found.loc[case, f"pairwise_dice_{name}"] == pytest.approx(expected)
        both = found.loc[case, ["pairwise_dice_fluid", "pairwise_dice_drusen"]].mean()
        assert found.loc[case, "pairwise_dice"] == pytest.approx(both)


def test_what_makes_no_pair(tmp_path: Path) -> None:
    one, other = member(tmp_path / "1", 1, "a", "b"), member(tmp_path / "2", 2, "a")
    with pytest.raises(DatasetError, match=r"1 folder.s. of predictions make no pair"):
        pairwise_dice([one], protocol=PROTOCOL)
    with pytest.raises(DatasetError, match=r"b\.png: not found, though another folder has it"):
        pairwise_dice([one, other], protocol=PROTOCOL)
    with pytest.raises(DatasetError, match="no such folder"):
        pairwise_dice([one, tmp_path / "3"], protocol=PROTOCOL)
    (tmp_path / "3").mkdir()
    with pytest.raises(DatasetError, match="holds no file with the ending"):
        pairwise_dice([one, tmp_path / "3"], protocol=PROTOCOL)
    wide = member(tmp_path / "4", 4, "a", shape=(6, 9))
    with pytest.raises(ImageError, match=r"4/a.png: has shape \(6, 9\)"):
        pairwise_dice([other, wide], protocol=PROTOCOL)


def test_empty_predictions_show_in_the_union(tmp_path: Path) -> None:
    first, other = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    first[1, :3], other[1, 2:7] = 1, 2  # 7 voxels between them
    for folder, picture in (("1", first), ("2", other)):
        write_tiny(tmp_path / folder / "a.png", picture)
        write_tiny(tmp_path / folder / "empty.png", np.zeros((6, 8), np.uint8))
    found = pairwise_dice([tmp_path / "1", tmp_path / "2"], protocol=PROTOCOL).set_index("case_id")
    assert found["union_voxels"].to_dict() == {"a": 7, "empty": 0}
    assert found["pairwise_dice"].to_dict() == {"a": 0.0, "empty": 1.0}

"""The script that rebuilds .mat files from PNGs for the real run."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from nnunet_qa.errors import DatasetError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "oct_duke_dme" / "rebuild_mat.py"


def test_annotated_half_size_and_absent_bscans(tmp_path: Path) -> None:
    rebuild = runpy.run_path(str(SCRIPT))["rebuild"]
    rng = np.random.default_rng(0)
    full = rng.integers(0, 255, size=(496, 768)).astype(np.uint8)
    half = np.full((248, 384), 77, dtype=np.uint8)
    mask = (rng.random((496, 768)) > 0.9).astype(np.uint8)
    files = {"images/S02_bscan01": full, "fluid_mask/S02_bscan01": mask, "unlabelled_half_res/S02_bscan02": half}
    for name, picture in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (path,) = rebuild(tmp_path, tmp_path / "out", bscans=4)
    assert path == tmp_path / "out" / "2015_BOE_Chiu" / "Subject_02.mat"
    content = loadmat(path)
    assert content["images"].shape == content["manualFluid1"].shape == (496, 768, 4)
    np.testing.assert_array_equal(content["images"][..., 1], full)
    np.testing.assert_array_equal(content["manualFluid1"][..., 1], mask)
    assert (content["images"][..., 2] == 77).all()
    assert not content["images"][..., [0, 3]].any()
    assert np.isnan(content["manualFluid1"][..., [0, 2, 3]]).all()
    with pytest.raises(DatasetError, match="has a B-scan 2, but volumes have 2"):
        rebuild(tmp_path, tmp_path / "out", bscans=2)

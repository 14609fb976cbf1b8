from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from nnunet_qa.cases import CaseTable
from nnunet_qa.dataset_conversion import oct_chiu
from nnunet_qa.dataset_conversion.engine import Options
from nnunet_qa.dataset_conversion.oct import Framing
from nnunet_qa.dataset_conversion.report import REPORT
from nnunet_qa.errors import DatasetError
from tests.dataset_conversion.chiu_files import STRICT, small_mat


def test_empty_bscans_are_left_out_with_a_warning(
    tmp_path: Path, raw: Path, unchecked: None, caplog: pytest.LogCaptureFixture
) -> None:
    images = loadmat(small_mat(tmp_path / "whole") / "Subject_01.mat")["images"]
    images[..., 1:] = 0
    folder = oct_chiu.convert(small_mat(tmp_path / "empty", images=images), 9)
    assert len(CaseTable.read(folder / "cases.csv")) == 2
    assert "S01_bscan01: left out: all pixels are 0" in caplog.text
    assert "S02_bscan02: left out: all pixels are 0" in caplog.text


def test_pool_without_retina_is_left_out_annotated_is_an_error(
    tmp_path: Path, raw: Path, unchecked: None, caplog: pytest.LogCaptureFixture
) -> None:
    images = loadmat(small_mat(tmp_path / "whole") / "Subject_01.mat")["images"]
    images[..., 2] = np.random.default_rng(0).integers(0, 255, size=(64, 96))
    source = small_mat(tmp_path / "noise", images=images)
    folder = oct_chiu.convert(source, 9)
    assert not list(folder.glob("imagesUn/*"))
    assert "S02_bscan02: left out: no retina found" in caplog.text
    assert len(CaseTable.read(oct_chiu.convert(source, 10, framing=Framing(crop=False)) / "cases.csv")) == 6
    images[..., 0] = images[..., 2]
    with pytest.raises(DatasetError, match=r"^S01: S01_bscan00: no retina found"):
        oct_chiu.convert(small_mat(tmp_path / "worse", images=images), 11, options=STRICT)
    nothing = np.full(images.shape, np.nan)
    nothing[..., :2] = 0
    nothing[30, 40, 1] = 1
    images[..., 1] = loadmat(source / "Subject_01.mat")["images"][..., 1]
    folder = oct_chiu.convert(small_mat(tmp_path / "dry", images=images, manualFluid1=nothing), 12)
    assert CaseTable.read(folder / "cases.csv").case_ids() == ["S01_bscan01", "S02_bscan01"]


def test_a_crop_that_cuts_fluid_off_is_said(
    tmp_path: Path, raw: Path, unchecked: None, caplog: pytest.LogCaptureFixture
) -> None:
    source = small_mat(tmp_path / "data")
    folder = oct_chiu.convert(source, 9, framing=Framing(crop_rows=8, size=None))
    row = pd.read_csv(folder / "cases.csv").set_index("case_id").loc["S01_bscan00"]
    fluid = loadmat(source / "Subject_01.mat")["manualFluid1"][..., 0] > 0
    kept = fluid[row.crop_row : row.crop_row + 8].sum()
    assert row.crop_rows == 8
    lost = f"S01_bscan00: {fluid.sum() - kept} of {fluid.sum()} fluid pixels: left out: the crop cuts them off"
    assert lost in caplog.text
    with pytest.raises(DatasetError, match="the crop cuts them off"):
        oct_chiu.convert(source, 9, framing=Framing(crop_rows=8, size=None), options=Options(strict=True))


WRONG_FILES = {
    "images": (None, 'Subject_01.mat: the variable "images" is missing; found: manualFluid1'),
    "manualFluid1": (np.zeros((64, 95, 3)), r"images have shape \(64, 96, 3\), manualFluid1 \(64, 95, 3\)"),
}


@pytest.mark.parametrize("key", WRONG_FILES)
def test_wrong_variables(tmp_path: Path, raw: Path, key: str) -> None:
    value, text = WRONG_FILES[key]
    with pytest.raises(DatasetError, match=f"no case could be converted; the first reason: .*{text}"):
        oct_chiu.convert(small_mat(tmp_path / "data", **{key: value}), 9)


def test_missing_grader_text_nan_and_truncation(tmp_path: Path, raw: Path) -> None:
    source = small_mat(tmp_path / "data")
    with pytest.raises(DatasetError, match='"manualFluid2" is missing; found: images, manualFluid1'):
        oct_chiu.convert(source, 9, grader=2)
    with pytest.raises(DatasetError, match="--grader 3"):
        oct_chiu.convert(source, 9, grader=3)
    images = loadmat(source / "Subject_01.mat")["images"].astype(float)
    images[3, 4, 1] = np.nan
    with pytest.raises(DatasetError, match=r"^S01: S01_bscan01: 1 of 6144 intensities are NaN"):
        oct_chiu.convert(small_mat(tmp_path / "nan", images=images), 10, options=STRICT)
    with pytest.raises(DatasetError, match='"images" holds no numbers'):
        oct_chiu.convert(small_mat(tmp_path / "text", images="pixels"), 11)
    path = source / "Subject_01.mat"
    whole = path.read_bytes()
    for length in (0, 60, 200, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match=r"^S01: .*Subject_01.mat: ") as caught:
            oct_chiu.convert(source, 12, options=STRICT)
        assert "\n" not in str(caught.value)


def test_a_bad_subject_and_a_link_stop_no_other(tmp_path: Path, raw: Path, unchecked: None) -> None:
    source = small_mat(tmp_path / "data", subjects=4)
    (source / "Subject_02.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(300))
    (source / "Subject_03.mat").rename(tmp_path / "away.mat")
    (source / "Subject_03.mat").symlink_to(tmp_path / "away.mat")
    folder = oct_chiu.convert(source, 9, test_subjects=["S04"], options=Options(folds=2))
    assert {case[:3] for case in CaseTable.read(folder / "cases.csv").case_ids()} == {"S01", "S04"}
    report = pd.read_csv(folder / REPORT, keep_default_na=False).set_index("name")
    assert report["status"].tolist() == ["converted", "skipped", "skipped", "converted", "left out"]
    assert report.index.tolist() == ["S01", "S02", "S03", "S04", "S04: 1 B-scans"]
    assert "cannot be read as a .mat file" in report.loc["S02", "reason"]
    assert "Subject_03.mat: is a symbolic link out of" in report.loc["S03", "reason"]


def test_truncated_matlab_73(tmp_path: Path, raw: Path) -> None:
    path = tmp_path / "data" / "Subject_01.mat"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["images"] = np.ones((3, 96, 64))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DatasetError, match=r"Subject_01.mat: cannot be read as a .mat file \(truncated"):
        oct_chiu.convert(path.parent, 9)


def test_wrong_folders_and_duplicates(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        oct_chiu.convert(tmp_path / "nowhere", 9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no Subject_01.mat … there"):
        oct_chiu.convert(tmp_path / "empty", 9)
    source = small_mat(tmp_path / "data")
    for name in ("Subject_1.mat", "Subject_01 (1).mat", ".hidden"):
        (source / name).write_bytes(b"x")
    found, left_out = oct_chiu.find_subjects(source)
    assert {subject: path.name for subject, path in found.items()} == {"S01": "Subject_01.mat", "S02": "Subject_02.mat"}
    assert [(Path(one.name).name, one.bad) for one in left_out] == [
        ("Subject_1.mat", True), ("Subject_01 (1).mat", False)
    ]  # fmt: skip
    assert "is a second file of subject S01 beside" in left_out[0].reason
    assert "is not named Subject_<n>.mat" in left_out[1].reason
    with pytest.raises(DatasetError, match=r"Subject_1.mat: is a second file of subject S01"):
        oct_chiu.convert(source, 9, options=Options(strict=True))
    assert not raw.exists()  # nothing was written
    (source / "Subject_1.mat").unlink()
    with pytest.raises(DatasetError, match="at least 1 process"):
        oct_chiu.convert(source, 9, options=Options(jobs=0))


def test_files_in_the_folder_and_in_the_one_above(tmp_path: Path) -> None:
    small_mat(tmp_path, subjects=2)
    (tmp_path / "2015_BOE_Chiu").mkdir()
    (tmp_path / "Subject_02.mat").rename(tmp_path / "2015_BOE_Chiu" / "Subject_02.mat")
    (tmp_path / "notes").touch()
    found, left_out = oct_chiu.find_subjects(tmp_path)
    assert list(found) == ["S01", "S02"]
    assert [one.name for one in left_out] == [str(tmp_path / "notes")]

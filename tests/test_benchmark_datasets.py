"""The raw datasets that the experiments are run on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.io import imread, imsave

from benchmarks.datasets import (
    convert_covid,
    convert_hippocampus,
    convert_oct,
    convert_openkbp,
    convert_sunnybrook,
)
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.errors import DatasetError, ImageError


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nnU-Net's integrity check, whose processes take seconds to start, and without its variables."""
    monkeypatch.setattr("nnunet_qa.data.raw_dataset.check_integrity", lambda folder, *, jobs: None)
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)


def part_of(source: Path, target: Path, names: list[str], folders: tuple[str, ...]) -> Path:
    """A folder like `source` with a few of its files."""
    for folder in folders:
        (target / folder).mkdir(parents=True)
        for name in names:
            (target / folder / name).symlink_to(source / folder / name)
    return target


def volumes(folder: Path, volume: np.ndarray, labels: np.ndarray, *names: str) -> Path:
    for part, array in (("images", volume), ("labels", labels)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name in names:
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / part / f"{name}.nii.gz"))
    return folder


def test_covid_masks_turns_and_names_the_slices(tmp_path: Path) -> None:
    volume = np.full((3, 16, 12), 100, np.uint8)
    labels = np.zeros(volume.shape, np.uint8)
    labels[:2, 2:8, 2:10], labels[1, 2:4, 2:6] = 1, 2
    source = volumes(tmp_path / "data", volume, labels, "case01", "case11", "case12")
    folder = convert_covid(source, tmp_path / "raw", size=None)
    table = CaseTable.read(folder / "cases.csv")
    assert table.case_ids(Role.LABELLED) == [f"case{n}_slice0{k}" for n in ("01", "11", "12") for k in (0, 1)]
    # two series of one patient must never be on both sides of a split
    assert list(table.subjects().values()) == ["case01"] * 2 + ["case11"] * 4
    assert table.frame["stack_id"].tolist() == ["case01"] * 2 + ["case11"] * 2 + ["case12"] * 2
    image, label = (
        imread(folder / name) for name in ("imagesTr/case01_slice01_0000.png", "labelsTr/case01_slice01.png")
    )
    np.testing.assert_array_equal(image, np.where(labels[1] > 0, 100, 0))
    np.testing.assert_array_equal(label, labels[1] == 2)
    np.testing.assert_array_equal(imread(folder / "labelsTr/case11_slice01.png"), (labels[1] == 2)[::-1])
    np.testing.assert_array_equal(imread(folder / "imagesTr/case11_slice01_0000.png"), image[::-1])
    assert "nnUNet_preprocessed" not in os.environ


def test_hippocampus_keeps_values_and_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = volumes(
        tmp_path / "data", rng.integers(0, 255, (6, 7, 8)).astype(np.uint8), np.ones((6, 7, 8), np.uint8), *"abc"
    )
    folder = convert_hippocampus(source, tmp_path / "raw", number=2)
    image = sitk.ReadImage(str(folder / "imagesTr" / "b_0000.nii.gz"))
    assert image.GetPixelIDValue() == sitk.sitkFloat32
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(sitk.ReadImage(str(source / "images" / "b.nii.gz")))
    )
    assert CaseTable.read(folder / "cases.csv").subjects() == {"a": "a", "b": "b"}
    with pytest.raises(DatasetError, match="--number 4: give 2 to 3, the volumes in"):
        convert_hippocampus(source, tmp_path / "other", number=4)


def test_head_and_neck_keeps_organs_values_and_place(tmp_path: Path) -> None:
    columns = np.arange(128, dtype=np.int16)
    labels = np.zeros((128,) * 3, np.uint8)
    for value in range(1, 8):
        labels[10 + 10 * value : 18 + 10 * value, 50:66, 60:76] = value
    source = volumes(tmp_path / "data", np.broadcast_to(columns, labels.shape), labels, "pt_1", "pt_2")
    for path in sorted((source / "images").iterdir()):
        image = sitk.ReadImage(str(path))
        image.SetSpacing((4.0, 5.0, 2.5))
        image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
        sitk.WriteImage(image, str(path))
    folder = convert_openkbp(source, tmp_path / "raw", size=32)
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "CT"}
    assert CaseTable.read(folder / "cases.csv").subjects() == {"pt_1": "pt_1", "pt_2": "pt_2"}
    image, label = (
        sitk.ReadImage(str(folder / name)) for name in ("imagesTr/pt_1_0000.nii.gz", "labelsTr/pt_1.nii.gz")
    )
    assert image.GetSize() == label.GetSize() == (32, 32, 32)
    assert image.GetSpacing() == pytest.approx((8, 10, 10))
    values, organs = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label)
    # each column holds its own place in the source, so the place of a voxel in the patient says what it must hold
    for index in ((0, 0, 0), (31, 5, 9)):
        x = image.TransformIndexToPhysicalPoint(index)[0]
        assert values[index[2], index[1], index[0]] == pytest.approx(x / 4 - 1024)
    middle = [
        organs[label.TransformPhysicalPointToIndex((270.0, 290.0, -2.5 * (14 + 10 * v)))[::-1]] for v in range(1, 8)
    ]
    assert middle == [1, 2, 3, 3, 0, 0, 4]
    with pytest.raises(DatasetError, match="--size 65: give 8 to 64, the voxels of an edge"):
        convert_openkbp(source, tmp_path / "other", size=65)
    with pytest.raises(DatasetError, match=r'--organs "jaw": there is no such organ; choose from brainstem'):
        convert_openkbp(source, tmp_path / "other", organs=["jaw"])
    volumes(source, np.zeros((4, 5, 6), np.int16), np.zeros((4, 5, 6), np.uint8), "pt_0")
    with pytest.raises(ImageError, match=r"pt_0\.nii\.gz: has shape \(4, 5, 6\), not \(128, 128, 128\)"):
        convert_openkbp(source, tmp_path / "other", size=32)


def test_heartbeats_hold_the_pair_and_beat_between_them(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:64, :64]
    for phase, radius in (("ED", 18), ("ES", 10)):
        mask = np.repeat((np.hypot(rows - 30, columns - 34) < radius)[None], 2, axis=0)
        for part, array in (("images", 60 + 120 * mask), ("labels", mask)):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            path = tmp_path / "data" / part / f"p1_{phase}.nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(path))
    folder = convert_sunnybrook(tmp_path / "data", tmp_path / "raw", size=32, frames=6)
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "lv": 1}
    frame = CaseTable.read(folder / "cases.csv").frame
    assert frame["case_id"].tolist() == [f"p1_fr{index:03d}" for index in range(6)]
    assert frame["frame_index"].tolist() == list(range(6))
    assert set(frame["stack_id"]) == set(frame["subject_id"]) == {"p1"}
    assert set(frame["role"]) == {"labelled"}
    labels = [sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz")) for case in frame["case_id"]]
    assert labels[0].GetSize() == (32, 32, 2)
    assert labels[0].GetSpacing() == pytest.approx((2.5, 2.5, 8))  # pixels twice as large as the source's
    areas = np.array([sitk.GetArrayFromImage(label).sum() / 2 for label in labels])
    phases = frame["phase"].tolist()
    assert phases[0] == "ED"
    assert phases.count("ES") == 1
    assert areas[0] == pytest.approx(np.pi * 9**2, rel=0.05)
    assert areas[phases.index("ES")] == areas.min() == pytest.approx(np.pi * 5**2, rel=0.08)
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesTr" / "p1_fr000_0000.nii.gz")))
    inside = sitk.GetArrayFromImage(labels[0]) > 0
    assert image[inside].mean() > image[~inside].mean() + 80
    for size, frames in ((31, 6), (32, 2)):
        with pytest.raises(DatasetError, match="give 32 to 256 pixels of an edge, and 3 frames or more"):
            convert_sunnybrook(tmp_path / "data", tmp_path / "other", size=size, frames=frames)


def test_wrong_sources(tmp_path: Path) -> None:
    for convert in (convert_oct, convert_covid, convert_hippocampus, convert_openkbp, convert_sunnybrook):
        with pytest.raises(
            DatasetError, match=r"images: no \*\.\S+ there; give the folder of the shared sets with --shared"
        ):
            convert(tmp_path / "nothing", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    (tmp_path / "images").mkdir()
    imsave(tmp_path / "images" / "scan.png", np.zeros((9, 9), np.uint8), check_contrast=False)
    with pytest.raises(DatasetError, match=r"scan\.png: the name must be SXX_bscanYY\.png"):
        convert_oct(tmp_path, tmp_path / "raw")
    volume = np.zeros((2, 9, 9), np.uint8)
    source = volumes(tmp_path / "covid", volume, volume, "case01")
    sitk.WriteImage(sitk.GetImageFromArray(volume[:1]), str(source / "labels" / "case01.nii.gz"))
    with pytest.raises(ImageError, match=r"case01\.nii\.gz: the mask has shape \(1, 9, 9\), its image \(2, 9, 9\)"):
        convert_covid(source, tmp_path / "raw")


@pytest.mark.real_data
def test_real_bscans(real_data: Path, tmp_path: Path) -> None:
    names = [path.name for path in sorted((real_data / "oct_duke_dme" / "images").glob("S0[12]_*.png"))[8:14]]
    source = part_of(real_data / "oct_duke_dme", tmp_path / "data", names, ("images", "fluid_mask"))
    folder = convert_oct(source, tmp_path / "raw")
    table = CaseTable.read(folder / "cases.csv")
    assert set(table.subjects().values()) == {"S01", "S02"}
    assert len(table.case_ids(Role.LABELLED)) == json.loads((folder / "dataset.json").read_text())["numTraining"] == 6
    for row in table.frame.to_dict("records"):
        small = imread(folder / "labelsTr" / f"{row['case_id']}.png")
        assert small.shape == imread(folder / "imagesTr" / f"{row['case_id']}_0000.png").shape == (80, 192)
        native = imread(source / "fluid_mask" / f"{row['case_id']}.png") > 0
        # the crop loses no fluid, and shrinking fourfold keeps its area
        assert native[int(row["crop_row"]) :][: int(row["crop_rows"])].sum() == native.sum()
        assert small.sum() * 16 == pytest.approx(native.sum(), rel=0.1, abs=100)


@pytest.mark.real_data
def test_real_slices_hold_infection_at_the_back_of_the_lungs(real_data: Path, tmp_path: Path) -> None:
    names = ["case03.nii.gz", "case11.nii.gz"]  # the second one is stored with the spine at the top
    source = part_of(real_data / "covid19_ct", tmp_path / "data", names, ("images", "labels"))
    folder = convert_covid(source, tmp_path / "raw")
    cases = CaseTable.read(folder / "cases.csv").case_ids(Role.LABELLED)
    assert len(cases) == 24 + 11
    for subject in ("case03", "case11"):
        rows, lung = [], []
        for case in cases:
            if case.startswith(subject):
                label, image = (
                    imread(folder / "labelsTr" / f"{case}.png"),
                    imread(folder / "imagesTr" / f"{case}_0000.png"),
                )
                assert label.shape == image.shape == (128, 128)
                assert (image[label > 0] > 0).sum() >= 0.95 * label.sum()
                rows += np.nonzero(label)[0].tolist()
                lung += np.nonzero(image)[0].tolist()
        assert np.mean(rows) > np.mean(lung) + 3


@pytest.mark.real_data
def test_real_head_and_neck_loses_no_organ(real_data: Path, tmp_path: Path) -> None:
    names = ["pt_22.nii.gz", "pt_99.nii.gz"]  # organs that reach furthest forward, left and right
    source = part_of(real_data / "openkbp_head_neck_ct", tmp_path / "data", names, ("images", "labels"))
    folder = convert_openkbp(source, tmp_path / "raw")
    for name in names:
        native, small = (sitk.ReadImage(str(parent / name)) for parent in (source / "labels", folder / "labelsTr"))
        volumes_ml = [
            [np.isin(sitk.GetArrayFromImage(image), value).sum() * np.prod(image.GetSpacing()) for value in wanted]
            for image, wanted in ((native, (1, 2, (3, 4), 7)), (small, (1, 2, 3, 4)))
        ]
        assert volumes_ml[1] == pytest.approx(volumes_ml[0], rel=0.31)
    alone = convert_openkbp(source, tmp_path / "alone", organs=["mandible"])
    for name in names:
        both, mandible = (sitk.GetArrayFromImage(sitk.ReadImage(str(at / "labelsTr" / name))) for at in (folder, alone))
        assert mandible.max() == 1
        assert np.count_nonzero((both == 4) != (mandible == 1)) <= 0.2 * (mandible == 1).sum()

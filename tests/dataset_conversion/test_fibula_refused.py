from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from nnunet_qa.data.fibula_phantom import (
    LegScan,
    write_dicom_series,
    write_stl,
)
from nnunet_qa.data.images import Geometry, write_image
from nnunet_qa.dataset_conversion.fibula import Settings, Sides
from nnunet_qa.dataset_conversion.fibula_files import find_patients
from nnunet_qa.errors import DatasetError, ImageError
from tests.dataset_conversion.legs import WHOLE, cases, drawn, left_out


@pytest.fixture
def scan() -> LegScan:
    return drawn()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mirror_left": True, "sides": Sides.LABELS}, "--sides split"),
        ({"crop": -1.0}, "--crop"),
        ({"hu_clip": (5.0, 5.0)}, "--hu-clip"),
        ({"stl_space": "xyz"}, "--stl-space"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Settings(**settings)


def test_names_and_what_belongs_to_nobody(tmp_path: Path, scan: LegScan) -> None:
    small = scan.image[:2], scan.geometry
    for name in ("p1.nii.gz", "p1_left.nii.gz", "p10.nii.gz", 'Bein "links" (Größe).nii.gz', "骨.nii.gz", "p1 .nii.gz"):
        write_image(tmp_path / name, *small)
    mask = (scan.label[:2] > 0).astype(np.uint8), scan.geometry
    for name in ("p1_left_mask.nii.gz", "p1_mask.nii.gz", "p100_mask.nii.gz", "tibia.nii.gz"):
        write_image(tmp_path / name, *mask)
    (tmp_path / "readme.txt").write_text("x", encoding="utf-8")
    (tmp_path / "away").symlink_to(tmp_path.parent)
    units, found = find_patients(tmp_path)
    owned = {unit.content.case_id: [path.name for path in unit.content.masks] for unit in units}
    assert owned == {
        "Bein_links_Gr_e": [],
        "p1": ["p1_mask.nii.gz"],
        "p1_left": ["p1_left_mask.nii.gz"],
        "p10": [],
    }
    reasons = {one.name: one.reason for one in found}
    assert "without a scan" in reasons["p100_mask.nii.gz"]
    assert "another bone" in reasons["tibia.nii.gz"]
    assert "neither" in reasons["readme.txt"]
    assert "links are not followed" in reasons["away"]
    assert "no letter or digit" in reasons["骨"]
    assert "the same case identifier" in reasons["p1 "]
    assert {one.name for one in found if one.bad} == {"p100_mask.nii.gz", "away", "骨", "p1 "}
    with pytest.raises(DatasetError, match="no such folder"):
        find_patients(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no scan there"):
        find_patients(tmp_path / "empty")


def test_other_bones_never_pass_for_the_fibula(tmp_path: Path, scan: LegScan) -> None:
    mask = (scan.label[:2] > 0).astype(np.uint8), scan.geometry
    others = ("p1/femur_left", "p1/segmentations/hip_right", "masks/p2/phalanges_feet", "p2_tibia", "tibia_1_femur")
    for name in ("p1/ct", "p2", "tibia_1", *others, "masks/p2/fibula_left", "masks/p2/muscle", "masks/tibia_1"):
        write_image(tmp_path / f"{name}.nii.gz", *mask)
    for name in ("p1/tibia_left", "p1/skin", "p1/left", "p1/x", "p1/p1_fibula"):
        (tmp_path / f"{name}.stl").write_bytes(b"")
    units, found = find_patients(tmp_path)
    owned = {unit.name: sorted(path.name for path in unit.content.masks) for unit in units}
    assert owned == {
        "p1": ["left.stl", "p1_fibula.stl"], "p2": ["fibula_left.nii.gz"], "tibia_1": ["tibia_1.nii.gz"]
    }  # fmt: skip
    assert [path.name for path in units[0].content.images] == ["ct.nii.gz"]
    other = {one.name for one in found if "another bone" in one.reason}
    assert {one.name for one in found if one.bad} == {one.name for one in found} - other
    assert other == {f"{name}.nii.gz" for name in others} | {"p1/tibia_left.stl", "p1/skin.stl"}
    assert {one.name for one in found} - other == {"p1/x.stl", "masks/p2/muscle.nii.gz"}


def _again(folder: Path, scan: LegScan, **options: object) -> None:
    write_dicom_series(folder, scan.image[:5], scan.geometry, np.random.default_rng(9), **options)


def _edit(path: Path, **fields: object) -> None:
    from pydicom import dcmread

    dataset = dcmread(path)
    for keyword, value in fields.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
def test_damaged_series_say_why(tmp_path: Path, scan: LegScan) -> None:
    start = tmp_path / "start" / "p1"
    paths = [path.name for path in write_dicom_series(start, scan.image[:5], scan.geometry, np.random.default_rng(0))]

    def reason(name: str) -> str:
        with pytest.raises((ImageError, DatasetError)) as caught:
            cases(tmp_path / name, **WHOLE)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def copy(name: str) -> Path:
        shutil.copytree(start, tmp_path / name / "p1")
        return tmp_path / name / "p1"

    (copy("missing") / paths[2]).unlink()
    assert "slices are missing" in reason("missing")
    shutil.copy(start / paths[2], copy("repeated") / "copy.dcm")
    assert "at the same place" in reason("repeated")
    _again(copy("mixed") / "more", scan)
    assert "mixes two series of 5 files" in reason("mixed")
    cut = copy("truncated") / paths[1]
    cut.write_bytes(cut.read_bytes()[:-300])
    assert f"{paths[1]}: the pixels cannot be read (truncated?)" in reason("truncated")
    cut = copy("beheaded") / paths[1]
    cut.write_bytes(cut.read_bytes()[:60])
    assert f"{paths[1]}: cannot be read as DICOM" in reason("beheaded")
    _edit(copy("sized") / paths[1], PixelSpacing=["1", "1"])
    assert "differs in size or orientation" in reason("sized")
    for name, cosine in (("turned", "0.9985"), ("unknown", "nan")):
        _edit(copy(name) / paths[1], ImageOrientationPatient=[cosine, "0", "0", "0", "1", "0"])
        assert "differs in size or orientation" in reason(name)
    tilted = copy("tilted")
    for index, name in enumerate(paths):
        x, y, z = (float(value) for value in scan.geometry.origin)
        _edit(tilted / name, ImagePositionPatient=[f"{x:.4f}", f"{y + index:.4f}", f"{z + 6 * index:.4f}"])
    assert "tilted gantry" in reason("tilted")
    for path in copy("single").iterdir():
        if path.name != paths[0]:
            path.unlink()
    assert "only slice" in reason("single")
    linked = copy("linked")
    (linked / "more.dcm").symlink_to(start / paths[0])
    assert "symbolic link" in reason("linked")


def test_slices_that_unpack_to_far_more_than_they_weigh(tmp_path: Path, scan: LegScan) -> None:
    from pydicom import dcmread
    from pydicom.uid import RLELossless

    paths = write_dicom_series(tmp_path / "p1", scan.image[:5], scan.geometry, np.random.default_rng(0))
    for path in paths:
        dataset = dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)
    np.testing.assert_array_equal(cases(tmp_path, **WHOLE)["p1"].images[0], scan.image[:5])
    for path in paths:
        _edit(path, Rows=30000, Columns=30000)
    with pytest.raises(ImageError, match=r"p1/.* and the other slices of its series: unpacks to 9000000000 bytes"):
        cases(tmp_path, **WHOLE)


def test_oddities_that_do_no_harm_are_noted(tmp_path: Path, scan: LegScan) -> None:
    paths = write_dicom_series(tmp_path / "p1", scan.image, scan.geometry, np.random.default_rng(0))
    _again(tmp_path / "p1" / "scout", scan, series=1)
    _edit(paths[3], InstanceNumber=1, ImageOrientationPatient=["0.999", "0", "0", "0", "1", "0"])  # rounded otherwise
    (tmp_path / "p1" / "notes").write_text("x", encoding="utf-8")
    np.testing.assert_array_equal(cases(tmp_path, **WHOLE)["p1"].images[0], scan.image)
    reasons = " ".join(one.reason for one in left_out(tmp_path, **WHOLE))
    for text in ("series 1 of 5 files", "instance number 1 stands more than once", "notes is neither"):
        assert text in reasons


def test_damaged_volumes_and_masks_say_why(tmp_path: Path, scan: LegScan) -> None:
    label = (scan.label > 0).astype(np.uint8)

    def reason(name: str) -> str:
        with pytest.raises((ImageError, DatasetError)) as caught:
            cases(tmp_path / name, **WHOLE)
        return str(caught.value)

    def start(name: str) -> Path:
        write_image(tmp_path / name / "p1" / "ct.nii.gz", scan.image, scan.geometry)
        return tmp_path / name / "p1"

    write_image(start("two") / "again.nii.gz", scan.image, scan.geometry)
    assert "one of 2 scans of p1" in reason("two")
    shifted = Geometry(scan.geometry.spacing, (1.7, 2.2, 3.1), scan.geometry.direction)
    write_image(start("grid") / "mask.nii.gz", label, shifted)
    assert "another grid" in reason("grid")
    away = Geometry(scan.geometry.spacing, tuple(value + 400 * step for value, step in zip(
        scan.geometry.origin, scan.geometry.spacing, strict=True)), scan.geometry.direction)  # fmt: skip
    write_image(start("outside") / "mask.nii.gz", label, away)
    assert "outside its image" in reason("outside")
    write_stl(start("open") / "fibula.stl", label > 0, scan.geometry)
    path = tmp_path / "open" / "p1" / "fibula.stl"
    content = bytearray(path.read_bytes()[:-50])
    content[80:84] = (int.from_bytes(content[80:84], "little") - 1).to_bytes(4, "little")
    path.write_bytes(content)
    assert "not closed" in reason("open")
    path.write_bytes(content[:300])
    assert "cut off" in reason("open")
    path.write_bytes(b"solid nothing")
    assert "fibula.stl: " in reason("open")
    for side in ("left", "right"):
        write_image(start("both") / f"fibula_{side}.nii.gz", label, scan.geometry)
    assert "in the mask of the left and of the right" in reason("both")
    (tmp_path / "secret.raw").write_bytes(bytes(8))
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = "
    for name, target in (("climbing", "../../secret.raw"), ("list", "LIST")):
        (tmp_path / name / "p1").mkdir(parents=True)
        (tmp_path / name / "p1" / "ct.mhd").write_text(header + target + "\n", encoding="utf-8")
    assert 'ct.mhd: names the data file "../../secret.raw"; it must be one file in the same' in reason("climbing")
    assert 'names the data file "LIST"' in reason("list")

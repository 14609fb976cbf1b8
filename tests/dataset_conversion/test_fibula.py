from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.fibula_phantom import (
    LEFT,
    PATIENT_NAME,
    RIGHT,
    LegScan,
    write_dicom_series,
    write_fibula,
    write_stl,
)
from nnunet_qa.data.images import Geometry, write_image
from nnunet_qa.dataset_conversion import fibula
from nnunet_qa.dataset_conversion.engine import Options
from nnunet_qa.dataset_conversion.fibula import Settings, Sides, parse_values
from nnunet_qa.errors import DatasetError, ImageError
from tests.dataset_conversion.legs import DIRECTIONS, WHOLE, cases, drawn, left_out


def ras_affine(geometry: Geometry) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(geometry.direction, (3, 3)) @ np.diag(geometry.spacing)
    matrix[:3, 3] = geometry.origin
    return np.diag([-1, -1, 1, 1]) @ matrix


@pytest.fixture
def scan() -> LegScan:
    return drawn()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_dicom_with_masks_comes_back(direction: str, tmp_path: Path, raw: Path, unchecked: None) -> None:
    scan = drawn(direction)
    source = tmp_path / "in"
    write_dicom_series(source / "p1" / "ct", scan.image, scan.geometry, np.random.default_rng(0))
    write_image(source / "p1" / "fibula.nii.gz", (scan.label > 0).astype(np.uint8), scan.geometry)
    folder = fibula.convert(source, 5, settings=Settings(**WHOLE))
    for path, expected in (("imagesTr/p1_0000", scan.image), ("labelsTr/p1", scan.label > 0)):
        found = nibabel.load(folder / f"{path}.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), expected.T)
        np.testing.assert_allclose(found.affine, ras_affine(scan.geometry), atol=1e-3)
    everything = b"".join(
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    )
    for secret in (PATIENT_NAME.encode(), b"Petra", b"4711", b"19700101", b"20200202", b"Hospital", b"1.2.826"):
        assert secret not in everything


def test_slope_and_16_bits(tmp_path: Path, scan: LegScan) -> None:
    quarter = scan.image.astype(np.float64) + 0.25
    high = scan.image.astype(np.float64) + 60000
    write_dicom_series(tmp_path / "a", quarter, scan.geometry, np.random.default_rng(0), slope=0.25)
    write_dicom_series(tmp_path / "b", high, scan.geometry, np.random.default_rng(0))
    found = cases(tmp_path, **WHOLE)
    np.testing.assert_array_equal(found["a"].images[0], quarter)
    np.testing.assert_array_equal(found["b"].images[0], high)
    assert cases(tmp_path)["a_left"].images[0].max() <= 3000
    assert cases(tmp_path, hu_clip=(-500, 800))["b"].images[0].min() == 800


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sides_are_those_of_the_body(direction: str, tmp_path: Path) -> None:
    scan = drawn(direction)
    write_image(tmp_path / "p1.mha", scan.image, scan.geometry)
    write_image(tmp_path / "p1_mask.nrrd", (scan.label > 0).astype(np.uint8) * 255, scan.geometry)
    both = cases(tmp_path, sides=Sides.LABELS)["p1"]
    np.testing.assert_array_equal(both.label, scan.label)
    split = cases(tmp_path)
    assert set(split) == {"p1_left", "p1_right"}
    mirrored = cases(tmp_path, mirror_left=True)
    for name, value in (("p1_left", LEFT), ("p1_right", RIGHT)):
        case = split[name]
        assert case.label is not None
        assert case.geometry is not None
        assert case.label.sum() == (scan.label == value).sum()
        # the voxels lie where they lay
        inside = (
            np.argwhere(case.label)[:, ::-1] @ ras_affine(case.geometry)[:3, :3].T + ras_affine(case.geometry)[:3, 3]
        )
        before = np.argwhere(scan.label == value)[:, ::-1] @ ras_affine(scan.geometry)[:3, :3].T
        before += ras_affine(scan.geometry)[:3, 3]
        np.testing.assert_allclose(np.sort(inside, axis=0), np.sort(before, axis=0), atol=1e-6)
        across = 2 - int(np.abs(DIRECTIONS[direction][0]).argmax())
        other = mirrored[name].images[0]
        np.testing.assert_array_equal(np.flip(other, across) if value == LEFT else other, case.images[0])
        assert mirrored[name].row["mirrored"] == int(value == LEFT)
        assert case.row["side"] == name[3:]


@pytest.mark.parametrize("leg", ["left", "right"])
def test_a_single_leg(leg: str, tmp_path: Path) -> None:
    scan = drawn(legs=(leg,))
    write_image(tmp_path / "p1.nii.gz", scan.image, scan.geometry)
    write_image(tmp_path / "p1_mask.nii.gz", (scan.label > 0).astype(np.uint8), scan.geometry)
    ((name, case),) = cases(tmp_path).items()
    assert name == f"p1_{leg}"
    assert case.images[0].shape == scan.image.shape
    (tmp_path / "p1_mask.nii.gz").unlink()
    assert [case.role for case in cases(tmp_path).values()] == [Role.UNLABELLED]
    assert "left from right" in left_out(tmp_path, mirror_left=True)[0].reason


def test_a_leg_without_mask_joins_the_pool(tmp_path: Path, scan: LegScan) -> None:
    write_image(tmp_path / "p1.nii.gz", scan.image, scan.geometry)
    write_image(tmp_path / "p1_fibula_l.nii.gz", (scan.label == LEFT).astype(np.uint8), scan.geometry)
    found = cases(tmp_path)
    assert {name: case.role for name, case in found.items()} == {
        "p1_left": Role.LABELLED,
        "p1_right": Role.UNLABELLED,
    }
    clipped = cases(tmp_path, hu_clip=(-150, 150), crop=10.0)  # clipped, air would pass for tissue and no bone be left
    assert set(clipped) == set(found)
    assert all(case.images[0].min() >= -150 and case.images[0].max() == 150 for case in clipped.values())


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("sides", [Sides.LABELS, Sides.TOGETHER])
def test_a_leg_without_mask_is_no_background(direction: str, sides: Sides, tmp_path: Path) -> None:
    scan = drawn(direction)
    write_image(tmp_path / "p1.nii.gz", scan.image, scan.geometry)
    write_image(tmp_path / "p1_fibula_r.nii.gz", (scan.label == RIGHT).astype(np.uint8), scan.geometry)
    assert not cases(tmp_path, sides=sides)
    (found,) = left_out(tmp_path, sides=sides)
    assert (found.name, found.bad) == ("p1", True)
    assert found.reason == "its left leg has no mask and would be labelled as background; use --sides split"
    assert left_out(tmp_path, sides=sides, hu_clip=(-150, 800)) == [found]  # air would pass for tissue once clipped
    assert "p1" in cases(tmp_path, sides=sides, crop=10.0)  # which holds nothing of the other leg
    assert not cases(tmp_path, sides=sides, crop=300.0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_surfaces_come_back_voxel_for_voxel(direction: str, tmp_path: Path) -> None:
    scan = drawn(direction)
    write_image(tmp_path / "images" / "p1.nii.gz", scan.image, scan.geometry)
    for side, value in (("left", LEFT), ("right", RIGHT)):
        write_stl(tmp_path / "masks" / f"p1_{side}.stl", scan.label == value, scan.geometry)
    np.testing.assert_array_equal(cases(tmp_path, sides=Sides.LABELS)["p1"].label, scan.label)
    with pytest.raises(ImageError, match=r"left fibula lies on the right.*--stl-space"):
        cases(tmp_path, stl_space="ras", **WHOLE)
    turn = np.diag([-1.0, -1.0, 1.0])
    origin, axes = turn @ scan.geometry.origin, turn @ np.reshape(scan.geometry.direction, (3, 3))
    turned = Geometry(scan.geometry.spacing, tuple(origin.tolist()), tuple(axes.ravel().tolist()))
    for side, value in (("left", LEFT), ("right", RIGHT)):
        write_stl(tmp_path / "masks" / f"p1_{side}.stl", scan.label == value, turned)
    np.testing.assert_array_equal(cases(tmp_path, stl_space="ras", sides=Sides.LABELS)["p1"].label, scan.label)


def test_crop_keeps_the_margin_and_the_place(tmp_path: Path, scan: LegScan) -> None:
    write_image(tmp_path / "p1.nii.gz", scan.image, scan.geometry)
    write_image(tmp_path / "p1_mask.nii.gz", (scan.label == LEFT).astype(np.uint8), scan.geometry)
    case = cases(tmp_path, crop=10.0, sides=Sides.TOGETHER)["p1"]
    used = np.argwhere(scan.label == LEFT)
    margin = np.ceil(10 / np.array(scan.geometry.spacing[::-1])).astype(int)
    low = np.maximum(used.min(axis=0) - margin, 0)
    high = np.minimum(used.max(axis=0) + 1 + margin, scan.image.shape)
    box = tuple(slice(*pair) for pair in zip(low, high, strict=True))
    np.testing.assert_array_equal(case.images[0], scan.image[box])
    image = sitk.GetImageFromArray(scan.image)
    image.SetSpacing(scan.geometry.spacing)
    image.SetOrigin(scan.geometry.origin)
    assert case.geometry is not None
    np.testing.assert_allclose(case.geometry.origin, image.TransformIndexToPhysicalPoint(low[::-1].tolist()), atol=1e-4)
    (tmp_path / "p1_mask.nii.gz").unlink()
    pool = cases(tmp_path, crop=10.0)
    assert {case.role for case in pool.values()} == {Role.UNLABELLED}
    assert all((case.images[0] > 500).any() and case.images[0].size < scan.image.size / 4 for case in pool.values())


def test_values_of_masks(tmp_path: Path, scan: LegScan) -> None:
    write_image(tmp_path / "p1.nii.gz", scan.image, scan.geometry)
    many = np.where(scan.label == LEFT, 3, scan.label * 2).astype(np.uint8)
    write_image(tmp_path / "p1_seg.nii.gz", many, scan.geometry)
    with pytest.raises(ImageError, match=r"p1_seg.nii.gz: the mask holds the values 2, 3; say which.*--mask-values"):
        cases(tmp_path)
    left = cases(tmp_path, mask_values="fibula")["p1_left"].label
    assert left is not None
    assert left.sum() == (scan.label == LEFT).sum()
    swapped = cases(tmp_path, mask_values="right=2,left=3", sides=Sides.LABELS)["p1"].label
    np.testing.assert_array_equal(swapped, scan.label)
    with pytest.raises(ImageError, match="empty"):
        cases(tmp_path, mask_values="9")
    for text in ("", "a", "0", "3,3", "middle=2"):
        with pytest.raises(DatasetError, match="--mask-values"):
            parse_values(text)


def test_the_whole_set(tmp_path: Path, raw: Path, unchecked: None) -> None:
    source = tmp_path / "in"
    write_fibula(source, np.random.default_rng(0), patients=4, annotated=3)
    shutil.copytree(source / "p01" / "ct", source / "p05")
    sorted((source / "p05").iterdir())[0].write_bytes(b"no image")
    folder = fibula.convert(source, 5, test_subjects=["P02"], options=Options(folds=2))
    table = CaseTable.read(folder / "cases.csv").frame.set_index("case_id")
    assert table["role"].to_dict() == {
        f"p{number:02d}_{side}": role
        for number, role in ((1, "labelled"), (2, "test"), (3, "labelled"), (4, "unlabelled"))
        for side in ("left", "right")
    }
    assert set(table.loc["p02_left", ["subject_id", "side"]]) == {"p02", "left"}
    report = pd.read_csv(folder / "conversion_report.csv").set_index("name")
    assert report.loc["p05", "status"] == "skipped"
    assert "DICOM" in report.loc["p05", "reason"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "nnunet"]


@pytest.mark.real_data
def test_real_mandibles_come_back(real_data: Path, tmp_path: Path) -> None:
    base = real_data / "openkbp_head_neck_ct"
    image = nibabel.load(sorted((base / "images").iterdir())[0])
    label = nibabel.load(sorted((base / "labels").iterdir())[0])
    pixels = np.asarray(image.dataobj).T[::4]
    bone = (np.asarray(label.dataobj).T[::4] == 7).astype(np.uint8)
    assert bone.any()
    geometry = Geometry((1.1, 0.9, 5.0), (-60.0, -70.0, 12.0), tuple(DIRECTIONS["oblique"].ravel().tolist()))
    write_dicom_series(tmp_path / "p1", pixels, geometry, np.random.default_rng(0), intercept=0)
    write_stl(tmp_path / "p1_mask.stl", bone > 0, geometry)
    case = cases(tmp_path, **WHOLE)["p1"]
    np.testing.assert_array_equal(case.images[0], pixels)
    np.testing.assert_array_equal(case.label, bone)

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
    draw_legs,
    write_dicom_series,
    write_fibula,
    write_stl,
)
from nnunet_qa.data.images import Geometry, write_image
from nnunet_qa.dataset_conversion import fibula
from nnunet_qa.dataset_conversion.engine import Case, LeftOut, Options
from nnunet_qa.dataset_conversion.fibula import Settings, Sides, parse_values, read_patient
from nnunet_qa.dataset_conversion.fibula_files import find_patients
from nnunet_qa.errors import DatasetError, ImageError

_C, _S = np.cos(0.3), np.sin(0.3)
DIRECTIONS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "oblique": np.array([[_C, -_S, 0], [_S, _C, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, _C, -_S], [0, _S, _C]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]),
}
WHOLE = {"sides": Sides.TOGETHER, "hu_clip": None}


def drawn(direction: str = "LPS", **options: object) -> LegScan:
    turned = tuple(DIRECTIONS[direction].ravel().tolist())
    shape = (40, 16, 80) if direction == "coronal" else (12, 40, 80)
    spacing = (4.0, 4.0, 4.0) if direction == "coronal" else (4.0, 3.5, 6.0)
    return draw_legs(np.random.default_rng(3), shape=shape, spacing=spacing, direction=turned, **options)


def cases(source: Path, **settings: object) -> dict[str, Case]:
    units, _ = find_patients(source)
    found = [one for unit in units for one in read_patient(unit.content, settings=Settings(**settings))]
    return {one.case_id: one for one in found if isinstance(one, Case)}


def left_out(source: Path, **settings: object) -> list[LeftOut]:
    units, found = find_patients(source)
    read = [one for unit in units for one in read_patient(unit.content, settings=Settings(**settings))]
    return [*found, *(one for one in read if isinstance(one, LeftOut))]


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

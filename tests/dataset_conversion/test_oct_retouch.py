from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import convert as cli
from nnunet_qa.data.images import Geometry
from nnunet_qa.data.retouch_phantom import write_retouch, write_scan
from nnunet_qa.dataset_conversion import oct_retouch
from nnunet_qa.dataset_conversion.engine import DONE, Options
from nnunet_qa.dataset_conversion.oct import PLACE, Framing
from nnunet_qa.dataset_conversion.oct_retouch import FLUIDS, Mode, find_scans
from nnunet_qa.dataset_conversion.report import REPORT
from nnunet_qa.errors import DatasetError
from tests.phantom import tree

SHAPE = (2, 64, 96)
WHOLE = Framing(crop=False, size=None, blank_padding=False)
PLAIN = Geometry((0.06, 0.03, 3.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
TWO_FOLDS = Options(folds=2)


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def voxels(scan: Path, name: str = "oct") -> np.ndarray:
    """The bytes of a phantom's raw file, without any reader of images."""
    kind = "<u2" if name == "oct" and "Spectralis" in str(scan) else "u1"
    return np.fromfile(scan / f"{name}.raw", dtype=kind).reshape(SHAPE)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training scan and a test scan of each of the three vendors."""
    folder = tmp_path_factory.mktemp("retouch")
    rng = np.random.default_rng(0)
    write_retouch(folder, rng, annotated=1, pool=1, rows=64, columns=96, bscans=2, severity=1.0)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two annotated scans of noise, for tests that change files."""
    rng = np.random.default_rng(1)
    for number in (1, 2):
        image, reference = rng.integers(0, 255, (2, 9, 8)).astype(np.uint8), rng.integers(0, 4, (2, 9, 8))
        write_scan(tmp_path / "own" / f"TRAIN{number:03d}", image, reference, PLAIN)
    return tmp_path / "own"


def test_bscans(source: Path, module_raw: Path) -> None:
    folder = oct_retouch.convert(source, 104, test_subjects=["Topcon_train003"], options=TWO_FOLDS)
    table = CaseTable.read(folder / "cases.csv")
    bscans = ("bscan000", "bscan001")
    assert table.case_ids(Role.LABELLED) == [
        f"{s}_{b}" for s in ("cirrus_TRAIN001", "spectralis_TRAIN002") for b in bscans
    ]
    pool = ("cirrus_TEST001", "spectralis_TEST002", "topcon_TEST003")
    assert table.case_ids(Role.UNLABELLED) == [f"{s}_{b}" for s in pool for b in bscans]
    assert table.case_ids(Role.TEST) == [f"topcon_TRAIN003_{b}" for b in bscans]
    row = table.frame.set_index("case_id").loc["spectralis_TRAIN002_bscan001"]
    expected = ("spectralis_TRAIN002", "spectralis_TRAIN002", 1, "spectralis")
    assert (row["subject_id"], row["stack_id"], row["slice_index"], row["site"]) == expected
    assert [int(row[column]) for column in PLACE[1:]] == [0, 41, 96, 64, 96]
    assert picture(folder / "imagesTr" / f"{row.name}_0000.png").shape == (80, 192)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == FLUIDS == {"background": 0, "IRF": 1, "SRF": 2, "PED": 3}
    assert content["channel_names"] == {"0": "OCT"}
    splits = json.loads((Path(os.environ["nnUNet_preprocessed"]) / folder.name / "splits_final.json").read_text())
    assert [{case.split("_")[0] for case in fold["val"]} for fold in splits] in (
        [{"cirrus"}, {"spectralis"}],
        [{"spectralis"}, {"cirrus"}],
    )


def test_bscans_pixel_by_pixel(source: Path, raw: Path, unchecked: None) -> None:
    folder = oct_retouch.convert(source, 104, framing=WHOLE, options=TWO_FOLDS)
    for scan in source.glob("*/*"):
        subject = f"{scan.parent.name.split('-')[-1].lower()}_{scan.name}"
        image = voxels(scan)
        image = image // 257 if image.dtype == np.uint16 else image
        for index in range(2):
            found = picture(next(folder.glob(f"images*/{subject}_bscan{index:03d}_0000.png")))
            np.testing.assert_array_equal(found, image[index])
            label = folder / "labelsTr" / f"{subject}_bscan{index:03d}.png"
            assert label.exists() == scan.name.startswith("TRAIN")
            if label.exists():
                np.testing.assert_array_equal(picture(label), voxels(scan, "reference")[index])


def test_the_crop_moves_image_and_fluids_alike(source: Path, raw: Path, unchecked: None) -> None:
    folder = oct_retouch.convert(source, 104, framing=Framing(size=None), options=TWO_FOLDS)
    frame = CaseTable.read(folder / "cases.csv").frame.set_index("case_id")
    scan = source / "RETOUCH-TrainingSet-Cirrus" / "TRAIN001"
    for index in range(2):
        case = f"cirrus_TRAIN001_bscan{index:03d}"
        top = int(frame.loc[case, "crop_row"])
        for name, path in (("oct", f"imagesTr/{case}_0000.png"), ("reference", f"labelsTr/{case}.png")):
            np.testing.assert_array_equal(picture(folder / path), voxels(scan, name)[index, top : top + 41])


def oblique(turn_about: int, angle: float, *, flipped: bool) -> np.ndarray:
    """A rotation about one axis, in degrees, with the last axis turned round where flipped."""
    first, second = [axis for axis in range(3) if axis != turn_about]
    turn, part = np.eye(3), np.deg2rad(angle)
    turn[first, first] = turn[second, second] = np.cos(part)
    turn[first, second], turn[second, first] = -np.sin(part), np.sin(part)
    return turn @ np.diag([1, 1, -1 if flipped else 1])


DIRECTIONS = {
    "lps": np.eye(3),
    "ras": np.diag([-1.0, -1.0, 1.0]),
    "permuted": np.eye(3)[[2, 0, 1]],
    "oblique": oblique(0, 17, flipped=True) @ oblique(2, 33, flipped=False),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_volumes_keep_voxels_and_position(tmp_path: Path, raw: Path, unchecked: None, name: str) -> None:
    direction, spacing, origin = DIRECTIONS[name], np.array([0.011, 0.0039, 0.24]), np.array([-12.5, 3.0, 41.75])
    geometry = Geometry(tuple(spacing.tolist()), tuple(origin.tolist()), tuple(direction.ravel().tolist()))
    rng = np.random.default_rng(0)
    drawn = {}
    for number in (1, 2):
        image = rng.integers(0, 60_000, (3, 6, 5)).astype(np.uint16)
        drawn[number] = image, rng.integers(0, 4, image.shape)
        write_scan(tmp_path / "in" / f"TRAIN{number}", *drawn[number], geometry)
    folder = oct_retouch.convert(tmp_path / "in", 105, mode=Mode.VOLUMES, options=TWO_FOLDS)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    affine = np.diag([-1, -1, 1, 1]) @ affine  # NIfTI counts to the right and to the front
    for number, (image, label) in drawn.items():
        for path, array in ((f"imagesTr/TRAIN{number}_0000.nii.gz", image), (f"labelsTr/TRAIN{number}.nii.gz", label)):
            found = nibabel.load(folder / path)
            np.testing.assert_array_equal(np.asarray(found.dataobj), array.T)
            np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert nibabel.load(folder / "imagesTr" / "TRAIN1_0000.nii.gz").get_data_dtype() == np.uint16
    row = CaseTable.read(folder / "cases.csv").frame.iloc[0]
    assert (row["case_id"], row["subject_id"], row["stack_id"], row["role"]) == (
        "TRAIN1",
        "TRAIN1",
        "TRAIN1",
        "labelled",
    )


def test_the_vendor_of_the_innermost_folder_counts(tmp_path: Path) -> None:
    image = np.zeros((1, 2, 2), np.uint8)
    for folder in ("Topcon/Spectralis a/ä 'b' (1)", "Topcon/2", "3"):
        write_scan(tmp_path / folder, image, image, PLAIN)
    units, left_out = find_scans(tmp_path)
    assert [(unit.name, unit.content.vendor) for unit in units] == [
        ("3", ""),
        ("spectralis_b_1", "spectralis"),
        ("topcon_2", "topcon"),
    ]
    assert not left_out
    (unit,), _ = find_scans(tmp_path / "Topcon" / "2")
    assert unit.name == "2"
    (unit,), _ = find_scans(tmp_path / "Topcon" / "Spectralis a")
    assert unit.name == "spectralis_b_1"


def changed(scan: Path, old: str, new: str, name: str = "oct.mhd") -> None:
    text = (scan / name).read_text()
    assert old in text
    (scan / name).write_text(text.replace(old, new))


def report_of(folder: Path, status: str) -> dict[str, str]:
    report = pd.read_csv(folder / REPORT, keep_default_na=False)
    return dict(report.loc[report["status"] == status, ["name", "reason"]].to_numpy().tolist())


def test_damaged_and_hostile_scans_stop_no_other(own: Path, tmp_path: Path, raw: Path, unchecked: None) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(144))
    image = np.random.default_rng(0).integers(0, 255, (2, 9, 8)).astype(np.uint8)
    expected = {
        "cut": "asks for 144 bytes, oct.raw holds 100",
        "huge": "asks for 24000000000000 bytes",
        "climbing": 'names the data file "../../secret.raw"',
        "absolute": f'names the data file "{secret}"',
        "linked": "oct.raw: is a symbolic link out of",
        "header": "reference.mhd: is a symbolic link out of",
        "gone": "its data file oct.raw is not there",
        "shape": "reference.mhd: the mask has shape (2, 9, 7), its image (2, 9, 8)",
        "values": "reference.mhd: label value 4 is not in dataset.json",
        "turned": "reference.mhd: has other directions than oct.mhd",
        "text": "is no MetaImage header",
    }
    for name in expected:
        label = np.zeros((2, 9, 7 if name == "shape" else 8), np.uint8) + 4 * (name == "values")
        write_scan(own / name, image, label, PLAIN)
    (own / "cut" / "oct.raw").write_bytes(bytes(100))
    changed(own / "huge", "DimSize = 8 9 2", "DimSize = 40000 30000 20000")
    changed(own / "climbing", "oct.raw", "../../secret.raw")
    changed(own / "absolute", "oct.raw", str(secret))
    (own / "linked" / "oct.raw").unlink()
    (own / "linked" / "oct.raw").symlink_to(secret)
    (own / "header" / "reference.mhd").rename(tmp_path / "reference.mhd")
    (own / "header" / "reference.mhd").symlink_to(tmp_path / "reference.mhd")
    (own / "gone" / "oct.raw").unlink()
    changed(own / "turned", "TransformMatrix = 1 0 0", "TransformMatrix = -1 0 0", "reference.mhd")
    (own / "text" / "oct.mhd").write_bytes(b"\xff\x00 no header")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and raw not in path.parents}
    folder = oct_retouch.convert(own, 9, mode=Mode.VOLUMES, options=TWO_FOLDS)
    skipped = report_of(folder, "skipped")
    assert skipped.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in skipped[name]
        assert "\n" not in skipped[name]
    assert CaseTable.read(folder / "cases.csv").case_ids() == ["TRAIN001", "TRAIN002"]
    assert {path.name for path in (folder / "imagesTr").iterdir()} == {f"TRAIN00{n}_0000.nii.gz" for n in (1, 2)}
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and raw not in path.parents}
    preprocessed = raw.parent / "nnUNet_preprocessed" / folder.name / "splits_final.json"
    assert after.keys() - before.keys() == {preprocessed}
    assert {path: after[path] for path in before} == before
    with pytest.raises(DatasetError, match=r"^absolute: .*names the data file"):
        oct_retouch.convert(own, 10, mode=Mode.VOLUMES, options=Options(strict=True))


def test_what_is_no_scan_is_reported(own: Path, tmp_path: Path, raw: Path, unchecked: None) -> None:
    image = np.zeros((2, 9, 8), np.uint8)
    write_scan(own / "lone mask", image, image, PLAIN)
    (own / "lone mask" / "oct.mhd").unlink()
    write_scan(own / "no header", image + np.arange(8, dtype=np.uint8), image, PLAIN)
    (own / "no header" / "reference.mhd").unlink()
    write_scan(own / "empty", image, image, PLAIN)
    write_scan(own / "again" / "TRAIN 001", image, image, PLAIN)
    write_scan(own / "again" / "TRAIN_001", image, image, PLAIN)
    write_scan(own / "…", image, image, PLAIN)
    write_scan(tmp_path / "away", image, image, PLAIN)
    (own / "link").symlink_to(tmp_path / "away")
    assert all(found.bad for found in find_scans(own)[1])
    folder = oct_retouch.convert(own, 9, mode=Mode.VOLUMES, options=TWO_FOLDS)
    assert report_of(folder, "left out") == {
        "empty": "all voxels are 0",
        str(own / "again" / "TRAIN_001"): (
            f"gives the same cases TRAIN_001 as {own / 'again' / 'TRAIN 001'}; rename one of the folders"
        ),
        "TRAIN_001": "all voxels are 0",
        str(own / "link"): "is a symbolic link to a folder; copy the folder there",
        str(own / "lone mask" / "reference.mhd"): "has no oct.mhd beside it",
        str(own / "lone mask" / "oct.raw"): "has no oct.mhd beside it",
        str(own / "no header" / "reference.raw"): "has no reference.mhd beside it",
        str(own / "…"): '"…" holds no letter or digit to name a case by; rename it',
    }
    assert CaseTable.read(folder / "cases.csv").case_ids(Role.UNLABELLED) == ["no_header"]


def test_refusals(own: Path, tmp_path: Path, raw: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        oct_retouch.convert(tmp_path / "nowhere", 9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty: no folder with oct.mhd there; expected RETOUCH-TrainingSet"):
        oct_retouch.convert(tmp_path / "empty", 9)
    with pytest.raises(DatasetError, match='no subject "TRAIN003"'):
        oct_retouch.convert(own, 9, test_subjects=["TRAIN003"])
    with pytest.raises(DatasetError, match="--mode volumes keeps the scans as they are"):
        oct_retouch.convert(own, 9, mode=Mode.VOLUMES, framing=WHOLE)
    assert not raw.exists()
    with pytest.raises(DatasetError, match="the first reason: TRAIN001_bscan000: no retina found"):
        oct_retouch.convert(own, 9)  # noise


def test_pool_of_a_test_subject_and_processes(source: Path, raw: Path, unchecked: None) -> None:
    names = ["cirrus_TEST001", "cirrus_TRAIN001"]
    one = oct_retouch.convert(source, 11, name="A", test_subjects=names, options=TWO_FOLDS)
    assert report_of(one, "left out")["cirrus_TEST001"] == "is not annotated, of a subject for testing"
    assert not list(one.glob("imagesUn/cirrus*"))
    two = oct_retouch.convert(source, 12, name="A", test_subjects=names, options=Options(jobs=2, folds=2))
    assert tree(one, without=(DONE,)) == tree(two, without=(DONE,))


def test_command(source: Path, raw: Path, unchecked: None) -> None:
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    start = ["convert", "oct-retouch", "-i", str(source), "--folds", "2"]
    result = CliRunner().invoke(
        app, [*start, "-d", "40", "--native", "--no-crop", "--test-subjects", "cirrus_TRAIN001"]
    )
    assert result.exit_code == 0, result.output
    record = json.loads((raw / "Dataset040_OCTRetouch" / "conversion.json").read_text())["settings"]
    assert record["test_subjects"] == ["cirrus_TRAIN001"]
    assert (record["mode"], record["crop"], record["size"]) == ("bscans", False, None)
    result = CliRunner().invoke(app, [*start, "-d", "41", "--mode", "volumes", "--name", "Mine", "--strict"])
    assert result.exit_code == 0, result.output
    assert len(list((raw / "Dataset041_Mine" / "imagesTr").glob("*.nii.gz"))) == 3
    assert isinstance(
        CliRunner().invoke(app, [*start, "-d", "42", "--mode", "volumes", "--native"]).exception, DatasetError
    )
    assert "nnunet-qa convert oct-retouch -i" in CliRunner().invoke(app, ["convert", "oct-retouch", "--help"]).output


@pytest.mark.real_data
def test_real_bscans_come_back_voxel_for_voxel(real_data: Path, tmp_path: Path, raw: Path, unchecked: None) -> None:
    drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for subject in ("S01", "S02"):
        paths = sorted((real_data / "oct_duke_dme" / "images").glob(f"{subject}_*.png"))[4:6]
        masks = [picture(real_data / "oct_duke_dme" / "fluid_mask" / path.name) for path in paths]
        drawn[subject] = np.stack([picture(path) for path in paths]), np.stack(masks)
        assert drawn[subject][1].any()
        write_scan(tmp_path / "RETOUCH-TrainingSet-Spectralis" / subject, *drawn[subject], PLAIN)
    folder = oct_retouch.convert(tmp_path, 9, mode=Mode.VOLUMES, options=TWO_FOLDS)
    cropped = oct_retouch.convert(tmp_path, 10, framing=Framing(size=None, blank_padding=False), options=TWO_FOLDS)
    frame = CaseTable.read(cropped / "cases.csv").frame.set_index("case_id")
    for subject, arrays in drawn.items():
        case = f"spectralis_{subject}"
        for found, array in zip((f"imagesTr/{case}_0000", f"labelsTr/{case}"), arrays, strict=True):
            np.testing.assert_array_equal(np.asarray(nibabel.load(folder / f"{found}.nii.gz").dataobj), array.T)
        for index in range(2):
            top = int(frame.loc[f"{case}_bscan{index:03d}", "crop_row"])
            for kind, array in zip(("imagesTr/{}_0000.png", "labelsTr/{}.png"), arrays, strict=True):
                found = picture(cropped / kind.format(f"{case}_bscan{index:03d}"))
                np.testing.assert_array_equal(found, array[index, top : top + 320])

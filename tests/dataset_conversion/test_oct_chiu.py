from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from scipy.io import loadmat
from typer.testing import CliRunner

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import convert as cli
from nnunet_qa.data.retina import default_crop_rows
from nnunet_qa.dataset_conversion import oct_chiu
from nnunet_qa.dataset_conversion.engine import DONE, Options
from nnunet_qa.dataset_conversion.oct import Framing, restore
from nnunet_qa.errors import DatasetError
from tests.dataset_conversion.chiu_files import NATIVE, small_mat
from tests.dataset_conversion.conftest import contents
from tests.phantom import tree

SCRIPT = Path(__file__).parents[2] / "dataset_conversion" / "oct_chiu.py"


@pytest.fixture(scope="module")
def converted(module_raw: Path, chiu_source: Path) -> Path:
    return oct_chiu.convert(chiu_source, 101, test_subjects=["S03"])


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def annotated(source: Path, subject: int, grader: int = 1) -> set[int]:
    fluid = loadmat(source / f"Subject_{subject:02d}.mat")[f"manualFluid{grader}"]
    return {index for index in range(fluid.shape[2]) if not np.isnan(fluid[..., index]).all()}


def test_roles_files_and_identifiers(converted: Path, chiu_source: Path) -> None:
    table = CaseTable.read(converted / "cases.csv")
    for number in (1, 2):
        known = annotated(chiu_source, number)
        for index in range(8):
            role = Role.LABELLED if index in known else Role.UNLABELLED
            assert f"S{number:02d}_bscan{index:02d}" in table.case_ids(role)
    assert table.case_ids(Role.TEST) == [f"S03_bscan{index:02d}" for index in sorted(annotated(chiu_source, 3))]
    assert not any(case.startswith("S03") for case in table.case_ids(Role.LABELLED) + table.case_ids(Role.UNLABELLED))
    for role, folder in ((Role.LABELLED, "imagesTr"), (Role.UNLABELLED, "imagesUn"), (Role.TEST, "imagesTs")):
        assert sorted(path.name for path in (converted / folder).iterdir()) == [
            f"{case}_0000.png" for case in table.case_ids(role)
        ]
    assert [path.stem for path in sorted((converted / "labelsTr").iterdir())] == table.case_ids(Role.LABELLED)
    assert [path.stem for path in sorted((converted / "labelsTs").iterdir())] == table.case_ids(Role.TEST)


def test_dataset_json_and_folds(converted: Path) -> None:
    content = json.loads((converted / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "OCT"}
    assert content["labels"] == {"background": 0, "fluid": 1}
    assert content["file_ending"] == ".png"
    assert content["numTraining"] == 6
    splits = json.loads((Path(os.environ["nnUNet_preprocessed"]) / converted.name / "splits_final.json").read_text())
    for fold in splits:
        assert not {case[:3] for case in fold["train"]} & {case[:3] for case in fold["val"]}


def test_rows_of_the_case_table(converted: Path) -> None:
    frame = pd.read_csv(converted / "cases.csv").set_index("case_id")
    row = frame.loc["S01_bscan04"]
    assert (row["subject_id"], row["stack_id"], row["slice_index"], row["site"]) == ("S01", "S01", 4, "duke")
    assert (row["source_rows"], row["source_columns"]) == (64, 96)
    assert (row["crop_rows"], row["crop_columns"], row["crop_column"]) == (default_crop_rows(64), 96, 0)
    assert 0 <= row["crop_row"] <= 64 - row["crop_rows"]


def test_pictures_are_what_the_mat_file_holds(converted: Path, chiu_source: Path) -> None:
    frame = pd.read_csv(converted / "cases.csv")
    for _, row in frame[frame["role"] == "labelled"].iterrows():
        image = picture(converted / "imagesTr" / f"{row.case_id}_0000.png")
        mask = picture(converted / "labelsTr" / f"{row.case_id}.png")
        assert image.shape == mask.shape == (80, 192)
        assert image.dtype == mask.dtype == np.uint8
        native = loadmat(chiu_source / f"Subject_{row.subject_id[1:]}.mat")["manualFluid1"][..., row.slice_index] > 0
        back = restore(mask, row) > 0
        assert 2 * (back & native).sum() >= 0.9 * (back.sum() + native.sum())


def test_a_second_run_writes_no_case_again_and_settings_are_guarded(
    converted: Path, chiu_source: Path, unchecked: None
) -> None:
    before = {path: path.stat().st_mtime_ns for path in converted.rglob("*.png")}
    oct_chiu.convert(chiu_source, 101, test_subjects=["S03"])
    assert {path: path.stat().st_mtime_ns for path in converted.rglob("*.png")} == before
    with pytest.raises(DatasetError, match=r"converted with other settings \(test_subjects\)"):
        oct_chiu.convert(chiu_source, 101, test_subjects=["S02"])


def test_overwrite_processes_and_grader(chiu_source: Path, raw: Path, unchecked: None) -> None:
    folder = oct_chiu.convert(chiu_source, 7, framing=NATIVE)
    one = contents(folder / "labelsTr")
    with pytest.raises(DatasetError, match="other settings"):
        oct_chiu.convert(chiu_source, 7, framing=NATIVE, grader=2)
    oct_chiu.convert(chiu_source, 7, framing=NATIVE, grader=2, options=Options(overwrite=True, jobs=2, folds=2))
    two = contents(folder / "labelsTr")
    assert one.keys() == two.keys()
    assert one != two
    frame = pd.read_csv(folder / "cases.csv").set_index("case_id")
    for case in sorted(one)[:3]:
        row = frame.loc[Path(case).stem]
        native = loadmat(chiu_source / f"Subject_{row.subject_id[1:]}.mat")["manualFluid2"][..., row.slice_index] > 0
        rows = slice(row.crop_row, row.crop_row + row.crop_rows)
        np.testing.assert_array_equal(picture(folder / "labelsTr" / case) > 0, native[rows])
    splits = json.loads((raw.parent / "nnUNet_preprocessed" / folder.name / "splits_final.json").read_text())
    assert len(splits) == 2


def test_native_pixels_without_a_crop_are_the_mat_files_own(chiu_source: Path, raw: Path, unchecked: None) -> None:
    framing = Framing(crop=False, size=None, blank_padding=False)
    folder = oct_chiu.convert(chiu_source, 8, name="Whole", framing=framing)
    assert folder.name == "Dataset008_Whole"
    images = loadmat(chiu_source / "Subject_02.mat")["images"]
    for index in range(8):
        path = next(folder.glob(f"images*/S02_bscan{index:02d}_0000.png"))
        np.testing.assert_array_equal(picture(path), images[..., index])


def test_white_padding_is_blanked_and_nothing_else(tmp_path: Path, raw: Path, unchecked: None) -> None:
    images = loadmat(small_mat(tmp_path / "plain", subjects=1) / "Subject_01.mat")["images"]
    images[:6] = 255
    source = small_mat(tmp_path / "padded", images=images)
    folder = oct_chiu.convert(source, 8, framing=Framing(crop=False, size=None))
    image = picture(folder / "imagesTr" / "S01_bscan00_0000.png")
    assert not image[:6].any()
    np.testing.assert_array_equal(image[9:], images[9:, :, 0])


def test_matlab_73_files_give_the_same_dataset(chiu_source: Path, tmp_path: Path, raw: Path, unchecked: None) -> None:
    newer = tmp_path / "newer"
    newer.mkdir()
    for path in chiu_source.iterdir():
        content = loadmat(path)
        with h5py.File(newer / path.name, "w", userblock_size=512) as file:
            for key in ("images", "manualFluid1"):
                file[key] = content[key].T  # MATLAB's axes stand the other way round in HDF5
        with (newer / path.name).open("r+b") as raw_file:
            raw_file.write(b"MATLAB 7.3 MAT-file")
    old, new = (oct_chiu.convert(source, number) for source, number in ((chiu_source, 11), (newer, 12)))
    old_files, new_files = contents(old), contents(new)
    for name in ("conversion.json", "conversion_units.jsonl"):  # name the source and digest its files
        del old_files[name], new_files[name]
    assert old_files == new_files


def test_h5py_is_asked_for_only_where_needed(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    source = small_mat(tmp_path / "data")
    oct_chiu.convert(source, 9)
    (source / "Subject_02.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(1000))
    with pytest.raises(DatasetError, match=r"^S02: .*Subject_02.mat: .*pip install"):
        oct_chiu.convert(source, 9, options=Options(overwrite=True, strict=True))


def test_one_bscan_a_file_and_float_images(tmp_path: Path, raw: Path, unchecked: None) -> None:
    source = small_mat(tmp_path / "whole")
    content = loadmat(source / "Subject_01.mat")
    single = small_mat(
        tmp_path / "single", images=content["images"][..., 0] / 255.0, manualFluid1=content["manualFluid1"][..., 0]
    )
    whole, flat = (oct_chiu.convert(folder, number) for folder, number in ((source, 9), (single, 10)))
    assert [path.name for path in sorted((flat / "imagesTr").iterdir())] == [
        "S01_bscan00_0000.png",
        "S02_bscan00_0000.png",
    ]
    name = "imagesTr/S01_bscan00_0000.png"
    np.testing.assert_array_equal(picture(whole / name), picture(flat / name))


def test_the_parent_folder_will_do(chiu_source: Path) -> None:
    found, left_out = oct_chiu.find_subjects(chiu_source.parent)
    assert not left_out  # whatever lies beside the folder is none of its business
    assert list(found) == ["S01", "S02", "S03"]


def test_command(chiu_source: Path, raw: Path, unchecked: None) -> None:
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    options = ["--size", "32x48", "--crop-rows", "48", "--grader", "2", "--test-subjects", "S01,S02"]
    more = ["--name", "Mine", "-np", "1", "--folds", "2", "--keep-padding"]
    result = CliRunner().invoke(app, ["convert", "oct-chiu", "-i", str(chiu_source), "-d", "33", *options, *more])
    assert result.exit_code == 0, result.output
    assert " converted, 0 skipped, " in result.output
    folder = raw / "Dataset033_Mine"
    record = json.loads((folder / "conversion.json").read_text())["settings"]
    assert record["size"] == [32, 48]
    assert record["crop_rows"] == 48
    assert record["grader"] == 2
    assert record["test_subjects"] == ["S01", "S02"]
    assert record["blank_padding"] is False
    assert picture(next((folder / "imagesTr").iterdir())).shape == (32, 48)
    again = ["convert", "oct-chiu", "-i", str(chiu_source), "-d", "33", "--name", "Mine", "--grader", "1"]
    assert isinstance(CliRunner().invoke(app, again).exception, DatasetError)
    assert CliRunner().invoke(app, [*again, "--overwrite"]).exit_code == 0
    native = CliRunner().invoke(
        app, ["convert", "oct-chiu", "-i", str(chiu_source), "-d", "34", "--native", "--no-crop"]
    )
    assert native.exit_code == 0, native.output
    assert picture(next((raw / "Dataset034_OCTDukeDME" / "imagesTr").iterdir())).shape == (64, 96)
    help_text = CliRunner().invoke(app, ["convert", "oct-chiu", "--help"]).output
    assert "nnunet-qa convert oct-chiu -i" in help_text


def run_by_path(source: Path, base: Path) -> subprocess.Popen[bytes]:
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    environment = {**os.environ, **{name: str(base / name) for name in names}}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "-i", str(source), "-d", "101", "--test-subjects", "S03"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def kill_at(process: subprocess.Popen[bytes], folder: Path, *, files: int) -> None:
    """Kill as soon as so many files lie in the folder."""
    deadline = time.monotonic() + 300
    while sum(1 for path in folder.rglob("[!.]*") if path.is_file()) < files and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert process.poll() is None, "ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_and_run_again_gives_the_same_files(converted: Path, chiu_source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nnUNet_raw" / converted.name
    for files in (1, 12, 26):
        kill_at(run_by_path(chiu_source, tmp_path), folder, files=files)
        assert not (folder / "dataset.json").exists()
    process = run_by_path(chiu_source, tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert tree(folder, without=(DONE,)) == tree(converted, without=(DONE,))
    preprocessed = Path(os.environ["nnUNet_preprocessed"])
    assert contents(tmp_path / "nnUNet_preprocessed") == contents(preprocessed)


def test_mistakes_by_path_are_one_line(tmp_path: Path) -> None:
    process = run_by_path(tmp_path / "nowhere", tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.decode().count("\n") == 1
    assert "no such folder" in errors.decode()

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest

from nnunet_qa.cli import app, phantom
from nnunet_qa.data.cine_subjects import DrawnStacks, Recipe
from nnunet_qa.errors import ImageError, PhantomError
from tests.data.test_cine_warp import discs
from tests.small import run_command, snapshot, write_tiny

PAGE = Path(__file__).parents[2] / "docs" / "cine-phantoms.md"


def write_pairs(folder: Path, *patients: str) -> None:
    for patient in patients:
        for phase, (image, mask) in (("ED", discs(26.0)), ("ES", discs(15.0))):
            write_tiny(folder / "images" / f"{patient}_{phase}.nii.gz", (image + 500).astype(np.float32), exactly=True)
            write_tiny(folder / "labels" / f"{patient}_{phase}.nii.gz", mask.astype(np.uint8), exactly=True)


def test_every_command_of_the_page(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    write_pairs(Path("sunnybrook"), "p1", "p2")
    quick = {
        "cine": ("--subjects", 1, "--frames", 3),
        "dataset": ("--labelled", 2, "--unlabelled", 1, "--test", 1, "--frames", 3, "--jobs", 1),
        "cycle": ("--frames", 3),
    }
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    seen = []
    for tool, group, command, *arguments in (shlex.split(line) for block in blocks for line in block.splitlines()):
        assert (tool, group) == ("nnunet-qa", "phantom")
        result = run_command(phantom, group, command, *arguments, *quick[command])
        assert result.exit_code == 0, (arguments, result.exception)
        seen.append(command)
    assert set(seen) == set(quick)
    assert nib.load("phantoms/1000001/sa.nii.gz").shape == (208, 192, 10, 3)
    assert nib.load("phantoms-ao/1000001/ao.nii.gz").shape == (208, 192, 1, 3)
    assert Path("ukbiobank/1000001_20209_2_0.zip").is_file()
    assert nib.load("cycles/p2/label_sa.nii.gz").shape == (80, 72, 3, 3)
    assert Path("cycle-zips/p2_20209_2_0.zip").is_file()
    table = pd.read_csv("nnUNet_raw/Dataset301_CinePhantom/cases.csv", dtype={"subject_id": str})
    assert table.groupby("role")["subject_id"].nunique().to_dict() == {"labelled": 2, "test": 1, "unlabelled": 1}


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(example, {})
    mask, curve = re.findall(r"\[(.*?)\]", capsys.readouterr().out)
    assert mask == curve


def test_true_curves_beside_the_images(tmp_path: Path) -> None:
    result = run_command(
        phantom, "phantom", "cine", "-o", tmp_path, "--view", "ao", "--subjects", 2, "--frames", 4, "--disease", "stiff"
    )
    assert result.exit_code == 0, result.exception
    curves = pd.read_csv(tmp_path / "1000002" / "true_curves.csv")
    labels = nib.load(tmp_path / "1000002" / "label_ao.nii.gz")
    areas = (np.asarray(labels.dataobj) == 1).sum(axis=(0, 1, 2)) * 1.6**2
    ascending = curves[curves["structure"] == "ascending_aorta"]
    np.testing.assert_allclose(ascending["value"], areas, atol=1.6**2 / 2)
    assert set(ascending["acquisition_id"]) == {"1000002_ao"}
    assert set(ascending["unit"]) == {"mm²"}
    np.testing.assert_allclose(np.diff(ascending["time_s"]), labels.header.get_zooms()[3], rtol=1e-5)
    assert areas.max() < 1.1 * areas.min()  # stiff


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    options = ("phantom", "cine", "-o", tmp_path / "a", "--view", "ao", "--frames", 3)
    assert "Drew 2 subjects" in run_command(phantom, *options, "--subjects", 2).stderr
    before = snapshot(tmp_path / "a")
    (tmp_path / "a" / "1000001" / "ao.nii.gz").unlink()  # written last
    again = run_command(phantom, *options, "--subjects", 2)
    assert "Drew 1 subjects" in again.stderr
    assert "1 were there already" in again.stderr
    assert snapshot(tmp_path / "a") == before
    other = run_command(phantom, *options, "--subjects", 2, "--seed", 1)
    assert isinstance(other.exception, PhantomError)
    assert "other settings" in str(other.exception)
    assert run_command(phantom, *options, "--subjects", 1, "--seed", 1, "--overwrite").exit_code == 0
    assert snapshot(tmp_path / "a")["a/1000001/ao.nii.gz"] != before["a/1000001/ao.nii.gz"]
    assert not (tmp_path / "a" / "1000002").exists()  # nothing of the old seed is left
    elsewhere = run_command(phantom, "phantom", "cine", "-o", tmp_path, "--overwrite")
    assert "holds something else" in str(elsewhere.exception)


def test_cycles_of_other_masks_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(tmp_path, "p1")
    shutil.copytree(tmp_path / "labels", tmp_path / "others")
    monkeypatch.chdir(tmp_path)
    options = ("phantom", "cycle", "-i", "images", "-o", "out", "--frames", 3)
    assert run_command(phantom, *options, "-l", "labels").exit_code == 0
    monkeypatch.chdir(tmp_path / "images")  # the same folders under other names
    moved = ("phantom", "cycle", "-i", ".", "-o", "../out", "--frames", 3)
    assert "1 were there already" in run_command(phantom, *moved, "-l", "../labels").stderr
    assert isinstance(run_command(phantom, *moved, "-l", "../others").exception, PhantomError)


def test_cycles_as_dicom_hold_the_same_images(tmp_path: Path) -> None:
    write_pairs(tmp_path, "p1")
    options = ("phantom", "cycle", "-i", tmp_path / "images", "-l", tmp_path / "labels", "--frames", 4)
    assert run_command(phantom, *options, "-o", tmp_path / "nifti").exit_code == 0
    zips = (*options, "-o", tmp_path / "zips", "--format", "dicom")
    result = run_command(phantom, *zips)
    assert result.exit_code == 0, result.exception
    slices: dict[tuple[float, float], pydicom.Dataset] = {}
    with zipfile.ZipFile(tmp_path / "zips" / "p1_20209_2_0.zip") as zipped:
        for name in zipped.namelist():
            if name.endswith(".dcm"):
                one = pydicom.dcmread(io.BytesIO(zipped.read(name)))
                slices[float(one.TriggerTime), float(one.SliceLocation)] = one
    series = nib.load(tmp_path / "nifti" / "p1" / "sa.nii.gz")
    expected = np.asarray(series.dataobj).T
    found = np.stack([slices[key].pixel_array for key in sorted(slices)])
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    assert {(one.PatientID, one.CardiacNumberOfImages) for one in slices.values()} == {("p1", 4)}
    x, y, z = series.header.get_zooms()[:3]
    first = slices[min(slices)]
    np.testing.assert_allclose((*first.PixelSpacing, first.SpacingBetweenSlices), (y, x, z), rtol=1e-5)
    written = {path.name for path in (tmp_path / "zips" / "p1").iterdir()}
    assert written == {"true_curves.csv", "label_sa.nii.gz", "label_sa_ED.nii.gz", "label_sa_ES.nii.gz"}
    assert "1 were there already" in run_command(phantom, *zips).stderr
    assert isinstance(run_command(phantom, *options, "-o", tmp_path / "zips").exception, PhantomError)


def test_subjects_of_a_dataset_are_those_of_the_folder() -> None:
    recipe = Recipe.checked(view="ao", diseases=None, frames=3, seed=4)
    stacks = DrawnStacks(recipe, 4)
    assert list(stacks) == [f"100000{number}_ao" for number in (1, 2, 3, 4)]
    subject, cine = stacks["1000004_ao"]
    assert subject == "1000004"
    np.testing.assert_array_equal(cine.image, recipe.draw(3).image)
    assert [recipe.draw(index).disease for index in range(4)] == ["normal", "stiff", "aneurysm", "normal"]
    with pytest.raises(KeyError):
        stacks["1000005_ao"]


def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["nnunet-qa", "phantom", "cine", "-o", str(tmp_path / "x"), "--disease", "dilatd"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert 'unknown disease "dilatd" (did you mean "dilated"?)' in said
    assert not (tmp_path / "x").exists()
    options = ("phantom", "cycle", "-i", tmp_path / "images", "-l", tmp_path / "labels", "-o", tmp_path / "out")
    assert isinstance(run_command(phantom, *options).exception, ImageError)
    write_pairs(tmp_path, "p1")
    for phase in ("ED", "ES"):
        write_tiny(tmp_path / "labels" / f"p1_{phase}.nii.gz", discs(20.0)[1].astype(np.uint8), exactly=True)
    swapped = run_command(phantom, *options)
    assert "p1: the left ventricle has" in str(swapped.exception)
    assert run_command(phantom, "phantom", "cine", "-o", tmp_path, "--frames", 2).exit_code == 2

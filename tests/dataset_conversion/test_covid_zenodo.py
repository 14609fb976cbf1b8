from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from nibabel import load
from typer.testing import CliRunner

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import convert as cli
from nnunet_qa.data.covid_phantom import write_zenodo
from nnunet_qa.dataset_conversion import covid_zenodo
from nnunet_qa.dataset_conversion.covid import Classes, Look
from nnunet_qa.errors import DatasetError
from tests.dataset_conversion import covid_sets as sets
from tests.dataset_conversion.covid_sets import ONE, affine, chest, report, same_in_space, voxels, write

IMAGES = "COVID-19-CT-Seg_20cases"
LUNGS = Look(classes=Classes.LUNG_INFECTION)
NAMES = ("coronacases_001", "radiopaedia_10_85902_1", "radiopaedia_10_85902_3")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_zenodo(tmp_path / "source", {name: chest(seed) for seed, name in enumerate(NAMES)})


def expected_label(seed: int) -> np.ndarray:
    one = chest(seed)
    return np.where(np.isin(one.findings, (1, 2)), 2, one.lungs > 0)


def test_labels_subjects_and_hounsfield_units(source: Path, raw: Path, unchecked: None) -> None:
    folder = covid_zenodo.convert(source, 701, look=LUNGS, options=ONE)
    for seed, name in enumerate(NAMES):  # the masks hold 0.25 where there is ground glass
        np.testing.assert_array_equal(voxels(folder / "labelsTr" / f"{name}.nii.gz"), expected_label(seed))
    same_in_space(source / IMAGES / f"{NAMES[0]}.nii.gz", folder / "imagesTr" / f"{NAMES[0]}_0000.nii.gz")
    windowed = voxels(folder / "imagesTr" / f"{NAMES[1]}_0000.nii.gz")
    assert windowed.dtype == np.int16
    assert np.abs(windowed - np.clip(chest(1).image, -1250, 250)).max() <= 1500 / 255 / 2 + 0.5
    rows = CaseTable.read(folder / "cases.csv").frame.set_index("case_id")
    assert list(rows["subject_id"]) == ["coronacases_001", "radiopaedia_10", "radiopaedia_10"]
    assert list(rows["site"]) == ["coronacases", "radiopaedia", "radiopaedia"]
    assert list(rows["stored_as"]) == ["HU", "window", "window"]


def test_window_kept(source: Path, raw: Path, unchecked: None) -> None:
    look = Look(lung_masked=True)
    folder = covid_zenodo.convert(source, 701, look=look, keep_window=True, options=ONE)
    name = NAMES[1]
    stored, lungs = voxels(source / IMAGES / f"{name}.nii.gz"), chest(1).lungs > 0
    image = voxels(folder / "imagesTr" / f"{name}_0000.nii.gz")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.where(lungs, stored, stored.min()))
    assert voxels(folder / "imagesTr" / f"{NAMES[0]}_0000.nii.gz").min() == -1024
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "lung window"}


def test_the_combined_mask_stands_in(source: Path, raw: Path, unchecked: None) -> None:
    shutil.rmtree(source / "Lung_Mask")
    (source / "Infection_Mask" / f"{NAMES[0]}.nii.gz").unlink()
    folder = covid_zenodo.convert(source, 701, look=LUNGS, options=ONE)
    for seed, name in enumerate(NAMES):
        np.testing.assert_array_equal(voxels(folder / "labelsTr" / f"{name}.nii.gz"), expected_label(seed))


def test_decimals(tmp_path: Path, raw: Path, unchecked: None) -> None:
    write(tmp_path / IMAGES / "a.nii.gz", np.full((2, 8, 8), -900, np.int16), affine(sets.OBLIQUE))
    mask = np.zeros((2, 8, 8), np.float32)
    mask[0, 0, :4] = (0.005, 0.0101, 0.5, 1.0)
    write(tmp_path / "Infection_Mask" / "a.nii.gz", mask, affine(sets.OBLIQUE))
    folder = covid_zenodo.convert(tmp_path, 701, options=ONE)
    label = folder / "labelsTr" / "a.nii.gz"
    assert voxels(label).sum() == 3
    same_in_space(tmp_path / IMAGES / "a.nii.gz", folder / "imagesTr" / "a_0000.nii.gz")
    place = load(label).affine @ [*np.argwhere(voxels(label).transpose(2, 1, 0))[0], 1]
    voxel = np.rint(np.linalg.inv(affine(sets.OBLIQUE)) @ place)[:3].tolist()
    assert voxel in [[1, 0, 0], [2, 0, 0], [3, 0, 0]]


@pytest.mark.real_data
def test_real_pixels(real_data: Path, tmp_path: Path, raw: Path, unchecked: None) -> None:
    real = real_data / "covid19_ct"
    labels = voxels(real / "labels" / "case11.nii.gz")
    image = real / "images" / "case11.nii.gz"
    (tmp_path / IMAGES).mkdir()
    shutil.copy(image, tmp_path / IMAGES / "radiopaedia_10_85902_1.nii.gz")
    for part, array in (("Infection_Mask", np.where(labels == 2, 0.3, 0)), ("Lung_Mask", (labels > 0) * 1.0)):
        write(tmp_path / part / "radiopaedia_10_85902_1.nii.gz", array.astype(np.float32), load(image).affine)
    folder = covid_zenodo.convert(tmp_path, 701, look=LUNGS, keep_window=True, options=ONE)
    same_in_space(image, folder / "imagesTr" / "radiopaedia_10_85902_1_0000.nii.gz")
    same_in_space(real / "labels" / "case11.nii.gz", folder / "labelsTr" / "radiopaedia_10_85902_1.nii.gz")
    folder = covid_zenodo.convert(tmp_path, 702, look=LUNGS, options=ONE)
    hounsfield = voxels(folder / "imagesTr" / "radiopaedia_10_85902_1_0000.nii.gz").astype(float)
    back = np.rint((hounsfield + 1250) * 255 / 1500)
    np.testing.assert_array_equal(
        back, voxels(folder.parent / "Dataset701_CovidZenodo/imagesTr" / "radiopaedia_10_85902_1_0000.nii.gz")
    )


def test_images_and_masks_without_each_other(source: Path, raw: Path, unchecked: None) -> None:
    shutil.copy(source / IMAGES / f"{NAMES[0]}.nii.gz", source / IMAGES / "coronacases_002.nii.gz")
    shutil.copy(source / "Lung_Mask" / f"{NAMES[0]}.nii.gz", source / "Lung_Mask" / "coronacases_003.nii.gz")
    folder = covid_zenodo.convert(source, 701, options=ONE)
    assert CaseTable.read(folder / "cases.csv").case_ids(Role.UNLABELLED) == ["coronacases_002"]
    found = report(folder)
    assert found.loc[str(source / "Lung_Mask" / "coronacases_003.nii.gz"), "status"] == "left out"


def test_two_series_of_a_test_subject(source: Path, raw: Path, unchecked: None) -> None:
    folder = covid_zenodo.convert(source, 701, test_subjects=["radiopaedia_10"], options=ONE)
    table = CaseTable.read(folder / "cases.csv")
    assert (table.case_ids(Role.LABELLED), table.case_ids(Role.TEST)) == ([NAMES[0]], list(NAMES[1:]))


def test_what_cannot_be_asked_for(source: Path, raw: Path) -> None:
    with pytest.raises(DatasetError, match="--classes ggo: these masks do not tell ground glass from consolidation"):
        covid_zenodo.convert(source, 701, look=Look(classes=Classes.GGO), options=ONE)
    assert not raw.exists()


def test_command(source: Path, raw: Path, unchecked: None) -> None:
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    arguments = ["convert", "covid-zenodo", "-i", str(source), "-d", "12", "--slices", "--keep-window"]
    result = CliRunner().invoke(app, [*arguments, "--classes", "lung-infection", "--strict", "--folds", "2"])
    assert result.exit_code == 0, result.output
    assert " converted, 0 skipped, " in result.output
    assert len(pd.read_csv(raw / "Dataset012_CovidZenodo" / "cases.csv")) == 15

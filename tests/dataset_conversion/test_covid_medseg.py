from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from nibabel import aff2axcodes, load
from typer.testing import CliRunner

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import convert as cli
from nnunet_qa.data.covid_phantom import write_medseg
from nnunet_qa.dataset_conversion import covid_medseg
from nnunet_qa.dataset_conversion.covid import Classes, Look
from nnunet_qa.errors import DatasetError, ImageError
from tests.dataset_conversion import covid_sets as sets
from tests.dataset_conversion.covid_sets import ONE, affine, chest, report, same_in_space, voxels, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_medseg(tmp_path / "source", [chest(1), chest(2, slices=3)], pool=chest(3, slices=2))


@pytest.mark.parametrize(("classes", "values"), [("ggo", (0, 1, 0, 0)), ("infection", (0, 1, 1, 0))])
def test_slices_labels_and_pool(source: Path, raw: Path, unchecked: None, classes: str, values: tuple[int]) -> None:
    folder = covid_medseg.convert(source, 701, look=Look(classes=Classes(classes)), options=ONE)
    table = CaseTable.read(folder / "cases.csv")
    assert table.case_ids(Role.LABELLED) == [f"medseg_tr_slice{index:03d}" for index in range(8)]
    assert table.case_ids(Role.UNLABELLED) == ["medseg_val_slice000", "medseg_val_slice001"]
    assert set(table.subjects().values()) == set(table.case_ids())  # nobody says whose slice is whose
    stack, masks = (voxels(source / f"{name}.nii.gz") for name in ("tr_im", "tr_mask"))
    for index in range(8):
        case = f"medseg_tr_slice{index:03d}"
        image, label = folder / "imagesTr" / f"{case}_0000.nii.gz", folder / "labelsTr" / f"{case}.nii.gz"
        np.testing.assert_array_equal(voxels(image)[0], stack[index])
        np.testing.assert_array_equal(voxels(label)[0], np.array(values)[masks[index]])
        same_in_space(source / "tr_im.nii.gz", image)
    same_in_space(source / "val_im.nii.gz", folder / "imagesUn" / "medseg_val_slice001_0000.nii.gz")
    content = json.loads((folder / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "CT"}
    assert list(content["labels"]) == ["background", classes]


def test_lung_masked_leaves_out_what_has_no_lungs(source: Path, raw: Path, unchecked: None) -> None:
    look = Look(classes=Classes.LUNG_INFECTION, lung_masked=True)
    folder = covid_medseg.convert(source, 701, look=look, options=ONE)
    stack, masks, lungs = (voxels(source / f"{name}.nii.gz") for name in ("tr_im", "tr_mask", "tr_lungmasks_updated"))
    image = voxels(folder / "imagesTr" / "medseg_tr_slice002_0000.nii.gz")[0]
    np.testing.assert_array_equal(image, np.where(lungs[2] > 0, stack[2], np.float32(-1024)))
    label = voxels(folder / "labelsTr" / "medseg_tr_slice002.nii.gz")[0]
    np.testing.assert_array_equal(label, np.where(np.isin(masks[2], (1, 2)), 2, lungs[2] > 0))
    assert not (folder / "imagesUn").exists()
    assert report(folder)["reason"]["medseg_tr_slice004"] == "no lung in it"
    assert not (folder / "imagesTr" / "medseg_tr_slice004_0000.nii.gz").exists()
    assert report(folder)["reason"]["medseg_val_slice000"] == "has no lung mask, which --lung-masked needs"


@pytest.mark.parametrize("axes", ["RAS", "SPINE_UP_AND_MIRRORED", "OBLIQUE"])
def test_every_slice_is_put_upright_by_itself(tmp_path: Path, raw: Path, unchecked: None, axes: str) -> None:
    one, matrix = chest(0), affine(getattr(sets, axes))
    for name, array in (("tr_im", one.image), ("tr_mask", one.findings)):
        write(tmp_path / f"{name}.nii", array, matrix)
    folder = covid_medseg.convert(tmp_path, 701, options=ONE)
    path = folder / "imagesTr" / "medseg_tr_slice001_0000.nii.gz"
    assert aff2axcodes(load(path).affine) == ("L", "P", "S")
    same_in_space(tmp_path / "tr_im.nii", path)
    assert sorted(np.unique(voxels(path))) == sorted(np.unique(one.image[1]))  # the second slice of the file


@pytest.mark.real_data
def test_real_pixels(real_data: Path, tmp_path: Path, raw: Path, unchecked: None) -> None:
    real = real_data / "covid19_ct"
    image, labels = real / "images" / "case01.nii.gz", voxels(real / "labels" / "case01.nii.gz")[8:12]
    for name, array in (("tr_im", voxels(image)[8:12]), ("tr_mask", labels // 2), ("tr_lungmasks_updated", labels)):
        write(tmp_path / f"{name}.nii.gz", array, load(image).affine)
    folder = covid_medseg.convert(tmp_path, 701, look=Look(classes=Classes.LUNG_INFECTION), options=ONE)
    for index in range(4):
        case = f"medseg_tr_slice{index:03d}"
        same_in_space(tmp_path / "tr_im.nii.gz", folder / "imagesTr" / f"{case}_0000.nii.gz")
        same_in_space(tmp_path / "tr_lungmasks_updated.nii.gz", folder / "labelsTr" / f"{case}.nii.gz")


def test_subjects_for_testing(source: Path, raw: Path, unchecked: None) -> None:
    wanted = ["medseg_tr_slice001", "medseg_val_slice000"]
    folder = covid_medseg.convert(source, 701, test_subjects=wanted, options=ONE)
    assert [path.name for path in (folder / "labelsTs").iterdir()] == ["medseg_tr_slice001.nii.gz"]
    assert len(list((folder / "labelsTr").iterdir())) == 7
    assert [path.name for path in (folder / "imagesUn").iterdir()] == ["medseg_val_slice001_0000.nii.gz"]
    (source / "val_im.nii.gz").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"val_im\.nii\.gz: cannot be read as an image"):
        covid_medseg.convert(source, 702, test_subjects=wanted, options=ONE)


def test_subjects_are_not_named_before_the_budget_is_checked(
    source: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_qa.dataset_conversion.budget.BUDGET", 10)
    monkeypatch.setattr("nnunet_qa.dataset_conversion.budget.RATIO", 0)
    with pytest.raises(ImageError, match=r"im\.nii\.gz: unpacks to"):
        covid_medseg.convert(source, 701, test_subjects=["medseg_tr_slice009"], options=ONE)


def test_bad_files(source: Path, tmp_path: Path, raw: Path, unchecked: None) -> None:
    with pytest.raises(DatasetError, match="no such folder; give the folder that holds tr_im"):
        covid_medseg.convert(tmp_path / "nowhere", 701, options=ONE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"neither tr_im\.nii\.gz nor val_im\.nii\.gz there"):
        covid_medseg.convert(tmp_path / "empty", 701, options=ONE)
    shutil.copy(source / "val_im.nii.gz", source / "tr_mask.nii.gz")
    with pytest.raises(DatasetError, match="no annotated case") as caught:
        covid_medseg.convert(source, 701, options=ONE)  # the pool alone is left
    assert "\n" not in str(caught.value)
    row = report(raw / "Dataset701_CovidMedSeg").loc["tr"]
    assert row["status"] == "skipped"
    assert "tr_mask.nii.gz: the mask has shape (2, 24, 24), its image (8, 24, 24)" in row["reason"]
    write(source / "tr_mask.nii.gz", voxels(source / "tr_lungmasks_updated.nii.gz"), affine(sets.CORONAL))
    write(source / "tr_im.nii.gz", voxels(source / "tr_im.nii.gz"), affine(sets.CORONAL))
    with pytest.raises(DatasetError, match="no annotated case"):
        covid_medseg.convert(source, 702, options=ONE)
    assert "by its header its last axis" in report(raw / "Dataset702_CovidMedSeg")["reason"]["tr"]
    (source / "tr_im.nii.gz").unlink()
    units, left_out = covid_medseg.find_parts(source)
    assert [unit.name for unit in units] == ["val"]
    assert [Path(found.name).name for found in left_out] == ["tr_mask.nii.gz", "tr_lungmasks_updated.nii.gz"]


def test_command(source: Path, raw: Path, unchecked: None) -> None:
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    arguments = ["convert", "covid-medseg", "-i", str(source), "-d", "12", "--classes", "ggo", "--size", "16x16"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert " converted, 0 skipped, " in result.output
    folder = raw / "Dataset012_CovidMedSeg"
    image = load(folder / "imagesTr" / "medseg_tr_slice001_0000.nii.gz")
    assert image.shape == (16, 16, 1)
    np.testing.assert_allclose(image.header.get_zooms(), (2.25, 2.25, 5))
    assert json.loads((folder / "conversion.json").read_text())["settings"]["classes"] == "ggo"

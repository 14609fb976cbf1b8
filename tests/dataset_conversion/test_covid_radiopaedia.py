from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from nibabel import aff2axcodes, load
from typer.testing import CliRunner

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import convert as cli
from nnunet_qa.data.covid_phantom import write_radiopaedia
from nnunet_qa.dataset_conversion import covid_radiopaedia
from nnunet_qa.dataset_conversion.covid import Classes, Look, Orientation
from nnunet_qa.dataset_conversion.engine import Options
from nnunet_qa.errors import DatasetError
from tests.dataset_conversion import covid_sets as sets
from tests.dataset_conversion.covid_sets import ONE, affine, chest, report, same_in_space, voxels, write

MASKED = Look(classes=Classes.LUNG_INFECTION, lung_masked=True, slices=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_radiopaedia(tmp_path / "source", [chest(1), chest(2)])


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPINE_UP_AND_MIRRORED", "CORONAL", "OBLIQUE"])
def test_round_trip(tmp_path: Path, raw: Path, unchecked: None, axes: str) -> None:
    one = chest(0)
    source = tmp_path / "source"
    matrix = affine(getattr(sets, axes))
    for name, array in (("rp_im", one.image), ("rp_msk", (one.findings % 3 > 0).astype(np.uint8))):
        write(source / name / "1.nii.gz", array, matrix)
    folder = covid_radiopaedia.convert(source, 701, look=Look(), options=ONE)
    image, label = folder / "imagesTr" / "radiopaedia_1_0000.nii.gz", folder / "labelsTr" / "radiopaedia_1.nii.gz"
    same_in_space(source / "rp_im" / "1.nii.gz", image)
    assert aff2axcodes(load(image).affine) == ("L", "P", "S")
    assert voxels(image).dtype == np.int16
    np.testing.assert_allclose(load(label).affine, load(image).affine)
    # any finding but effusion is infection; in this mask 1 stood for both
    same_in_space(source / "rp_msk" / "1.nii.gz", label)
    sliced = covid_radiopaedia.convert(source, 702, look=Look(slices=True), options=ONE)
    assert len(list((sliced / "imagesTr").iterdir())) == voxels(image).shape[0]
    for path in (sliced / "imagesTr").iterdir():
        same_in_space(source / "rp_im" / "1.nii.gz", path)


def test_masks_follow_the_axes_of_their_own_header(tmp_path: Path, raw: Path, unchecked: None) -> None:
    one, source = chest(0), tmp_path / "source"
    matrix = affine(sets.LPS)
    turned = matrix @ np.array([[1, 0, 0, 0], [0, -1, 0, 23], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write(source / "rp_im" / "1.nii", one.image, matrix)
    write(source / "rp_msk" / "1.nii.gz", one.findings[:, ::-1].astype(np.float32), turned)
    folder = covid_radiopaedia.convert(source, 701, look=Look(classes=Classes.GGO), options=ONE)
    np.testing.assert_array_equal(voxels(folder / "labelsTr" / "radiopaedia_1.nii.gz"), one.findings == 1)


def test_lung_masked_slices(source: Path, raw: Path, unchecked: None) -> None:
    folder = covid_radiopaedia.convert(source, 701, look=MASKED, options=ONE)
    table = CaseTable.read(folder / "cases.csv")
    assert len(table) == 6  # the first and the last slice of each volume hold no lung
    one = chest(1)
    image, label = (
        voxels(folder / part / f"radiopaedia_1_slice002{end}.nii.gz")[0]
        for part, end in (("imagesTr", "_0000"), ("labelsTr", ""))
    )
    lungs, findings = one.lungs[2] > 0, one.findings[2]
    np.testing.assert_array_equal(image, np.where(lungs, one.image[2], -1024))  # the burnt-in text is gone
    np.testing.assert_array_equal(label, np.where(np.isin(findings, (1, 2)), 2, lungs))
    row = table.frame.set_index("case_id").loc["radiopaedia_1_slice002"]
    assert (row["subject_id"], row["stack_id"], row["slice_index"]) == ("radiopaedia_1", "radiopaedia_1", 2)
    assert report(folder).loc["radiopaedia_2_slice004", "reason"] == "no lung in it"


def test_nnunet_takes_the_right_axis_for_the_slices(source: Path, raw: Path, unchecked: None) -> None:
    """It goes by the widest spacing, which shrinking a slice makes that of its pixels."""
    look = Look(slices=True, size=(8, 8))
    folder = covid_radiopaedia.convert(source, 701, look=look, options=ONE)
    spacings = [load(path).header.get_zooms() for path in (folder / "imagesTr").iterdir()]
    assert {zooms[:2] for zooms in spacings} == {(4.5, 4.5)}
    assert {zooms[2] for zooms in spacings} == {5.0}
    thick = covid_radiopaedia.convert(source, 702, look=Look(slices=True, size=(8, 48)), options=ONE)
    assert {tuple(load(path).header.get_zooms()) for path in (thick / "imagesTr").iterdir()} == {(0.75, 4.5, 5.0)}


def test_slices_of_a_test_subject(source: Path, raw: Path, unchecked: None) -> None:
    look = Look(slices=True, orientation=Orientation.LUNGS)
    folder = covid_radiopaedia.convert(source, 701, look=look, test_subjects=["radiopaedia_2"], options=ONE)
    roles = CaseTable.read(folder / "cases.csv").frame.groupby("subject_id")["role"].unique()
    assert roles.map(list).to_dict() == {"radiopaedia_1": ["labelled"], "radiopaedia_2": ["test"]}


def test_upright_by_the_lungs(tmp_path: Path, raw: Path, unchecked: None) -> None:
    one, source = chest(1), tmp_path / "source"
    for name, array in (("rp_im", one.image), ("rp_msk", one.findings), ("rp_lung_msk", one.lungs)):
        write(source / name / "1.nii.gz", array[:, ::-1], affine(sets.LPS))  # a header that is wrong
    look = Look(orientation=Orientation.LUNGS)
    folder = covid_radiopaedia.convert(source, 701, look=look, options=ONE)
    np.testing.assert_array_equal(voxels(folder / "imagesTr" / "radiopaedia_1_0000.nii.gz"), one.image)
    np.testing.assert_array_equal(voxels(folder / "labelsTr" / "radiopaedia_1.nii.gz"), np.isin(one.findings, (1, 2)))


@pytest.mark.real_data
def test_real_pixels(real_data: Path, tmp_path: Path, raw: Path, unchecked: None) -> None:
    real, source = real_data / "covid19_ct", tmp_path / "source"
    path, labels = real / "images" / "case11.nii.gz", voxels(real / "labels" / "case11.nii.gz")
    for name, array in (("rp_im", voxels(path)), ("rp_msk", labels // 2), ("rp_lung_msk", labels)):
        write(source / name / "11.nii.gz", np.minimum(array, 1) if name == "rp_lung_msk" else array, load(path).affine)
    folder = covid_radiopaedia.convert(source, 701, options=ONE)
    same_in_space(path, folder / "imagesTr" / "radiopaedia_11_0000.nii.gz")
    same_in_space(source / "rp_msk" / "11.nii.gz", folder / "labelsTr" / "radiopaedia_11.nii.gz")


def test_hostile_files_never_stop_the_others(source: Path, tmp_path: Path, raw: Path, unchecked: None) -> None:
    def copy(number: str, *parts: str) -> None:
        for part in parts:
            shutil.copy(source / part / "2.nii.gz", source / part / f"{number}.nii.gz")

    copy("pool", "rp_im", "rp_lung_msk")
    copy("lost", "rp_msk")
    copy("no lungs", "rp_im", "rp_msk")
    copy("Größe ' \"2", "rp_im", "rp_msk", "rp_lung_msk")
    for number in ("cut", "link", "values", "shape"):
        copy(number, "rp_im", "rp_msk", "rp_lung_msk")
    path = source / "rp_im" / "cut.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])
    outside = tmp_path / "outside.nii.gz"
    shutil.move(source / "rp_im" / "link.nii.gz", outside)
    (source / "rp_im" / "link.nii.gz").symlink_to(outside)
    shutil.copy(source / "rp_im" / "2.nii.gz", source / "rp_msk" / "values.nii.gz")
    write(source / "rp_lung_msk" / "shape.nii.gz", chest(2).lungs[1:], affine(sets.LPS))
    write(source / "rp_im" / "1.nii", chest(1).image, affine(sets.LPS))
    folder = covid_radiopaedia.convert(source, 701, look=Look(lung_masked=True), options=ONE)
    table = CaseTable.read(folder / "cases.csv")
    assert table.case_ids(Role.LABELLED) == ["radiopaedia_1", "radiopaedia_2", "radiopaedia_Gr_e_2"]
    assert table.case_ids(Role.UNLABELLED) == ["radiopaedia_pool"]
    reasons = report(folder)["reason"]
    assert "radiopaedia_no_lungs" in reasons.index
    assert reasons["radiopaedia_no_lungs"] == "has no lung mask, which --lung-masked needs"
    assert "cut.nii.gz: " in reasons["cut"]
    assert "link.nii.gz: is a symbolic link out of" in reasons["link"]
    assert "values.nii.gz: holds values from" in reasons["values"]
    assert "shape.nii.gz: the mask has shape (4, 24, 24)" in reasons["shape"]
    assert "has no image in" in reasons[str(source / "rp_msk" / "lost.nii.gz")]
    assert report(folder).index.str.endswith("rp_im/1.nii.gz").any()  # twice there, said so
    for base in (raw, raw.parent / "nnUNet_preprocessed"):
        assert [path.name for path in base.iterdir()] == [folder.name]
    assert {path.name for path in raw.parents[1].iterdir()} == {"source", "outside.nii.gz", "nnunet"}
    with pytest.raises(DatasetError, match=r"rp_im/1.nii.gz: is a second file of that name beside 1.nii"):
        covid_radiopaedia.convert(source, 702, options=Options(strict=True))
    (source / "rp_im" / "1.nii").unlink()
    (source / "rp_msk" / "lost.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"cut.nii.gz"):
        covid_radiopaedia.convert(source, 702, options=Options(strict=True))


def test_what_cannot_be_converted(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(DatasetError, match=r"rp_im: no such folder; give the folder that holds rp_im with -i"):
        covid_radiopaedia.convert(tmp_path, 701, options=ONE)
    (tmp_path / "rp_im").mkdir()
    with pytest.raises(DatasetError, match=r"rp_im: no .nii or .nii.gz file there"):
        covid_radiopaedia.convert(tmp_path, 701, options=ONE)
    with pytest.raises(DatasetError, match=r"--size 4x64 is too small"):
        Look(size=(4, 64))
    assert not raw.exists()


def test_command(source: Path, raw: Path, unchecked: None) -> None:
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    arguments = ["convert", "covid-radiopaedia", "-i", str(source), "-d", "12", "--name", "Mine", "--folds", "2"]
    more = ["--slices", "--lung-masked", "--size", "16x20", "--classes", "lung-infection", "--orientation", "lungs"]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 0, result.output
    image = voxels(raw / "Dataset012_Mine" / "imagesTr" / "radiopaedia_1_slice001_0000.nii.gz")
    assert image.shape == (1, 16, 20)
    assert image.min() == -1024

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import convert as cli
from nnunet_qa.data.covid_phantom import write_kaggle
from nnunet_qa.dataset_conversion import covid_kaggle
from nnunet_qa.dataset_conversion.covid import Classes, Look, Orientation
from nnunet_qa.dataset_conversion.covid_kaggle import Subset, parse_scans
from nnunet_qa.dataset_conversion.engine import Options
from nnunet_qa.errors import DatasetError, ImageError
from tests.dataset_conversion.covid_sets import ONE, chest, report, voxels

LUNGS = Look(classes=Classes.LUNG_INFECTION)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("executed"),)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_kaggle(tmp_path / "source", chest(1), chest(2, slices=4), pool=chest(3, slices=2))


def test_channels_subjects_and_pool(source: Path, raw: Path, unchecked: None) -> None:
    folder = covid_kaggle.convert(source, 701, look=LUNGS, scans=(1, 3), options=ONE)
    table = CaseTable.read(folder / "cases.csv")
    assert len(table.case_ids(Role.LABELLED)) == 9
    assert table.case_ids(Role.UNLABELLED) == ["test_medseg_slice000", "test_medseg_slice001"]
    for name, drawn in (("medseg", chest(1)), ("radiopedia", chest(2, slices=4))):
        for index in range(len(drawn.image)):
            case = f"{name}_slice{index:03d}"
            image = voxels(folder / "imagesTr" / f"{case}_0000.nii.gz")
            assert image.dtype == np.float32
            np.testing.assert_array_equal(image[0], drawn.image[index])
            infected = np.isin(drawn.findings[index], (1, 2))
            np.testing.assert_array_equal(
                voxels(folder / "labelsTr" / f"{case}.nii.gz")[0], np.where(infected, 2, drawn.lungs[index] > 0)
            )
    image = nibabel.load(folder / "imagesUn" / "test_medseg_slice001_0000.nii.gz")
    np.testing.assert_allclose(np.abs(image.affine), np.eye(4))
    rows = table.frame.set_index("case_id")
    assert rows.loc["medseg_slice002", "subject_id"] == "medseg_slice002"
    assert list(rows.loc[["radiopedia_slice000", "radiopedia_slice001", "radiopedia_slice003"], "subject_id"]) == [
        "radiopedia_1",
        "radiopedia_2",
        "radiopedia_2",
    ]
    assert rows.loc["radiopedia_slice003", "slice_index"] == 2


def test_subjects_for_testing(source: Path, raw: Path, unchecked: None) -> None:
    wanted = ["radiopedia_2,MEDSEG_slice001", "test_medseg_slice000"]
    folder = covid_kaggle.convert(source, 701, scans=(1, 3), test_subjects=wanted, options=ONE)
    table = CaseTable.read(folder / "cases.csv")
    tests = ["medseg_slice001", *(f"radiopedia_slice{index:03d}" for index in (1, 2, 3))]
    assert sorted(table.case_ids(Role.TEST)) == tests
    assert sorted(path.name[:-7] for path in (folder / "labelsTs").iterdir()) == tests
    assert table.case_ids(Role.UNLABELLED) == ["test_medseg_slice001"]
    assert "kept for testing" in report(folder).loc["test_medseg_slice000", "reason"]
    with pytest.raises(DatasetError, match='no subject "medseg_slice009"'):
        covid_kaggle.convert(source, 702, test_subjects=["medseg_slice009"], options=ONE)
    np.save(source / "images_medseg.npy", np.float32(1))
    with pytest.raises(ImageError, match=r"images_medseg\.npy: has the shape \(\); \(slices, rows, columns\)"):
        covid_kaggle.convert(source, 702, test_subjects=["medseg_slice001"], options=ONE)


def test_without_scans_the_slices_of_nine_patients_are_one_subject(source: Path, raw: Path, unchecked: None) -> None:
    look = Look(classes=Classes.GGO)
    folder = covid_kaggle.convert(source, 701, look=look, subset=Subset.RADIOPEDIA, options=ONE)
    table = CaseTable.read(folder / "cases.csv")
    assert set(table.frame[table.frame["role"] == "labelled"]["subject_id"]) == {"radiopedia"}
    assert not [case for case in table.case_ids() if case.startswith("medseg")]
    label = voxels(folder / "labelsTr" / "radiopedia_slice001.nii.gz")[0]
    np.testing.assert_array_equal(label, chest(2, slices=4).findings[1] == 1)


def test_upright_by_the_lungs(source: Path, raw: Path, unchecked: None) -> None:
    for path in source.iterdir():
        np.save(path, np.load(path)[:, ::-1])
    look = Look(orientation=Orientation.LUNGS)
    folder = covid_kaggle.convert(source, 701, look=look, subset=Subset.MEDSEG, options=ONE)
    for path, drawn in (("imagesTr/medseg", chest(1)), ("imagesUn/test_medseg", chest(3, slices=2))):
        np.testing.assert_array_equal(voxels(folder / f"{path}_slice001_0000.nii.gz")[0], drawn.image[1])
    stored = covid_kaggle.convert(source, 702, subset=Subset.MEDSEG, options=ONE)
    np.testing.assert_array_equal(
        voxels(stored / "imagesTr" / "medseg_slice001_0000.nii.gz")[0], chest(1).image[1][::-1]
    )


@pytest.mark.real_data
def test_real_pixels(real_data: Path, tmp_path: Path, raw: Path, unchecked: None) -> None:
    real = real_data / "covid19_ct"
    image, labels = (voxels(real / part / "case02.nii.gz")[10:13] for part in ("images", "labels"))
    np.save(tmp_path / "images_medseg.npy", image[..., None].astype(np.float32))
    channels = [labels == 2, np.zeros_like(labels), labels == 1, labels == 0]
    np.save(tmp_path / "masks_medseg.npy", np.stack(channels, axis=-1).astype(np.int8))
    folder = covid_kaggle.convert(tmp_path, 701, look=LUNGS, options=ONE)
    for index in range(3):
        case = f"medseg_slice{index:03d}"
        np.testing.assert_array_equal(voxels(folder / "imagesTr" / f"{case}_0000.nii.gz")[0], image[index])
        np.testing.assert_array_equal(voxels(folder / "labelsTr" / f"{case}.nii.gz")[0], labels[index])


def test_hostile_arrays_are_refused(
    source: Path, tmp_path: Path, raw: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    objects, plain, cut, zipped, text = (source / f"{name}.npy" for name in ("objects", "plain", "cut", "zip", "text"))
    np.save(objects, np.array([Evil()], dtype=object), allow_pickle=True)
    plain.write_bytes(pickle.dumps(Evil()))
    cut.write_bytes((source / "images_medseg.npy").read_bytes()[:-4])
    np.savez(source / "zip.npz", np.zeros(3))
    (source / "zip.npz").rename(zipped)
    np.save(text, np.array(["a", "b"]))
    for path in (objects, plain, cut, zipped, source / "missing.npy"):
        with pytest.raises(ImageError, match=f"{path.name}: cannot be read as an .npy array of numbers") as caught:
            covid_kaggle.open_array(path, source)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match=r"text\.npy: holds no numbers"):
        covid_kaggle.open_array(text, source)
    shutil.move(source / "images_medseg.npy", tmp_path / "outside.npy")
    (source / "images_medseg.npy").symlink_to(tmp_path / "outside.npy")
    shutil.copy(objects, source / "test_images_medseg.npy")
    folder = covid_kaggle.convert(source, 701, options=ONE)
    reasons = report(folder)["reason"]
    assert "images_medseg.npy: is a symbolic link out of" in reasons["medseg"]
    assert "test_images_medseg.npy: cannot be read" in reasons["test_medseg"]
    assert len(CaseTable.read(folder / "cases.csv")) == 4
    assert not Path("executed").exists()


def test_what_does_not_fit(source: Path, raw: Path, unchecked: None) -> None:
    masks = np.load(source / "masks_medseg.npy")
    images = np.load(source / "images_medseg.npy")
    masks[0] = 0
    images[1, 3, 4] = np.nan
    np.save(source / "masks_medseg.npy", masks)
    np.save(source / "images_medseg.npy", images[..., 0])
    np.save(source / "masks_radiopedia.npy", masks[..., :3])
    folder = covid_kaggle.convert(source, 701, options=ONE)
    reasons = report(folder)["reason"]
    assert reasons["medseg_slice000"] == "its mask marks nothing, not even background"
    assert reasons["medseg_slice001"] == "1 intensities are NaN or infinite"
    assert "masks_radiopedia.npy: has the shape (5, 24, 24, 3); (slices, rows, columns, 4)" in reasons["radiopedia"]
    with pytest.raises(DatasetError, match=r"^medseg_slice000: its mask marks nothing"):
        covid_kaggle.convert(source, 703, options=Options(strict=True))
    np.save(source / "masks_radiopedia.npy", masks[1:, :-1])
    np.save(source / "masks_medseg.npy", masks[1:])
    with pytest.raises(DatasetError, match="no annotated case was found"):
        covid_kaggle.convert(source, 702, options=ONE)
    reasons = report(raw / "Dataset702_CovidKaggle")["reason"]
    assert "has the shape (4, 24, 24, 4), its images (5, 24, 24)" in reasons["medseg"]
    np.save(source / "masks_radiopedia.npy", masks[1:])
    unit = covid_kaggle.find_arrays(source)[0][1]
    with pytest.raises(DatasetError, match=r"--scans: are 5 slices, .*images_radiopedia\.npy holds 4"):
        list(covid_kaggle.read_slices(unit.content, look=Look(), scans=(2, 3)))
    with pytest.raises(DatasetError, match='--scans "3,x": give the slices'):
        parse_scans("3,x")
    (source / "images_radiopedia.npy").unlink()
    _, left_out = covid_kaggle.find_arrays(source)
    assert [(Path(one.name).name, one.reason) for one in left_out] == [
        ("masks_radiopedia.npy", "has no image images_radiopedia.npy")
    ]
    with pytest.raises(DatasetError, match=r"no images_medseg\.npy there"):
        covid_kaggle.find_arrays(raw.parent)


def test_command(source: Path, raw: Path, unchecked: None) -> None:
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    arguments = ["convert", "covid-kaggle", "-i", str(source), "-d", "12", "--lung-masked", "--size", "16x20"]
    result = CliRunner().invoke(app, [*arguments, "--subset", "radiopedia", "--scans", "2,2", "--folds", "2"])
    assert result.exit_code == 0, result.output
    assert " converted, 0 skipped, " in result.output
    folder = raw / "Dataset012_CovidKaggle"
    image = voxels(folder / "imagesTr" / "radiopedia_slice001_0000.nii.gz")
    assert image.shape == (1, 16, 20)
    assert image.min() == -1024
    assert (folder.parents[1] / "nnUNet_preprocessed" / folder.name / "splits_final.json").is_file()

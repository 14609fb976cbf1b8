from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.images import Geometry
from nnunet_qa.data.raw_dataset import RawDataset, check_integrity
from nnunet_qa.errors import CaseTableError, DatasetError, EnvironmentVariableError, ImageError
from nnunet_qa.files import write_json

IMAGE = np.arange(48, dtype=np.uint8).reshape(6, 8)
LABEL = (IMAGE > 20).astype(np.uint8)


def dataset(**changes: Any) -> RawDataset:
    entries: dict[str, Any] = {
        "channel_names": ("OCT",), "labels": {"background": 0, "fluid": 1}, "file_ending": ".png", "settings": {"a": 1},
    }  # fmt: skip
    return RawDataset.named(5, "Test", **{**entries, **changes})


def row(case: str, role: Role = Role.LABELLED, subject: str = "") -> dict[str, object]:
    return {"case_id": case, "role": role.value, "subject_id": subject}


def test_every_role_has_its_folder_and_nnunet_finds_no_fault(fresh_folders: Path) -> None:
    raw = dataset()
    raw.begin()
    rows = []
    for subject in range(3):
        raw.write_case(f"S{subject}", Role.LABELLED, [IMAGE], LABEL)
        rows.append(row(f"S{subject}"))
    raw.write_case("T", Role.TEST, [IMAGE], LABEL)
    raw.write_case("T2", Role.TEST, [IMAGE])
    raw.write_case("U", Role.UNLABELLED, [IMAGE])
    rows += [row("T", Role.TEST), row("T2", Role.TEST), row("U", Role.UNLABELLED)]
    table = raw.finish(rows, folds=2)
    files = {str(path.relative_to(raw.folder)) for path in raw.folder.rglob("*.png")}
    assert files == {
        *(f"imagesTr/S{n}_0000.png" for n in range(3)), *(f"labelsTr/S{n}.png" for n in range(3)),
        "imagesTs/T_0000.png", "labelsTs/T.png", "imagesTs/T2_0000.png", "imagesUn/U_0000.png",
    }  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(raw.folder / "imagesTr/S1_0000.png")), IMAGE)
    np.testing.assert_array_equal(np.asarray(Image.open(raw.folder / "labelsTr/S1.png")), LABEL)
    content = json.loads((raw.folder / "dataset.json").read_text())
    assert content["numTraining"] == 3
    assert content["channel_names"] == {"0": "OCT"}
    assert CaseTable.read(raw.folder / "cases.csv").case_ids() == table.case_ids()
    splits = json.loads((fresh_folders / "nnUNet_preprocessed" / raw.folder.name / "splits_final.json").read_text())
    assert sorted(case for fold in splits for case in fold["val"]) == ["S0", "S1", "S2"]


def test_a_volume_keeps_values_and_place(fresh_folders: Path) -> None:
    raw = dataset(file_ending=".nii.gz", channel_names=("T1", "T2"))
    raw.begin()
    volume = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    angle = np.deg2rad(20)
    turned = (np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1)
    geometry = Geometry((0.5, 0.7, 3.0), (10.0, -20.0, 30.0), tuple(map(float, turned)))
    raw.write_case("A", Role.LABELLED, [volume, volume + 1], np.ones(volume.shape, np.uint8), geometry=geometry)
    for channel in range(2):
        image = nibabel.load(raw.folder / "imagesTr" / f"A_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), (volume + channel).T)
        np.testing.assert_allclose(image.header.get_zooms(), geometry.spacing, rtol=1e-6)
        # nibabel counts in RAS, SimpleITK in LPS
        expected = np.diag([-1, -1, 1]) @ np.array(turned).reshape(3, 3) @ np.diag(geometry.spacing)
        np.testing.assert_allclose(image.affine[:3, :3], expected, atol=1e-5)
        np.testing.assert_allclose(image.affine[:3, 3], [-10, 20, 30], atol=1e-5)
    np.testing.assert_allclose(nibabel.load(raw.folder / "labelsTr" / "A.nii.gz").affine, image.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "label", "role", "text"),
    [
        ([IMAGE, IMAGE], LABEL, Role.LABELLED, "A: has 2 channels, the dataset 1"),
        ([IMAGE], LABEL[:5], Role.LABELLED, r"A: the mask has shape \(5, 8\), its image \(6, 8\)"),
        ([IMAGE], LABEL * 7, Role.LABELLED, r"A \(mask\): label value 7 is not in dataset.json \(allowed: 0, 1\)"),
        ([np.where(IMAGE == 3, np.nan, IMAGE)], LABEL, Role.LABELLED, "A: 1 of 48 intensities are NaN or infinite"),
        ([np.where(IMAGE < 3, np.inf, IMAGE)], LABEL, Role.LABELLED, "A: 3 of 48 intensities"),
        ([IMAGE], None, Role.LABELLED, "role labelled does not fit a case without label"),
        ([IMAGE], LABEL, Role.UNLABELLED, "role unlabelled does not fit a case with label"),
    ],
)
def test_bad_cases_are_named_and_nothing_is_written(
    fresh_folders: Path, images: list[np.ndarray], label: np.ndarray | None, role: Role, text: str
) -> None:
    raw = dataset()
    raw.begin()
    with pytest.raises(ImageError, match=text):
        raw.write_case("A", role, images, label)
    assert not list(raw.folder.rglob("*.png"))


def test_a_case_that_is_there_is_known(fresh_folders: Path) -> None:
    raw = dataset()
    raw.begin()
    raw.write_case("A", Role.TEST, [IMAGE])
    assert raw.has_case("A", Role.TEST, labelled=False)
    assert not raw.has_case("A", Role.TEST, labelled=True)
    assert not raw.has_case("A", Role.LABELLED, labelled=False)


def test_other_settings_need_overwrite(fresh_folders: Path) -> None:
    raw = dataset()
    raw.begin()
    raw.write_case("A", Role.UNLABELLED, [IMAGE])
    raw.begin()
    assert raw.has_case("A", Role.UNLABELLED, labelled=False)
    other = dataset(settings={"a": 2, "b": 1})
    with pytest.raises(DatasetError, match=r"other settings \(a, b\); start anew with --overwrite"):
        other.begin()
    other.begin(overwrite=True)
    assert not raw.has_case("A", Role.UNLABELLED, labelled=False)


def test_overwriting_never_deletes_its_own_source(fresh_folders: Path) -> None:
    raw = dataset()
    raw.begin()
    raw.write_case("A", Role.LABELLED, [IMAGE], LABEL)
    source = raw.folder / "imagesTr"
    with pytest.raises(DatasetError, match="which --overwrite deletes"):
        dataset(settings={"source": str(source)}).begin(overwrite=True)
    assert any(source.iterdir())


def test_a_folder_of_other_origin_is_left_alone(fresh_folders: Path) -> None:
    raw = dataset()
    (raw.folder / "imagesTr").mkdir(parents=True)
    (raw.folder / "imagesTr" / "precious.png").touch()
    for overwrite in (False, True):
        with pytest.raises(DatasetError, match="was not written by a conversion"):
            raw.begin(overwrite=overwrite)
    assert (raw.folder / "imagesTr" / "precious.png").exists()


def test_a_kill_before_the_record_was_there_can_be_resumed(fresh_folders: Path) -> None:
    raw = dataset()
    raw.folder.mkdir(parents=True)
    (raw.folder / ".partial-123-conversion.json").write_text("{")
    raw.begin()
    assert [path.name for path in raw.folder.iterdir()] == ["conversion.json"]


def test_leftovers_of_a_killed_run_are_removed(fresh_folders: Path) -> None:
    raw = dataset()
    raw.begin()
    raw.write_case("A", Role.LABELLED, [IMAGE], LABEL)
    left = raw.folder / "imagesTr" / ".partial-123-B_0000.png"
    left.touch()
    raw.begin()
    assert not left.exists()
    left.touch()  # of one of several workers, killed during the run
    raw.finish([row("A")])
    assert not left.exists()


def test_doubled_cases_and_no_annotated_case_are_refused(fresh_folders: Path) -> None:
    raw = dataset()
    raw.begin()
    with pytest.raises(CaseTableError, match='the case "A" stands there more than once'):
        raw.finish([row("A"), row("A")])
    with pytest.raises(DatasetError, match="no annotated case was found"):
        raw.finish([row("A", Role.UNLABELLED)])
    assert not (raw.folder / "dataset.json").exists()


def test_what_nnunet_finds_fault_with_is_no_dataset(fresh_folders: Path) -> None:
    raw = dataset()
    raw.begin()
    raw.write_case("A", Role.LABELLED, [IMAGE], LABEL)
    raw.write_case("B", Role.LABELLED, [IMAGE], LABEL)
    (raw.folder / "labelsTr" / "B.png").unlink()
    with pytest.raises(DatasetError, match=r"integrity check failed.*B"):
        raw.finish([row("A"), row("B")])
    assert not (raw.folder / "dataset.json").exists()
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        check_integrity(raw.folder)


def test_one_subject_gets_no_folds(fresh_folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw = dataset()
    raw.begin()
    raw.write_case("A", Role.LABELLED, [IMAGE], LABEL)
    raw.write_case("B", Role.LABELLED, [IMAGE], LABEL)
    stale = fresh_folders / "nnUNet_preprocessed" / raw.folder.name / "splits_final.json"
    write_json(stale, [])  # of an earlier conversion
    raw.finish([row("A", subject="S"), row("B", subject="S")])
    assert not (fresh_folders / "nnUNet_preprocessed" / raw.folder.name / "splits_final.json").exists()
    assert "train with fold `all`" in caplog.text


def test_numbers_and_paths_are_checked(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset().begin()
    with pytest.raises(DatasetError, match="the number 5 is taken"):
        RawDataset.named(5, "Other", channel_names=("OCT",), labels={}, file_ending=".png", settings={})
    with pytest.raises(DatasetError, match="is no dataset name"):
        RawDataset.named(5000, "X", channel_names=("OCT",), labels={}, file_ending=".png", settings={})
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(EnvironmentVariableError, match="nnUNet_raw is not set"):
        dataset()


def test_a_conversion_does_not_undo_a_promotion(fresh_folders: Path) -> None:
    raw = dataset()
    raw.begin()
    for case in ("A", "B"):
        raw.write_case(case, Role.LABELLED, [IMAGE], LABEL)
    raw.finish([row("A"), row("B")])
    raw.begin()  # the same conversion again is no harm
    content = json.loads((raw.folder / "dataset.json").read_text())
    (raw.folder / "dataset.json").write_text(json.dumps({**content, "numTraining": 3}))
    with pytest.raises(DatasetError, match="cases were promoted since its conversion"):
        raw.begin()
    (raw.folder / "promote.json").write_text("{}")
    with pytest.raises(DatasetError, match="a promotion of cases was interrupted"):
        raw.begin(overwrite=True)
    assert (raw.folder / "labelsTr" / "A.png").exists()

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.splits import check_splits, grouped_splits
from nnunet_qa.errors import CaseTableError, DatasetError, ImageError
from tests.data.promotion import CASES, prepare, run, state
from tests.small import GEOMETRY, NAME, annotate, snapshot, tiny_dataset, tiny_label, write_tiny


@pytest.mark.parametrize(("ending", "channels"), [(".png", 1), (".png", 2), (".nii.gz", 1), (".nii.gz", 2)])
def test_cases_move_with_their_labels(tmp_path: Path, ending: str, channels: int) -> None:
    folder = prepare(tmp_path, ending=ending, channels=channels)
    before = snapshot(folder)
    done = run(tmp_path)
    assert done.cases == CASES
    assert (done.annotated, done.pool, done.already, done.waiting) == (5, 1, (), ())
    after = snapshot(folder)
    for case in CASES:
        for channel in range(channels):
            name = f"{case}_{channel:04d}{ending}"
            assert after[f"{NAME}/imagesTr/{name}"] == before[f"{NAME}/imagesUn/{name}"]
            assert f"{NAME}/imagesUn/{name}" not in after
        label = tmp_path / "labels" / f"{case}{ending}"
        assert after[f"{NAME}/labelsTr/{case}{ending}"] == label.read_bytes()
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 5
    table = CaseTable.read(folder / "cases.csv")
    assert table.case_ids(Role.LABELLED) == ["S1_a", "S1_b", "S2_a", "S3_a", "S4_a"]
    assert table.case_ids(Role.UNLABELLED) == ["S4_b"]
    splits = json.loads((tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json").read_text())
    subjects = {case: table.subjects()[case] for case in table.case_ids(Role.LABELLED)}
    check_splits(splits, subjects, "splits")
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(subjects)
    assert not (folder / "promote.json").exists()
    assert not list(tmp_path.rglob(".partial-*"))


def test_nnunet_accepts_the_dataset_afterwards(tmp_path: Path) -> None:
    from nnunet_qa.data.raw_dataset import check_integrity

    folder = prepare(tmp_path, channels=2)
    run(tmp_path)
    check_integrity(folder)


def test_without_table_and_folds(tmp_path: Path) -> None:
    folder = prepare(tmp_path, table=False, splits=False)
    done = run(tmp_path)
    assert not (folder / "cases.csv").exists()
    written = json.loads((tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json").read_text())
    assert written == done.splits == grouped_splits({case: case for case in ("S1_a", "S1_b", "S2_a", "S3_a", "S4_a")})


def test_too_few_subjects_for_folds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_dataset(tmp_path, labelled=("S1_a",), pool=("S1_b",))
    annotate(tmp_path / "labels", "S1_b")
    assert run(tmp_path).splits is None
    assert "no folds written" in caplog.text
    assert not (tmp_path / "nnUNet_preprocessed").exists()


def test_few_folds_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare(tmp_path, pool=("S1_b", "S4_a", "S5_a"))
    annotate(tmp_path / "labels", "S5_a")
    run(tmp_path)
    assert "only 3 folds" in caplog.text


def test_folds_in_the_raw_folder_follow(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    preprocessed = tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json"
    (folder / "splits_final.json").write_text(json.dumps(json.loads(preprocessed.read_text())[:2]))
    run(tmp_path)
    assert json.loads((folder / "splits_final.json").read_text()) == json.loads(preprocessed.read_text())[:2]


def test_folds_that_lie_only_in_the_raw_folder_are_kept(tmp_path: Path) -> None:
    folder = prepare(tmp_path, splits=False)
    own = [{"train": ["S1_a"], "val": ["S2_a", "S3_a"]}]
    (folder / "splits_final.json").write_text(json.dumps(own))
    done = run(tmp_path)
    assert done.splits == [{"train": ["S1_a", "S1_b"], "val": ["S2_a", "S3_a", "S4_a"]}]
    preprocessed = tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json"
    assert preprocessed.read_bytes() == (folder / "splits_final.json").read_bytes()


def test_two_splits_files_that_disagree_are_refused(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["S1_a"], "val": ["S2_a"]}]))
    with pytest.raises(DatasetError, match="holds other folds than"):
        run(tmp_path)


def test_chosen_cases_only(tmp_path: Path) -> None:
    prepare(tmp_path)
    assert run(tmp_path, cases=["S4_a"]).cases == ("S4_a",)
    assert (tmp_path / "nnUNet_raw" / NAME / "imagesUn" / "S1_b_0000.png").is_file()


def test_optional_labels(tmp_path: Path) -> None:
    prepare(tmp_path)
    done = run(tmp_path, cases=["S4_b", "S4_a"], labels_optional=True)
    assert (done.cases, done.waiting) == (("S4_a",), ("S4_b",))


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    prepare(tmp_path)
    before = state(tmp_path)
    assert run(tmp_path, dry_run=True).cases == CASES
    assert state(tmp_path) == before


def test_the_second_run_finds_nothing_to_do(tmp_path: Path) -> None:
    prepare(tmp_path)
    run(tmp_path)
    before = state(tmp_path)
    done = run(tmp_path)
    assert (done.cases, done.already) == ((), CASES)
    assert state(tmp_path) == before


def test_labels_drawn_in_place(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    annotate(folder / "labelsTr", *CASES)
    done = run(tmp_path, labels=folder / "labelsTr")
    assert done.cases == CASES
    assert done.already == ("S1_a", "S2_a", "S3_a")


def _other_shape(base: Path, folder: Path) -> None:
    write_tiny(base / "labels/S4_a.png", np.zeros((6, 9), np.uint8))


def _unknown_value(base: Path, folder: Path) -> None:
    write_tiny(base / "labels/S4_a.png", np.full((6, 8), 7, np.uint8))


def _truncated(base: Path, folder: Path) -> None:
    path = base / "labels/S4_a.png"
    path.write_bytes(path.read_bytes()[:30])


def _colours(base: Path, folder: Path) -> None:
    from skimage import io

    io.imsave(base / "labels/S4_a.png", np.zeros((6, 8, 3), np.uint8), check_contrast=False)


def _channel_missing(base: Path, folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    content["channel_names"]["1"] = "second"
    (folder / "dataset.json").write_text(json.dumps(content))


def _not_in_pool(base: Path, folder: Path) -> None:
    annotate(base / "labels", "S4_aa")


def _relabelled(base: Path, folder: Path) -> None:
    write_tiny(base / "labels/S1_a.png", 2 - tiny_label("S1_a"))


def _in_both(base: Path, folder: Path) -> None:
    write_tiny(folder / "imagesTr/S4_a_0000.png", np.zeros((6, 8), np.uint8))
    (folder / "labelsTr/S4_a.png").write_bytes(b"")


def _label_left(base: Path, folder: Path) -> None:
    write_tiny(folder / "labelsTr/S4_a.png", np.zeros((6, 8), np.uint8))


def _listed(base: Path, folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "dataset": {}}))


def _no_labels(base: Path, folder: Path) -> None:
    for path in (base / "labels").iterdir():
        path.rename(path.with_suffix(".nii"))


def _parted(base: Path, folder: Path) -> None:
    path = base / "nnUNet_preprocessed" / NAME / "splits_final.json"
    path.write_text(json.dumps([{"train": ["S1_a"], "val": ["S1_a"]}]))


def _test_case(base: Path, folder: Path) -> None:
    CaseTable.read(folder / "cases.csv").with_role(["S4_a"], Role.TEST).write(folder / "cases.csv")


def _not_in_table(base: Path, folder: Path) -> None:
    path = folder / "cases.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "S4_a" not in line))


def _annotated_not_in_table(base: Path, folder: Path) -> None:
    path = folder / "cases.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "S2_a" not in line))


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (_other_shape, ImageError, r"S4_a\.png: has shape \(1, 6, 9\)"),
        (_unknown_value, ImageError, r"S4_a\.png: label value 7"),
        (_truncated, ImageError, r"S4_a\.png: nnU-Net cannot read it"),
        (_colours, ImageError, r"S4_a\.png: has 3 channels"),
        (_channel_missing, ImageError, r"S1_b_0000\.png: the case has 1 channels, dataset.json names 2"),
        (_not_in_pool, DatasetError, r'"S4_aa" is not in .*did you mean "S4_a"'),
        (_relabelled, DatasetError, r'"S1_a" is in imagesTr already, with another label'),
        (_in_both, DatasetError, r'"S4_a" is in imagesUn and in imagesTr'),
        (_label_left, DatasetError, r"labelsTr/S4_a\.png: is there already"),
        (_listed, DatasetError, "lists its cases itself"),
        (_no_labels, DatasetError, r"no label <case_id>\.png there \(found S1_b\.nii\)"),
        (_parted, DatasetError, 'in fold 0 the subject "S1" is on both sides'),
        (_test_case, CaseTableError, '"S4_a" is a test case'),
        (_not_in_table, CaseTableError, '"S4_a" is not in cases.csv'),
        (_annotated_not_in_table, CaseTableError, '"S2_a" of imagesTr is missing'),
    ],
)
def test_a_fault_in_one_case_stops_all(
    tmp_path: Path, spoil: Callable[[Path, Path], None], error: type[Exception], text: str
) -> None:
    spoil(tmp_path, prepare(tmp_path))
    before = state(tmp_path)
    with pytest.raises(error, match=text) as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert state(tmp_path) == before


def test_a_missing_label_and_a_missing_folder(tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(DatasetError, match=r"S4_b\.png: not found"):
        run(tmp_path, cases=["S4_a", "S4_b"])
    with pytest.raises(DatasetError, match=r"S4_b\.png: not found"):
        run(tmp_path, cases=["S4_b"], labels_optional=True)
    with pytest.raises(DatasetError, match="no such folder"):
        run(tmp_path, labels=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (np.full((1, 6, 8), 0.5, np.float32), r"holds fractions \(0\.5\)"),
        (np.full((1, 6, 8), np.nan, np.float32), "48 of 48 intensities are NaN"),
    ],
)
def test_volumes_with_values_that_are_no_labels(tmp_path: Path, label: np.ndarray, text: str) -> None:
    # not NIfTI: SimpleITK's reader for it, which nnU-Net uses, turns NaN to 0
    prepare(tmp_path, ending=".mha")
    write_tiny(tmp_path / "labels/S4_a.mha", label)
    with pytest.raises(ImageError, match=text):
        run(tmp_path)


def test_volumes_on_another_grid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare(tmp_path, ending=".nii.gz")
    path = tmp_path / "labels/S4_a.nii.gz"
    image = sitk.ReadImage(str(path))
    image.SetOrigin((5.0, 0.0, 0.0))
    sitk.WriteImage(image, str(path))
    run(tmp_path, dry_run=True)
    assert "another origin than its image" in caplog.text
    image.SetSpacing((0.5, 0.6, 2.0))
    sitk.WriteImage(image, str(path))
    with pytest.raises(ImageError, match=r"has spacing 2 x 0\.6 x 0\.5, its image 2 x 0\.5 x 0\.5"):
        run(tmp_path)
    assert GEOMETRY.spacing == (0.5, 0.5, 2.0)


@pytest.mark.parametrize("folder", ["labels", f"nnUNet_raw/{NAME}/imagesUn"])
def test_volumes_that_are_cut_off(tmp_path: Path, folder: str) -> None:
    prepare(tmp_path, ending=".nii.gz")
    path = tmp_path / folder / ("S4_a.nii.gz" if folder == "labels" else "S4_a_0000.nii.gz")
    path.write_bytes(path.read_bytes()[:-20])
    before = state(tmp_path)
    with pytest.raises(ImageError, match=f"{path.name}: cannot be read as an image"):
        run(tmp_path)
    assert state(tmp_path) == before


def test_float_volumes_of_whole_values_are_labels(tmp_path: Path) -> None:
    prepare(tmp_path, ending=".nii.gz")
    write_tiny(tmp_path / "labels/S4_a.nii.gz", np.ones((1, 6, 8), np.float32))
    assert run(tmp_path).cases == CASES

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.cine_files import cycle_of_pair, geometry, pair_names, whole_numbers, write_frames, write_nifti
from nnunet_qa.data.cine_phantom import Cine, aortic_cine, short_axis_cine
from nnunet_qa.data.images import Geometry
from nnunet_qa.errors import DatasetError, ImageError
from tests.data.test_cine_warp import discs
from tests.small import GEOMETRY, write_tiny


def draw(seed: int = 0, frames: int = 5) -> Cine:
    rng = np.random.default_rng(seed)
    return short_axis_cine(rng, frames=frames, slices=7, shape=(62, 60), spacing=(12.0, 4.0, 4.2))


@pytest.fixture(scope="module")
def cine() -> Cine:
    return draw()


@pytest.fixture(scope="module")
def aorta() -> Cine:
    return aortic_cine(np.random.default_rng(0), frames=4, shape=(64, 66), spacing=(6.0, 3.2, 3.4))


def test_series_as_uk_biobank_pipelines_have_them(tmp_path: Path, cine: Cine) -> None:
    paths = write_nifti(tmp_path, "1000001", cine)
    assert [path.name for path in paths] == [
        "label_sa_ED.nii.gz",
        "label_sa_ES.nii.gz",
        "label_sa.nii.gz",
        "sa.nii.gz",
    ]
    image = nib.load(tmp_path / "1000001" / "sa.nii.gz")
    assert image.shape == (60, 62, 7, 5)
    np.testing.assert_allclose(image.header.get_zooms(), (4.2, 4.0, 12.0, cine.frame_time), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, np.rint(cine.image))
    labels = np.asarray(nib.load(tmp_path / "1000001" / "label_sa.nii.gz").dataobj).T
    np.testing.assert_array_equal(labels, cine.mask)
    for phase, frame in (("ED", 0), ("ES", cine.end_systole)):
        label = nib.load(tmp_path / "1000001" / f"label_sa_{phase}.nii.gz")
        np.testing.assert_array_equal(np.asarray(label.dataobj).T, cine.mask[frame])
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)


def test_an_independent_library_measures_the_designed_volumes(tmp_path: Path, cine: Cine) -> None:
    write_nifti(tmp_path, "1000001", cine)
    series = sitk.ReadImage(str(tmp_path / "1000001" / "label_sa.nii.gz"))
    for frame in range(5):
        measured = sitk.LabelShapeStatisticsImageFilter()
        measured.Execute(series[:, :, :, frame])
        for value, name in ((1, "lv"), (2, "myocardium"), (3, "rv")):
            assert measured.GetPhysicalSize(value) / 1000 == pytest.approx(cine.curves[name][frame], rel=0.01)


def test_short_axis_slices_run_oblique_and_from_base_to_apex(cine: Cine, aorta: Cine) -> None:
    place = geometry(cine)
    direction = np.reshape(place.direction, (3, 3))
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-9)
    left, down, apex = direction.T
    assert left[0] > 0.5  # along a row to the patient's left (LPS)
    assert down[2] < -0.5  # rows downwards
    assert apex[0] > 0
    assert apex[2] < 0  # the apex is to the left and below the base
    centre = np.array(place.origin) + direction @ (np.array(place.spacing) * (np.array([60, 62, 7]) - 1) / 2)
    np.testing.assert_allclose(centre, 0, atol=1e-9)
    np.testing.assert_allclose(geometry(aorta).direction, np.eye(3).ravel())


@pytest.mark.parametrize(
    ("annotated", "names"),
    [("ed_es", {"ao", "label_ao_ED", "label_ao_ES"}), ("none", {"ao"})],
)
def test_fewer_annotations(tmp_path: Path, aorta: Cine, annotated: str, names: set[str]) -> None:
    write_nifti(tmp_path, "7", aorta, annotated=annotated)
    assert {path.name for path in (tmp_path / "7").iterdir()} == {f"{name}.nii.gz" for name in names}


def test_intensities_that_cannot_be_stored(cine: Cine) -> None:
    for factor in (1e-3, 1e3):
        changed = Cine(**{**vars(cine), "image": cine.image * factor})
        with pytest.raises(ImageError, match="cannot be stored as 16-bit whole numbers"):
            whole_numbers(changed)


class Counting(Mapping[str, tuple[str, Cine]]):
    """Draws on access and counts it."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.drawn = names, []

    def __getitem__(self, stack: str) -> tuple[str, Cine]:
        self.drawn.append(stack)
        return f"P{stack}", draw(self.names.index(stack))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def test_frames_become_cases_of_a_raw_dataset(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # nnU-Net's own check starts processes; the test of the docs page runs it
    monkeypatch.setattr("nnunet_qa.data.raw_dataset.check_integrity", lambda *_, **__: None)
    folder = fresh_folders / "nnUNet_raw" / "Dataset301_Cine"
    stacks = Counting(("a", "b", "c", "d"))
    roles = {"labelled": ("a", "b"), "unlabelled": ("c",), "test": ("d",)}
    table = write_frames(folder, stacks, **roles)
    assert stacks.drawn == ["a", "b", "c", "d"]  # each once, so that one at a time is in memory
    drawn = draw(0)
    end = drawn.end_systole
    assert table.case_ids(Role.LABELLED) == ["a_fr000", f"a_fr{end:03d}", "b_fr000", f"b_fr{draw(1).end_systole:03d}"]
    assert table.case_ids(Role.UNLABELLED) == [f"c_fr{frame:03d}" for frame in range(5)]
    assert table.case_ids(Role.TEST) == [f"d_fr{frame:03d}" for frame in range(5)]
    frame = CaseTable.read(folder / "cases.csv").frame.set_index("case_id")
    row = frame.loc[f"a_fr{end:03d}"]
    assert (row["subject_id"], row["stack_id"], row["frame_index"], row["phase"]) == ("Pa", "a", end, "ES")
    assert frame.loc["c_fr000", "phase"] == "ED"
    assert frame.loc["c_fr004", "phase"] == ""
    described = json.loads((folder / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "lv": 1, "myocardium": 2, "rv": 3}
    assert not (folder / "labelsUn").exists()
    label = sitk.ReadImage(str(folder / "labelsTr" / f"a_fr{end:03d}.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), drawn.mask[end])
    assert label.GetSpacing() == pytest.approx((4.2, 4.0, 12.0))
    folds = json.loads((fresh_folders / "nnUNet_preprocessed" / folder.name / "splits_final.json").read_text())
    for fold in folds:
        assert {case[0] for case in fold["train"]}.isdisjoint({case[0] for case in fold["val"]})
    assert write_frames(folder, stacks, **roles).frame.equals(table.frame)  # a rerun changes nothing
    with pytest.raises(DatasetError, match="other settings"):
        write_frames(folder, stacks, **roles, frames_per_labelled="all")
    every = write_frames(folder, stacks, **roles, frames_per_labelled="all", overwrite=True)
    assert len(every.case_ids(Role.LABELLED)) == 10


def test_roles_that_do_not_fit(fresh_folders: Path, cine: Cine, aorta: Cine) -> None:
    folder = fresh_folders / "nnUNet_raw" / "Dataset302_Cine"
    stacks = {"a": ("A", cine), "b": ("B", aorta)}
    with pytest.raises(DatasetError, match="no stack is labelled"):
        write_frames(folder, stacks, labelled=[], test=["a"])
    with pytest.raises(DatasetError, match='"a" has two roles'):
        write_frames(folder, stacks, labelled=["a"], unlabelled=["a"])
    with pytest.raises(DatasetError, match='"c" has a role but no images'):
        write_frames(folder, stacks, labelled=["c"])
    assert not folder.exists()
    with pytest.raises(DatasetError, match="b: is of the view ao, others are sa"):
        write_frames(folder, stacks, labelled=["a", "b"])


def test_pairs_from_files(tmp_path: Path) -> None:
    for phase, (image, mask) in (("ED", discs(26.0)), ("ES", discs(15.0))):
        write_tiny(tmp_path / "images" / f"p1_{phase}.nii.gz", image.astype(np.float32), exactly=True)
        write_tiny(tmp_path / "labels" / f"p1_{phase}.nii.gz", mask.astype(np.uint8), exactly=True)
    images, labels = tmp_path / "images", tmp_path / "labels"
    assert pair_names(images) == ["p1"]
    assert cycle_of_pair(images, labels, "p1", frames=3).spacing == (2.0, 0.5, 0.5)  # as the files say
    assert cycle_of_pair(images, labels, "p1", frames=3, spacing=(8.0, 1.4, 1.4)).spacing == (8.0, 1.4, 1.4)
    (tmp_path / "labels" / "p1_ED.nii.gz").rename(tmp_path / "labels" / "kept")
    with pytest.raises(ImageError, match=r"p1_ED\.nii\.gz: not found"):
        cycle_of_pair(images, labels, "p1")
    (images / "p1_ES.nii.gz").rename(labels / "p1_ED.nii.gz")
    with pytest.raises(ImageError, match=r"p1_ES\.nii\.gz: not found; a cycle needs both"):
        pair_names(images)
    with pytest.raises(ImageError, match="holds no files"):
        pair_names(tmp_path)


def test_pairs_of_another_spacing_or_size_are_refused(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    parts = {"ED": discs(26.0), "ES": discs(15.0)}
    for phase, (image, mask) in parts.items():
        write_tiny(images / f"p1_{phase}.nii.gz", image.astype(np.float32), exactly=True)
        write_tiny(labels / f"p1_{phase}.nii.gz", mask.astype(np.uint8), exactly=True)
    other = Geometry((0.5, 0.6, 2.0), GEOMETRY.origin, GEOMETRY.direction)
    for folder, number in ((images, 0), (labels, 1)):
        path, array = folder / "p1_ES.nii.gz", parts["ES"][number].astype(np.uint8)
        write_tiny(path, array, other, exactly=True)
        with pytest.raises(
            ImageError, match=r"p1_ES\.nii\.gz: has the spacing 2 × 0\.6 × 0\.5 mm, the ED image 2 × 0\.5 × 0\.5 mm;"
        ):
            cycle_of_pair(images, labels, "p1", frames=3)
        assert cycle_of_pair(images, labels, "p1", frames=3, spacing=(2.0, 0.5, 0.5)).spacing == (2.0, 0.5, 0.5)
        write_tiny(path, array[:, :-1], exactly=True)
        with pytest.raises(ImageError, match=r"^p1: the ES image has shape"):
            cycle_of_pair(images, labels, "p1", frames=3)
        write_tiny(path, array, exactly=True)
    for folder, number in ((images, 0), (labels, 1)):
        write_tiny(folder / "p1_ES.nii.gz", parts["ES"][number][:, :-1].astype(np.uint8), exactly=True)
    with pytest.raises(ImageError, match=r"^p1: slices at ED have .* pixels and at ES"):
        cycle_of_pair(images, labels, "p1", frames=3)

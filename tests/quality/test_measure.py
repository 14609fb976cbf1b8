from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.data.existing import case_images
from nnunet_qa.data.phantoms import SubjectLook, draw_bscan
from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.quality.image_quality import METRICS, Definition, image_quality
from nnunet_qa.quality.measure import COLUMNS, images_in, measure_cases
from nnunet_qa.quality.roi import Roi, lungs, retina
from tests.quality.test_roi import chest
from tests.small import tiny_dataset, write_tiny


def volume(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (4, 16, 20)).astype(np.uint8)


def write(folder: Path, ending: str, **arrays: np.ndarray) -> dict[str, list[Path]]:
    for case, array in arrays.items():
        write_tiny(folder / f"{case}_0000{ending}", array)
    return case_images(folder, ending)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
@pytest.mark.parametrize("definition", Definition)
def test_volumes_slice_by_slice(tmp_path: Path, ending: str, definition: Definition) -> None:
    images = write(tmp_path / "images", ending, b=volume(0), a=volume(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = measure_cases(images, file_ending=ending, definition=definition, show_progress=False)
    assert table.columns.tolist() == list(COLUMNS)
    assert table["case_id"].tolist() == ["a"] * 5 + ["b"] * 5
    assert table["level"].tolist() == (["case"] + ["slice"] * 4) * 2
    assert table["slice_index"].tolist() == [pd.NA, 0, 1, 2, 3] * 2
    expected = image_quality(volume(1), definition=definition)
    for name in METRICS:
        assert table[name][1:5].to_numpy() == pytest.approx(getattr(expected, name), rel=1e-12)
        assert table[name][0] == pytest.approx(np.median(getattr(expected, name)), rel=1e-12)


def test_a_nearly_empty_slice_does_not_decide_a_volume(tmp_path: Path) -> None:
    scan = np.random.default_rng(0).integers(0, 255, (5, 16, 20)).astype(np.uint8)
    scan[4] = 0
    scan[4, 8, 10] = 1
    table = measure_cases(write(tmp_path, ".nii.gz", a=scan), file_ending=".nii.gz", show_progress=False)
    others = image_quality(scan[:4]).blurriness
    assert table["blurriness"][5] > 1000 * others.max()
    assert others.min() <= table["blurriness"][0] <= others.max()


def test_pictures_channels_and_processes(tmp_path: Path) -> None:
    images = {}
    for number in range(3):
        for channel in range(2):
            write_tiny(tmp_path / f"c{number}_000{channel}.png", volume(number)[channel])
    images = case_images(tmp_path, ".png")
    table = measure_cases(images, file_ending=".png", channel=1, jobs=2, show_progress=False)
    cases = table[table["level"] == "case"]
    expected = [image_quality(volume(number)[1:2]).psnr_inv[0] for number in range(3)]
    assert cases["psnr_inv"].tolist() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(DatasetError, match='"c0" has no channel 2; it has 2'):
        measure_cases(images, file_ending=".png", channel=2)


def test_masks_and_labels(tmp_path: Path) -> None:
    images = write(tmp_path / "images", ".nii.gz", a=volume(0))
    labels = np.zeros((4, 16, 20), dtype=np.uint8)
    labels[1, 2:9, 3:8] = 1
    labels[2, 5:11, 3:9] = 2
    write_tiny(tmp_path / "masks" / "a.nii.gz", labels)
    common = {"file_ending": ".nii.gz", "masks": tmp_path / "masks", "show_progress": False}
    both = measure_cases(images, roi=Roi.MASK, **common)
    second = measure_cases(images, roi=Roi.LABELS, labels=[2], **common)
    means = [volume(0)[z][labels[z] > 0].mean() for z in (1, 2)]  # of two slices the median is the mean
    assert both["roi_mean"][0] == pytest.approx(np.mean(means))
    assert both["roi_mean"].isna().tolist() == [False, True, False, False, True]
    assert second["roi_mean"][0] == pytest.approx(means[1])
    assert both["blurriness"][0] == pytest.approx(np.median(image_quality(volume(0)).blurriness))
    with pytest.raises(ImageError, match=r'a\.nii\.gz: the region of interest \(labels\) of the case "a" is empty'):
        measure_cases(images, roi=Roi.LABELS, labels=[3], **common)


def test_masks_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    images = write(tmp_path / "images", ".nii.gz", a=volume(0))
    with pytest.raises(DatasetError, match="needs a folder of masks"):
        measure_cases(images, file_ending=".nii.gz", roi=Roi.MASK)
    with pytest.raises(DatasetError, match="no such folder"):
        measure_cases(images, file_ending=".nii.gz", roi=Roi.MASK, masks=tmp_path / "none")
    with pytest.raises(DatasetError, match=r"a\.nii\.gz: not found"):
        measure_cases(images, file_ending=".nii.gz", roi=Roi.MASK, masks=tmp_path / "images")
    write_tiny(tmp_path / "masks" / "a.nii.gz", np.ones((4, 16, 21), dtype=np.uint8))
    with pytest.raises(ImageError, match=r"masks/a\.nii\.gz: the mask has shape"):
        measure_cases(images, file_ending=".nii.gz", roi=Roi.MASK, masks=tmp_path / "masks", show_progress=False)


def test_regions_that_are_found(tmp_path: Path) -> None:
    hu, _ = chest()
    rng = np.random.default_rng(0)
    bscan = draw_bscan(rng, look=SubjectLook.draw(rng, severity=0.5), rows=124, columns=192).image
    found = measure_cases(
        write(tmp_path, ".nii.gz", ct=hu), file_ending=".nii.gz", roi=Roi.LUNGS, offset=1500, show_progress=False
    )
    assert found["roi_mean"][1] == pytest.approx(hu[0][lungs(hu)[0]].mean() + 1500)  # lungs found in HU
    found = measure_cases(write(tmp_path, ".png", oct=bscan), file_ending=".png", roi=Roi.RETINA, show_progress=False)
    assert found["cov"][0] == pytest.approx(image_quality(bscan[None], retina(bscan[None])).cov[0])
    masked = volume(0) * (volume(1) > 100)
    found = measure_cases(
        write(tmp_path, ".mha", masked=masked), file_ending=".mha", roi=Roi.NONZERO, show_progress=False
    )
    assert found["roi_mean"][1] == pytest.approx(masked[0][masked[0] > 0].mean())


@pytest.mark.parametrize("roi", [Roi.RETINA, Roi.LUNGS])
def test_regions_that_are_not_there(tmp_path: Path, roi: Roi) -> None:
    images = write(tmp_path, ".png", noise=np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    with pytest.raises(ImageError, match=r"noise_0000\.png: (no retina found|the region of interest)"):
        measure_cases(images, file_ending=".png", roi=roi, show_progress=False)


def test_constant_slices_are_left_out_and_a_constant_volume_is_refused(tmp_path: Path) -> None:
    padded = volume(0)
    padded[[0, 3]] = 0
    table = measure_cases(write(tmp_path, ".nii.gz", a=padded), file_ending=".nii.gz", show_progress=False)
    expected = image_quality(volume(0)[1:3])
    assert table["blurriness"][0] == pytest.approx(expected.blurriness.mean())
    assert table["cov"][0] == pytest.approx(expected.cov.mean())
    images = write(tmp_path, ".nii.gz", b=np.full((4, 16, 20), 9, dtype=np.uint8))
    with pytest.raises(ImageError, match=r'b_0000\.nii\.gz: the case "b" is constant \(all intensities are 9\)'):
        measure_cases(images, file_ending=".nii.gz", show_progress=False)


@pytest.mark.parametrize("kind", [np.int16, np.float32])
@pytest.mark.parametrize("definition", Definition)
def test_negative_intensities_need_an_offset(tmp_path: Path, kind: type, definition: Definition) -> None:
    hu = volume(0).astype(kind) - 100
    images = write(tmp_path, ".nii.gz", a=hu)
    common = {"file_ending": ".nii.gz", "definition": definition, "show_progress": False}
    for offset in (0, -int(hu.min()) - 1):
        with pytest.raises(ImageError, match=f'"a" has intensities down to {hu.min():g}, .* --offset 1024 for HU'):
            measure_cases(images, offset=offset, **common)
    found = measure_cases(images, offset=1024, **common)
    expected = image_quality(hu.astype(np.float64) + 1024, definition=definition)
    for name in METRICS:
        assert found[name][1:5].to_numpy() == pytest.approx(getattr(expected, name), rel=1e-10)


def test_an_offset_does_not_change_what_is_nonzero(tmp_path: Path) -> None:
    masked = volume(0) * (volume(1) > 100).astype(np.int16)
    images = write(tmp_path, ".mha", a=masked)
    found = measure_cases(images, file_ending=".mha", roi=Roi.NONZERO, offset=7, show_progress=False)
    assert found["roi_mean"][1] == pytest.approx(masked[0][masked[0] > 0].mean() + 7)


def test_a_case_without_a_quotient(tmp_path: Path) -> None:
    steps = np.repeat(np.arange(4), 16 * 20).reshape(4, 16, 20).astype(np.uint8)
    images = write(tmp_path, ".nii.gz", a=steps)
    with pytest.raises(ImageError, match='blurriness of the case "a" is not defined: every slice is constant'):
        measure_cases(images, file_ending=".nii.gz", show_progress=False)


def test_a_damaged_file_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "a_0000.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a_0000\.png: cannot be read"):
        measure_cases(case_images(tmp_path, ".png"), file_ending=".png", show_progress=False)
    with pytest.raises(DatasetError, match="no image"):
        measure_cases({}, file_ending=".png")


def test_images_in_any_folder(tmp_path: Path) -> None:
    raw = tiny_dataset(tmp_path, channels=2)
    images, ending = images_in(raw / "imagesTr")
    assert ending == ".png"
    assert [path.name for path in images["S1_a"]] == ["S1_a_0000.png", "S1_a_0001.png"]
    assert images_in(raw / "labelsTr")[0] == {case: [raw / "labelsTr" / f"{case}.png"] for case in images}
    (raw / "labelsTr" / "x.nii.gz").touch()
    with pytest.raises(DatasetError, match=r"different endings \(\.nii\.gz, \.png\)"):
        images_in(raw / "labelsTr")
    with pytest.raises(DatasetError, match="holds no image"):
        images_in(tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        images_in(tmp_path / "none")


@pytest.mark.parametrize(
    ("names", "cases", "channels"),
    [
        (["a_0000", "a_0001", "b_0000", "b_0001"], 2, 2),
        (["a_0000", "b_0000"], 2, 1),
        (["a_0000"], 1, 1),
        ([f"slice_{number:04d}" for number in range(5)], 5, 1),  # one case only
        (["slice_0000", "slice_0001"], 2, 1),
        ([f"{scan}_{number:04d}" for scan in "ab" for number in range(5)], 10, 1),  # more than four channels
        (["scan_a", "scan_b", "scan_2019"], 3, 1),  # not every file has a channel
        (["a_0000", "a_0001", "b_0000"], 3, 1),  # not every case has as many
        (["a_0001", "b_0001"], 2, 1),  # they do not begin with 0
        (["a_0000", "a_0002", "b_0000", "b_0002"], 4, 1),
    ],
)
def test_no_file_is_lost_to_numbers_that_are_no_channels(
    tmp_path: Path, names: list[str], cases: int, channels: int
) -> None:
    for name in names:
        (tmp_path / f"{name}.png").touch()
    images, _ = images_in(tmp_path)
    assert len(images) == cases
    assert {len(paths) for paths in images.values()} == {channels}
    assert sorted(path.stem for paths in images.values() for path in paths) == sorted(names)

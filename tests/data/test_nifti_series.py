from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_qa.data.nifti_series import read_nifti_series
from nnunet_qa.errors import ImageError
from tests.small_cine import FRAME_TIME, SPACING, heart, write_nifti


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4", ">f8"])
def test_a_series_is_read_as_simpleitk_reads_it(tmp_path: Path, ending: str, kind: str) -> None:
    labels = heart().astype(kind)
    path = tmp_path / f"a{ending}"
    header = nibabel.Nifti1Header(endianness=">" if kind.startswith(">") else "<")
    header.set_data_dtype(kind)
    header.set_xyzt_units("mm", "sec")
    image = nibabel.Nifti1Image(labels.T, np.diag([*SPACING[::-1], 1.0]), header)
    image.header.set_zooms((*SPACING[::-1], FRAME_TIME))
    image.to_filename(path)
    series, other = read_nifti_series(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(series.labels, sitk.GetArrayFromImage(other))
    np.testing.assert_allclose((*series.spacing[::-1], series.frame_time), other.GetSpacing(), rtol=1e-6)  # type: ignore


def test_nifti_2_scaling_and_units(tmp_path: Path) -> None:
    labels = heart().astype(np.int16)
    image = nibabel.Nifti2Image(labels.T, np.eye(4))
    image.header.set_zooms((1e-3, 2e-3, 8e-3, 40.0))
    image.header.set_xyzt_units("meter", "msec")
    image.header.set_slope_inter(2.0, 1.0)
    image.to_filename(tmp_path / "a.nii.gz")
    series = read_nifti_series(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(series.labels, nibabel.load(tmp_path / "a.nii.gz").get_fdata().T)
    assert len(np.unique(series.labels)) == 4
    np.testing.assert_allclose(series.spacing, (8, 2, 1))  # type: ignore[arg-type]
    assert series.frame_time == pytest.approx(0.04)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_no_valid_slope_is_no_scaling(tmp_path: Path, slope: float) -> None:
    path = write_nifti(tmp_path / "a.nii", heart())
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, 3.0], "<f4").tobytes()
    path.write_bytes(content)
    np.testing.assert_array_equal(read_nifti_series(path).labels, heart())


def test_a_volume_is_one_frame_and_a_picture_one_slice(tmp_path: Path) -> None:
    labels = heart()[0]
    series = read_nifti_series(write_nifti(tmp_path / "a.nii.gz", labels))
    assert (series.labels.shape, series.frame_time) == ((1, *labels.shape), None)
    np.testing.assert_array_equal(series.labels[0], labels)
    nibabel.Nifti1Image(labels[0].T, np.eye(4)).to_filename(tmp_path / "b.nii")
    np.testing.assert_array_equal(read_nifti_series(tmp_path / "b.nii").labels[0, 0], labels[0])


@pytest.mark.parametrize(
    ("place", "spacing", "time"), [(80, None, FRAME_TIME), (88, None, FRAME_TIME), (92, SPACING, None)]
)
def test_sizes_of_0_are_unknown(tmp_path: Path, place: int, spacing: object, time: float | None) -> None:
    path = write_nifti(tmp_path / "a.nii", heart())
    content = bytearray(path.read_bytes())
    content[place : place + 4] = bytes(4)  # one of pixdim 1, 3 and 4; SimpleITK takes 1 for it
    path.write_bytes(content)
    series = read_nifti_series(path)
    assert series.spacing == spacing
    assert series.frame_time == (None if time is None else pytest.approx(time))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", heart())
    whole = gzip.decompress(path.read_bytes())

    def refused(content: bytes, said: str) -> None:
        path.write_bytes(content)
        with pytest.raises(ImageError, match=rf"a\.nii\.gz: {said}"):
            read_nifti_series(path)

    refused(gzip.compress(whole)[:-200], "cannot be read as an image")
    refused(gzip.compress(whole[:-10]), f"is cut off: {len(whole) - 10} of {len(whole)} bytes")
    refused(gzip.compress(whole[:100]), "cannot be read as an image")
    refused(gzip.compress(bytes(1000)), "cannot be read as an image: it has no NIfTI header")
    refused(b"no gzip at all", "cannot be read as an image")
    refused(b"", "cannot be read as an image")
    refused(gzip.compress(whole[:70] + (128).to_bytes(2, "little") + whole[72:]), r"its values \(NIfTI data type 128\)")
    path.unlink()
    with pytest.raises(ImageError, match="not found"):
        read_nifti_series(path)
    nibabel.Nifti1Image(np.zeros((2, 2, 2, 2, 3), np.uint8), np.eye(4)).to_filename(path)
    with pytest.raises(ImageError, match="a series has the axes x, y, z and time"):
        read_nifti_series(path)

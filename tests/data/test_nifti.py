from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_qa.data.images import write_image
from nnunet_qa.data.nifti import check_nifti
from nnunet_qa.errors import ImageError

VOLUME = np.random.default_rng(0).integers(0, 9, (9, 40, 40), np.int16)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0, 3, 200, 2000, 0.5, -8, -1])
def test_a_file_that_ends_too_early(tmp_path: Path, ending: str, kept: float) -> None:
    path = tmp_path / f"a{ending}"
    write_image(path, VOLUME)
    check_nifti(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(ImageError, match=r"cut off|cannot be read") as caught:
        check_nifti(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_versions_and_byte_orders(tmp_path: Path, kind: type, order: str) -> None:
    path = tmp_path / "a.nii"
    image = kind(VOLUME.astype(np.float32), np.eye(4), kind.header_class(endianness=order))
    nibabel.save(image, path)
    check_nifti(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError, match=r"is cut off: 5\d{4} of 5\d{4} bytes"):
        check_nifti(path)


def test_damaged_compression(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_image(path, VOLUME)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ImageError, match="cannot be read"):
        check_nifti(path)


def test_no_nifti_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"x" * 1000))
    with pytest.raises(ImageError, match="no NIfTI header"):
        check_nifti(tmp_path / "a.nii.gz")
    with pytest.raises(ImageError, match="not found"):
        check_nifti(tmp_path / "b.nii")
    check_nifti(tmp_path / "b.mha")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_values_that_are_no_numbers(tmp_path: Path, kind: type, dtype: type, ending: str, order: str) -> None:
    """SimpleITK would read them as 0; here they are found wherever they stand, in files of several blocks too."""
    volume = np.random.default_rng(0).normal(size=(67, 71, 97)).astype(dtype)
    path = tmp_path / f"a{ending}"
    header = kind.header_class(endianness=order)
    nibabel.save(kind(volume, np.eye(4), header), path)
    check_nifti(path)
    for place, value in (((0, 0, 0), np.nan), ((66, 70, 96), np.inf), ((33, 5, 60), -np.inf)):
        volume[place] = value
    nibabel.save(kind(volume, np.eye(4), header), path)
    with pytest.raises(ImageError, match="3 intensities are NaN or infinite"):
        check_nifti(path)


def test_other_data_types_have_no_such_values(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.full((5, 6, 7), -1, np.int16), np.eye(4)), path)  # all bits set
    check_nifti(path)

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_qa.data.images import Geometry
from nnunet_qa.dataset_conversion.volume_files import onto_grid, read_source_volume
from nnunet_qa.errors import DatasetError, ImageError

C, S = np.cos(0.5), np.sin(0.5)


def volume(rng: np.random.Generator, size: tuple[int, int, int] = (9, 11, 13)) -> sitk.Image:
    image = sitk.GetImageFromArray(rng.integers(0, 4, size=size[::-1]).astype(np.uint8))
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((10.0, -20.0, 5.0))
    image.SetDirection((C, -S, 0, S, C, 0, 0, 0, 1))
    return image


@pytest.mark.parametrize("change", ["same", "flipped", "permuted", "cropped"])
def test_masks_on_a_moved_grid_land_where_a_resampler_puts_them(change: str) -> None:
    image = volume(np.random.default_rng(0))
    mask = {
        "same": lambda: image,
        "flipped": lambda: sitk.Flip(image, (True, False, True)),
        "permuted": lambda: sitk.PermuteAxes(image, (2, 0, 1)),
        "cropped": lambda: image[2:7, 1:9, 3:12],
    }[change]()
    expected = sitk.GetArrayFromImage(sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor))
    found = onto_grid(sitk.GetArrayFromImage(mask), Geometry.of(mask), expected.shape, Geometry.of(image), "mask")
    np.testing.assert_array_equal(found, expected)
    assert found.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SetSpacing": (0.5, 0.75, 6.0)}, "another grid"),
        ({"SetOrigin": (10.2, -20.0, 5.0)}, "another grid"),
        ({"SetDirection": (1, 0, 0, 0, 1, 0, 0, 0, 1)}, "another grid"),
        ({"SetOrigin": (10.0, -20.0, 35.0)}, "outside its image"),
    ],
)
def test_masks_that_would_need_resampling_are_refused(change: dict[str, tuple[float, ...]], message: str) -> None:
    image = volume(np.random.default_rng(0))
    moved = sitk.Image(image)
    for setter, value in change.items():
        getattr(moved, setter)(value)
    array = sitk.GetArrayFromImage(image)
    with pytest.raises(ImageError, match=f"mask.nii: .*{message}"):
        onto_grid(array, Geometry.of(moved), array.shape, Geometry.of(image), "mask.nii")


@pytest.mark.parametrize("flip", [False, True])
def test_a_mask_needs_little_memory(flip: bool) -> None:
    image = sitk.GetImageFromArray(np.ones((50, 100, 100), np.uint8))
    mask = sitk.Flip(image, (flip, False, False))
    array = sitk.GetArrayFromImage(mask)
    tracemalloc.start()
    onto_grid(array, Geometry.of(mask), array.shape, Geometry.of(image), "mask")
    assert tracemalloc.get_traced_memory()[1] < 3 * array.nbytes
    tracemalloc.stop()


def test_an_empty_mask_outside_its_image_stays_empty() -> None:
    image, mask = volume(np.random.default_rng(0)), volume(np.random.default_rng(0), (3, 4, 5)) * 0
    mask.SetOrigin(image.TransformIndexToPhysicalPoint((-20, 40, -9)))
    found = onto_grid(sitk.GetArrayFromImage(mask), Geometry.of(mask), (13, 11, 9), Geometry.of(image), "mask")
    assert found.shape == (13, 11, 9)
    assert not found.any()


def test_one_slice_is_a_volume_and_a_series_of_volumes_is_not(tmp_path: Path) -> None:
    flat = sitk.GetImageFromArray(np.arange(12, dtype=np.int16).reshape(3, 4))
    flat.SetSpacing((0.5, 0.25))
    sitk.WriteImage(flat, str(tmp_path / "flat.mha"))
    array, geometry = read_source_volume(tmp_path / "flat.mha", tmp_path)
    np.testing.assert_array_equal(array[0], np.arange(12).reshape(3, 4))
    assert geometry.spacing == (0.5, 0.25, 1.0)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.int16)), str(tmp_path / "cine.nii"))
    with pytest.raises(ImageError, match=r"cine.nii: is not one volume"):
        read_source_volume(tmp_path / "cine.nii", tmp_path)


def test_headers_may_point_to_files_beside_them_alone(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    image = volume(np.random.default_rng(0))
    for ending in (".mhd", ".nhdr", ".mha", ".nrrd"):
        path = source / f"image{ending}"
        sitk.WriteImage(image, str(path))
        np.testing.assert_array_equal(read_source_volume(path, source)[0], sitk.GetArrayFromImage(image))
    (tmp_path / "image.raw").write_bytes((source / "image.raw").read_bytes())
    header = (source / "image.mhd").read_text(encoding="utf-8")
    (source / "image.mhd").write_text(header.replace("ElementDataFile = ", "ElementDataFile: ../"), encoding="utf-8")
    with pytest.raises(ImageError, match="must be one file in the same folder"):
        read_source_volume(source / "image.mhd", source)
    (source / "image.mha").write_text(header.replace("ElementDataFile = ", "ElementDataFile: ../"), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"takes its voxels from \.\./"):
        read_source_volume(source / "image.mha", source)
    decoy = "elementdatafile = LOCAL\nElementDataFile = ../"
    (source / "image.mha").write_text(header.replace("ElementDataFile = ", decoy), encoding="utf-8")
    with pytest.raises(ImageError, match="must name an ElementDataFile"):
        read_source_volume(source / "image.mha", source)
    header = (source / "image.nhdr").read_text(encoding="utf-8")
    outside = re.sub("data file: ", "data file: ../", header)
    for text, reason in (
        (outside, r"takes its voxels from \.\./image"),
        (outside.replace("data file", "data file:=LOCAL\ndata file"), r"takes its voxels from \.\./image"),
        (outside.replace("data file", "data file: LOCAL\ndata file"), "names 2 data files"),
        (outside.replace("data file", f"# {'x' * 70000}\ndata file"), "does not end within"),
    ):
        for ending in (".nhdr", ".nrrd"):
            (source / f"image{ending}").write_text(text + "\n\n", encoding="utf-8")
            with pytest.raises((DatasetError, ImageError), match=reason):
                read_source_volume(source / f"image{ending}", source)
    (source / "link.mha").symlink_to(tmp_path / "image.raw")
    with pytest.raises(DatasetError, match="symbolic link"):
        read_source_volume(source / "link.mha", source)

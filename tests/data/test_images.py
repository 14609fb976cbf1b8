from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage import io

from nnunet_qa.data.images import (
    Geometry,
    check_finite,
    check_label_values,
    check_same_grid,
    holds_volumes,
    label_values,
    read_array,
    read_picture,
    read_volume,
    write_image,
)
from nnunet_qa.errors import ImageError, StorageError

GEOMETRY = Geometry((0.5, 0.75, 3.0), (1.0, -2.0, 3.0), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_pictures_are_read_as_written(tmp_path: Path, ending: str) -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(6, 8)
    write_image(tmp_path / f"a{ending}", picture)
    again = read_picture(tmp_path / f"a{ending}")
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, picture)


def test_sixteen_bits(tmp_path: Path) -> None:
    picture = np.array([[0, 40000], [65535, 7]], np.uint16)
    write_image(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), picture)


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_become_luminance(tmp_path: Path, channels: int) -> None:
    colours = np.full((2, 3, channels), 255, np.uint8)
    colours[0, 0, :3] = 100, 100, 100
    colours[0, 1, :3] = 255, 0, 0
    io.imsave(tmp_path / "a.png", colours, check_contrast=False)
    grey = read_picture(tmp_path / "a.png")
    assert grey.shape == (2, 3)
    assert grey.dtype == np.uint8
    assert (grey[0, 0], grey[0, 1], grey[1, 2]) == (100, round(0.2126 * 255), 255)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_are_read_as_written(tmp_path: Path, ending: str) -> None:
    volume = np.arange(24, dtype=np.int16).reshape(2, 3, 4) - 5
    write_image(tmp_path / f"a{ending}", volume, GEOMETRY)
    again, geometry = read_volume(tmp_path / f"a{ending}")
    assert again.dtype == np.int16
    np.testing.assert_array_equal(again, volume)
    assert geometry.spacing == pytest.approx(GEOMETRY.spacing)
    assert geometry.origin == pytest.approx(GEOMETRY.origin)
    assert geometry.direction == pytest.approx(GEOMETRY.direction)
    reference = sitk.ReadImage(str(tmp_path / f"a{ending}"))
    assert reference.GetSize() == (4, 3, 2)
    assert reference.GetSpacing() == pytest.approx((0.5, 0.75, 3.0))


def test_a_volume_without_geometry_has_a_grid_of_one_mm(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.uint8))
    assert read_volume(tmp_path / "a.nii.gz")[1].spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("name", "reader"), [("a.png", read_picture), ("a.mha", read_volume)])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, reader: object) -> None:
    path = tmp_path / name
    with pytest.raises(ImageError, match="not found"):
        reader(path)  # type: ignore[operator]
    write_image(path, np.random.default_rng(0).integers(0, 9, (9, 40, 40) if "mha" in name else (40, 40), np.uint8))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ImageError, match="cannot be read as an image") as caught:
        reader(path)  # type: ignore[operator]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stack_is_no_picture(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 6, 7), np.uint8))
    with pytest.raises(ImageError, match=r"not a single 2D picture \(shape \(5, 6, 7\)\)"):
        read_picture(tmp_path / "a.tif")


def test_arrays_that_a_format_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.nii\.gz: could not be written"):
        write_image(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.float16))
    with pytest.raises(ImageError, match=r"a\.png: could not be written"):
        write_image(tmp_path / "a.png", np.zeros((2, 2), np.complex64))
    assert list(tmp_path.iterdir()) == []


def test_an_image_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_image(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    assert list(tmp_path.iterdir()) == []


WRITE_BEYOND_A_LIMIT = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from nnunet_qa.data.images import write_image
from nnunet_qa.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    write_image(Path(sys.argv[1]), np.random.default_rng(0).integers(0, 999, (9, 50, 60)).astype(np.int16))
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_volume_that_the_disk_cannot_hold_is_not_kept(tmp_path: Path, ending: str) -> None:
    command = [sys.executable, "-c", WRITE_BEYOND_A_LIMIT, str(tmp_path / f"a{ending}")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ending", "reader", "expected"),
    [
        (".png", None, False),
        (".bmp", None, False),
        (".tif", None, False),
        (".tif", "NaturalImage2DIO", False),
        (".tif", "Tiff3DIO", True),
        (".tiff", None, True),
        (".nii.gz", None, True),
        (".nrrd", "SimpleITKIO", True),
    ],
)
def test_whether_a_dataset_holds_volumes(ending: str, reader: str | None, expected: bool) -> None:
    content = {"file_ending": ending} | ({} if reader is None else {"overwrite_image_reader_writer": reader})
    assert holds_volumes(content) is expected


def test_a_tiff_is_read_as_what_the_dataset_holds(tmp_path: Path) -> None:
    import tifffile

    stack = np.arange(210, dtype=np.uint8).reshape(5, 6, 7)
    tifffile.imwrite(tmp_path / "a.tif", stack)
    np.testing.assert_array_equal(read_array(tmp_path / "a.tif", volumes=True), stack)
    with pytest.raises(ImageError, match="not a single 2D picture"):
        read_array(tmp_path / "a.tif", volumes=False)
    write_image(tmp_path / "b.png", stack[0])
    np.testing.assert_array_equal(read_array(tmp_path / "b.png", volumes=False), stack[0])


def test_finite() -> None:
    check_finite(np.zeros(3), "a")
    check_finite(np.zeros(3, np.int8), "a")
    with pytest.raises(ImageError, match="a: 2 of 4 intensities are NaN or infinite"):
        check_finite(np.array([0, np.nan, np.inf, 1]), "a")


def test_label_values_of_a_mask() -> None:
    check_label_values(np.array([0, 1, 2]), {0, 1, 2}, "m")
    check_label_values(np.array([0.0, 2.0]), [0, 1, 2], "m")
    with pytest.raises(ImageError, match=r"m: label value 3, 5 is not in dataset\.json \(allowed: 0, 1\)"):
        check_label_values(np.array([0, 3, 5]), {0, 1}, "m")
    with pytest.raises(ImageError, match=r"label value 0\.5"):
        check_label_values(np.array([0, 0.5]), {0, 1}, "m")


def test_declared_labels() -> None:
    assert label_values({"background": 0, "region": [1, 2], "other": (3,), "ignore": 4}) == {0, 1, 2, 3, 4}


def test_the_same_grid() -> None:
    check_same_grid(np.zeros((2, 3)), np.zeros((2, 3)), "m")
    with pytest.raises(ImageError, match=r"m: the mask has shape \(3, 2\), its image \(2, 3\)"):
        check_same_grid(np.zeros((2, 3)), np.zeros((3, 2)), "m")

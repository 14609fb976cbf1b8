from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_qa.data.images import Geometry
from nnunet_qa.errors import DatasetError, ImageError, SelectionError
from nnunet_qa.quality.montage import distinct_colours
from nnunet_qa.reports.montage_pictures import Look, montage_picture, montage_pictures
from tests.small import write_tiny

RNG = np.random.default_rng(5)
ONE = {"fluid": (1,)}


def _dataset_json(
    ending: str = ".png", *, channel: str = "OCT", labels: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "channel_names": {"0": channel, "1": "other"},
        "labels": labels or {"background": 0, "fluid": 1, "drusen": 2},
        "file_ending": ending,
    }


def _run(base: Path, content: dict[str, Any], look: Look | None = None, **more: Any) -> tuple[list[Path], int]:
    return montage_pictures(
        base / "predictions",
        base / "images",
        base / "out",
        dataset_json=content,
        source="dataset.json",
        look=look or Look(),
        **more,
    )


def _shown(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def _percentile_gray(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, [0.5, 99.5])
    return np.clip((image - low) / (high - low), 0, 1)


def _overlay(shades: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    colours = np.array([(0.0, 0.0, 0.0), *distinct_colours(classes)])
    return np.rint(255 * (0.6 * shades[..., None] + 0.4 * colours[labels])).astype(np.uint8)


def _tiled(slices: np.ndarray, columns: int) -> np.ndarray:
    rows = [np.concatenate(list(slices[k : k + columns]), axis=1) for k in range(0, len(slices), columns)]
    return np.concatenate(rows, axis=0)


def _pair(base: Path, case: str = "a", *, ending: str = ".png", shape: tuple[int, ...] = (20, 30)) -> np.ndarray:
    image = RNG.integers(0, 255, shape).astype(np.uint8)
    labels = RNG.integers(0, 3, shape).astype(np.uint8)
    write_tiny(base / "images" / f"{case}_0000{ending}", image)
    write_tiny(base / "predictions" / f"{case}{ending}", labels)
    return _overlay(_percentile_gray(image), labels, 2)


def test_a_2d_image_is_drawn_in_its_own_size(tmp_path: Path) -> None:
    expected = {case: _pair(tmp_path, case, shape=shape) for case, shape in (("a", (20, 30)), ("b", (31, 12)))}
    pictures, drawn = _run(tmp_path, _dataset_json())
    assert [path.name for path in pictures] == ["a.png", "b.png"]
    assert drawn == 2
    for path in pictures:
        np.testing.assert_allclose(_shown(path), expected[path.stem], atol=1)


def test_a_2d_image_in_a_format_of_volumes_keeps_its_aspect(tmp_path: Path) -> None:
    image = RNG.integers(0, 255, (1, 20, 30)).astype(np.uint8)
    square = Geometry((0.5, 0.5, 999.0), (0.0,) * 3, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    for case, geometry in (("square", square), ("tall", replace(square, spacing=(0.5, 1.5, 999.0)))):
        write_tiny(tmp_path / "images" / f"{case}_0000.nii.gz", image, geometry)
        write_tiny(tmp_path / "predictions" / f"{case}.nii.gz", np.zeros_like(image), geometry)
    pictures, _ = _run(tmp_path, _dataset_json(".nii.gz"))
    sizes = {path.stem: _shown(path).shape for path in pictures}
    assert sizes == {"square": (20, 30, 3), "tall": (60, 30, 3)}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_looks_the_same_however_it_lies_on_disk(tmp_path: Path, axis: int) -> None:
    volume = RNG.integers(0, 1000, (4, 5, 6)).astype(np.int16)
    labels = RNG.integers(0, 3, volume.shape).astype(np.uint8)
    for orientation in ("LPS", "RAS", "SAL", "ILP"):
        for array, folder, name in ((volume, "images", "_0000"), (labels, "predictions", "")):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((1.0, 1.2, 1.4))
            (tmp_path / folder).mkdir(exist_ok=True)
            turned = sitk.DICOMOrient(image, orientation)
            sitk.WriteImage(turned, str(tmp_path / folder / f"{orientation}{name}.nii.gz"))
    pictures, _ = _run(tmp_path, _dataset_json(".nii.gz"), Look(axis=axis))
    first, *others = (_shown(path) for path in pictures)
    for other in others:
        np.testing.assert_array_equal(other, first)
    assert len(others) == 3


@pytest.mark.parametrize(("axis", "tile", "column"), [(0, 7, 8), (1, 0, 8), (2, 7, 1)])
def test_nose_and_head_are_up_and_the_left_is_on_the_right(axis: int, tile: int, column: int) -> None:
    """A bright spot at the patient's head, face and left; slices go from feet to head, face to back, right to left."""
    volume = np.zeros((8, 8, 8), np.float32)
    volume[7, 0, 7] = 1
    look = Look(axis=axis, window=(0, 1), tile=10, grid=(2, 4))
    labels = np.ones(volume.shape, np.uint8)  # so that nothing is cut off
    picture = montage_picture(volume, labels, classes=ONE, spacing=(1, 1, 1), look=look)
    top, left = tile // 4 * 10, tile % 4 * 10
    inside = picture[top : top + 10, left : left + 10, 2]
    assert np.unravel_index(inside.argmax(), inside.shape) == (1, column)
    assert picture[..., 2].max() == inside.max() > 100


def test_slices_are_those_that_were_taken_where_they_are_thick() -> None:
    volume = RNG.random((4, 6, 9)).astype(np.float32)
    labels = np.ones(volume.shape, np.uint8)

    def tiles(spacing: tuple[float, float, float]) -> int:
        grid_of_columns = Look(grid=(9, 1), tile=50)
        shape = montage_picture(volume, labels, classes=ONE, spacing=spacing, look=grid_of_columns).shape
        sides = {0: (8, 11), 1: (6, 11), 2: (6, 8)}
        for axis, (rows, columns) in sides.items():
            plane = [length for k, length in enumerate(spacing) if k != axis]
            height, width = rows * plane[0], columns * plane[1]
            tile = (round(50 * height / max(height, width)), round(50 * width / max(height, width)))
            if shape[:2] == (tile[0] * volume.shape[axis], tile[1]):
                return axis
        raise AssertionError(shape)

    assert tiles((1, 1, 3)) == 2
    assert tiles((1, 3, 1)) == 1
    assert tiles((1, 1.3, 1.3)) == 0
    assert tiles((1, 1, 1.4)) == 0


def test_tiles_of_a_volume_are_framed_and_borders_are_cut_off() -> None:
    volume = np.full((9, 40, 50), -1000.0, np.float32)
    volume[2:8, 10:20, 5:25] = RNG.uniform(0, 100, (6, 10, 20))
    labels = np.zeros(volume.shape, np.uint8)
    labels[4, 12:18, 9:15] = 1
    look = Look(window=(-175, 275), tile=22)
    picture = montage_picture(volume, labels, classes=ONE, spacing=(3, 1, 1), look=look)
    inside = np.pad(volume[2:8, 10:20, 5:25], ((0, 0), (1, 1), (1, 1)), constant_values=-1000)
    masks = np.pad(labels[2:8, 10:20, 5:25], ((0, 0), (1, 1), (1, 1)))
    drawn = _overlay(np.clip((inside + 175) / 450, 0, 1), masks, 1)
    np.testing.assert_allclose(picture, _tiled(drawn, 3), atol=1)


def test_labels_outside_the_body_are_not_cut_off() -> None:
    volume = np.full((4, 30, 30), -1000.0, np.float32)
    volume[:, 10:20, 10:20] = 50
    labels = np.zeros(volume.shape, np.uint8)
    labels[3, 28, 2] = 1
    look = Look(window=(-175, 275), tile=22)
    picture = montage_picture(volume, labels, classes=ONE, spacing=(1, 1, 1), look=look)
    coloured = np.ptp(picture.astype(int), axis=2) > 20
    assert coloured.any()


def test_an_empty_volume_is_black() -> None:
    empty = np.zeros((5, 6, 7), np.float32)
    picture = montage_picture(empty, empty.astype(np.uint8), classes=ONE, spacing=(1, 1, 1), look=Look(tile=20))
    assert picture.max() == 0


def test_grid_and_tile_and_rows_without_slices() -> None:
    volume = RNG.random((10, 14, 18)).astype(np.float32)
    labels = RNG.integers(0, 2, volume.shape).astype(np.uint8)

    def size(**look: Any) -> tuple[int, ...]:
        return montage_picture(volume, labels, classes=ONE, spacing=(1, 1, 1), look=Look(**look)).shape[:2]

    assert size(tile=20) == (3 * 16, 4 * 20)
    assert size(tile=20, grid=(1, 5)) == (16, 5 * 20)
    assert size(tile=20, grid=(8, 8)) == (2 * 16, 8 * 20)
    assert size(tile=40, grid=(5, 2)) == (5 * 32, 2 * 40)
    assert size()[1] == 4 * 168


def test_fewer_tiles_than_slices_show_even_ones() -> None:
    volume = np.broadcast_to(np.arange(1, 11, dtype=np.float32).reshape(10, 1, 1), (10, 8, 8)).copy()
    look = Look(window=(0, 10), tile=10, grid=(1, 2))
    picture = montage_picture(volume, np.zeros(volume.shape, np.uint8), classes=ONE, spacing=(1, 1, 1), look=look)
    assert picture.shape == (10, 20, 3)
    np.testing.assert_allclose([picture[5, 5, 0], picture[5, 15, 0]], [0.6 * 255 * 0.3, 0.6 * 255 * 0.8], atol=1)


def test_the_legend_names_each_class_in_its_colour() -> None:
    image, labels = np.zeros((30, 200), np.float32), np.zeros((30, 200), np.uint8)
    classes = {f"structure {number}": (number,) for number in range(1, 8)}
    plain = montage_picture(image, labels, classes=classes, spacing=(1, 1), look=Look())
    named = montage_picture(image, labels, classes=classes, spacing=(1, 1), look=Look(legend=True))
    np.testing.assert_array_equal(named[:30], plain)
    strip = named[30:]
    assert strip.shape[1] == 200
    assert strip.shape[0] > 60  # seven names need several lines of 200 pixels
    places = []
    for colour in distinct_colours(7):
        wanted = np.rint(255 * (0.3 + 0.4 * np.array(colour)))
        where = np.argwhere((np.abs(strip - wanted) <= 1).all(axis=2))
        assert len(where) >= 100
        places.append(tuple(where[0]))
    assert places == sorted(places)


def test_regions_overlap_and_labels_go_by_their_value(tmp_path: Path) -> None:
    image = np.full((6, 8), 10, np.uint8)
    image[0, 0] = 200
    labels = np.zeros((6, 8), np.uint8)
    labels[2, 2:5], labels[3, 2:5] = 1, 2
    write_tiny(tmp_path / "images" / "a_0000.png", image)
    write_tiny(tmp_path / "predictions" / "a.png", labels)
    look = Look(window=(0, 255))
    first, second = (np.array(colour) for colour in distinct_colours(2))
    gray = 0.6 * 10 / 255

    swapped = _dataset_json(labels={"background": 0, "drusen": 2, "fluid": 1})
    (path,), _ = _run(tmp_path, swapped, look)
    np.testing.assert_allclose(_shown(path)[2, 3], 255 * (gray + 0.4 * first), atol=1)
    np.testing.assert_allclose(_shown(path)[3, 3], 255 * (gray + 0.4 * second), atol=1)

    regions = _dataset_json(labels={"background": 0, "whole": [1, 2], "core": 2})
    (path,), _ = _run(tmp_path, regions, look)
    np.testing.assert_allclose(_shown(path)[2, 3], 255 * (gray + 0.4 * first), atol=1)
    np.testing.assert_allclose(_shown(path)[3, 3], 255 * (gray + 0.4 * (first + second) / 2), atol=1)


def test_ct_has_the_window_of_the_paper_and_other_channels_their_percentiles(tmp_path: Path) -> None:
    image = np.array([[[-1000, -175, 50], [275, 1000, 3000]]], np.int16)
    for channel in (0, 1):
        write_tiny(tmp_path / "images" / f"a_{channel:04d}.nii.gz", image)
    write_tiny(tmp_path / "predictions" / "a.nii.gz", np.zeros(image.shape, np.uint8))
    full = round(0.6 * 255)
    window = [[0, 0, 0.5 * full], [full, full, full]]
    for name in ("CT", "ct"):
        (path,), _ = _run(tmp_path, _dataset_json(".nii.gz", channel=name))
        np.testing.assert_allclose(_shown(path)[..., 0], window, atol=1)
    for content, look in (
        (_dataset_json(".nii.gz", channel="CBCT"), Look()),
        (_dataset_json(".nii.gz", channel="CT"), Look(channel=1)),
    ):
        (path,), _ = _run(tmp_path, content, look)
        np.testing.assert_allclose(_shown(path)[..., 0], full * _percentile_gray(image[0]), atol=1)
    (path,), _ = _run(tmp_path, _dataset_json(".nii.gz", channel="CT"), Look(window=(0, 3000)))
    np.testing.assert_allclose(_shown(path)[..., 0], full * np.clip(image[0] / 3000, 0, 1), atol=1)


def test_pictures_that_are_up_to_date_are_kept(tmp_path: Path) -> None:
    for case in ("a", "b"):
        _pair(tmp_path, case)
    content = _dataset_json()
    pictures, drawn = _run(tmp_path, content)
    assert drawn == 2
    assert _run(tmp_path, content)[1] == 0
    assert _run(tmp_path, content, overwrite=True)[1] == 2
    assert _run(tmp_path, content, Look(legend=True))[1] == 2
    assert _run(tmp_path, content)[1] == 2
    later = pictures[0].stat().st_mtime + 10
    os.utime(tmp_path / "predictions" / "a.png", (later, later))
    assert _run(tmp_path, content)[1] == 1
    os.utime(tmp_path / "predictions" / "a.png", (0, 0))
    pictures[1].write_bytes(pictures[1].read_bytes()[:20])
    (tmp_path / "out" / ".partial-1-a.png").write_bytes(b"left by a run that was killed")
    assert _run(tmp_path, content)[1] == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]


def test_processes_draw_the_same(tmp_path: Path) -> None:
    for case in ("a", "b", "c"):
        _pair(tmp_path, case)
    pictures, _ = _run(tmp_path, _dataset_json())
    alone = [_shown(path) for path in pictures]
    assert _run(tmp_path, _dataset_json(), overwrite=True, jobs=2)[1] == 3
    for path, before in zip(pictures, alone, strict=True):
        np.testing.assert_array_equal(_shown(path), before)


def _no_folder(base: Path) -> None:
    (base / "predictions").rename(base / "elsewhere")


def _nothing_in_it(base: Path) -> None:
    (base / "predictions" / "a.png").unlink()


def _no_image(base: Path) -> None:
    (base / "images" / "a_0000.png").unlink()


def _another_shape(base: Path) -> None:
    write_tiny(base / "images" / "a_0000.png", np.zeros((20, 31), np.uint8))


def _undeclared_label(base: Path) -> None:
    write_tiny(base / "predictions" / "a.png", np.full((20, 30), 7, np.uint8))


def _damaged(base: Path) -> None:
    path = base / "images" / "a_0000.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (_no_folder, DatasetError, "predictions: no such folder; -p"),
        (_nothing_in_it, DatasetError, "no file with the ending .png"),
        (_no_image, DatasetError, "a_0000.png: not found; -i"),
        (_another_shape, ImageError, r"a.png: the mask has shape \(20, 30\), its image \(20, 31\)"),
        (_undeclared_label, ImageError, "a.png: label value 7 is not in dataset.json"),
        (_damaged, ImageError, "a_0000.png: cannot be read"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, damage: Any, error: type[Exception], said: str) -> None:
    _pair(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=said) as refused:
        _run(tmp_path, _dataset_json())
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "a.png").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"window": (10, 5)}, "the lower one first"),
        ({"grid": (0, 4)}, "grid is 0x4"),
        ({"tile": 0}, "tile is 0x0"),
    ],
)
def test_impossible_looks_are_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SelectionError, match=said):
        Look(**values)


def test_pictures_never_replace_predictions_or_images(tmp_path: Path) -> None:
    _pair(tmp_path)
    for folder in ("predictions", "images"):
        with pytest.raises(DatasetError, match="would replace the files there"):
            montage_pictures(
                tmp_path / "predictions",
                tmp_path / "images",
                tmp_path / folder,
                dataset_json=_dataset_json(),
                source="dataset.json",
                look=Look(),
            )

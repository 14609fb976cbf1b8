"""Zips as they are handed out and as an attacker would write them; series rules of UK Biobank."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from nnunet_qa.data.cine_dicom import Acquisition, write_series_zip
from nnunet_qa.data.images import Geometry
from nnunet_qa.dataset_conversion import ukbiobank_zip
from nnunet_qa.dataset_conversion.engine import LeftOut
from nnunet_qa.dataset_conversion.ukbiobank_series import Stack, build_stack
from nnunet_qa.dataset_conversion.ukbiobank_views import VIEWS
from nnunet_qa.dataset_conversion.ukbiobank_zip import read_images
from nnunet_qa.errors import DatasetError, ImageError

PLACE = Geometry((1.5, 1.25, 10.0), (1.0, 2.0, 3.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
PIXELS = np.random.default_rng(0).integers(0, 900, (6, 3, 8, 7)).astype(np.uint16)
SERIES = VIEWS["sa"].series
Edit = Callable[[pydicom.Dataset, int, int], bool]


def write(path: Path, *, name: str = "CINE_segmented_SAX_b{}", place: Geometry = PLACE) -> Path:
    acquisition = Acquisition(image=PIXELS, place=place, frame_time=0.03, name=name)
    return write_series_zip(path, "1", [acquisition], np.random.default_rng(0))


def edited(path: Path, edit: Edit, extra: Edit | None = None) -> Path:
    """The zip with each file changed (dropped where `edit` is false); `extra` makes further files of them."""
    other = path.with_name("2_20209_2_0.zip")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            for index, change in enumerate((edit, extra)) if name.endswith(".dcm") else ():
                found = pydicom.dcmread(io.BytesIO(content))
                if change is not None and change(found, int(found.InstanceNumber) - 1, int(found.SeriesNumber) - 1):
                    written = io.BytesIO()
                    found.save_as(written)
                    target.writestr(f"{index}{name}", written.getvalue())
    return other


def stack_of(path: Path, **options: object) -> Stack:
    images, _ = read_images(path, SERIES)
    return build_stack(images, where=str(path), **options)


def test_manifest_and_headers_give_the_same_stack(tmp_path: Path) -> None:
    path = write(tmp_path / "1.zip")
    stack = stack_of(path)
    np.testing.assert_array_equal(stack.image, PIXELS)
    assert stack.frame_time == pytest.approx(0.03)
    without = edited(path, lambda *_: True)
    images, notes = read_images(without, SERIES)
    np.testing.assert_array_equal(build_stack(images, where="x").image, PIXELS)
    assert notes == [LeftOut(str(without), "has no manifest.csv")]


def test_only_wanted_series_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "1.zip", name="CINE_segmented_SAX_b{}_InlineVF")
    assert read_images(path, SERIES)[0] == []
    assert read_images(edited(path, lambda *_: True), SERIES)[0] == []


@pytest.mark.parametrize("lost", [{2}, {3, 4}, {0}, {5}])
def test_missing_frames_are_those_before(tmp_path: Path, lost: set[int]) -> None:
    path = edited(write(tmp_path / "1.zip"), lambda _, frame, index: index != 1 or frame not in lost)
    expected = PIXELS.copy()
    for frame in sorted(lost):
        expected[frame, 1] = expected[frame - 1 if frame else 1, 1]
    stack = stack_of(path)
    np.testing.assert_array_equal(stack.image, expected)
    assert stack.filled == tuple(int(frame in lost) for frame in range(6))


def test_files_that_the_manifest_lists_and_are_not_there_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "1.zip")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "2.zip", "w") as target:
        for name in source.namelist()[2:]:
            target.writestr(name, source.read(name))
    reason = "2 of the images that the manifest lists are not in the zip"
    assert read_images(tmp_path / "2.zip", SERIES)[1] == [LeftOut(str(tmp_path / "2.zip"), reason, bad=True)]


def test_of_several_series_the_last_or_the_annotated_one(tmp_path: Path) -> None:
    first: list[str] = []

    def again(found: pydicom.Dataset, frame: int, index: int) -> bool:
        first.append(str(found.SOPInstanceUID))
        found.SeriesInstanceUID, found.SOPInstanceUID = f"1.2.10.{index}", f"1.2.99.{frame}.{index}"
        found.PixelData = (found.pixel_array + 1000).astype("<u2").tobytes()
        return True

    def keep(found: pydicom.Dataset, _: int, index: int) -> bool:
        found.SeriesInstanceUID = f"1.2.9.{index}"  # as a text it would come after 1.2.10
        return True

    path = edited(write(tmp_path / "1.zip"), keep, again)
    np.testing.assert_array_equal(stack_of(path).image, PIXELS + 1000)
    np.testing.assert_array_equal(stack_of(path, annotated=first).image, PIXELS)


def test_slices_run_as_their_numbers_do_and_left_handed(tmp_path: Path) -> None:
    flipped = Geometry(PLACE.spacing, PLACE.origin, (1, 0, 0, 0, 1, 0, 0, 0, -1))
    for name in ("CINE_segmented_SAX_b{}", "CINE_segmented_SAX"):
        stack = stack_of(write(tmp_path / f"{len(name)}.zip", name=name, place=flipped))
        np.testing.assert_array_equal(stack.image, PIXELS)
        assert stack.geometry == flipped


def _moved(found: pydicom.Dataset, by: float) -> bool:
    return _set(found, "ImagePositionPatient", [1 + by, 2, found.ImagePositionPatient[2]])


@pytest.mark.parametrize(
    ("edit", "extra", "note"),
    [
        (lambda *_: True, None, None),
        (
            lambda *_: True,
            lambda d, frame, index: _set(d, "SeriesDescription", "CINE_segmented_SAX") and index == 0,
            "6 images of CINE_segmented_SAX, beside series with the numbers of slices, were not read",
        ),
        (
            lambda d, frame, index: index != 2 or _set(d, "SeriesDescription", "CINE_segmented_SAX_b4"),
            None,
            "has no series _b3; the slices that are there are evenly apart",
        ),
        (lambda d, frame, index: _moved(d, 0.45 * index), None, None),
        (lambda d, frame, index: _moved(d, 0.9 * index), None, "its slices are shifted sideways by up to 1.8 mm"),
    ],
)
def test_oddities_that_do_no_harm_are_noted(tmp_path: Path, edit: Edit, extra: Edit | None, note: str | None) -> None:
    stack = stack_of(edited(write(tmp_path / "1.zip"), edit, extra))
    np.testing.assert_array_equal(stack.image, PIXELS)
    assert len(stack.notes) == (note is not None)
    assert note is None or stack.notes[0].startswith(note)


def test_a_stack_that_begins_later_is_noted(tmp_path: Path) -> None:
    stack = stack_of(edited(write(tmp_path / "1.zip"), lambda _, frame, index: index > 0))
    np.testing.assert_array_equal(stack.image, PIXELS[:, 1:])
    assert stack.notes == ("has no series _b1; the slices that are there are evenly apart",)


def _set(found: pydicom.Dataset, keyword: str, value: object) -> bool:
    setattr(found, keyword, value)
    return True


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda _, frame, index: index != 1, "has no series _b2, and its slices are 20.0 mm apart where the files"),
        (lambda d, frame, index: index or _set(d, "ImagePositionPatient", [1, 2, -27]), "is a slice missing"),
        (lambda d, frame, index: index or _set(d, "ImageOrientationPatient", [0, 1, 0, 1, 0, 0]), "is not parallel"),
        (lambda d, *_: _set(d, "SeriesDescription", "CINE_segmented_SAX_b99999999999"), "no heart has so many slices"),
        (lambda d, frame, index: frame != 3 or _set(d, "TriggerTime", "60"), "is of the same time"),
        (lambda d, frame, index: frame or _set(d, "ImagePositionPatient", [1, 2, 8]), "lies elsewhere|slice missing"),
        (lambda d, frame, index: index or _set(d, "PixelSpacing", [3, 3]), "has another size or spacing"),
        (lambda d, frame, index: index != 1 or frame < 2, "has 2 images, a heartbeat 6"),
        (lambda d, frame, index: _set(d, "CardiacNumberOfImages", 4), "has 6 images, a heartbeat 4"),
        (lambda d, frame, index: index or frame or _set(d, "PixelSpacing", [0, 1]), "no single grey-level picture"),
        (lambda d, frame, index: _set(d, "TriggerTime", None), "cannot be read as a cine image"),
        (lambda d, frame, index: _set(d, "PixelData", d.PixelData[:20]), "cannot be read as a cine image"),
        (lambda d, frame, index: _set(d, "Rows", 65535) and _set(d, "Columns", 65535), r"pixels \(a bomb"),
        (lambda d, *_: _set(d.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2.1.99"), "compressed once more"),
    ],
)
def test_series_that_are_no_stack(tmp_path: Path, edit: Edit, reason: str) -> None:
    path = edited(write(tmp_path / "1.zip"), edit)
    with pytest.raises(ImageError, match=reason) as error:
        stack_of(path)
    assert str(path) in str(error.value)


def test_images_of_a_zip_have_a_budget_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "1.zip")
    monkeypatch.setattr(ukbiobank_zip, "_check_entries", lambda *_: None)  # headers and pixels weigh more than pixels
    monkeypatch.setattr(ukbiobank_zip, "MAX_TOTAL", PIXELS.nbytes)
    stack_of(path)
    monkeypatch.setattr(ukbiobank_zip, "MAX_TOTAL", PIXELS.nbytes - 1)
    with pytest.raises(DatasetError, match=r"its images unpack to more than 2015 bytes"):
        stack_of(path)
    monkeypatch.setattr(ukbiobank_zip, "MAX_FILE", PIXELS[0, 0].nbytes - 1)
    with pytest.raises(ImageError, match=r"8 × 7 pixels \(a bomb"):
        stack_of(path)


def archive(path: Path, name: str, content: bytes, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        zipped.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize("name", ["../a.dcm", "/etc/a.dcm", "x/../../a.dcm", "..\\a.dcm", "C:\\a.dcm"])
def test_entries_that_climb_out(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "1.zip", name, b"x")
    with pytest.raises(DatasetError, match="climbs out of the zip"):
        read_images(path, SERIES)
    assert [found.name for found in tmp_path.iterdir()] == ["1.zip"]


def test_links_bombs_and_broken_zips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match="is a symbolic link"):
        read_images(archive(tmp_path / "1.zip", "a.dcm", b"/etc/passwd", stat.S_IFLNK | 0o777), SERIES)
    with pytest.raises(DatasetError, match=r"expands to 4194304 bytes \(a zip bomb\?\)"):
        read_images(archive(tmp_path / "2.zip", "a.dcm", bytes(4 << 20)), SERIES)
    monkeypatch.setattr(ukbiobank_zip, "MAX_FILE", 100)
    with pytest.raises(DatasetError, match="expands to 101 bytes"):
        read_images(archive(tmp_path / "3.zip", "a.dcm", bytes(range(101))), SERIES)
    monkeypatch.setattr(ukbiobank_zip, "MAX_TOTAL", 90)
    with pytest.raises(DatasetError, match="expands to 1 files of 99 bytes"):
        read_images(archive(tmp_path / "4.zip", "a.dcm", bytes(range(99))), SERIES)
    whole = write(tmp_path / "5.zip").read_bytes()
    damaged = bytearray(archive(tmp_path / "6.zip", "a.dcm", bytes(range(80))).read_bytes())
    damaged[40] ^= 255
    for content in (whole[: len(whole) // 2], b"", b"PK\3\4", bytes(damaged)):
        (tmp_path / "7.zip").write_bytes(content)
        with pytest.raises(DatasetError, match="cannot be read as a zip"):
            read_images(tmp_path / "7.zip", SERIES)
    with pytest.raises(ImageError, match=r"a\.dcm: cannot be read as a cine image"):
        read_images(archive(tmp_path / "8.zip", "a.dcm", b"no DICOM"), SERIES)


def test_a_stated_size_that_is_too_small_does_not_help_a_bomb(tmp_path: Path) -> None:
    path = archive(tmp_path / "1.zip", "manifest.csv", bytes(4 << 20))
    content = path.read_bytes().replace((4 << 20).to_bytes(4, "little"), (90).to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read as a zip"):
        read_images(path, SERIES)

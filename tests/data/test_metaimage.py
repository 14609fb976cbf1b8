"""Headers that are followed, and those that are not."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_qa.data.metaimage import metaimage_data
from nnunet_qa.errors import ImageError

HEADER = """ObjectType = Image
NDims = 3
DimSize = 4 3 2
ElementType = MET_USHORT
ElementDataFile = oct.raw
"""


@pytest.fixture
def header(tmp_path: Path) -> Path:
    (tmp_path / "oct.raw").write_bytes(bytes(48))
    path = tmp_path / "oct.mhd"
    path.write_text(HEADER)
    return path


def test_the_data_file_is_named(header: Path) -> None:
    assert metaimage_data(header) == header.with_name("oct.raw")


@pytest.mark.parametrize("kind", [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkFloat32, sitk.sitkVectorUInt8])
def test_headers_of_another_writer(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "a b.mhd"
    for compressed, ending in ((False, ".raw"), (True, ".zraw")):
        sitk.WriteImage(sitk.Image([5, 4, 3], kind), str(path), useCompression=compressed)
        assert metaimage_data(path) == path.with_suffix(ending)


NAMES = [
    "../secret.raw",
    "/etc/passwd",
    "sub/oct.raw",
    "..\\oct.raw",
    "LOCAL",
    "LIST",
    "list 2D",
    "oct%d.raw 1 2 1",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_other_names_are_refused(header: Path, name: str) -> None:
    header.write_text(HEADER.replace("oct.raw", name))
    with pytest.raises(ImageError, match=r"oct.mhd: (names the data file|is no MetaImage header)") as caught:
        metaimage_data(header)
    assert "\n" not in str(caught.value)


def test_a_second_name_is_refused_however_it_is_written(header: Path) -> None:
    for line in ("ElementDataFile:/etc/passwd", "\tElementDataFile\t= /etc/passwd\r"):
        header.write_text(f"{line}\n{HEADER}")
        with pytest.raises(ImageError, match="must name one ElementDataFile"):
            metaimage_data(header)


def test_too_few_bytes_are_refused(header: Path) -> None:
    data = header.with_name("oct.raw")
    data.write_bytes(bytes(47))
    with pytest.raises(ImageError, match=r"oct.mhd: asks for 48 bytes, oct.raw holds 47 \(a download that was cut off"):
        metaimage_data(header)
    header.write_text(HEADER.replace("4 3 2", "40000 30000 20000"))
    with pytest.raises(ImageError, match="asks for 48000000000000 bytes"):
        metaimage_data(header)
    data.unlink()
    with pytest.raises(ImageError, match=r"its data file oct.raw is not there"):
        metaimage_data(header)


def test_compressed_data_may_claim_what_deflate_can_hold(header: Path) -> None:
    voxels = np.zeros((100, 100, 50), np.uint16)
    header.with_name("oct.raw").write_bytes(zlib.compress(voxels.tobytes(), 9))
    text = HEADER.replace("ElementType", "CompressedData = True\nElementType")
    header.write_text(text.replace("4 3 2", "50 100 100"))
    metaimage_data(header)
    header.write_text(text.replace("4 3 2", "5000 100 100"))
    with pytest.raises(ImageError, match="asks for 100000000 bytes"):
        metaimage_data(header)


@pytest.mark.parametrize(
    ("old", "new"), [("DimSize", "Size"), ("4 3 2", "four"), ("MET_USHORT", "MET_OTHER"), ("4 3 2", "4 0 2")]
)
def test_wrong_entries(header: Path, old: str, new: str) -> None:
    header.write_text(HEADER.replace(old, new))
    with pytest.raises(ImageError, match=r"oct.mhd: (DimSize or ElementType is missing or wrong|asks for 0 bytes)"):
        metaimage_data(header)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a.mhd: not found"):
        metaimage_data(tmp_path / "a.mhd")
    (tmp_path / "b.mhd").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ImageError, match=r"b.mhd: is no MetaImage header"):
        metaimage_data(tmp_path / "b.mhd")
    with pytest.raises(ImageError, match="cannot be read"):
        metaimage_data(tmp_path)

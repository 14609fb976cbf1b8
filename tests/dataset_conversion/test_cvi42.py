"""Contours of cvi42, and anything else that ends in .xml; manifests and the case table are fuzzed here too."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_qa.cases import CaseTable
from nnunet_qa.dataset_conversion import cvi42
from nnunet_qa.dataset_conversion.cvi42 import fill, parse_contours, read_contours
from nnunet_qa.dataset_conversion.ukbiobank_manifest import read_manifest
from nnunet_qa.errors import CaseTableError, DatasetError, ImageError

HEAD = '<Hash:item xmlns:Hash="a" xmlns:List="b" xmlns:Point="c" Hash:key="Study"><Hash:item Hash:key="ImageStates">'
few = settings(max_examples=60, deadline=None, database=None)


def workspace(points: str, *, units: str = "4", uid: str = "1.2.3", name: str = "saendocardialContour") -> bytes:
    items = "".join(
        f"<List:item><Point:x>{x}</Point:x><Point:y>{y}</Point:y></List:item>"
        for x, y in (pair.split(",") for pair in points.split())
    )
    return (
        f'<?xml version="1.0"?>{HEAD}<Hash:item Hash:key="{uid}"><Hash:item Hash:key="Contours">'
        f'<Hash:item Hash:key="{name}"><Hash:item Hash:key="Points">{items}</Hash:item>'
        f'<Hash:item Hash:key="SubpixelResolution">{units}</Hash:item></Hash:item></Hash:item></Hash:item></Hash:item>'
        "</Hash:item>"
    ).encode()


def test_points_are_in_parts_of_a_pixel() -> None:
    found = parse_contours(workspace("8,12 40,12 40,20 8,20"), "x.xml")
    np.testing.assert_array_equal(found["1.2.3"]["saendocardialContour"], [[2, 3], [10, 3], [10, 5], [2, 5]])


def test_a_circle_is_filled_where_pixel_centres_lie_in_it() -> None:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = np.stack([20.3 + 9.4 * np.cos(angle), 12.7 + 9.4 * np.sin(angle)], axis=1)
    mask = fill(
        {"epi": circle, "endo": (circle - [20.3, 12.7]) * 0.5 + [20.3, 12.7]}, (30, 40), [("epi", 2), ("endo", 1)]
    )
    row, column = np.indices((30, 40))
    distance = np.hypot(row - 12.7, column - 20.3)
    sure = (np.abs(distance - 9.4) > 0.01) & (np.abs(distance - 4.7) > 0.01)
    expected = np.where(distance < 4.7, 1, np.where(distance < 9.4, 2, 0))
    np.testing.assert_array_equal(mask[sure], expected[sure])
    assert ndimage.center_of_mass(mask > 0) == pytest.approx((12.7, 20.3), abs=0.1)


def test_contours_beyond_the_picture_are_cut() -> None:
    mask = fill({"a": np.array([[-50.0, -50], [1e9, -50], [1e9, 1e9], [-50, 1e9]])}, (4, 5), [("a", 3)])
    assert (mask == 3).all()


def test_lines_and_points_enclose_nothing() -> None:
    assert parse_contours(workspace("1,1 5,5"), "x.xml") == {}


ENTITIES = b'<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (ENTITIES, "declares entities or a DTD"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "declares entities or a DTD"),
        (b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>', "declares entities or a DTD"),
        (workspace("1,1 2,2 3,1")[:-40], "is no XML that can be read"),
        (b"", "is no XML that can be read"),
        (workspace("1,1 2,2 3,x"), "are no numbers"),
        (workspace("1,1 2,2 3,nan"), "are not finite"),
        (workspace("1,1 2,2 3,1", units="0"), "are not finite"),
        (workspace("1,1 2,2 3,1", units="many"), "are no numbers"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "1.cvi42wsx"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as error:
        read_contours(path)
    assert str(path) in str(error.value)
    assert "root:" not in str(error.value)


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvi42, "MAX_BYTES", 10)
    (tmp_path / "1.xml").write_bytes(workspace("1,1 2,2 3,1"))
    with pytest.raises(ImageError, match="is larger than"):
        read_contours(tmp_path / "1.xml")


def test_manifests_of_all_kinds() -> None:
    expected = {"a.dcm": "CINE_segmented_SAX_b1", "b.dcm": "CINE, too"}
    for text in (
        'filename,date,series discription\na.dcm,May 11, 2016,CINE_segmented_SAX_b1\nb.dcm,2016-05-11,"CINE, too"\n',
        '\ufeffFilename, Date ,Series Description\r\na.dcm,"May 1, 2016",CINE_segmented_SAX_b1\r\nb.dcm,,"CINE, too"',
        'series discription,date,filename\nCINE_segmented_SAX_b1,Sept 1,2016,a.dcm\n\nbroken,row\n"CINE, too",x,b.dcm',
    ):
        assert read_manifest(text.encode(), "m") == expected
    for text in ("", "a,b\n1,2\n", "filename\nx\n"):
        with pytest.raises(DatasetError, match=r'z: lacks the column "filename" or "series discription"'):
            read_manifest(text.encode(), "z")


cells = st.text(alphabet='abc01,"\n\r;\0 Máy 11, 2016', max_size=8)
tables = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=5).map("\n".join)


@few
@given(st.one_of(st.binary(max_size=80), tables.map(lambda text: f"filename,date,series discription\n{text}".encode())))
def test_any_manifest_is_read_or_refused(content: bytes) -> None:
    with suppress(DatasetError):
        found = read_manifest(content, "manifest.csv")
        assert all(isinstance(key, str) and isinstance(value, str) and key for key, value in found.items())


changes = st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=6), st.integers(0, 9)), min_size=1, max_size=3)


@few
@given(changes)
def test_any_workspace_is_read_or_refused(edits: list[tuple[int, bytes, int]]) -> None:
    content = workspace("8,12 40,12 40,20 8,20")
    for place, text, length in edits:
        content = content[:place] + text + content[place + length :]
    with suppress(ImageError):
        for contours in parse_contours(content, "x.xml").values():
            assert fill(contours, (9, 12), [("saendocardialContour", 1)]).shape == (9, 12)


@few
@given(st.one_of(st.binary(max_size=80), tables.map(lambda text: f"case_id,role,frame_index\n{text}".encode())))
def test_any_case_table_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    path.write_bytes(content)
    with suppress(CaseTableError):
        assert all(CaseTable.read(path).case_ids())


def test_a_manifest_without_header_names_nobody() -> None:
    with pytest.raises(DatasetError, match=r"its first row has 3 columns") as caught:
        read_manifest(b"a.dcm,Petra Muster,1970-01-01\n", "m.csv")
    assert "petra" not in str(caught.value).lower()

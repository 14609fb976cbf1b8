from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_qa.errors import ClickError
from nnunet_qa.interaction.click_files import Mark, find_marks, label_names, on_grid, read_markups
from nnunet_qa.interaction.clicks import Click
from nnunet_qa.interaction.grid import Grid

ONE = {"background": 0, "mandible": 1}
TWO = {"background": 0, "left": 1, "right": 2, "ignore": 3}
SHAPE = (6, 10, 12)


def oblique() -> sitk.Image:
    """An image of which no axis is one of the patient."""
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.5, 0.8)
    image = sitk.Image(SHAPE[::-1], sitk.sitkInt16)
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((-31.0, 12.5, 104.0))
    image.SetDirection(turn.GetMatrix())
    return image


def grid_of(image: sitk.Image) -> Grid:
    """The grid as nnU-Net's reader describes the image."""
    place = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return Grid.of(image.GetSize()[::-1], {"sitk_stuff": place, "spacing": image.GetSpacing()[::-1]})


def point(at: Any, label: str = "", **more: Any) -> dict[str, Any]:
    """A control point as 3D Slicer writes it."""
    return {"id": "1", "label": label, "description": "", "position": at, "positionStatus": "defined", **more}


def write_markups(path: Path, *points: dict[str, Any], **more: Any) -> Path:
    content = {"@schema": "markups-schema-v1.0.3.json#"}
    markups = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": list(points)}
    path.write_text(json.dumps({**content, "markups": [{**markups, **more}]}))
    return path


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_points_of_slicer_land_on_the_voxel_that_simpleitk_says(tmp_path: Path, system: str) -> None:
    image, rng = oblique(), np.random.default_rng(0)
    expected, points = [], []
    for number, voxel in enumerate(rng.choice(np.prod(SHAPE), 20, replace=False)):
        index = [int(at) for at in np.unravel_index(voxel, image.GetSize())]
        off = [at + float(rng.uniform(-0.45, 0.45)) for at in index]  # anywhere in the voxel
        at = list(image.TransformContinuousIndexToPhysicalPoint(off))
        assert list(image.TransformPhysicalPointToIndex(at)) == index
        expected.append(Click(tuple(index[::-1]), number % 2))
        sign = [-1, -1, 1] if system == "RAS" else [1, 1, 1]
        points.append(point([s * mm for s, mm in zip(sign, at, strict=True)], ("background", "object")[number % 2]))
    path = write_markups(tmp_path / "a.mrk.json", *points, coordinateSystem=system)
    marks = find_marks(path, ["a"], ONE)["a"]
    assert on_grid(marks, grid_of(image)) == expected
    np.testing.assert_allclose(
        grid_of(image).point((1, 2, 3)), image.TransformIndexToPhysicalPoint((3, 2, 1)), atol=1e-9
    )


def test_affine_of_nibabel_and_images_without_place() -> None:
    image = oblique()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1  # NIfTI is RAS
    ours = Grid.of(SHAPE, {"nibabel_stuff": {"original_affine": affine}, "spacing": (2.5, 0.9, 0.7)})
    np.testing.assert_allclose(ours.matrix, grid_of(image).matrix)
    turned = Grid.of(SHAPE, {"nibabel_stuff": {"original_affine": np.eye(4), "reoriented_affine": affine}})
    np.testing.assert_allclose(turned.matrix, ours.matrix)
    picture = Grid.of((1, 20, 30), {"spacing": (999, 1, 1)})
    assert picture.voxel((7.2, 3.9, 0)) == (0, 4, 7)
    flat = Grid.of(
        (1, 20, 30), {"sitk_stuff": {"spacing": (0.5, 2.0), "origin": (1.0, 4.0), "direction": (0, 1, 1, 0)}}
    )
    assert flat.voxel((1 + 3 * 2.0, 4 + 5 * 0.5, 0)) == (0, 3, 5)


def test_what_a_point_belongs_to(tmp_path: Path) -> None:
    at = [0.0, 0.0, 0.0]
    path = write_markups(
        tmp_path / "a.mrk.json",
        point(at, "right"),
        point(at, "left-12"),
        point(at, "F-3", description="right"),
        point(at, "F-4"),
        point(at, "background"),
        point(at, "nothing", positionStatus="undefined"),
        point(None, "nothing", positionStatus="defined"),
        name="left",
    )
    assert [mark.label for mark in read_markups(path, label_names(TWO))] == [2, 1, 2, 1, 0]
    assert label_names({"zero": 0, "a": 1, "b": 2}) == {"zero": 0, "a": 1, "b": 2, "background": 0}


def test_tables_by_voxel_by_mm_and_by_case(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("k,j,i,label\n1, 2,3,left\n0,0,1.0,0\n")
    (tmp_path / "b.csv").write_text("x,y,z,label\n-1.5,2,4.25,right\n")
    found = find_marks(tmp_path, ["a", "b", "c"], TWO)
    assert set(found) == {"a", "b"}
    assert [(mark.at, mark.physical, mark.label) for mark in found["a"]] == [
        ((1, 2, 3), False, 1),
        ((0, 0, 1), False, 0),
    ]
    assert [(mark.at, mark.physical, mark.label) for mark in found["b"]] == [((-1.5, 2.0, 4.25), True, 2)]
    # as spreadsheets write it: a byte order mark, and lines without anything
    (tmp_path / "b.csv").write_text("\ufeffk,j,i,label\n\n,,,\n1,2,3,left\n", encoding="utf-8")
    (mark,) = find_marks(tmp_path / "b.csv", ["b"], TWO)["b"]
    assert (mark.at, mark.source) == ((1, 2, 3), f"{tmp_path / 'b.csv'}: line 4")
    table = tmp_path / "clicks.csv"  # with both, as our own table has them
    table.write_text("case_id,label,k,j,i,x,y,z\nb,2,0,1,2,9,9,9\n001,1,5,4,3,9,9,9\n")
    both = find_marks(table, ["001", "b"], TWO)
    assert {case: marks[0].at for case, marks in both.items()} == {"001": (5, 4, 3), "b": (0, 1, 2)}
    (tmp_path / "picture.csv").write_text("j,i,label\n4,7,object\n")
    (mark,) = find_marks(tmp_path / "picture.csv", ["only"], ONE)["only"]
    assert on_grid([mark, mark], Grid.of((1, 9, 9), {"spacing": (999, 1, 1)})) == [Click((0, 4, 7), 1)]
    with pytest.raises(ClickError, match=r"picture.csv: line 2: needs k beside j and i, for the image has 2 slices"):
        on_grid([mark], Grid.of((2, 9, 9), {"spacing": (1, 1, 1)}))


def test_a_file_in_a_folder_is_never_taken_for_the_only_case(tmp_path: Path) -> None:
    path = tmp_path / "patient7.csv"
    path.write_text("k,j,i,label\n1,2,3,1\n")
    assert set(find_marks(path, ["patient3"], ONE)) == {"patient3"}  # given itself, it can mean nothing else
    with pytest.raises(ClickError, match="holds clicks of the case patient7, of which there is no image"):
        find_marks(tmp_path, ["patient3"], ONE)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.mrk.json", "{", "a.mrk.json: not valid JSON"),
        ("a.mrk.json", "[]", "a.mrk.json: not a file of markups"),
        (
            "a.mrk.json",
            '{"markups": [{"controlPoints": [{"label": "left", "position": [1, 2]}]}]}',
            "not a file of markups",
        ),
        (
            "a.mrk.json",
            '{"markups": [{"coordinateSystem": "IJK", "controlPoints": []}]}',
            "must be LPS or RAS in mm, found IJK",
        ),
        (
            "a.mrk.json",
            '{"markups": [{"controlPoints": [{"label": "F-1", "position": [1, 2, 3]}]}]}',
            "a.mrk.json: point 1: F-1 is no class; label points with one of background, left, right",
        ),
        ("a.csv", "x,y,label\n1,2,left\n", "needs the columns label and x, y, z (mm) or k, j, i; found x, y, label"),
        ("a.csv", "x,y,z\n1,2,3\n", "needs the columns label"),
        ("a.csv", "x,y,z,label\n1,2,3,top\n", 'a.csv: line 2: "top" is no label; known: background, left, right'),
        ("a.csv", "x,y,z,label\n1,2,3,3\n", 'line 2: "3" is no label'),
        ("a.csv", "x,y,z,label\n1,2,3,1\n1,b,3,1\n", "line 3: x, y, z must be numbers"),
        ("a.csv", "x,y,z,label\n1,2,nan,1\n", "is not finite"),
        ("a.csv", "k,j,i,label\n1,2.5,3,1\n", "k, j, i must be whole numbers"),
        ("a.csv", "", "needs the columns label and x, y, z (mm) or k, j, i; found none"),
        ("a.csv", "k,j,i,label\n0,1,2,3,left\n", "a.csv: line 2: has 5 fields for 4 columns; correct the line"),
        ("a.csv", "k,j,i,label\n\n1,2,3,left\n1,2,3,left,\n", "a.csv: line 4: has 5 fields for 4 columns"),
        ("a.csv", "k,j,i,label\n1,2,3\n", 'a.csv: line 2: "" is no label'),
        ("a.csv", "k,j,i,label\n1,2,3," + "l" * 200_000, "a.csv: cannot be read as CSV: field larger than"),
        ("a.csv", "case_id,k,j,i,label\na,1,2,3,1\n,1,2,3,1\n", "case_id is empty in some rows"),
        (
            "case_9.csv",
            "k,j,i,label\n1,2,3,1\n",
            'the case case_9, of which there is no image (did you mean "case_1"?)',
        ),
        ("z.csv", "case_id,k,j,i,label\nother,1,2,3,1\n", "holds clicks of the case other"),
        ("a.txt", "", "clicks are read from .mrk.json and .csv files"),
    ],
)
def test_mistakes_in_files(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ClickError) as error:
        find_marks(path, ["a", "case_1"], TWO)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_mistakes_between_files(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(ClickError, match="no clicks there"):
            find_marks(source, ["a"], ONE)
    (tmp_path / "a.csv").write_text("k,j,i,label\n1,2,3,1\n")
    write_markups(tmp_path / "a.mrk.json")
    with pytest.raises(ClickError, match=r"the case a has another file of clicks .*; keep one"):
        find_marks(tmp_path, ["a"], ONE)


def test_clicks_that_an_image_cannot_have() -> None:
    grid = grid_of(oblique())
    inside = Mark(at=(1, 2, 3), physical=False, label=1, source="a.csv: line 2")
    for at, physical in (((6, 0, 0), False), ((0, -1, 0), False), ((900.0, 0.0, 0.0), True)):
        outside = Mark(at=at, physical=physical, label=1, source="a.csv: line 3")
        with pytest.raises(
            ClickError, match=r"a.csv: line 3: the click at .* outside the image of \(6, 10, 12\) voxels"
        ):
            on_grid([inside, outside], grid)
    same = Mark(at=grid.point((1, 2, 3)), physical=True, label=0, source="a.csv: line 4")
    with pytest.raises(ClickError, match=r"a.csv: line 4: contradicts a.csv: line 2: voxel \(1, 2, 3\)"):
        on_grid([inside, same], grid)

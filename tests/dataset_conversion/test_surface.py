from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from nnunet_qa.data.images import Geometry
from nnunet_qa.dataset_conversion.surface import fill, read_surface
from nnunet_qa.errors import DependencyError, ImageError

SHAPE = (14, 18, 22)
C, S = np.cos(0.4), np.sin(0.4)
OBLIQUE = Geometry((0.7, 1.1, 2.0), (-5.0, 3.0, 9.0), (C, -S, 0.0, S, C, 0.0, 0.0, 0.0, 1.0))


def centres(geometry: Geometry) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")[::-1], axis=-1)
    return (grid * geometry.spacing) @ np.reshape(geometry.direction, (3, 3)).T + geometry.origin


@pytest.mark.parametrize("ascii_text", [True, False])
def test_a_turned_box_on_an_oblique_grid(ascii_text: bool, tmp_path: Path) -> None:
    points = centres(OBLIQUE)
    middle = points[7, 9, 11]
    turn = trimesh.transformations.rotation_matrix(0.7, (1, 2, 3))
    turn[:3, 3] = middle
    box = trimesh.creation.box((6.1, 7.3, 11.9), turn)
    box.export(tmp_path / "box.stl", file_type="stl_ascii" if ascii_text else "stl")
    own = (points - middle) @ turn[:3, :3]
    expected = (np.abs(own) < np.array([6.1, 7.3, 11.9]) / 2).all(axis=-1)
    assert 100 < expected.sum() < expected.size / 2
    np.testing.assert_array_equal(read_surface(tmp_path / "box.stl", SHAPE, OBLIQUE), expected)


def test_vertices_and_faces_right_on_voxels() -> None:
    box = trimesh.creation.box((4, 6, 8), trimesh.transformations.translation_matrix((6, 7, 8)))
    # whole coordinates: the surface holds the lower of two voxels that lie on it, and as many as its volume
    mask = fill(np.asarray(box.vertices), np.asarray(box.faces), SHAPE)
    assert mask.sum() == 4 * 6 * 8
    ball = trimesh.creation.icosphere(subdivisions=2, radius=5.0)
    vertices = np.rint(np.asarray(ball.vertices) + 7)  # squashed onto the grid, still closed
    found = fill(vertices, np.asarray(ball.faces), SHAPE).sum()
    rounded = trimesh.Trimesh(vertices, ball.faces, process=False)
    assert found == pytest.approx(rounded.volume, rel=0.1)


def test_a_hollow_body_and_one_beyond_the_scan() -> None:
    outer, inner = (trimesh.creation.icosphere(subdivisions=3, radius=radius) for radius in (6.0, 3.0))
    both = trimesh.util.concatenate([outer, inner])
    for middle in ((10.0, 8.0, 7.0), (0.0, 17.0, 1.0)):
        radius = np.linalg.norm(
            np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")[::-1], -1) - middle, axis=-1
        )
        found = fill(np.asarray(both.vertices) + middle, np.asarray(both.faces), SHAPE)
        sure = (np.abs(radius - 6) > 0.1) & (np.abs(radius - 3) > 0.1)
        np.testing.assert_array_equal(found[sure], ((radius < 6) & (radius > 3))[sure])


def test_surfaces_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "far.stl"
    trimesh.creation.box((5, 5, 5), trimesh.transformations.translation_matrix((900, 0, 0))).export(path)
    with pytest.raises(ImageError, match=r"far.stl: the surface holds no voxel.*RAS"):
        read_surface(path, SHAPE, OBLIQUE)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"far.stl: "):
        read_surface(path, SHAPE, OBLIQUE)
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(DependencyError, match="mesh"):
        read_surface(path, SHAPE, OBLIQUE)

"""Masks from closed surfaces (STL): a voxel belongs to the mask where its centre lies inside the surface."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunet_qa.data.images import Geometry
from nnunet_qa.dataset_conversion.volume_files import affine
from nnunet_qa.errors import DependencyError, ImageError

SPACES = ("lps", "ras")
"""Frames that the vertices of a surface may be stated in."""


def read_surface(path: Path, shape: tuple[int, ...], geometry: Geometry, *, space: str = "lps") -> np.ndarray:
    """Voxelise a surface on the grid of its image, oblique or not.

    Args:
        path: STL, binary or text, in mm.
        shape: `(slices, rows, columns)` of the image.
        geometry: of the image.
        space: "lps" as DICOM and most programs write it, or "ras"; an STL file does not say which.

    Returns:
        Booleans of the shape of the image.

    Raises:
        DependencyError: trimesh is not installed.
        ImageError: the file cannot be read, the surface is open or holds no voxel of the image.
    """
    try:
        import trimesh
    except ImportError as error:
        raise DependencyError('STL surfaces need trimesh; run `pip install "nnunet-qa[mesh]"`') from error
    try:
        mesh = trimesh.load_mesh(path, file_type="stl")
        vertices, faces = np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)
    except Exception as error:  # trimesh raises a dozen types on a damaged file
        raise ImageError(f"{path}: cannot be read as an STL surface (truncated?): {error}") from error
    if not len(faces) or not mesh.is_watertight:
        raise ImageError(f"{path}: the surface is not closed, so it has no inside, or the file is cut off; repair it")
    if space == "ras":
        vertices = vertices * (-1, -1, 1)
    to_index = np.linalg.inv(affine(geometry))
    mask = fill(vertices @ to_index[:3, :3].T + to_index[:3, 3], faces, shape)
    if not mask.any():
        raise ImageError(
            f"{path}: the surface holds no voxel of its image; is it in {_other(space).upper()} coordinates?"
        )
    return mask


def _other(space: str) -> str:
    return "ras" if space == "lps" else "lps"


def fill(vertices: np.ndarray, faces: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels inside a closed surface, by counting crossings along each row of voxels.

    A vertex right on a slice or row counts as above it, in every triangle alike, so that each closed curve is crossed
    an even number of times.

    Args:
        vertices: `(n, 3)` in voxel indices, x, y, z.
        faces: `(m, 3)` indices of vertices.
        shape: `(slices, rows, columns)`.

    Returns:
        Booleans of this shape.
    """
    slices, rows, columns = shape
    crossed = np.zeros((rows, columns + 1), dtype=bool)
    inside = np.zeros(shape, dtype=bool)
    heights = vertices[faces, 2]
    lowest, highest = heights.min(axis=1), heights.max(axis=1)
    for index in range(slices):
        cut = faces[(lowest < index) & (highest >= index)]
        if not len(cut):
            continue
        row, x = _crossings(*_section(vertices, cut, index))
        seen = (row >= 0) & (row < rows)
        crossed[:] = False
        start = np.clip(np.ceil(x[seen]), 0, columns).astype(np.int64)
        np.logical_xor.at(crossed, (row[seen], start), True)
        inside[index] = np.logical_xor.accumulate(crossed, axis=1)[:, :columns]
    return inside


def _section(vertices: np.ndarray, faces: np.ndarray, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a plane of constant z cuts triangles: the ends `(m, 2)` of one piece of line each."""
    above = vertices[faces, 2] >= height
    alone = np.where(above.sum(axis=1) == 1, above.argmax(axis=1), above.argmin(axis=1))
    number = np.arange(len(faces))
    ends = []
    for other in (1, 2):
        pair = np.stack([faces[number, alone], faces[number, (alone + other) % 3]])
        low, high = (
            vertices[pair.min(axis=0)],
            vertices[pair.max(axis=0)],
        )  # the same order in both triangles of an edge
        part = (height - low[:, 2]) / (high[:, 2] - low[:, 2])
        ends.append(low[:, :2] + part[:, None] * (high[:, :2] - low[:, :2]))
    return ends[0], ends[1]


def _crossings(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and x of each crossing of pieces of line with rows of voxels."""
    low, high = np.minimum(first[:, 1], second[:, 1]), np.maximum(first[:, 1], second[:, 1])
    start = np.floor(low).astype(np.int64) + 1
    count = np.floor(high).astype(np.int64) + 1 - start
    piece = np.repeat(np.arange(len(count)), count)
    row = start[piece] + np.arange(len(piece)) - np.repeat(np.cumsum(count) - count, count)
    one, two = first[piece], second[piece]
    return row, one[:, 0] + (row - one[:, 1]) / (two[:, 1] - one[:, 1]) * (two[:, 0] - one[:, 0])

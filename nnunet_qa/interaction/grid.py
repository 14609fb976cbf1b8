"""Where the voxels of an image lie in the patient, so that a point in mm finds its voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of an image.

    Attributes:
        shape: (z, y, x); a picture has one slice.
        matrix: 4×4, from the voxel index (i, j, k, 1), the last axis of the array first, to LPS in mm.
    """

    shape: tuple[int, ...]
    matrix: np.ndarray

    @classmethod
    def of(cls, shape: Sequence[int], properties: Mapping[str, Any]) -> Grid:
        """The grid of an image that one of nnU-Net's readers has read.

        Args:
            shape: (z, y, x).
            properties: what the reader returned with it. An image without a place in the patient (PNG, TIFF) begins at
                0 mm, and its axes are those of the patient.
        """
        matrix = np.eye(4)
        if "sitk_stuff" in properties:
            place = properties["sitk_stuff"]
            axes = len(place["spacing"])
            matrix[:axes, :axes] = np.reshape(place["direction"], (axes, axes)) * np.asarray(place["spacing"])
            matrix[:axes, 3] = place["origin"]
        elif "nibabel_stuff" in properties:
            place = properties["nibabel_stuff"]
            matrix = _RAS_TO_LPS @ np.asarray(place.get("reoriented_affine", place["original_affine"]), float)
        else:
            matrix[range(3), range(3)] = tuple(properties["spacing"])[::-1]
        return cls(tuple(int(length) for length in shape), matrix)

    def voxel(self, point: Sequence[float]) -> tuple[int, ...]:
        """Index (z, y, x) of the voxel around a point (x, y, z) in mm, LPS; it may lie outside the image."""
        index = np.linalg.solve(self.matrix, [*point, 1.0])[:3]
        # a point halfway between two voxels belongs to the one behind, whatever the rounding of the matrix
        return tuple(int(i) for i in np.floor(index + 0.5 + 1e-6)[::-1])

    def point(self, position: Sequence[int]) -> tuple[float, ...]:
        """Centre (x, y, z) in mm, LPS, of the voxel (z, y, x)."""
        return tuple(float(mm) for mm in (self.matrix @ [*position[::-1], 1.0])[:3])

    def holds(self, position: Sequence[int]) -> bool:
        """Whether there is a voxel (z, y, x)."""
        return all(0 <= at < length for at, length in zip(position, self.shape, strict=True))

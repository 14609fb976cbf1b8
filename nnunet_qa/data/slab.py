"""A part of a scan between two slices, on a grid that is the same for all scans (paper 002, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from nnunet_qa.data.images import Geometry
from nnunet_qa.data.slice_stack import BodyAxis, oriented

_AIR = -1024.0  # HU; scanners mark what lies outside their circle with less


@dataclass(frozen=True, kw_only=True)
class SlabSpec:
    """The grid; the paper's by default.

    Attributes:
        spacing: between voxels across the body, twice, and along it; in mm.
        size: voxels across the body, twice, and along it.
    """

    spacing: tuple[float, float, float] = (2.0, 2.0, 6.0)
    size: tuple[int, int, int] = (168, 168, 64)

    def filled(self, length: float) -> np.ndarray:
        """Which slices of the grid `(size[2],)` show a slab of this length in mm, which lies in the middle."""
        offsets = (np.arange(self.size[2]) - (self.size[2] - 1) / 2) * self.spacing[2]
        return np.abs(offsets) <= length / 2


def cut_slab(
    array: np.ndarray,
    geometry: Geometry,
    *,
    axis: BodyAxis,
    start: float,
    end: float,
    spec: SlabSpec,
    is_label: bool = False,
) -> tuple[np.ndarray, Geometry]:
    """Resample the part of a scan between two depths; what the grid shows beyond it is background.

    Images are interpolated linearly, and background is their minimum, but not below −1024, which is air in CT. Label
    maps take the nearest voxel, and background is 0. The slab is centred on the middle of both depths and on the middle
    of the scan's slices, and what does not fit into the grid is cut off.

    Args:
        array: the scan, `(slices, rows, columns)`.
        geometry: where it lies.
        axis: along which depth is counted, from the centre of the first slice in that order.
        start: depth of the beginning in mm.
        end: depth of the end in mm, greater than `start`.
        spec: the grid.
        is_label: whether it is a label map.

    Returns:
        The slab in the same data type and its geometry, its axes in LPS order.
    """
    image = oriented(array, geometry, axis)
    background = 0.0 if is_label else max(float(array.min()), _AIR)
    middle = [(size - 1) / 2 for size in image.GetSize()[:2]] + [(start + end) / 2 / image.GetSpacing()[2]]
    half = (np.array(spec.size) - 1) / 2 * np.array(spec.spacing)
    direction = np.reshape(image.GetDirection(), (3, 3))
    origin = np.array(image.TransformContinuousIndexToPhysicalPoint(middle)) - direction @ half
    resampled = sitk.Resample(
        image,
        spec.size,
        sitk.Transform(),
        sitk.sitkNearestNeighbor if is_label else sitk.sitkLinear,
        origin.tolist(),
        spec.spacing,
        image.GetDirection(),
        background,
        image.GetPixelID() if is_label else sitk.sitkFloat32,
    )
    slab = sitk.GetArrayFromImage(resampled)
    slab[~spec.filled(end - start)] = background
    if np.issubdtype(array.dtype, np.integer):
        slab = np.rint(slab)  # SimpleITK would cut the decimals off
    upright = sitk.DICOMOrient(_like(resampled, slab.astype(array.dtype)), "LPS")
    return sitk.GetArrayFromImage(upright), Geometry.of(upright)


def _like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    copy = sitk.GetImageFromArray(array)
    copy.CopyInformation(image)
    return copy

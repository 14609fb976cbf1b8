"""Random rotation, shift and shear of 2D images, which batchgeneratorsv2's SpatialTransform does not have together.

Conventions are those of Keras' ImageDataGenerator, in which the QU-Net++ paper (001, section III-B) gives its ranges:
one matrix about the image's centre, and what comes in from outside repeats the nearest pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch.nn.functional import affine_grid, grid_sample


def affine_matrix(angle: float, shift: tuple[float, float], shear: float) -> np.ndarray:
    """Matrix `(2, 3)` that takes a pixel of the result to where it is read, both as (y, x) from the image's centre.

    Args:
        angle: rotation in radians.
        shift: pixels along y and x.
        shear: angle in radians by which the x axis is slanted.
    """
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[1.0, -np.sin(shear)], [0.0, np.cos(shear)]])
    return np.column_stack([rotation @ slant, rotation @ np.array(shift)])


class RandomAffine(BasicTransform):
    """Rotate, shift and shear each image by amounts drawn evenly from ± the given ones.

    Args:
        rotation: radians.
        shift: share of the image's length along each axis.
        shear: radians.
    """

    def __init__(self, *, rotation: float, shift: float, shear: float) -> None:
        super().__init__()
        self.rotation = rotation
        self.shift = shift
        self.shear = shear

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw the matrix, see `affine_matrix`."""
        # batchgeneratorsv2 draws from numpy's global state, which nnU-Net seeds apart in each worker
        angle, *shift, shear = np.random.uniform(-1, 1, 4)
        height, width = data_dict["image"].shape[1:]
        shifts = (shift[0] * self.shift * height, shift[1] * self.shift * width)
        return {"matrix": affine_matrix(angle * self.rotation, shifts, shear * self.shear)}

    def _apply_to_image(self, img: torch.Tensor, *, matrix: np.ndarray) -> torch.Tensor:
        return _resampled(img, matrix, mode="bilinear")

    def _apply_to_segmentation(self, segmentation: torch.Tensor, *, matrix: np.ndarray) -> torch.Tensor:
        return _resampled(segmentation.float(), matrix, mode="nearest").to(segmentation.dtype)


def _resampled(image: torch.Tensor, matrix: np.ndarray, *, mode: str) -> torch.Tensor:
    """`image` `(channels, y, x)` read at the places that the matrix names."""
    # torch wants (x, y), each from -1 to 1 across the image
    half = np.array(image.shape[:0:-1]) / 2
    theta = matrix[::-1, [1, 0, 2]] * np.array([*half, 1.0]) / half[:, None]
    grid = affine_grid(torch.from_numpy(theta[None]).to(image.dtype), [1, *image.shape], align_corners=False)
    return grid_sample(image[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]

"""The distortions as a batchgeneratorsv2 transform in nnU-Net's intensities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_qa.config_limited_data import RestorationConfig

from .distortions import distort


class RestorationTransform(BasicTransform):
    """Distorts the image and puts the clean one where nnU-Net's data loader expects the segmentation.

    Args:
        settings: distortions, and the percentiles that become 0 and 1 while distorting.
    """

    def __init__(self, settings: RestorationConfig) -> None:
        super().__init__()
        self.settings = settings

    def get_parameters(self, **data_dict: Any) -> dict[str, np.random.Generator]:
        """A generator seeded from numpy's global state, as all of nnU-Net's loading is, in which its workers differ."""
        return {"rng": np.random.default_rng(np.random.randint(2**32, dtype=np.uint64))}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """`image` becomes the distorted image and `segmentation` the clean one, both `(channels, *spatial)` float32."""
        distorted, clean = distorted_pair(data_dict["image"].numpy(), params["rng"], self.settings)
        return {**data_dict, "image": torch.from_numpy(distorted), "segmentation": torch.from_numpy(clean)}


def distorted_pair(
    image: np.ndarray, rng: np.random.Generator, settings: RestorationConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Distort an image of any intensities in [0, 1] and map it back, so a network sees the intensities of fine-tuning.

    Args:
        image: `(channels, *spatial)`, float32.
        rng: source of chance.
        settings: distortions, and the percentiles that become 0 and 1 while distorting.

    Returns:
        The distorted and the clean image, in the intensities of `image`.
    """
    low, width = unit_scale(image, settings.percentiles)
    distorted, clean = distort((image - low) / width, rng, settings.distortions)
    return distorted * width + low, clean * width + low


def unit_scale(image: np.ndarray, percentiles: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Offset and width, `(channels, 1, …)` float32, with which (image − offset) / width is about in [0, 1].

    Each channel is scaled by itself; values beyond the percentiles end up a little outside. A channel
    without contrast has width 1.
    """
    axes = tuple(range(1, image.ndim))
    low, high = np.percentile(image, percentiles, axis=axes, keepdims=True).astype(np.float32)
    return low, np.where(high > low, high - low, np.float32(1))

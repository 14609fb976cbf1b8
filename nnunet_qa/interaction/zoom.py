"""Enlarged and shrunk patches, so that a click does not come to stand for an object of one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

from nnunet_qa.config_limited_data import InteractionConfig


def draw_zooms(size: int, settings: InteractionConfig, rng: np.random.Generator) -> np.ndarray:
    """How many times each patch is enlarged: log-uniform in 1/`zoom`…`zoom` in a part `zoomed` of them, else 1.

    Returns:
        `(size,)` float64.
    """
    limit = np.log(settings.zoom)
    factors: np.ndarray = np.exp(rng.uniform(-limit, limit, size))
    return np.where(rng.random(size) < settings.zoomed, factors, 1.0)


def zoomed(
    images: torch.Tensor, targets: Sequence[torch.Tensor], factors: np.ndarray
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Each patch enlarged about its centre; those with a factor of 1 stay as they are.

    Around a patch that is shrunk its rim goes on, in the image as in the labels.

    Args:
        images: `(batch, channels, *spatial)`, 2D or 3D.
        targets: labels `(batch, 1, *spatial)` of each scale of deep supervision, the finest first.
        factors: `(batch,)`; 2 shows the middle half of each side, twice as large.

    Returns:
        Images (trilinear or bilinear) and targets (nearest), of the same shapes and types.
    """
    changed = np.flatnonzero(factors != 1)
    if not len(changed):
        return images, list(targets)
    axes = images.ndim - 2
    theta = torch.zeros(len(changed), axes, axes + 1)
    for axis in range(axes):
        theta[:, axis, axis] = torch.from_numpy(1 / factors[changed])
    grid = affine_grid(theta, [len(changed), *images.shape[1:]], align_corners=False).to(images)
    images = images.clone()
    images[changed] = grid_sample(images[changed], grid, padding_mode="border", align_corners=False)
    labels = grid_sample(targets[0][changed].to(grid), grid, mode="nearest", padding_mode="border", align_corners=False)
    shown = []
    for target in targets:
        target = target.clone()
        # as nnU-Net makes the targets of lower scales; at the finest it changes nothing
        target[changed] = interpolate(labels, target.shape[2:], mode="nearest-exact").to(target.dtype)
        shown.append(target)
    return images, shown

"""Between the grid of an image and the one that the network sees, for a part of either.

nnU-Net maps whole predictions back to the image; after a click only a part has changed, and this maps that part alone,
by the same interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

Box = tuple[slice, ...]
"""A part of an array: one slice with start and stop an axis."""


def bounding(boxes: Sequence[Box]) -> Box:
    """The smallest part of an array that holds all of these parts."""
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*boxes, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a preprocessed image came from.

    Attributes:
        network: shape of the preprocessed image.
        cropped: shape of the image, axes in the network's order, after nnU-Net's crop to nonzero.
        corner: first voxel of that crop, axes in the network's order.
        order: the image's axis that each axis of the network is.
        nearest: axis of the network along which nnU-Net takes the nearest value instead of interpolating, as it does
            across thick slices.
    """

    network: tuple[int, ...]
    cropped: tuple[int, ...]
    corner: tuple[int, ...]
    order: tuple[int, ...]
    nearest: int | None = None

    @classmethod
    def of(cls, properties: dict[str, Any], network: Sequence[int], plans: Any, configuration: Any) -> Placement:
        """From what nnU-Net's preprocessor noted.

        Args:
            properties: of the case.
            network: shape of the preprocessed image.
            plans: nnU-Net's PlansManager.
            configuration: nnU-Net's ConfigurationManager.
        """
        spacing = [float(properties["spacing"][axis]) for axis in plans.transpose_forward]
        seen = [*spacing[: len(spacing) - len(configuration.spacing)], *configuration.spacing]
        # nnU-Net asks in this order when it exports, with what the plans say or else "None" (decide by the spacing)
        settings = configuration.configuration.get("resampling_fn_probabilities_kwargs", {})
        separate, axis = determine_do_sep_z_and_axis(settings.get("force_separate_z"), seen, spacing)
        return cls(
            network=tuple(int(length) for length in network),
            cropped=tuple(int(length) for length in properties["shape_after_cropping_and_before_resampling"]),
            corner=tuple(int(bounds[0]) for bounds in properties["bbox_used_for_cropping"]),
            order=tuple(plans.transpose_forward),
            nearest=None if not separate or axis is None else int(axis),
        )

    def to_network(self, position: Sequence[int]) -> tuple[int, ...]:
        """The network's voxel around the centre of the image's voxel (z, y, x); the nearest where that was cropped."""
        found = []
        for axis, (have, want, corner) in enumerate(zip(self.network, self.cropped, self.corner, strict=True)):
            at = (position[self.order[axis]] - corner + 0.5) * have / want
            found.append(min(max(int(np.floor(at)), 0), have - 1))
        return tuple(found)

    def touched(self, box: Box) -> Box:
        """The part of the cropped image, axes in the network's order, that depends on a part of the prediction."""
        parts = []
        for axis, part in enumerate(box):
            low, high, _ = self._taps(axis)
            inside = np.flatnonzero((high >= part.start) & (low < part.stop))
            # many voxels of the network may fall between two of the image
            parts.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0))
        return tuple(parts)

    def in_image(self, box: Box) -> Box:
        """A part of the cropped image, axes in the network's order, as a part (z, y, x) of the whole image."""
        found = [slice(0)] * len(box)
        for axis, (part, corner) in enumerate(zip(box, self.corner, strict=True)):
            found[self.order[axis]] = slice(part.start + corner, part.stop + corner)
        return tuple(found)

    def resample(self, logits: torch.Tensor, box: Box) -> torch.Tensor:
        """Logits at a part of the cropped image, as nnU-Net's own resampling has them there.

        Args:
            logits: `(classes, *network)`.
            box: part of the cropped image, axes in the network's order.

        Returns:
            `(classes, *shape of the part)`, float32.
        """
        taps = [[values[part] for values in self._taps(axis)] for axis, part in enumerate(box)]
        corners = [int(low[0]) for low, _, _ in taps]
        needed = tuple(slice(corner, int(high[-1]) + 1) for corner, (_, high, _) in zip(corners, taps, strict=True))
        found = logits[(slice(None), *needed)].float()
        for axis, ((low, high, weight), corner) in enumerate(zip(taps, corners, strict=True), 1):
            if self.network[axis - 1] == self.cropped[axis - 1]:
                continue
            below = found.index_select(axis, torch.from_numpy(low - corner))
            above = found.index_select(axis, torch.from_numpy(high - corner))
            shape = [1] * found.ndim
            shape[axis] = -1
            found = torch.lerp(below, above, torch.from_numpy(weight).float().reshape(shape))
        return found

    def _taps(self, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each voxel of the cropped image along an axis: the network's two around it, and the second's weight."""
        have, want = self.network[axis], self.cropped[axis]
        at = np.clip((np.arange(want) + 0.5) * have / want - 0.5, 0, have - 1)
        if axis == self.nearest:
            at = np.floor(at + 0.5)
        low = np.floor(at).astype(np.int64)
        return low, np.ceil(at).astype(np.int64), at - low

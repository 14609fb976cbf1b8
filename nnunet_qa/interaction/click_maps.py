"""Clicks as channels of a network's input (paper 004): a Gaussian at each click, one channel a label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_qa.interaction.clicks import Click

REACH = 4.0
"""Standard deviations beyond which a Gaussian is exactly 0."""
CHECKPOINT_KEY = "nnunet_qa_clicks"
"""Key under which a checkpoint holds the fields of its `ClickChannels`, as a dict."""


def click_maps(
    clicks: Iterable[Click],
    shape: Sequence[int],
    labels: int,
    *,
    sigma: float = 2.0,
    spacing: Sequence[float] | None = None,
) -> np.ndarray:
    """One channel for background and one a class, 1 at each of its clicks and 0 far from all of them.

    Where Gaussians overlap the larger value counts. A click may lie outside: the maps of a part of an image, with
    positions counted from its corner, are that part of the maps of the image.

    Args:
        clicks: positions in array order.
        shape: of the image, in voxels.
        labels: number of classes K, background not counted.
        sigma: standard deviation in voxels, along the axis of the smallest voxels.
        spacing: voxel sizes in the order of the axes, so that a Gaussian is as wide in mm along each; None for equal
            ones.

    Returns:
        `(labels + 1, *shape)` float32 in [0, 1].

    Raises:
        ValueError: a click's label is none of 0…K, or its position has another number of axes.
    """
    maps = np.zeros((labels + 1, *shape), np.float32)
    widths = [sigma] * len(shape) if spacing is None else [sigma * min(spacing) / size for size in spacing]
    for click in clicks:
        if not 0 <= click.label <= labels or len(click.position) != len(shape):
            raise ValueError(f"{click} does not fit {labels} classes and {len(shape)} axes")
        window, stamp = [], np.ones(())
        for at, length, width in zip(click.position, shape, widths, strict=True):
            reach = int(REACH * width)
            window.append(slice(min(max(at - reach, 0), length), max(min(at + reach + 1, length), 0)))
            away = np.arange(window[-1].start, window[-1].stop) - at
            stamp = np.multiply.outer(stamp, np.exp(-0.5 * (away / width) ** 2))
        stamp[stamp < np.exp(-0.5 * REACH**2) * (1 - 1e-9)] = 0
        part = maps[click.label][tuple(window)]
        np.maximum(part, stamp, out=part, casting="same_kind")
    return maps


@dataclass(frozen=True, kw_only=True)
class ClickChannels:
    """The channels that an interactive network gets behind those of the image.

    They are the click maps of background and of each class, then one mask a class of what the network said before the
    last click. The masks are 0 where it said nothing yet, and always where `previous` is off.

    Attributes:
        labels: number of classes K, background not counted.
        sigma: see `click_maps`.
        spacing: see `click_maps`.
        previous: whether the network sees its previous prediction.
    """

    labels: int
    sigma: float = 2.0
    spacing: tuple[float, ...] | None = None
    previous: bool = False

    def __call__(self, clicks: Iterable[Click], shape: Sequence[int], prediction: np.ndarray | None) -> np.ndarray:
        """The channels `(2K + 1, *shape)`, float32 in [0, 1].

        Args:
            clicks: so far.
            shape: of the image, in voxels.
            prediction: label map of that shape from before the last click; None where there is none.
        """
        maps = click_maps(clicks, shape, self.labels, sigma=self.sigma, spacing=self.spacing)
        masks = np.zeros((self.labels, *shape), np.float32)
        if self.previous and prediction is not None:
            for label in range(1, self.labels + 1):
                masks[label - 1] = prediction == label
        return np.concatenate((maps, masks))


def different(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first difference between the fields of two `ClickChannels` as checkpoints hold them; None without any.

    >>> different({"labels": 1, "sigma": 2.0}, {"labels": 1, "sigma": 3.0})
    'sigma 2.0, but 3.0'
    """
    for key in other:
        if one.get(key) != other[key]:
            return f"{key} {one.get(key)}, but {other[key]}"
    return None


def click_channels(labels: int) -> int:
    """Number of channels behind those of the image, for so many classes.

    >>> click_channels(1)
    3
    """
    return 2 * labels + 1

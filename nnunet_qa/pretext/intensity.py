"""Nonlinear intensities (paper 004, section 2.2, after Models Genesis): a random monotone curve for each channel."""

from __future__ import annotations

import numpy as np

from nnunet_qa.config_limited_data import DistortionConfig

_POINTS = 1000


def bend_intensities(image: np.ndarray, rng: np.random.Generator, settings: DistortionConfig) -> np.ndarray:
    """Map the intensities of each channel by a cubic Bézier curve of its own.

    Args:
        image: `(channels, *spatial)`, float32; what lies outside [0, 1] gets the value of the nearer end.
        rng: source of chance.
        settings: `decreasing` is the probability of a curve from (0, 1) to (1, 0).

    Returns:
        A new array, in [0, 1].
    """
    result = np.empty_like(image)
    for channel, bent in zip(image, result, strict=True):
        first, second = rng.random((2, 2))
        bent[...] = np.interp(channel, *bezier_map(first, second, decreasing=rng.random() < settings.decreasing))
    return result


def bezier_map(first: np.ndarray, second: np.ndarray, *, decreasing: bool) -> tuple[np.ndarray, np.ndarray]:
    """Points of the cubic Bézier curve from (0, 0) to (1, 1), for `np.interp`.

    With inner control points in the unit square neither coordinate ever falls along the curve, so the map is monotone.

    Args:
        first: `(x, y)` of the first inner control point, in [0, 1].
        second: of the second one.
        decreasing: pair each x with the y of the curve that is followed backwards, so that it goes from 1 to 0.

    Returns:
        x, ascending from 0 to 1, and y.
    """
    along = np.linspace(0, 1, _POINTS)
    weights = np.stack([3 * along * (1 - along) ** 2, 3 * along**2 * (1 - along), along**3])
    x, y = np.stack([first, second, np.ones(2)], axis=1) @ weights
    return x, y[::-1] if decreasing else y

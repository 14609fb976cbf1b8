"""The four distortions one after the other, each with its probability (paper 004, section 2.2)."""

from __future__ import annotations

import numpy as np

from nnunet_qa.config_limited_data import DistortionConfig

from .intensity import bend_intensities
from .painting import in_paint, out_paint
from .shuffle import shuffle_pixels


def distort(image: np.ndarray, rng: np.random.Generator, settings: DistortionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Draw distortions for an image: flip, local shuffle, nonlinear intensity, in-painting or out-painting.

    Args:
        image: `(channels, *spatial)`, float32, in [0, 1]; 2D or 3D, axes of one voxel included. It is left alone.
        rng: source of chance.
        settings: probabilities and numbers.

    Returns:
        The distorted image, and the clean one that it is to become; a flip applies to both, for nothing in an image
        says which way round it was.
    """
    clean = mirror(image, rng) if rng.random() < settings.flip else image
    distorted = clean.copy()
    if rng.random() < settings.shuffle:
        distorted = shuffle_pixels(distorted, rng, settings)
    if rng.random() < settings.intensity:
        distorted = bend_intensities(distorted, rng, settings)
    if rng.random() < settings.painting:
        paint = in_paint if rng.random() < settings.in_painting else out_paint
        distorted = paint(distorted, rng, settings)
    return distorted, clean


def mirror(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of `(channels, *spatial)`, mirrored along a spatial axis drawn at random."""
    return np.flip(image, axis=1 + int(rng.integers(image.ndim - 1))).copy()

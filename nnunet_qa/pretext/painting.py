"""In-painting and out-painting (paper 004, section 2.2, after Models Genesis): noise in blocks, or around windows."""

from __future__ import annotations

import numpy as np

from nnunet_qa.config_limited_data import DistortionConfig

_MARGIN = 3


def in_paint(image: np.ndarray, rng: np.random.Generator, settings: DistortionConfig) -> np.ndarray:
    """Replace some blocks by uniform noise; their sides are a sixth to a third of the image's.

    Args:
        image: `(channels, *spatial)`, float32.
        rng: source of chance.
        settings: `windows` blocks at most, each further one with probability `further`.

    Returns:
        A new array.
    """
    size = np.array(image.shape[1:])
    result = image.copy()
    for _ in range(_number(rng, settings)):
        sides = np.maximum(rng.integers(size // 6, size // 3, endpoint=True), 1)
        block = _placed(size, sides, rng)
        result[block] = rng.random(result[block].shape, dtype=np.float32)
    return result


def out_paint(image: np.ndarray, rng: np.random.Generator, settings: DistortionConfig) -> np.ndarray:
    """Replace everything by uniform noise but some windows, whose sides are three to four sevenths of the image's.

    Args:
        image: `(channels, *spatial)`, float32.
        rng: source of chance.
        settings: `windows` windows at most, each further one with probability `further`.

    Returns:
        A new array.
    """
    size = np.array(image.shape[1:])
    result = rng.random(image.shape, dtype=np.float32)
    for _ in range(_number(rng, settings)):
        sides = size - rng.integers(3 * size // 7, 4 * size // 7, endpoint=True)
        window = _placed(size, sides, rng)
        result[window] = image[window]
    return result


def _number(rng: np.random.Generator, settings: DistortionConfig) -> int:
    number = 1
    while number < settings.windows and rng.random() < settings.further:
        number += 1
    return number


def _placed(size: np.ndarray, sides: np.ndarray, rng: np.random.Generator) -> tuple[slice, ...]:
    """Index of a block in all channels, three voxels from the border, or fewer along an axis that has no room."""
    margin = np.minimum(_MARGIN, (size - sides) // 2)
    starts = rng.integers(margin, size - sides - margin, endpoint=True)
    return (slice(None), *(slice(start, start + side) for start, side in zip(starts, sides, strict=True)))

"""Local pixel shuffling (paper 004, section 2.2, after Models Genesis): small blocks whose voxels change places.

Texture is lost and the shape of larger things is kept, so a network that undoes it has learnt both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from nnunet_qa.config_limited_data import DistortionConfig

_LARGEST = 10
"""A block's side is at most the image's over this."""


def shuffle_pixels(image: np.ndarray, rng: np.random.Generator, settings: DistortionConfig) -> np.ndarray:
    """Permute the voxels of many small blocks, in all channels alike.

    Each block reads the original and writes to the copy, so overlapping blocks do not carry a voxel further than one
    block's side.

    Args:
        image: `(channels, *spatial)`, float32, 2D or 3D.
        rng: source of chance.
        settings: `blocks` says how many.

    Returns:
        A new array.
    """
    starts, sides = draw_blocks(image.shape[1:], settings.blocks, rng)
    draws = rng.random(int(sides.prod(axis=1).sum()), dtype=np.float32)
    return permute_blocks(image, starts, sides, draws)


def draw_blocks(shape: tuple[int, ...], number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """First voxel and sides of blocks, each `(number, dimensions)`; sides are uniform in 1 to a tenth of the image's.

    An axis of fewer than ten voxels has blocks of one voxel along it.
    """
    size = np.array(shape)
    sides = rng.integers(1, np.maximum(size // _LARGEST, 1), size=(number, len(size)), endpoint=True)
    return rng.integers(0, size - sides, endpoint=True), sides


def permute_blocks(image: np.ndarray, starts: np.ndarray, sides: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A copy in which the voxels of each block stand in another order.

    Args:
        image: `(channels, *spatial)`, 2D or 3D.
        starts: first voxel of each block, `(blocks, dimensions)`.
        sides: voxels of each block along each axis, `(blocks, dimensions)`.
        draws: uniform numbers in [0, 1), at least as many as all blocks together have voxels.
    """
    source = np.ascontiguousarray(image).reshape(len(image), -1)
    target = source.copy()
    if len(starts):
        flat = 3 - starts.shape[1]  # a picture is a volume of one slice
        shape = np.array((1,) * flat + image.shape[1:])
        corners = np.pad(starts, ((0, 0), (flat, 0)))
        extents = np.pad(sides, ((0, 0), (flat, 0)), constant_values=1)
        _compiled()(source, target, shape, corners, extents, draws)
    return target.reshape(image.shape)


@cache
def _compiled() -> Callable[..., None]:
    """`_permute`, compiled when it is first needed: importing numba alone takes a second."""
    from numba import njit

    try:
        compiled: Callable[..., None] = njit(cache=True)(_permute)
    except RuntimeError:  # neither here nor in the home folder can the compiled code be kept
        compiled = njit(_permute)
    return compiled


def _permute(
    source: np.ndarray,
    target: np.ndarray,
    shape: np.ndarray,
    starts: np.ndarray,
    sides: np.ndarray,
    draws: np.ndarray,
) -> None:
    largest = 0
    for block in range(len(sides)):
        largest = max(largest, sides[block, 0] * sides[block, 1] * sides[block, 2])
    places, order = np.empty(largest, np.int64), np.empty(largest, np.int64)
    used = 0
    for block in range(len(starts)):
        z0, y0, x0 = starts[block, 0], starts[block, 1], starts[block, 2]
        count = 0
        for z in range(z0, z0 + sides[block, 0]):
            for y in range(y0, y0 + sides[block, 1]):
                row = (z * shape[1] + y) * shape[2]
                for x in range(x0, x0 + sides[block, 2]):
                    places[count] = order[count] = row + x
                    count += 1
        for last in range(count - 1, 0, -1):  # Fisher and Yates
            other = int(draws[used] * (last + 1))
            used += 1
            order[last], order[other] = order[other], order[last]
        for number in range(count):
            for channel in range(len(source)):
                target[channel, places[number]] = source[channel, order[number]]

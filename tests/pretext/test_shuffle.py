from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from nnunet_qa.config_limited_data import DistortionConfig
from nnunet_qa.pretext import shuffle
from nnunet_qa.pretext.shuffle import draw_blocks, permute_blocks, shuffle_pixels


def covered(starts: np.ndarray, sides: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Number of the last block over each voxel, −1 where there is none."""
    last = np.full(shape, -1)
    for number, (start, side) in enumerate(zip(starts, sides, strict=True)):
        last[tuple(slice(a, a + n) for a, n in zip(start, side, strict=True))] = number
    return last


@pytest.mark.parametrize("shape", [(40, 60), (20, 30, 40), (1, 30, 40), (4, 1, 5)])
def test_each_voxel_comes_from_its_block_in_the_original(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    image = np.stack([np.arange(np.prod(shape)), -np.arange(np.prod(shape))]).reshape(2, *shape).astype(np.float32)
    before = image.copy()
    starts, sides = draw_blocks(shape, 200, rng)
    result = permute_blocks(image, starts, sides, rng.random(int(sides.prod(1).sum()), dtype=np.float32))
    assert np.array_equal(image, before)
    assert np.array_equal(result[1], -result[0])  # channels alike
    last = covered(starts, sides, shape)
    assert np.array_equal(result[0][last < 0], image[0][last < 0])
    origin = np.stack(np.unravel_index(result[0].astype(int), shape), axis=-1)
    inside = (origin >= starts[last]) & (origin < (starts + sides)[last])
    assert inside[last >= 0].all()
    whole = tuple(slice(a, a + n) for a, n in zip(starts[-1], sides[-1], strict=True))
    assert sorted(result[0][whole].ravel()) == sorted(image[0][whole].ravel())  # nothing was written over it
    if max(shape) >= 20:
        assert (result != image).mean() > 0.03


def test_blocks_as_specified() -> None:
    starts, sides = draw_blocks((64, 39, 1), 5000, np.random.default_rng(0))
    assert [sorted(set(column)) for column in sides.T.tolist()] == [[1, 2, 3, 4, 5, 6], [1, 2, 3], [1]]
    assert starts.min() == 0
    assert (starts + sides).max(axis=0).tolist() == [64, 39, 1]


def test_all_orders_are_as_likely() -> None:
    """A block of three voxels has six orders; chi square with five degrees of freedom, 20.5 at 0.1 %."""
    image, number = np.arange(3, dtype=np.float32).reshape(1, 1, 3), 3000
    rng = np.random.default_rng(1)
    found: dict[tuple, int] = {}
    for _ in range(number):
        draws = rng.random(3, dtype=np.float32)
        order = tuple(permute_blocks(image, np.array([[0, 0]]), np.array([[1, 3]]), draws).ravel())
        found[order] = found.get(order, 0) + 1
    assert len(found) == 6
    assert sum((count - number / 6) ** 2 / (number / 6) for count in found.values()) < 20.5


def test_numba_waits_until_it_is_needed() -> None:
    program = "import sys, nnunet_qa.pretext.shuffle; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_compiled_code_that_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(function: Callable | None = None, *, cache: bool = False) -> Any:
        if cache:
            raise RuntimeError("cannot cache function '_permute': no locator available")
        return function

    monkeypatch.setattr(numba, "njit", njit)
    shuffle._compiled.cache_clear()
    image = np.arange(400, dtype=np.float32).reshape(1, 20, 20)
    result = shuffle_pixels(image, np.random.default_rng(0), DistortionConfig(blocks=20))
    shuffle._compiled.cache_clear()
    assert (result != image).any()
    assert set(result.ravel()) <= set(image.ravel())


def test_no_block_is_no_change() -> None:
    image = np.random.default_rng(0).random((1, 20, 20), dtype=np.float32)
    result = shuffle_pixels(image, np.random.default_rng(0), DistortionConfig(blocks=0))
    assert np.array_equal(result, image)
    assert result is not image

from __future__ import annotations

import numpy as np
import pytest

from nnunet_qa.config_limited_data import DistortionConfig
from nnunet_qa.pretext.painting import _number, in_paint, out_paint

ONE = DistortionConfig(windows=1)


@pytest.mark.parametrize("shape", [(48, 60), (24, 48, 36)])
def test_one_block_and_one_window_as_specified(shape: tuple[int, ...]) -> None:
    image = np.full((2, *shape), 7, np.float32)  # outside [0, 1], so that noise is told from it
    size = np.array(shape)
    for seed in range(40):
        for paint, low, high in (
            (in_paint, size // 6, size // 3),
            (out_paint, size - 4 * size // 7, size - 3 * size // 7),
        ):
            result = paint(image, np.random.default_rng(seed), ONE)
            inside = (result < 1) if paint is in_paint else (result == 7)
            assert np.array_equal(inside[0], inside[1])
            places = np.argwhere(inside[0])
            first, last = places.min(0), places.max(0)
            sides = last - first + 1
            assert inside[0].sum() == sides.prod()  # a full block
            assert (low <= sides).all()
            assert (sides <= high).all()
            assert (first >= 3).all()
            assert (last < size - 3).all()
            noise = result[result != 7]
            assert noise.min() >= 0
            assert noise.mean() == pytest.approx(0.5, abs=0.12)
            assert not np.array_equal(result[0], result[1])
    assert (image == 7).all()


def test_numbers_of_blocks() -> None:
    """By hand: each of up to five with probability 0.5 after the first gives 1/2, 1/4, 1/8, 1/16, 1/16."""
    rng, settings = np.random.default_rng(0), DistortionConfig(further=0.5)
    counts = np.bincount([_number(rng, settings) for _ in range(4000)], minlength=6) / 4000
    np.testing.assert_allclose(counts, [0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16], atol=0.03)


def test_all_blocks_are_painted() -> None:
    image = np.full((1, 60, 60), 7, np.float32)
    five = DistortionConfig(further=1.0)
    one, more = (
        [(in_paint(image, np.random.default_rng(seed), settings) < 1).mean() for seed in range(60)]
        for settings in (ONE, five)
    )
    assert np.mean(more) > 3 * np.mean(one)
    assert max(more) <= 5 / 9


@pytest.mark.parametrize("shape", [(1, 30, 30), (2, 1, 9), (5, 7), (1, 1)])
@pytest.mark.parametrize("paint", [in_paint, out_paint])
def test_thin_axes(shape: tuple[int, ...], paint: object) -> None:
    image = np.full((1, *shape), 7, np.float32)
    for seed in range(20):
        result = paint(image, np.random.default_rng(seed), DistortionConfig())  # type: ignore[operator]
        assert result.shape == image.shape
        assert (result == 7).any() if paint is out_paint else (result < 1).any()

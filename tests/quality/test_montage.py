from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab

from nnunet_qa.errors import ModelError, SelectionError
from nnunet_qa.quality.montage import (
    MontageSpec,
    distinct_colours,
    gray,
    montage,
    normalised_window,
    slice_indices,
    stacked,
)

RNG = np.random.default_rng(11)
PLAIN = MontageSpec(grid=(2, 3), tile=(5, 7), output=None, palette=((1.0, 0.0, 0.0), (0.0, 0.5, 1.0), (0.2, 0.9, 0.1)))


def _random(shape: tuple[int, ...], classes: int, *, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Gray values and softmax probabilities without the background's, float64."""
    probabilities = torch.from_numpy(RNG.normal(0, 2, (batch, classes + 1, *shape))).softmax(1)[:, 1:]
    return torch.from_numpy(RNG.random((batch, *shape))), probabilities


def _drawn_by_hand(image: np.ndarray, labels: np.ndarray, spec: MontageSpec) -> np.ndarray:
    """Full-size picture `(rows, columns, 3)` of labels, one pixel after the other; tiles have the size of slices."""
    picture = np.zeros((*spec.size, 3))
    for k in range(min(image.shape[0], spec.slices)):
        top, left = k // spec.grid[1] * spec.tile[0], k % spec.grid[1] * spec.tile[1]
        for y in range(spec.tile[0]):
            for x in range(spec.tile[1]):
                label = labels[k, y, x]
                colour = np.array(spec.palette[label - 1]) if label else np.zeros(3)
                picture[top + y, left + x] = (1 - spec.blend) * image[k, y, x] + spec.blend * colour
    return picture


def _pillow(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize `(rows, columns)` with antialiasing."""
    resized = Image.fromarray(picture.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized)


@pytest.mark.parametrize("slices", [4, 6])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("classes", [1, 3])
def test_one_hot_probabilities_give_the_picture_drawn_by_hand(slices: int, axis: int, classes: int) -> None:
    image = RNG.random((2, slices, 5, 7))
    labels = RNG.integers(0, classes + 1, image.shape)
    masks = np.stack([labels == c for c in range(1, classes + 1)], axis=1).astype(float)
    spec = replace(PLAIN, axis=axis)
    found = montage(
        torch.from_numpy(np.moveaxis(image, 1, axis + 1)), torch.from_numpy(np.moveaxis(masks, 2, axis + 2)), spec
    )
    assert found.shape == (2, 3, 10, 21)
    for k in range(2):
        np.testing.assert_allclose(found[k].permute(1, 2, 0), _drawn_by_hand(image[k], labels[k], spec), atol=1e-12)
    if slices == 4:
        assert found[:, :, 5:, 7:].abs().max() == 0  # tiles 4 and 5 have no slice


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_k_lies_in_row_k_by_columns_and_column_k_modulo_columns(axis: int) -> None:
    spec = MontageSpec(grid=(8, 8), tile=(6, 6), output=None, axis=axis)
    levels = torch.arange(1, 65, dtype=torch.float64) / 64
    image = levels.view(64, 1, 1).expand(64, 6, 6).movedim(0, axis)[None]
    found = montage(image, torch.zeros(1, 1, *image.shape[1:], dtype=torch.float64), spec)[0]
    for k in range(64):
        row, column = divmod(k, 8)
        tile = found[:, row * 6 : row * 6 + 6, column * 6 : column * 6 + 6]
        torch.testing.assert_close(tile, (0.6 * levels[k]).expand(3, 6, 6))


@pytest.mark.parametrize("axis", [0, 2])
def test_more_slices_than_tiles_are_drawn_evenly(axis: int) -> None:
    spec = MontageSpec(grid=(1, 3), tile=(1, 1), output=None, axis=axis)
    image = torch.linspace(0, 1, 11, dtype=torch.float64).view(11, 1, 1).movedim(0, axis)[None]
    found = montage(image, torch.zeros(1, 1, *image.shape[1:], dtype=torch.float64), spec)
    np.testing.assert_allclose(found[0, 0, 0] / 0.6, [0.1, 0.5, 0.9])


@pytest.mark.parametrize(("slices", "tiles"), [(1, 64), (64, 64), (65, 64), (128, 64), (500, 64), (7, 2)])
def test_slice_indices_grow_by_even_steps_and_are_centred(slices: int, tiles: int) -> None:
    found = slice_indices(slices, tiles)
    assert len(found) == min(slices, tiles)
    assert np.unique(np.diff(found)).size <= 2
    assert abs(found[0] - (slices - 1 - found[-1])) <= 1


def test_picture_and_tiles_are_resized_as_pillow_does() -> None:
    spec = MontageSpec(grid=(2, 2), tile=(48, 40), output=(36, 32), palette=PLAIN.palette)
    image, probabilities = _random((4, 30, 60), 3)
    found = montage(image, probabilities, spec)[0]
    for channel in range(3):
        colour = sum(probabilities[0, c].numpy() * spec.palette[c][channel] for c in range(3))
        slices = 0.6 * image[0].numpy() + 0.4 * np.asarray(colour)
        tiles = [_pillow(one, spec.tile) for one in slices]
        whole = np.block([tiles[:2], tiles[2:]])
        np.testing.assert_allclose(found[channel], _pillow(whole, (36, 32)), atol=1e-5)


def test_a_2d_image_is_one_slice_and_stacked_ones_are_a_volume() -> None:
    spec = replace(PLAIN, grid=(1, 1))
    image, probabilities = _random((5, 7), 3, batch=4)
    single = montage(image, probabilities, spec)
    assert single.shape == (4, 3, 5, 7)
    together = montage(*stacked(image, probabilities), replace(PLAIN, grid=(2, 2)))
    expected = torch.cat([torch.cat([*single[:2]], dim=2), torch.cat([*single[2:]], dim=2)], dim=1)
    torch.testing.assert_close(together, expected[None])


@pytest.mark.parametrize(("shape", "axis"), [((4, 5), 0), ((5, 4, 3), 0), ((3, 6, 4), 1), ((4, 3, 5), 2)])
@pytest.mark.parametrize("output", [None, (5, 6)])
def test_gradient_equals_finite_differences(shape: tuple[int, ...], output: tuple[int, int] | None, axis: int) -> None:
    spec = replace(PLAIN, grid=(2, 2), tile=(5, 4), output=output, axis=axis)
    image, probabilities = _random(shape, 2)
    probabilities.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: montage(image, p, spec), probabilities)


def test_gradient_of_overlapping_regions_equals_finite_differences_and_their_colours_mix() -> None:
    image = torch.zeros(1, 1, 1, dtype=torch.float64)
    probabilities = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64).view(1, 3, 1, 1).requires_grad_()
    spec = replace(PLAIN, grid=(1, 1), tile=(1, 1), blend=1.0)
    assert torch.autograd.gradcheck(lambda p: montage(image, p, spec), probabilities)
    mixed = np.array([0.9, 0.8, 0.7]) @ np.array(PLAIN.palette) / 2.4
    np.testing.assert_allclose(montage(image, probabilities, spec).detach().flatten(), mixed, rtol=1e-3)


def test_rounding_of_a_softmax_does_not_change_its_gradient() -> None:
    probabilities = torch.full((1, 1, 1, 1), 1 + 1e-6, requires_grad=True)
    montage(torch.zeros(1, 1, 1), probabilities, replace(PLAIN, grid=(1, 1), tile=(1, 1))).sum().backward()
    assert float(probabilities.grad) == pytest.approx(0.4)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_mixed_precision_gives_the_same_picture_and_a_gradient(kind: torch.dtype) -> None:
    spec = replace(PLAIN, tile=(40, 40), output=(32, 32))
    image, probabilities = _random((6, 20, 30), 3)
    expected = montage(image, probabilities, spec)
    half = probabilities.to(kind).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = montage(image.float(), half, spec)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=4e-3, rtol=0)
    found.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == kind
    assert half.grad.abs().min() > 0


def test_values_stay_in_0_1() -> None:
    image, probabilities = torch.ones(1, 2, 33, 20), torch.ones(1, 3, 2, 33, 20)
    found = montage(
        image, probabilities, replace(PLAIN, palette=((1.0, 1.0, 1.0),) * 3, tile=(50, 31), output=(64, 48))
    )
    assert found.min() >= 0
    assert found.max() <= 1


def test_window_is_undone_through_the_normalisation() -> None:
    hounsfield = torch.tensor([[-1000.0, -175.0, 50.0, 275.0, 3000.0]])
    window = normalised_window((-175, 275), mean=90.0, std=310.0)
    expected = [[0, 0, 0.5, 1, 1]]
    np.testing.assert_allclose(gray((hounsfield - 90) / 310, window=window), expected, atol=1e-6)
    np.testing.assert_allclose(gray(hounsfield.to(torch.int16), window=(-175, 275)), expected, atol=1e-6)
    assert all(np.isfinite(normalised_window((-175, 275), mean=0.0, std=0.0)))


@pytest.mark.parametrize("shape", [(3, 40, 50), (2, 90, 80, 85)])
def test_without_a_window_each_image_has_its_percentiles(shape: tuple[int, ...]) -> None:
    images = RNG.gamma(2, 100, shape) * np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    found = gray(torch.from_numpy(images), window=None).numpy()
    for image, shades in zip(images, found, strict=True):
        low, high = np.percentile(image, [0.5, 99.5])
        # of the large images a sample is taken
        np.testing.assert_allclose(
            shades, np.clip((image - low) / (high - low), 0, 1), atol=0.02 if image.size > 1e5 else 1e-9
        )


def test_the_sample_of_a_large_image_covers_its_columns() -> None:
    columns = torch.linspace(0, 1, 128).expand(1, 128, 128, 128)
    np.testing.assert_allclose(gray(columns, window=None)[0, 0, 0], np.linspace(0, 1, 128), atol=0.02)


@pytest.mark.parametrize("value", [0.0, -3.5, 70000.0])
def test_a_constant_image_is_black(value: float) -> None:
    assert gray(torch.full((2, 6, 5), value), window=None).abs().max() == 0


def test_colours_are_stable_and_differ_to_the_eye() -> None:
    colours = distinct_colours(20)
    assert distinct_colours(7) == colours[:7]
    assert len(set(distinct_colours(200))) == 200
    lab = rgb2lab(np.array(colours)[None])[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(20) * 1e3
    assert distances[:8, :8].min() > 30
    assert distances.min() > 25


def test_paper_preset_has_the_values_of_the_paper() -> None:
    spec = MontageSpec.paper(3)
    assert (spec.grid, spec.tile, spec.output, spec.window, spec.blend, spec.axis) == (
        (8, 8),
        (168, 168),
        (256, 256),
        (-175.0, 275.0),
        0.4,
        0,
    )
    assert len(spec.palette) == 3
    assert spec.full_size().size == (1344, 1344)
    assert (spec.size, spec.slices) == ((256, 256), 64)


@pytest.mark.parametrize(
    ("patch", "spacing", "arguments", "grid", "tile", "output", "axis"),
    [
        ((128, 128, 128), (1, 1, 1), {}, (8, 8), (128, 128), (256, 256), 0),
        ((20, 320, 256), (5, 0.5, 0.5), {}, (4, 5), (320, 256), (256, 256), 0),
        ((96, 64, 40), (1, 1, 3), {}, (6, 7), (96, 64), (256, 192), 2),
        ((96, 64, 40), (1, 1, 3), {"axis": 1, "slices": 6}, (2, 3), (96, 40), (192, 112), 1),
        ((512, 448), (1, 1), {}, (1, 1), (512, 448), (256, 224), 0),
        ((512, 448), (1, 1), {"slices": 12}, (3, 4), (512, 448), (224, 256), 0),
        ((28, 20), (1, 1), {}, (1, 1), (28, 20), (32, 16), 0),
        ((56, 40), (1, 1), {}, (1, 1), (56, 40), (48, 32), 0),
    ],
)
def test_spec_for_a_patch(
    patch: tuple[int, ...],
    spacing: tuple[float, ...],
    arguments: dict[str, int],
    grid: tuple[int, int],
    tile: tuple[int, int],
    output: tuple[int, int],
    axis: int,
) -> None:
    spec = MontageSpec.for_patch(patch, spacing, classes=2, **arguments)
    assert (spec.grid, spec.tile, spec.output, spec.axis, len(spec.palette)) == (grid, tile, output, axis, 2)
    assert spec.window is None
    image, probabilities = _random(patch, 2)
    if len(patch) == 2 and arguments:
        image, probabilities = stacked(image.expand(3, -1, -1), probabilities.expand(3, -1, -1, -1))
    assert montage(image.float(), probabilities.float(), spec).shape == (1, 3, *output)


@pytest.mark.parametrize(
    "spec",
    [
        MontageSpec(),
        MontageSpec.for_patch(np.array([20, 48, 40]), np.array([3.0, 1, 1]), classes=2),
        MontageSpec.paper(3).full_size(),
        replace(PLAIN, window=None, axis=2),
    ],
)
def test_spec_survives_json(spec: MontageSpec) -> None:
    assert MontageSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"grids": [8, 8]}, "grids"),
        ({"grid": [8]}, "grid"),
        ({"grid": [8.5, 8]}, "grid"),
        ({"tile": "large"}, "tile"),
        ({"blend": "0.4"}, "blend"),
        ({"blend": None}, "blend"),
        ({"palette": [[1, 0]]}, "palette"),
        ({"window": [5, 1]}, "window"),
        ([1, 2], "montage"),
        (None, "montage"),
    ],
)
def test_json_of_another_kind_is_refused(content: Any, named: str) -> None:
    with pytest.raises(ModelError, match=named) as refused:
        MontageSpec.from_json(content)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"grid": (0, 8)}, "grid is 0x8"),
        ({"tile": (168, -1)}, "tile is 168x-1"),
        ({"output": (256, 0)}, "output is 256x0"),
        ({"grid": (1, 2), "tile": (64, 64)}, "output 256x256 is larger than grid times tile, 64x128"),
        ({"window": (275.0, -175.0)}, "the lower one first"),
        ({"window": (0.0, 0.0)}, "the lower one first"),
        ({"window": (float("nan"), 1.0)}, "the lower one first"),
        ({"blend": 1.5}, "blend is 1.5"),
        ({"blend": float("nan")}, "blend is nan"),
        ({"palette": ((0.0, 0.0, 255.0),)}, "colours of the palette must be in [0, 1]"),
    ],
)
def test_a_spec_that_no_montage_can_have_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(SelectionError, match=re.escape(named)):
        MontageSpec(**values)


@pytest.mark.parametrize(
    ("shape", "classes", "axis", "named"),
    [
        ((9, 9, 9), 4, 0, "4 classes but only 3 colours"),
        ((9, 9, 9), 1, 3, "axis 3 of an image of shape [9, 9, 9]"),
        ((9, 9, 9), 1, -1, "axis -1"),
        ((9, 9), 1, 1, "axis 1 of an image of shape [9, 9]"),
        ((9, 9, 9, 9), 1, 0, "axis 0 of an image of shape [9, 9, 9, 9]"),
    ],
)
def test_a_spec_that_does_not_fit_the_image_is_refused(
    shape: tuple[int, ...], classes: int, axis: int, named: str
) -> None:
    with pytest.raises(SelectionError, match=re.escape(named)):
        montage(torch.zeros(1, *shape), torch.zeros(1, classes, *shape), replace(PLAIN, axis=axis))


@pytest.mark.parametrize(
    ("patch", "spacing", "arguments"),
    [
        ((64,), (1,), {}),
        ((64, 64), (1, 1, 1), {}),
        ((64, 64), (1, 1), {"axis": 1}),
        ((64, 64), (1, 1), {"slices": 0}),
        ((64, 64, 64), (1, 1, 1), {"axis": 3}),
    ],
)
def test_a_patch_that_no_montage_fits_is_refused(
    patch: tuple[int, ...], spacing: tuple[float, ...], arguments: dict[str, int]
) -> None:
    with pytest.raises(SelectionError):
        MontageSpec.for_patch(patch, spacing, classes=1, **arguments)


def test_image_and_probabilities_must_have_one_shape() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        montage(torch.zeros(1, 5, 7), torch.zeros(1, 2, 7, 5), PLAIN)

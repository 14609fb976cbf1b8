from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_qa.config import QALossConfig
from nnunet_qa.errors import SelectionError
from nnunet_qa.inference.qa_montage import Renderer, class_values, renderer_of
from nnunet_qa.quality.montage import MontageSpec, distinct_colours

LABELS = {"background": 0, "large": 2, "small": 1}
REGIONS = {"background": 0, "both": [1, 2], "large": 2, "ignore": 3}
MEAN, STD = 90.0, 60.0


def plans(patch: tuple[int, ...], spacing: tuple[float, ...], scheme: str = "ZScoreNormalization") -> PlansManager:
    """Plans with what a montage depends on."""
    chosen: dict[str, Any] = {"patch_size": list(patch), "spacing": list(spacing), "normalization_schemes": [scheme]}
    chosen["architecture"] = {}  # nnU-Net takes plans without one for old ones
    properties = {"mean": MEAN, "std": STD, "percentile_00_5": -900.0, "percentile_99_5": 900.0}
    return PlansManager(
        {
            "label_manager": "LabelManager",
            "configurations": {"c": chosen},
            "foreground_intensity_properties_per_channel": {"0": properties},
        }
    )


def dataset(labels: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"labels": labels, **more}


def renderer(
    patch: tuple[int, ...] = (64, 96),
    spacing: tuple[float, ...] = (1.0, 1.0),
    *,
    scheme: str = "ZScoreNormalization",
    labels: dict[str, Any] = LABELS,
    stack: int | None = None,
    **settings: Any,
) -> Renderer:
    manager = plans(patch, spacing, scheme)
    more = {"regions_class_order": [1, 2]} if labels is REGIONS else {}
    content = dataset(labels, **more)
    return renderer_of(manager, manager.get_configuration("c"), content, QALossConfig(**settings), slices=stack)


def test_a_2d_patch_is_one_picture_of_its_size() -> None:
    made = renderer()
    (spec,) = made.specs
    assert (spec.size, spec.grid, len(spec.palette), spec.window) == ((64, 96), (1, 1), 2, None)
    assert (made.window, made.stacked) == (None, False)
    images, probabilities = torch.rand(3, 2, 64, 96), torch.zeros(3, 2, 64, 96)
    probabilities[:, 1, :32] = 1.0
    pictures = made(images, probabilities)
    assert pictures.shape == (3, 3, 64, 96)
    for picture, image in zip(pictures.numpy(), images[:, 0].numpy(), strict=True):  # the first channel is shown
        black, white = np.percentile(image, (0.5, 99.5))
        shades = np.clip((image - black) / (white - black), 0, 1)
        colour = np.zeros((3, 64, 96))
        colour[:, :32] = np.array(distinct_colours(2)[1])[:, None, None]
        np.testing.assert_allclose(picture, 0.6 * shades + 0.4 * colour, atol=1e-3)


def test_one_colour_a_region() -> None:
    assert [len(renderer(labels=labels).specs[0].palette) for labels in (LABELS, REGIONS)] == [2, 2]
    three = renderer(labels={"background": 0, "a": 1, "b": 2, "c": 3})
    assert len(three.specs[0].palette) == 3


def test_a_ct_window_is_taken_through_the_plans() -> None:
    """The gray of an image that nnU-Net has normalised is that of its HU within the window."""
    made = renderer(scheme="CTNormalization")
    assert made.specs[0].window == (-175.0, 275.0)
    hounsfield = np.linspace(-400, 400, 64 * 96).reshape(1, 1, 64, 96)
    normalised = torch.from_numpy(((hounsfield - MEAN) / STD).astype(np.float32))
    picture = made(normalised, torch.zeros(1, 2, 64, 96))
    expected = 0.6 * np.clip((hounsfield[0] + 175) / 450, 0, 1).repeat(3, axis=0)
    np.testing.assert_allclose(picture[0], expected, atol=1e-5)
    np.testing.assert_allclose(0.6 * made.shades(normalised)[0], expected[0], atol=1e-5)


def test_the_window_is_a_setting_of_ct_alone() -> None:
    narrow = renderer(scheme="CTNormalization", window=(0.0, 120.0))
    assert narrow.window == pytest.approx((-MEAN / STD, (120 - MEAN) / STD))
    assert renderer(scheme="CTNormalization", window=None).window is None
    assert renderer(window=(0.0, 120.0)).window is None
    assert renderer(window=(0.0, 120.0)).specs[0].window is None


def test_a_volume_is_cut_along_its_coarsest_axis() -> None:
    patch, spacing = (10, 48, 64), (4.0, 1.0, 1.0)
    made = renderer(patch, spacing)
    (spec,) = made.specs
    assert (spec.axis, spec.slices >= 10, spec.tile) == (0, True, (48, 64))
    assert renderer((48, 10, 64), (1.0, 4.0, 1.0)).specs[0].axis == 1
    assert made(torch.rand(2, 1, *patch), torch.rand(2, 2, *patch) / 2).shape == (2, 3, *spec.size)
    assert renderer(patch, spacing, slices=4).specs[0].grid == (2, 2)
    assert renderer((80, 32, 32), (4.0, 1.0, 1.0)).specs[0].slices == 64


def test_views_are_pictures_of_one_size() -> None:
    patch, spacing = (12, 48, 64), (3.0, 1.0, 1.0)
    made = renderer(patch, spacing, views=(0, 1, 2))
    assert [spec.axis for spec in made.specs] == [0, 1, 2]
    (size,) = {spec.size for spec in made.specs}
    images, probabilities = torch.rand(2, 1, *patch), torch.rand(2, 2, *patch) / 2
    pictures = made(images, probabilities)
    assert pictures.shape == (6, 3, *size)
    for number, spec in enumerate(made.specs):  # view by view
        alone = Renderer(specs=(spec,))(images, probabilities)
        assert torch.equal(pictures[2 * number : 2 * number + 2], alone)
    assert not torch.equal(pictures[:2], pictures[2:4])
    assert [spec.axis for spec in renderer(patch, spacing, views=(2,)).specs] == [2]


def test_slices_of_a_case_make_one_picture() -> None:
    made = renderer((32, 32), stack=5)
    (spec,) = made.specs
    assert made.stacked
    assert spec.grid == (2, 3)
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 32, 32)
    probabilities = torch.zeros(5, 2, 32, 32)
    probabilities[3, 0] = 1.0  # only in the fourth slice
    full = Renderer(specs=(spec.full_size(),), stacked=True)
    picture = full(images, probabilities)
    assert picture.shape == (1, 3, 64, 96)
    tiles = picture[0].unflatten(2, (3, 32)).unflatten(1, (2, 32)).mean((2, 4))
    colour = np.array(distinct_colours(1)[0])
    for k in range(6):  # gray values are those of the whole case, not of each slice
        expected = 0.6 * k / 4 * np.ones(3) if k < 5 else np.zeros(3)
        np.testing.assert_allclose(tiles[:, k // 3, k % 3], expected + (0.4 * colour if k == 3 else 0), atol=0.02)
    shades = made.shades(images)
    assert shades.shape == (1, 5, 32, 32)
    np.testing.assert_allclose(shades[0].mean((1, 2)), np.arange(5) / 4, atol=0.02)


def test_gradients_reach_the_probabilities_of_every_slice_and_view() -> None:
    patch = (8, 32, 32)
    volume = torch.full((1, 2, *patch), 0.2, requires_grad=True)
    made = renderer(patch, (2.0, 1.0, 1.0), views=(0, 1))
    made(torch.rand(1, 1, *patch), volume).sum().backward()
    assert (volume.grad > 0).all()
    slices = torch.full((5, 2, 32, 32), 0.2, requires_grad=True)
    renderer((32, 32), stack=5)(torch.rand(5, 1, 32, 32), slices).sum().backward()
    assert (slices.grad.flatten(2).amax(2) > 0).all()


@pytest.mark.parametrize(("patch", "views"), [((64, 96), (1,)), ((8, 32, 32), (0, 3)), ((8, 32, 32), (-1,))])
def test_a_view_that_is_not_there_is_refused(patch: tuple[int, ...], views: tuple[int, ...]) -> None:
    with pytest.raises(SelectionError, match=rf"slices along axis {views[-1]} .*no such axis"):
        renderer(patch, (1.0,) * len(patch), views=views)


def test_label_values_are_in_the_order_of_the_channels() -> None:
    labels = dataset(LABELS)
    assert list(class_values(labels, plans((8, 8), (1, 1)).get_label_manager(labels)).items()) == [
        ("small", (1,)),
        ("large", (2,)),
    ]
    regions = dataset(REGIONS, regions_class_order=[1, 2])
    assert list(class_values(regions, plans((8, 8), (1, 1)).get_label_manager(regions)).items()) == [
        ("both", (1, 2)),
        ("large", (2,)),
    ]


def test_a_spec_of_the_trainer_is_one_that_a_file_can_hold() -> None:
    for made in (renderer(), renderer((8, 32, 32), (2.0, 1.0, 1.0), views=(0, 1)), renderer((32, 32), stack=7)):
        for spec in made.specs:
            assert MontageSpec.from_json(spec.to_json()) == spec

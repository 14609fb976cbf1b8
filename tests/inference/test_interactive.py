from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from scipy.ndimage import gaussian_filter
from torch import nn

from nnunet_qa.environment import external_trainer_folder
from nnunet_qa.errors import ClickError, ImageError, ModelError
from nnunet_qa.inference.interactive import InteractivePredictor
from nnunet_qa.inference.interactive_patches import MOST
from nnunet_qa.inference.interactive_region import Placement
from nnunet_qa.interaction.clicks import Click
from tests.inference.interactive_model import (
    CPU,
    OtherFold,
    Painter,
    dataset_of,
    plans_of,
    with_network,
    write_interactive_model,
)


@pytest.fixture(autouse=True)
def _external(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(external_trainer_folder()))


def blobs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """An image `(1, *shape)` that is clearly above or below 0 everywhere but at borders of blobs."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), [min(3, length / 3) for length in shape])
    return (np.sign(noise) * 2 + noise / np.abs(noise).max())[None].astype(np.float32)


def properties(*spacing: float) -> dict[str, Any]:
    return {"spacing": list(spacing)}


def painted(image: np.ndarray, clicks: list[Click], labels: int = 1) -> np.ndarray:
    """What the Painter says, computed for the whole image at once; sigma is 1."""
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape[1:]), indexing="ij"), axis=-1)
    logits = np.zeros((labels + 1, *image.shape[1:]))
    for click in clicks:
        distance = np.square(grid - click.position).sum(-1)
        logits[click.label] = np.maximum(logits[click.label], 20 * np.exp(-distance / 2) * (distance <= 16))
    logits[1] += image[0]
    return logits.argmax(0)


CASES = {
    "2d": ((1, 40, 36), [32, 32], (1.0, 1.0), (0, 1, 2), (999, 1, 1)),
    "slices": ((5, 40, 9), [32, 32], (1.0, 0.8), (2, 0, 1), (1.0, 1.25, 3.0)),
    "3d": ((20, 30, 28), [16, 16, 16], (1.0, 1.0, 1.0), (0, 1, 2), (1, 1, 1)),
    "resampled": ((20, 26, 24), [16, 16, 16], (1.3, 1.1, 0.8), (1, 2, 0), (0.9, 1.1, 1.2)),
    "thick": ((8, 34, 30), [6, 16, 16], (5.0, 1.0, 1.4), (0, 1, 2), (4.0, 1.2, 1.2)),
    "small": ((5, 9, 11), [8, 16, 16], (1.0, 1.0, 1.0), (0, 1, 2), (1, 1, 1)),
}


@pytest.mark.parametrize(
    ("kind", "folds", "mirroring"), [("2d", 1, True), ("slices", 2, False), ("resampled", 1, False)]
)
def test_without_clicks_and_after_reset_it_is_nnunets_prediction(
    tmp_path: Path, kind: str, folds: int, mirroring: bool
) -> None:
    shape, patch, spacing, order, original = CASES[kind]
    model = write_interactive_model(tmp_path, plans_of(patch, spacing=spacing, order=order), dataset_of(2), folds=folds)
    image = blobs(shape)
    stock = nnUNetPredictor(use_mirroring=mirroring, perform_everything_on_device=False, device=CPU, allow_tqdm=False)
    stock.initialize_from_trained_model_folder(os.fspath(model), tuple(range(folds)))
    expected = stock.predict_single_npy_array(image, properties(*original))
    assert 0 < (expected > 0).mean() < 1
    ours = InteractivePredictor.from_model(model, device=CPU, mirroring=mirroring)
    np.testing.assert_array_equal(ours.set_image(image, properties=properties(*original)), expected)
    place = [length // 2 for length in shape]
    mask = ours.add_click(place, 2)
    assert (mask != expected).any()  # the click channels reach the network
    np.testing.assert_array_equal(ours.reset(), expected)
    assert ours.clicks == []


@pytest.mark.parametrize("kind", CASES)
def test_only_the_region_is_mapped_back_and_it_is_as_if_all_were(kind: str) -> None:
    shape, patch, spacing, order, original = CASES[kind]
    predictor = with_network(Painter(), plans_of(patch, spacing=spacing, order=order), dataset_of())
    image = blobs(shape)
    image[0, :, :3] = 0 if kind == "thick" else image[0, :, :3]  # nnU-Net crops what is 0
    before = predictor.set_image(image, properties=properties(*original)).copy()
    rng = np.random.default_rng(1)
    for number in range(4):
        position = tuple(int(rng.integers(length)) for length in shape)
        mask = predictor.add_click(position, int(before[position] == 0))
        stock = predictor.predictor
        whole = np.array(
            convert_predicted_logits_to_segmentation_with_correct_shape(
                predictor._logits,
                stock.plans_manager,
                stock.configuration_manager,
                stock.label_manager,
                predictor.properties,
            )
        )
        for click in predictor.clicks:
            whole[click.position] = click.label
        np.testing.assert_array_equal(mask, whole, err_msg=str(number))
        region = predictor.last_changed_region
        outside = np.ones(shape, bool)
        outside[region] = False
        np.testing.assert_array_equal(mask[outside], before[outside])
        before = mask.copy()
        if spacing == (1.0, 1.0, 1.0) or kind == "2d":
            np.testing.assert_array_equal(mask, painted(image, predictor.clicks))
    assert mask.dtype == np.uint8


def test_a_click_says_what_its_voxel_is_in_any_orientation() -> None:
    shape, patch, spacing, order, original = CASES["slices"]
    predictor = with_network(Painter(2), plans_of(patch, spacing=spacing, order=order), dataset_of(2))
    predictor.set_image(blobs(shape), properties=properties(*original))
    for position, label in (((4, 3, 7), 2), ((0, 39, 0), 1), ((2, 20, 5), 0)):
        before = predictor.mask.copy()
        mask = predictor.add_click(position, label)
        assert mask[position] == label
        # the network's slices lie across the last axis
        assert set(np.flatnonzero((mask != before).any(axis=(0, 1)))) <= {position[2]}
        region = predictor.last_changed_region
        assert (region[2].start, region[2].stop) == (position[2], position[2] + 1)


def test_undo_goes_back_step_by_step_and_a_line_is_one_step() -> None:
    shape, patch, *_ = CASES["3d"]
    predictor = with_network(Painter(), plans_of(patch), dataset_of())
    image = blobs(shape)
    masks = [predictor.set_image(image, properties=properties(1, 1, 1)).copy()]
    masks.append(predictor.add_click((3, 4, 5), int(not masks[0][3, 4, 5])).copy())
    line = [(z, 15, 14) for z in range(1, 19)]
    masks.append(predictor.add_line(line, 1).copy())
    assert [click.position for click in predictor.clicks] == [(3, 4, 5), *line]
    np.testing.assert_array_equal(masks[-1], painted(image, predictor.clicks))
    masks.append(predictor.add_clicks([Click((3, 4, 9), 0), Click((16, 25, 20), 1)]).copy())
    for number in (2, 1, 0):
        np.testing.assert_array_equal(predictor.undo(), masks[number])
    assert predictor.clicks == []
    with pytest.raises(ClickError, match="no click to undo"):
        predictor.undo()
    predictor.add_click((3, 4, 5), 1)
    predictor.set_image(image, properties=properties(1, 1, 1))
    assert predictor.clicks == []
    with pytest.raises(ValueError, match="read-only"):
        predictor.mask[0, 0, 0] = 1


class Deaf(nn.Module):
    """Hears of no click: foreground is where the image is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((torch.zeros_like(x[:, :1]), x[:, :1]), dim=1)


@pytest.mark.parametrize("kind", ["2d", "3d", "thick"])
def test_clicked_voxels_have_their_label_whatever_the_network_says(kind: str) -> None:
    shape, patch, spacing, order, original = CASES[kind]
    predictor = with_network(Deaf(), plans_of(patch, spacing=spacing, order=order), dataset_of())
    image = blobs(shape)
    image[:, :, :3] = 0  # nnU-Net crops this, so the network never sees the last click
    first = predictor.set_image(image, properties=properties(*original)).copy()
    places = [(shape[0] // 2, 12, 11), (shape[0] // 2, 12, 13), (0, 1, 4)]
    masks = [first]
    for place in places:
        label = int(not first[place])
        expected = masks[-1].copy()
        expected[place] = label
        # the patch of the second click holds the first one, which keeps its label
        masks.append(predictor.add_click(place, label).copy())
        np.testing.assert_array_equal(masks[-1], expected)
        assert first[predictor.last_changed_region].size < first.size
        assert all(part.start <= at < part.stop for part, at in zip(predictor.last_changed_region, place, strict=True))
    for mask in (masks[2], masks[1]):
        np.testing.assert_array_equal(predictor.undo(), mask)
    np.testing.assert_array_equal(predictor.add_clicks([Click(at, int(not first[at])) for at in places[1:]]), masks[3])
    np.testing.assert_array_equal(predictor.add_click(places[0], int(not first[places[0]])), masks[3])  # once more
    np.testing.assert_array_equal(predictor.reset(), first)


def test_a_click_costs_the_same_in_a_larger_image() -> None:
    voxels = []
    for length in (24, 48):
        network = Painter()
        predictor = with_network(network, plans_of([16, 16, 16]), dataset_of())
        predictor.set_image(np.full((1, length, length, length), -2, np.float32), properties=properties(1, 1, 1))
        network.seen.clear()
        predictor.add_click((12, 12, 12), 1)
        (seen,) = network.seen
        assert seen.shape == (1, 1 + 2 + 1, 16, 16, 16)
        voxels.append([(part.start, part.stop) for part in predictor.last_changed_region])
    assert voxels == [[(4, 20)] * 3] * 2


class Flood(nn.Module):
    """Says that all of a patch with a click is foreground, and nothing of others; or all once there is any click."""

    def __init__(self, *, everywhere: bool = False) -> None:
        super().__init__()
        self.everywhere = everywhere

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        told = x[:, 2:3].amax() if x.shape[1] > 1 else x.new_zeros(())
        if self.everywhere and x.shape[1] > 1:
            told = x.new_ones(())
        return torch.cat((torch.zeros_like(x[:, :1]), torch.full_like(x[:, :1], float(20 * told - 1))), dim=1)


def test_neighbouring_patches_follow_while_the_mask_changes_at_the_border() -> None:
    predictor = with_network(Flood(), plans_of([16, 16]), dataset_of())
    predictor.set_image(np.zeros((1, 1, 64, 64), np.float32) + 1, properties=properties(999, 1, 1))
    mask = predictor.add_click((32, 32), 1)
    rows, columns = (np.flatnonzero(mask[0].any(axis=axis)) for axis in (1, 0))
    # patches with the click reach 16 voxels in each direction at most, and the change goes further than one patch
    assert 16 < rows[-1] - rows[0] <= 36
    assert 16 < columns[-1] - columns[0] <= 36
    assert mask[0, 32, 32] == 1
    assert not mask[0, :8].any()
    assert not predictor.undo().any()


def test_a_change_without_end_costs_a_bounded_number_of_patches() -> None:
    network = Flood(everywhere=True)
    predictor = with_network(network, plans_of([16, 16]), dataset_of())
    predictor.set_image(np.zeros((1, 1, 128, 128), np.float32) + 1, properties=properties(999, 1, 1))
    passes: list[Any] = []
    network.register_forward_hook(lambda *given: passes.append(given))
    mask = predictor.add_click((64, 64), 1)
    assert len(passes) == MOST
    assert 16**2 < mask.sum() < 64**2


def test_folds_are_averaged_and_the_previous_prediction_is_shown() -> None:
    plans, image = plans_of([16, 16]), blobs((1, 16, 16))
    network = Painter()
    predictor = with_network(network, plans, dataset_of(), previous=True)
    first = predictor.set_image(image, properties=properties(999, 1, 1)).copy()
    second = predictor.add_click((0, 8, 8), 1).copy()
    predictor.add_click((0, 2, 3), 0)
    given = [x[0, -1].numpy() for x in network.seen[-2:]]
    np.testing.assert_array_equal(given, [first[0], second[0]])

    predictor._networks = [network, OtherFold()]
    predictor.set_image(image, properties=properties(999, 1, 1))
    mask = predictor.add_click((0, 8, 8), 1)
    maps = network.seen[-1][0, 1:3].numpy()
    expected = (image[0] + 20 * maps[1] + image[0]) > (20 * maps[0] + 3 - image[0])
    np.testing.assert_array_equal(mask, expected)


def test_files_keep_their_geometry(tmp_path: Path) -> None:
    shape, patch, *_ = CASES["3d"]
    picture = sitk.GetImageFromArray(blobs(shape)[0])
    picture.SetOrigin((5.0, -3.0, 7.0))
    path = tmp_path / "a_0000.nii.gz"
    sitk.WriteImage(picture, str(path))
    predictor = with_network(Painter(), plans_of(patch), dataset_of())
    mask = predictor.set_image([path])
    assert mask.shape == shape
    assert predictor.grid.point((2, 3, 4)) == pytest.approx(picture.TransformIndexToPhysicalPoint((4, 3, 2)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"a_0000\.nii\.gz"):
        predictor.set_image([path])


def test_the_previous_stage_of_a_cascade_is_part_of_the_image() -> None:
    plans, image = plans_of([16, 16, 16]), blobs((16, 16, 16))
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    network = Painter(2, images=3)
    predictor = with_network(network, plans, dataset_of(2))
    stage = np.random.default_rng(0).integers(0, 3, image.shape[1:])
    predictor.set_image(image, properties=properties(1, 1, 1), previous_stage=stage)
    np.testing.assert_array_equal(network.seen[0][0, 1:].numpy(), [stage == 1, stage == 2])
    assert predictor.add_click((2, 3, 4), 2)[2, 3, 4] == 2
    np.testing.assert_array_equal(network.seen[1][0, 1:3].numpy(), [stage == 1, stage == 2])
    for wrong, kind, said in ((None, ModelError, "3d_lowres, whose"), (stage[1:], ImageError, "has shape")):
        with pytest.raises(kind, match=said):
            predictor.set_image(image, properties=properties(1, 1, 1), previous_stage=wrong)


def test_mistakes() -> None:
    predictor = with_network(Painter(), plans_of([16, 16]), dataset_of())
    with pytest.raises(ClickError, match="no image yet"):
        predictor.add_click((0, 1, 2), 1)
    for wrong in (np.zeros((2, 1, 8, 8)), np.zeros((8, 8))):
        with pytest.raises(ImageError, match=r"must be \(1, z, y, x\)"):
            predictor.set_image(wrong, properties=properties(999, 1, 1))
    with pytest.raises(ImageError, match="the image: 64 of 64 intensities are NaN"):
        predictor.set_image(np.full((1, 1, 8, 8), np.nan), properties=properties(999, 1, 1))
    predictor.set_image(blobs((1, 16, 16)), properties=properties(999, 1, 1))
    first = predictor.add_click((5, 6), 1).copy()
    for position, label, said in (
        ((0, 16, 3), 1, "outside the image of"),
        ((1, 3, 3), 1, "outside the image of"),
        ((0, -1, 3), 1, "outside the image of"),
        ((3,), 1, "outside the image of"),
        ((0, 3, 3), 2, "has the label 2; there are 0 to 1"),
        ((0, 3, 3), -1, "has the label -1"),
        ((0, 5, 6), 0, r"the click at \(0, 5, 6\) contradicts an earlier one there, of label 1"),
    ):
        with pytest.raises(ClickError, match=said):
            predictor.add_click(position, label)
    with pytest.raises(ClickError, match="contradicts"):
        predictor.add_clicks([Click((0, 1, 1), 0), Click((0, 1, 1), 1)])
    assert predictor.clicks == [Click((0, 5, 6), 1)]
    np.testing.assert_array_equal(predictor.mask, first)


def test_nothing_is_left_of_a_click_that_failed() -> None:
    network = Painter()
    predictor = with_network(network, plans_of([16, 16]), dataset_of())
    before = predictor.set_image(blobs((3, 20, 20)), properties=properties(1, 1, 1)).copy()
    network.seen.clear()

    def fail_at_the_third(_: nn.Module, __: Any) -> None:
        if len(network.seen) == 2:
            raise RuntimeError("out of memory")

    hook = network.register_forward_pre_hook(fail_at_the_third)
    with pytest.raises(RuntimeError, match="out of memory"):
        predictor.add_line([(z, 5, 5) for z in range(3)], int(not before[0, 5, 5]))
    np.testing.assert_array_equal(predictor.mask, before)
    assert predictor.clicks == []
    hook.remove()
    assert (predictor.add_click((0, 5, 5), int(not before[0, 5, 5])) != before).any()


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
def test_nothing_is_left_of_a_click_that_failed_on_the_way_back_to_the_image(
    monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    predictor = with_network(Painter(), plans_of([16, 16]), dataset_of())
    before = predictor.set_image(blobs((3, 20, 20)), properties=properties(1, 1, 1)).copy()
    logits = predictor._logits.clone()
    line = [(z, 5, 5) for z in range(3)]
    resample, calls = Placement.resample, []

    def fail_at_the_second(*given: Any) -> torch.Tensor:
        calls.append(given)
        if len(calls) == 2:
            raise failure
        return resample(*given)

    monkeypatch.setattr(Placement, "resample", fail_at_the_second)
    with pytest.raises(failure):
        predictor.add_line(line, int(not before[0, 5, 5]))
    assert predictor.clicks == []
    assert torch.equal(predictor._logits, logits)
    np.testing.assert_array_equal(predictor.mask, before)
    assert (predictor.add_line(line, int(not before[0, 5, 5])) != before).any()
    np.testing.assert_array_equal(predictor.reset(), before)
    assert torch.equal(predictor._logits, logits)


def test_without_a_history_nothing_is_kept_and_nothing_taken_back() -> None:
    predictor = with_network(Painter(), plans_of([16, 16]), dataset_of())
    image = blobs((1, 16, 16))
    before = predictor.set_image(image, properties=properties(999, 1, 1), history=False).copy()
    mask = predictor.add_click((5, 5), int(not before[0, 5, 5]))
    assert (mask != before).any()
    assert not predictor._history
    for take_back in (predictor.undo, predictor.reset):
        with pytest.raises(ClickError, match="no click can be taken back: set_image was told to keep no history"):
            take_back()
    predictor.set_image(image, properties=properties(999, 1, 1))
    predictor.add_click((5, 5), int(not before[0, 5, 5]))
    np.testing.assert_array_equal(predictor.undo(), before)

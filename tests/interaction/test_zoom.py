from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

from nnunet_qa.config_limited_data import InteractionConfig
from nnunet_qa.interaction.zoom import draw_zooms, zoomed

SCALES = ((1.0, 1.0, 1.0), (1.0, 0.5, 0.5), (1.0, 0.25, 0.25))


def batch(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Three patches of a box of label 2 in a frame of label 3; the second channel of the image shows the labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((3, 1, *shape), np.int16)
    frame = tuple(slice(side // 4, side - side // 4) if side > 1 else slice(None) for side in shape)
    box = tuple(slice(3 * side // 8, side - 3 * side // 8) if side > 1 else slice(None) for side in shape)
    for sample in labels:
        sample[(0, *frame)] = 3
        sample[(0, *box)] = 2
    truth = torch.from_numpy(labels)
    images = torch.cat((torch.from_numpy(rng.normal(size=truth.shape)).float(), truth.float()), dim=1)
    return images, downsampled(truth)


def downsampled(truth: torch.Tensor) -> list[torch.Tensor]:
    """The labels of each scale as nnU-Net makes them."""
    scales = [scale[3 - (truth.ndim - 2) :] for scale in SCALES]
    every = [DownsampleSegForDSTransform(scales)._apply_to_segmentation(sample) for sample in truth]
    return [torch.stack(one) for one in zip(*every, strict=True)]


@pytest.mark.parametrize("shape", [(32, 48), (16, 32, 32)], ids=["2d", "3d"])
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_objects_grow_and_shrink_in_image_and_labels_alike(shape: tuple[int, ...], factor: float) -> None:
    images, targets = batch(shape)
    before = images.clone(), [target.clone() for target in targets]
    shown, wanted = zoomed(images, targets, np.array([1.0, factor, 1.0]))
    inner = int((targets[0][1] == 2).sum())
    assert int((wanted[0][1] == 2).sum()) == pytest.approx(inner * factor ** len(shape), rel=0.01)
    image = shown[1, 1]
    unblurred = (image - image.round()).abs() < 0.01  # away from borders
    assert unblurred.float().mean() > 0.6
    assert torch.equal(image[unblurred].round().short(), wanted[0][1, 0][unblurred])
    for one, scale in zip(wanted, downsampled(wanted[0]), strict=True):
        assert torch.equal(one, scale)
        assert one.dtype == torch.int16
    for untouched in (0, 2):
        assert torch.equal(shown[untouched], images[untouched])
        assert all(torch.equal(new[untouched], old[untouched]) for new, old in zip(wanted, targets, strict=True))
    assert torch.equal(images, before[0])
    assert all(torch.equal(now, then) for now, then in zip(targets, before[1], strict=True))


def test_an_axis_of_one_voxel_and_a_rim_that_goes_on() -> None:
    images, targets = batch((1, 32, 32))
    targets[0][:, :, :, 0] = 1
    images[:, 0, :, 0] = 7
    shown, wanted = zoomed(images, targets, np.full(3, 0.5))
    assert shown.shape == images.shape
    assert (wanted[0][:, :, :, :8] == 1).all()
    assert torch.allclose(shown[:, 0, :, :8], torch.tensor(7.0))
    assert int((wanted[0] == 2).sum()) * 4 == int((targets[0] == 2).sum())


def test_nothing_drawn_nothing_touched() -> None:
    images, targets = batch((32, 32))
    shown, wanted = zoomed(images, targets, np.ones(3))
    assert shown is images
    assert all(new is old for new, old in zip(wanted, targets, strict=True))


def test_draws_are_log_uniform_in_a_part_of_the_patches() -> None:
    rng = np.random.default_rng(0)
    factors = draw_zooms(20_000, InteractionConfig(zoom=1.5, zoomed=0.4), rng)
    drawn = factors[factors != 1]
    assert len(drawn) / len(factors) == pytest.approx(0.4, abs=0.02)
    assert drawn.min() > 1 / 1.5
    assert drawn.max() < 1.5
    assert np.log(drawn).mean() == pytest.approx(0, abs=0.01)
    assert np.log(drawn).std() == pytest.approx(2 * np.log(1.5) / 12**0.5, rel=0.03)
    for off in (InteractionConfig(zoomed=0), InteractionConfig(zoom=1)):
        assert (draw_zooms(100, off, rng) == 1).all()

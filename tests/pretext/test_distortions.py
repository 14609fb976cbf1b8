from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nnunet_qa.config_limited_data import DistortionConfig, RestorationConfig
from nnunet_qa.pretext import distortions
from nnunet_qa.pretext.distortions import distort
from nnunet_qa.pretext.measures import restoration_measures
from nnunet_qa.pretext.transform import RestorationTransform, unit_scale

OFF = DistortionConfig(flip=0, shuffle=0, intensity=0, painting=0)
SHAPES = [(2, 40, 30), (1, 1, 40, 30), (3, 12, 1, 30), (1, 24, 24, 24)]


def drawn(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(5).random(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_switched_off_is_identity(shape: tuple[int, ...]) -> None:
    image = drawn(shape)
    distorted, clean = distort(image, np.random.default_rng(0), OFF)
    assert np.array_equal(distorted, image)
    assert np.array_equal(clean, image)
    assert distorted is not image


@pytest.mark.parametrize("shape", SHAPES)
def test_all_of_them_leave_the_input_and_the_range(shape: tuple[int, ...]) -> None:
    image = drawn(shape)
    before = image.copy()
    for seed in range(20):
        distorted, clean = distort(image, np.random.default_rng(seed), DistortionConfig())
        assert np.array_equal(image, before)
        assert distorted.shape == clean.shape == image.shape
        assert distorted.dtype == clean.dtype == np.float32
        assert distorted.min() >= 0
        assert distorted.max() <= 1
        assert sorted(clean.ravel()) == sorted(image.ravel())


def test_a_flip_is_of_both() -> None:
    image = drawn((1, 8, 9))
    settings = OFF.model_copy(update={"flip": 1.0})
    seen = set()
    for seed in range(20):
        distorted, clean = distort(image, np.random.default_rng(seed), settings)
        assert np.array_equal(distorted, clean)
        seen |= {axis for axis in (1, 2) if np.array_equal(clean, np.flip(image, axis))}
        assert not np.array_equal(clean, image)
    assert seen == {1, 2}


def test_probabilities_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("mirror", "shuffle_pixels", "bend_intensities", "in_paint", "out_paint"):
        monkeypatch.setattr(distortions, name, lambda image, *_, name=name: calls.append(name) or image)
    rng, number, image = np.random.default_rng(0), 4000, np.zeros((1, 2, 2), np.float32)
    order = ["mirror", "shuffle_pixels", "bend_intensities", "paint"]
    total: dict[str, int] = {}
    for _ in range(number):
        calls.clear()
        distort(image, rng, DistortionConfig())
        ranks = [order.index("paint" if "paint" in name else name) for name in calls]
        assert ranks == sorted(set(ranks))
        for name in calls:
            total[name] = total.get(name, 0) + 1
    expected = {"mirror": 0.4, "shuffle_pixels": 0.5, "bend_intensities": 0.9, "in_paint": 0.18, "out_paint": 0.72}
    assert {name: total[name] / number for name in expected} == pytest.approx(expected, abs=0.03)


def test_the_transform_works_in_the_intensities_of_the_image() -> None:
    image = torch.from_numpy(drawn((2, 16, 20)) * np.array([100, 3], np.float32).reshape(2, 1, 1) - 50)
    given = {"image": image.clone(), "segmentation": torch.zeros(1, 16, 20, dtype=torch.int16)}
    off = RestorationTransform(RestorationConfig(distortions=OFF))(**given)
    for key in ("image", "segmentation"):
        torch.testing.assert_close(off[key], image, atol=1e-4, rtol=0)
    noise = OFF.model_copy(update={"painting": 1.0, "in_painting": 0.0, "windows": 1})
    np.random.seed(3)
    made = RestorationTransform(RestorationConfig(distortions=noise))(**given)
    torch.testing.assert_close(made["segmentation"], image, atol=1e-4, rtol=0)
    for channel in (0, 1):  # noise between the percentiles of the channel
        low, high = np.percentile(image[channel].numpy(), (0.5, 99.5))
        changed = made["image"][channel][(made["image"][channel] - image[channel]).abs() > 1e-3]
        assert low <= changed.min() < low + 0.1 * (high - low)
        assert high >= changed.max() > high - 0.1 * (high - low)
    np.random.seed(3)
    assert torch.equal(RestorationTransform(RestorationConfig(distortions=noise))(**given)["image"], made["image"])


def test_a_patch_without_contrast() -> None:
    low, width = unit_scale(np.full((1, 4, 4), -3, np.float32), (0.5, 99.5))
    assert (low.item(), width.item()) == (-3, 1)


def test_measures_against_scikit_image() -> None:
    clean = drawn((1, 3, 16, 20))
    restored = (clean + np.random.default_rng(1).normal(0, 0.1, clean.shape)).astype(np.float32)
    found = restoration_measures(clean, restored)
    assert found["l1"] == pytest.approx(float(np.abs(clean - restored).mean()), rel=1e-5)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(clean, restored, data_range=1), rel=1e-5)
    slices = [structural_similarity(a, b, data_range=1.0) for a, b in zip(clean[0], restored[0], strict=True)]
    assert found["ssim"] == pytest.approx(np.mean(slices))
    same = restoration_measures(clean, clean)
    assert (same["l1"], same["psnr"], same["ssim"]) == (0, 100, pytest.approx(1))
    assert restoration_measures(clean[..., :4, :5], restored[..., :4, :5])["ssim"] < 1  # smaller than the window


@pytest.mark.parametrize("wrong", [{"percentiles": (60, 40)}, {"held_out": 0}, {"distortions": {"flip": 1.5}}])
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        RestorationConfig.model_validate(wrong)

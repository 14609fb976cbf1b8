from __future__ import annotations

import doctest
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from nnunet_qa.data import cine_phantom, cine_shape
from nnunet_qa.data.cine_heart import Heart
from nnunet_qa.data.cine_phantom import (
    DISEASES_AO,
    DISEASES_SA,
    STRUCTURES,
    Cine,
    aortic_cine,
    physiological_curve,
    short_axis_cine,
)
from nnunet_qa.data.cine_shape import smallest_pixels

SPACING = (12.0, 4.0, 4.2)


def small(seed: int = 0, disease: str = "normal", *, frames: int = 8) -> Cine:
    rng = np.random.default_rng(seed)
    return short_axis_cine(rng, disease=disease, frames=frames, slices=7, shape=(62, 60), spacing=SPACING)


def small_aorta(seed: int = 0, disease: str = "normal") -> Cine:
    return aortic_cine(np.random.default_rng(seed), disease=disease, frames=20, shape=(64, 66), spacing=(6.0, 3.2, 3.4))


def fraction(curve: np.ndarray) -> float:
    return float((curve.max() - curve.min()) / curve.max())


def test_the_examples_run() -> None:
    for module in (cine_phantom, cine_shape):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("frames", [3, 8, 30, 50])
def test_a_heartbeat_falls_to_its_systole_and_fills_again(frames: int) -> None:
    curve = physiological_curve(frames, 150, 60)
    end = round(0.35 * frames)
    assert curve[0] == curve.max() == 150
    assert curve[end] == curve.min() == pytest.approx(60)
    assert (np.diff(curve[: end + 1]) < 0).all()
    assert (np.diff(curve[end:]) >= 0).all()
    if frames >= 30:
        assert 130 < curve[-1] < 150  # the next beat goes on from there
        assert np.abs(np.diff(curve)).max() < 15


@pytest.mark.parametrize(
    ("frames", "edv", "esv", "systole", "said"),
    [
        (2, 100, 50, 0.35, "2 frames"),
        (20, 50, 50, 0.35, "no heartbeat"),
        (20, 50, -1, 0.35, "no heartbeat"),
        (20, 100, 50, 0.01, "ends in frame 0"),
        (20, 100, 50, 1.0, "ends in frame 20"),
    ],
)
def test_no_heartbeat(frames: int, edv: float, esv: float, systole: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        physiological_curve(frames, edv, esv, systole=systole)


@pytest.mark.parametrize("disease", DISEASES_SA)
@pytest.mark.parametrize("seed", [0, 1])
def test_curves_of_the_masks_are_the_designed_ones(disease: str, seed: int) -> None:
    cine = small(seed, disease)
    assert cine.image.shape == cine.mask.shape == (8, 7, 62, 60)
    assert (cine.image.dtype, cine.mask.dtype) == (np.float32, np.uint8)
    assert set(np.unique(cine.mask).tolist()) == {0, 1, 2, 3}
    pixel = 4.0 * 4.2 * 12.0 / 1000
    for name, value in STRUCTURES["sa"].items():
        curve = (cine.mask == value).sum(axis=(1, 2, 3)) * pixel
        assert np.abs(curve - cine.curves[name]).max() <= 7 * pixel / 2
    assert np.argmax(cine.curves["lv"]) == 0
    assert cine.phase(0) == "ED"
    assert cine.phase(int(np.argmin(cine.curves["lv"]))) == "ES"
    assert cine.phase(7) == ""


def test_diseases_are_what_they_are_called() -> None:
    drawn = {
        disease: [
            Heart.draw(np.random.default_rng(seed), disease=disease, frames=9, height=100.0, beat=physiological_curve)
            for seed in range(9)
        ]
        for disease in DISEASES_SA
    }
    lv = {disease: [fraction(heart.lv) for heart in hearts] for disease, hearts in drawn.items()}
    assert min(lv["normal"]) >= 0.55
    assert max(lv["dilated"]) <= 0.4
    assert max(lv["infarct"]) <= 0.48
    assert np.mean(lv["hypertrophic"]) > np.mean(lv["normal"])
    edv, muscle, rv_edv, rv = (
        {disease: np.mean([measure(heart) for heart in hearts]) for disease, hearts in drawn.items()}
        for measure in (
            lambda heart: heart.lv[0],
            lambda heart: heart.muscle,
            lambda heart: heart.rv[0],
            lambda heart: fraction(heart.rv),
        )
    )
    assert edv["dilated"] > 1.3 * edv["normal"]
    assert muscle["hypertrophic"] > 1.3 * muscle["normal"]
    assert rv["rv_dilated"] < 0.43 < rv["normal"]
    assert rv_edv["rv_dilated"] > 1.2 * edv["rv_dilated"]


def test_both_ventricles_eject_the_same() -> None:
    for disease in DISEASES_SA:
        curves = small(3, disease).curves
        lv, rv = (curves[name].max() - curves[name].min() for name in ("lv", "rv"))
        assert rv == pytest.approx(lv, rel=0.06)
        assert np.ptp(curves["myocardium"]) < 0.01 * curves["myocardium"][0]  # muscle is not compressed


def test_the_cavity_lies_within_the_wall_and_the_right_ventricle_beside_it() -> None:
    cine = small(1)
    for frame in (0, cine.end_systole):
        middle = cine.mask[frame, 3]
        around = ndimage.binary_dilation(middle == 1) & (middle != 1)
        assert (middle[around] == 2).mean() > 0.9
        centres = {value: ndimage.center_of_mass(middle == value)[1] for value in (1, 3)}
        assert centres[3] < centres[1]


def test_the_base_leaves_the_top_slices_in_systole() -> None:
    lost = 0
    for seed in range(6):
        cine = small(seed)
        ed, es = ((cine.mask[frame] == 1).any(axis=(1, 2)) for frame in (0, cine.end_systole))
        assert es.sum() <= ed.sum()
        lost += int(ed.argmax() < es.argmax())
    assert lost >= 1


def test_blood_is_bright_and_not_alone_so() -> None:
    contrast = []
    for seed in range(4):
        cine = small(seed)
        image, mask = cine.image[0, 3], cine.mask[0, 3]
        assert image.min() >= 0
        contrast.append(image[mask == 1].mean() / image[mask == 2].mean())
        # fat, atria and vessels are as bright, so that no threshold finds the ventricles
        assert (image[mask == 0] > np.median(image[mask == 1])).sum() > (mask == 1).sum()
    assert min(contrast) > 1.1
    assert max(contrast) > 1.15 * min(contrast)


@pytest.mark.parametrize("draw", [small, small_aorta])
def test_the_same_generator_gives_the_same_cine(draw: Callable[[int], Cine]) -> None:
    first, again, other = draw(3), draw(3), draw(4)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert (first.mask != other.mask).any()
    assert first.frame_time != other.frame_time


@pytest.mark.parametrize("disease", DISEASES_AO)
def test_areas_of_the_aorta_are_the_designed_ones(disease: str) -> None:
    cine = small_aorta(0, disease)
    assert cine.image.shape == cine.mask.shape == (20, 1, 64, 66)
    for name, value in STRUCTURES["ao"].items():
        area = (cine.mask == value).sum(axis=(1, 2, 3)) * 3.2 * 3.4
        assert np.abs(area - cine.curves[name]).max() <= 3.2 * 3.4 / 2
        assert cine.curves[name].argmin() == 0
    ascending = cine.curves["ascending_aorta"]
    assert cine.phase(int(ascending.argmax())) == "ES"
    strain = ascending.max() / ascending.min() - 1
    assert (0.13 < strain < 0.35) if disease == "normal" else (0.01 < strain < 0.13)
    assert (ascending[0] > 1300) == (disease == "aneurysm")


def test_wrong_arguments() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match='unknown disease "stiff"; known for this view are normal, dilated'):
        short_axis_cine(rng, disease="stiff")
    with pytest.raises(ValueError, match='unknown disease "dilated"'):
        aortic_cine(rng, disease="dilated")
    with pytest.raises(ValueError, match="field of view of 115"):
        short_axis_cine(rng, shape=(64, 208))
    with pytest.raises(ValueError, match="5 slices of 10 mm"):
        short_axis_cine(rng, slices=5)
    with pytest.raises(ValueError, match="2 frames"):
        short_axis_cine(rng, frames=2)
    with pytest.raises(ValueError, match="2 frames"):
        aortic_cine(rng, frames=2)


def test_design_sums_up_to_the_volumes() -> None:
    rng = np.random.default_rng(0)
    heart = Heart.draw(rng, disease="normal", frames=5, height=100.0, beat=physiological_curve)
    design = heart.design(slices=25, slice_mm=4.0)
    np.testing.assert_allclose(design.areas["lv"].sum(axis=1) * 4.0 / 1000, heart.lv)
    np.testing.assert_allclose(design.areas["rv"].sum(axis=1) * 4.0 / 1000, heart.rv)
    assert (design.areas["lv"] <= design.whole["lv"] + 1e-9).all()
    # the apex is a cap of muscle without cavity, the cavity is widest near the base
    beyond = design.depth[0] > 1
    assert (design.areas["lv"][0][beyond] == 0).all()
    assert design.areas["myocardium"][0][beyond].max() > 0


def test_smallest_pixels_are_those_a_sort_finds() -> None:
    rng = np.random.default_rng(0)
    level, allowed = rng.normal(size=(3, 9, 11)), rng.random((3, 9, 11)) < 0.5
    counts = np.array([0, 7, 20])
    chosen = smallest_pixels(level, counts, allowed)
    for frame, count in enumerate(counts):
        expected = sorted(level[frame][allowed[frame]].tolist())[:count]
        assert sorted(level[frame][chosen[frame]].tolist()) == expected
        assert not (chosen[frame] & ~allowed[frame]).any()
    with pytest.raises(ValueError, match="100 pixels does not fit in 99"):
        smallest_pixels(level[:1], np.array([100]))

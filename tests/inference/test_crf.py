from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nnunet_qa.errors import CRFError, DependencyError
from nnunet_qa.inference.crf import CRFSettings, Mode, labels_of, refine

STRONG = CRFSettings(gaussian_sd=2.5, gaussian_weight=2, bilateral_sd=6, intensity_sd=0.3, bilateral_weight=3)


def drawn(*shape: int, classes: int = 3, channels: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and images in which the class of most voxels can be seen."""
    rng = np.random.default_rng(seed)
    voxels = int(np.prod(shape))
    probabilities = rng.dirichlet(np.ones(classes), size=voxels).T
    image = rng.normal(probabilities.argmax(0) * 50 + 100, 30, (channels, voxels))
    return probabilities.reshape(classes, *shape).astype(np.float32), image.reshape(channels, *shape)


def by_brute_force(
    probabilities: np.ndarray, image: np.ndarray, spacing: tuple[float, ...], settings: CRFSettings
) -> np.ndarray:
    """Mean field with every pair of voxels written out (Krähenbühl and Koltun 2011, equation 4 and algorithm 1)."""
    classes, shape = len(probabilities), probabilities.shape[1:]
    places = np.array(list(np.ndindex(*shape))) * spacing
    low, high = (np.quantile(image.reshape(len(image), -1), q, axis=1) for q in (0.01, 0.99))
    grey = (image.reshape(len(image), -1) - low[:, None]) / (high - low)[:, None]
    count = len(places)
    near, alike = np.zeros((count, count)), np.zeros((count, count))
    for i in range(count):
        distance = ((places - places[i]) ** 2).sum(axis=1)
        contrast = ((grey - grey[:, [i]]) ** 2).sum(axis=0)
        near[i] = np.exp(-distance / (2 * settings.gaussian_sd**2))
        alike[i] = np.exp(-distance / (2 * settings.bilateral_sd**2) - contrast / (2 * settings.intensity_sd**2))
    penalty = 1 - np.eye(classes) if settings.compatibility is None else np.array(settings.compatibility)
    unary = -np.log(probabilities.reshape(classes, -1))
    q = probabilities.reshape(classes, -1).astype(float)
    for _ in range(settings.iterations):
        energy = unary.copy()
        for kernel, weight in ((near, settings.gaussian_weight), (alike, settings.bilateral_weight)):
            norm = np.sqrt(np.outer(kernel.sum(1), kernel.sum(1)))
            energy += weight * penalty @ (q @ (kernel / norm))
        q = np.exp(-energy)
        q /= q.sum(0)
    return q.reshape(probabilities.shape)


@pytest.mark.parametrize(
    ("shape", "channels", "spacing", "changes"),
    [
        ((9, 8), 1, (1.0, 1.0), {}),
        ((9, 8), 1, (1.0, 3.0), {"gaussian_weight": 0}),
        ((9, 8), 1, (3.0, 1.0), {"bilateral_weight": 0}),
        ((8, 7), 2, (1.5, 1.5), {"iterations": 2}),
        ((4, 6, 5), 1, (8.0, 1.5, 1.5), {}),
        ((4, 6, 5), 2, (1.0, 2.0, 2.0), {"bilateral_weight": 1}),
        ((9, 8), 1, (1.0, 1.0), {"compatibility": ((0, 1, 4), (1, 0, 0.2), (4, 0.2, 0))}),
    ],
)
def test_the_mean_field_is_that_of_all_pairs(
    shape: tuple[int, ...], channels: int, spacing: tuple[float, ...], changes: dict[str, object]
) -> None:
    settings = CRFSettings.model_validate(STRONG.model_dump() | changes)
    probabilities, image = drawn(*shape, channels=channels)
    found = refine(probabilities, image, spacing=spacing, settings=settings)
    expected = by_brute_force(probabilities, image, spacing, settings)
    assert found.sum(axis=0) == pytest.approx(np.ones(shape), abs=1e-5)
    moved = np.abs(expected - probabilities).mean()
    assert moved > 0.03
    assert np.abs(found - expected).mean() < 0.2 * moved  # the lattice is an approximation
    other = by_brute_force(probabilities, image, (spacing[-1], *spacing[1:-1], spacing[0]), settings)
    if spacing[0] != spacing[-1]:  # mm and their axes matter more than the approximation
        assert np.abs(found - expected).mean() < 0.5 * np.abs(found - other).mean()


def square(noise: float = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright square, its truth, and probabilities that lie 3 pixels beside it and have speckles."""
    rng = np.random.default_rng(2)
    truth = np.zeros((48, 48), np.uint8)
    truth[14:34, 14:34] = 1
    beside = np.roll(truth, 3, axis=1).astype(float)
    speckled = np.where(rng.random(truth.shape) < 0.03, 1 - beside, beside)
    inside = 0.15 + 0.7 * speckled
    return np.stack([1 - inside, inside]), truth, (truth * 100 + rng.normal(0, noise, truth.shape))[None]


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first * second).sum()) / float(first.sum() + second.sum())


def test_borders_move_to_edges_and_speckles_go() -> None:
    probabilities, truth, image = square()
    settings = CRFSettings(
        gaussian_sd=1.5, gaussian_weight=1, bilateral_sd=10, intensity_sd=0.15, bilateral_weight=5, iterations=10
    )
    before = dice(labels_of(probabilities), truth)
    refined = labels_of(refine(probabilities, image, spacing=(1, 1), settings=settings))
    assert before < 0.85
    assert dice(refined, truth) > 0.97
    assert refined.dtype == np.uint8


def test_slices_are_refined_alone_in_2d_and_together_in_3d() -> None:
    probabilities, image = drawn(3, 8, 8)
    alone = CRFSettings.model_validate(STRONG.model_dump() | {"mode": "2d"})
    slices = refine(probabilities, image, spacing=(1, 1, 1), settings=alone)
    swapped = refine(probabilities[:, [0, 2, 1]], image[:, [0, 2, 1]], spacing=(1, 1, 1), settings=alone)
    np.testing.assert_array_equal(swapped, slices[:, [0, 2, 1]])
    whole = refine(probabilities, image, spacing=(1, 1, 1), settings=STRONG)
    far = refine(probabilities, image, spacing=(500, 1, 1), settings=STRONG)
    together = np.abs(whole - slices).mean()
    assert together > 0.05
    assert np.abs(far - slices).mean() < 0.4 * together  # slices that are half a metre apart know nothing of each other


@pytest.mark.parametrize("mode", Mode)
def test_frames_are_refined_one_by_one(mode: Mode) -> None:
    probabilities, image = drawn(4, 3, 7, 6)
    settings = CRFSettings.model_validate(STRONG.model_dump() | {"mode": mode})
    series = refine(probabilities, image, spacing=(8, 1, 1), settings=settings)
    for frame in range(4):
        one = refine(probabilities[:, frame], image[:, frame], spacing=(8, 1, 1), settings=settings)
        np.testing.assert_array_equal(series[:, frame], one)


def test_intensities_count_by_their_range() -> None:
    probabilities, image = drawn(8, 8)
    first = refine(probabilities, image, spacing=(1, 1), settings=STRONG)
    again = refine(probabilities, image * 37 - 5000, spacing=(1, 1), settings=STRONG)
    np.testing.assert_allclose(again, first, atol=1e-3)
    constant = refine(probabilities, np.full_like(image, 7), spacing=(1, 1), settings=STRONG)
    assert np.isfinite(constant).all()
    assert np.abs(constant - first).max() > 0.05


def test_without_weights_nothing_changes_and_certain_voxels_are_no_trouble() -> None:
    probabilities, image = drawn(8, 8)
    nothing = CRFSettings(gaussian_weight=0, bilateral_weight=0)
    np.testing.assert_array_equal(refine(probabilities, image, spacing=(1, 1), settings=nothing), probabilities)
    certain = (np.arange(3)[:, None, None] == probabilities.argmax(0)).astype(np.float32)
    assert np.isfinite(refine(certain, image, spacing=(1, 1), settings=STRONG)).all()


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    probabilities, image = drawn(4, 4)
    with pytest.raises(DependencyError, match=r"needs pydensecrf2.*pip install nnunet-qa\[crf\]"):
        refine(probabilities, image, spacing=(1, 1), settings=STRONG)


def test_what_does_not_fit() -> None:
    probabilities, image = drawn(4, 4)
    with pytest.raises(ValueError, match="must have one shape"):
        refine(probabilities, image[:, 1:], spacing=(1, 1), settings=STRONG)
    with pytest.raises(ValueError, match="spacing of 3 axes"):
        refine(probabilities, image, spacing=(1, 1, 1), settings=STRONG)
    two = CRFSettings(compatibility=((0, 1), (1, 0)))
    with pytest.raises(CRFError, match="made for 2 labels, there are 3 with the background"):
        refine(probabilities, image, spacing=(1, 1), settings=two)


def test_settings_from_json_and_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(STRONG.model_dump_json())
    assert CRFSettings.read(tmp_path / "a.json") == STRONG
    (tmp_path / "b.yaml").write_text("mode: 2d\niterations: 7\ntuned: {cases: 3}\n")
    assert CRFSettings.read(tmp_path / "b.yaml") == CRFSettings(mode=Mode.SLICES, iterations=7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("iteration: 3", 'unknown key "iteration" (did you mean "iterations"?)'),
        ("iterations: 0", '"iterations": Input should be greater than or equal to 1 (found: 0)'),
        ("gaussian_sd: .nan", '"gaussian_sd":'),
        ("bilateral_weight: -1", '"bilateral_weight":'),
        ("mode: 4d", '"mode": '),
        ("compatibility: [[0, 1], [2, 0]]", '"compatibility": must be symmetric'),
        ("compatibility: [[0, 1]]", "as many columns as rows"),
        ("[1, 2]", "must hold keys and values, found a list"),
        ("a: [", "cannot be read as JSON or YAML"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "crf.yaml"
    path.write_text(text)
    with pytest.raises(CRFError) as caught:
        CRFSettings.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    with pytest.raises(CRFError, match=r"none\.json: not found"):
        CRFSettings.read(tmp_path / "none.json")


def test_what_a_volume_takes() -> None:
    """The numbers of docs/crf.md; the limits leave room for a busy machine."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    probabilities, image = drawn(10, 192, 208, classes=4)
    drawing = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    refine(probabilities, image, spacing=(10, 1.8, 1.8), settings=CRFSettings())
    seconds = time.process_time() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - drawing) / 1024
    print(f"{seconds:.1f} s, {memory:.0f} MiB above the {(drawing - before) / 1024:.0f} MiB of the input")
    assert seconds < 30
    assert memory < 1000

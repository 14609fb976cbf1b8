from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from nnunet_qa.quality.curve_logistic import CurveLogistic, curve_features
from nnunet_qa.quality.slice_irregularity import irregularity_in_space, irregularity_in_time
from tests.quality.easy_curves import acquisition, hearts

FRAMES = np.arange(50)


def features(curve: np.ndarray) -> dict[str, float]:
    return curve_features(acquisition({"lv": np.rint(curve).astype(np.int64)[:, None]}), ("lv",))


def test_features_of_a_wave() -> None:
    found = features(10000 + 4000 * np.cos(2 * np.pi * FRAMES / 50))
    voxel = 10 * 1.8 * 1.8 / 1000
    assert found["lv_size"] == pytest.approx(np.log10(1 + 14000 * voxel))
    assert found["lv_lowest"] == pytest.approx(6000 / 14000, abs=1e-3)
    assert found["lv_when"] == 0.5
    assert found["lv_step"] == pytest.approx(4000 * 2 * np.sin(np.pi / 50) / 14000, rel=0.01)
    assert found["lv_residual"] < 1e-4  # one harmonic
    assert found["lv_gaps"] == 0
    assert found["lv_in_time"] < 1e-4
    assert found["lv_in_space"] == 4  # of a single slice


def test_a_single_wrong_frame_shows_in_step_and_residual() -> None:
    curve = 10000 + 4000 * np.cos(2 * np.pi * FRAMES / 50)
    curve[10] = 0
    found = features(curve)
    assert found["lv_step"] > 0.7
    assert found["lv_lowest"] == 0
    assert found["lv_when"] == 10 / 50
    # least squares instead of the Fourier transform: a constant, four sines and four cosines
    design = np.stack([wave(2 * np.pi * k * FRAMES / 50) for k in range(5) for wave in (np.cos, np.sin)], axis=1)
    relative = np.rint(curve) / np.rint(curve).max()
    rest = relative - design @ np.linalg.lstsq(design, relative, rcond=None)[0]
    assert found["lv_residual"] == pytest.approx(np.sqrt((rest**2).mean()))


def test_gaps_and_strokes() -> None:
    counts = np.tile([0, 5, 5, 5], (4, 1))
    counts[1, 2] = 0
    found = curve_features(acquisition({"lv": counts, "rv": np.tile([0, 5, 5, 5], (4, 1))}), ("lv", "rv"))
    assert found["lv_gaps"] == 0.25
    assert found["rv_gaps"] == 0
    pixels = np.tile([0, 5, 5, 5], (4, 1))
    assert found["rv_in_space"] == irregularity_in_space(pixels).mean() < found["lv_in_space"]
    assert found["lv_in_time"] == irregularity_in_time(counts).mean()
    assert found["stroke_difference"] == 1  # the right one does not move


def test_it_is_the_logistic_regression_of_the_standardised_features() -> None:
    acquisitions, erroneous = hearts(60)
    classifier = CurveLogistic().fit(acquisitions, erroneous)
    names = ("lv", "myocardium", "rv")
    table = np.array([list(curve_features(one, names).values()) for one in acquisitions])
    spread = table.std(axis=0)
    scaled = np.clip((table - table.mean(axis=0)) / np.where(spread > 0, spread, 1), -5, 5)
    reference = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scaled, erroneous)
    np.testing.assert_allclose(classifier.predict_proba(acquisitions), reference.predict_proba(scaled)[:, 1], rtol=1e-6)


def test_unseen_subjects() -> None:
    classifier = CurveLogistic().fit(*hearts(100))
    assert classifier.score(*hearts(100, seed=1, prefix="new")) > 0.95
    assert classifier.metrics_["validation"]["auroc"] > 0.9


def test_curves_of_zeros_and_constants() -> None:
    for number in (0, 7):
        found = features(np.full(6, number))
        assert all(np.isfinite(value) for value in found.values())
        assert found["lv_step"] == found["lv_residual"] == 0
        assert found["lv_lowest"] == (number > 0)

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from nnunet_qa.quality.curve_classifier import CurveLSTM, log_size, relative_curves, resampled
from nnunet_qa.quality.curve_logistic import CurveLogistic
from nnunet_qa.quality.curve_rules import CurveRules
from tests.body import one_thread
from tests.quality.easy_curves import acquisition, heart, hearts

SMALL = {"hidden": 16, "epochs": 25, "frames": 25, "folds": 2, "batch_size": 8, "learning_rate": 1e-2}
QUICK = SMALL | {"epochs": 1, "hidden": 4}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def fitted() -> CurveLSTM:
    return CurveLSTM(**SMALL).fit(*hearts(80))


def test_curves_are_divided_by_their_own_maximum() -> None:
    one = acquisition({"lv": np.array([[1, 1], [3, 1], [0, 1]]), "rv": np.zeros((3, 2), dtype=np.int64)})
    np.testing.assert_allclose(relative_curves(one, ("rv", "lv")), [[0, 0.5], [0, 1], [0, 0.25]])
    assert log_size(one, "lv") == pytest.approx(np.log10(1 + 4 * 10 * 1.8 * 1.8 / 1000))
    assert log_size(one, "rv") == 0


@pytest.mark.parametrize("frames", [2, 7, 30, 50])
def test_more_frames_are_interpolated_over_the_closed_cycle(frames: int) -> None:
    curves = np.random.default_rng(0).uniform(size=(frames, 2))
    found = resampled(curves, 50)
    for number in range(2):
        expected = np.interp(np.arange(50) * frames / 50, np.arange(frames), curves[:, number], period=frames)
        np.testing.assert_allclose(found[:, number], expected)
    assert (resampled(curves, frames) == curves).all()


def test_fewer_frames_are_means_so_that_no_frame_is_lost() -> None:
    curve = np.random.default_rng(1).uniform(size=100)
    np.testing.assert_allclose(resampled(curve, 50), curve.reshape(50, 2).mean(axis=1))
    curve = np.arange(5.0)  # 5 frames to 2: the middle one is shared
    np.testing.assert_allclose(resampled(curve, 2), [(0 + 1 + 2 / 2) / 2.5, (2 / 2 + 3 + 4) / 2.5])
    one_wrong = np.ones(100)
    one_wrong[37] = 0
    assert resampled(one_wrong, 50).min() == pytest.approx(0.5)


def test_unseen_subjects_are_judged(fitted: CurveLSTM) -> None:
    unseen, erroneous = hearts(100, seed=1, prefix="new")
    probabilities = fitted.predict_proba(unseen)
    assert probabilities.dtype == np.float64
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert fitted.score(unseen, erroneous) > 0.85  # half as long and narrow as the default, on 80 hearts
    assert fitted.judge(unseen, erroneous)["sensitivity"] > 0.75


def test_chance_is_its_own() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first, again, other = (CurveLSTM(**QUICK, seed=seed).fit(*hearts(30)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    some = hearts(10, seed=2)[0]
    np.testing.assert_array_equal(again.predict_proba(some), first.predict_proba(some))
    assert again.threshold_ == first.threshold_
    assert not np.allclose(other.predict_proba(some), first.predict_proba(some))


def test_one_acquisition_is_judged_as_among_others(fitted: CurveLSTM) -> None:
    some = hearts(10, seed=2)[0]
    alone = [fitted.predict_proba([one])[0] for one in some]
    np.testing.assert_allclose(fitted.predict_proba(some), alone, atol=1e-6)


def test_other_numbers_of_frames_are_judged(fitted: CurveLSTM) -> None:
    for frames in (20, 100):
        assert fitted.score(*hearts(60, seed=4, frames=frames)) > 0.85


def test_degenerate_curves_have_a_probability(fitted: CurveLSTM) -> None:
    names = ("lv", "myocardium", "rv")
    flat = [
        acquisition({name: np.full((frames, 8), value) for name in names}) for frames in (2, 30) for value in (0, 9)
    ]
    probabilities = fitted.predict_proba(flat)
    assert np.isfinite(probabilities).all()
    assert (probabilities > fitted.threshold_).all()


def test_one_structure_and_areas() -> None:
    hearts_, erroneous = hearts(40)
    aortas = [
        acquisition({"ascending_aorta": one.pixels["lv"].sum(axis=1, keepdims=True)}, name=str(k), scheme="ukbb_ao")
        for k, one in enumerate(hearts_)
    ]
    classifier = CurveLSTM(**QUICK).fit(aortas, erroneous)
    assert (classifier.structures_, classifier.measured_) == (("ascending_aorta",), "area")
    assert classifier.predict_proba(aortas).shape == (40,)


def test_all_curves_of_zeros_can_be_fitted() -> None:
    nothing = [acquisition({"lv": np.zeros((5, 2), dtype=np.int64)}, name=str(k)) for k in range(8)]
    for kind in (CurveLSTM(**QUICK), CurveLogistic(), CurveRules()):
        fitted = kind.fit(nothing, np.arange(8) % 2 == 0)
        assert np.unique(fitted.predict_proba(nothing).round(6)).size == 1


def test_sizes_show_what_relative_curves_do_not() -> None:
    """Erroneous is a right ventricle of half its size in all frames."""
    good, _ = hearts(60, share=0)
    erroneous = np.arange(60) % 2 == 0
    halved = [
        acquisition({**one.pixels, "rv": one.pixels["rv"] // (1 + wrong)}, name=one.acquisition_id)
        for one, wrong in zip(good, erroneous, strict=True)
    ]
    # the right ventricle is as large as the left one, or half as large
    without, told = (CurveLSTM(**SMALL | {"epochs": 12}, sizes=sizes).fit(halved, erroneous) for sizes in (False, True))
    assert without.metrics_["validation"]["auroc"] < 0.7
    assert told.metrics_["validation"]["auroc"] > 0.9


def test_slices_show_what_curves_of_the_whole_heart_do_not() -> None:
    """Erroneous is a left ventricle whose pixels change slices from frame to frame."""
    good, _ = hearts(60, share=0)
    erroneous, rng = np.arange(60) % 2 == 0, np.random.default_rng(0)
    shuffled = []
    for one, wrong in zip(good, erroneous, strict=True):
        lv = rng.permuted(one.pixels["lv"], axis=1) if wrong else one.pixels["lv"]
        shuffled.append(acquisition({**one.pixels, "lv": lv}, name=one.acquisition_id))
    quick = SMALL | {"epochs": 12}
    without, told = (CurveLSTM(**quick, slices=slices).fit(shuffled, erroneous) for slices in (False, True))
    assert without.metrics_["validation"]["auroc"] < 0.7
    assert told.metrics_["validation"]["auroc"] > 0.95


def test_the_threshold_is_as_sensitive_as_wanted() -> None:
    """Of scores that tell little."""
    some, erroneous = hearts(60, share=0.5)
    guessed = np.random.default_rng(0).permutation(erroneous) | (np.arange(60) % 3 == 0)
    for least in (0.0, 0.95):
        fitted = CurveLogistic(weight=0.2, least_sensitivity=least).fit(some, guessed)
        assert (fitted.metrics_["validation"]["sensitivity"] >= 0.95) == (least > 0)
        assert fitted.settings()["least_sensitivity"] == least


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frames": 0}, "frames must be at least 1"),
        ({"hidden": 0}, "hidden must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"weight": 1.5}, "weight must be in"),
        ({"least_sensitivity": 1.5}, "least_sensitivity must be in"),
        ({"folds": 1}, "folds must be at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CurveLSTM(**settings)


def test_a_heart_without_error_breaks_nothing() -> None:
    """The drawn hearts are good ones by the rules too, so that the other tests mean something."""
    rng = np.random.default_rng(0)
    drawn = [heart(str(k), rng) for k in range(50)]
    assert CurveRules.without_labels(drawn).predict(drawn).mean() < 0.1

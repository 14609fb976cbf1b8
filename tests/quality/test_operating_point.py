from __future__ import annotations

import math
from time import perf_counter

import numpy as np
import pytest
from scipy.stats import beta

from nnunet_qa.quality.operating_point import auroc, clopper_pearson, rates, weighted_youden


def index(scores: np.ndarray, erroneous: np.ndarray, threshold: float, weight: float) -> tuple[float, float, float]:
    """J, sensitivity and specificity, by counting one case after the other."""
    caught = passed = 0
    for score, wrong in zip(scores, erroneous, strict=True):
        caught += bool(wrong and score >= threshold)
        passed += bool(not wrong and score < threshold)
    sensitivity = caught / erroneous.sum() if erroneous.any() else 1.0
    specificity = passed / (~erroneous).sum() if not erroneous.all() else 1.0
    return 2 * (weight * sensitivity + (1 - weight) * specificity) - 1, sensitivity, specificity


def brute_force(scores: np.ndarray, erroneous: np.ndarray, weight: float) -> tuple[float, float, float]:
    """The best J of all thresholds; of equal ones the highest sensitivity, then specificity."""
    values = np.unique(scores)
    thresholds = [-math.inf, *values, *(values[1:] + values[:-1]) / 2, math.inf]
    found = [index(scores, erroneous, threshold, weight) for threshold in thresholds]
    highest = max(j for j, _, _ in found)
    return max((one for one in found if one[0] > highest - 1e-9), key=lambda one: (one[1], one[2]))


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("decimals", [1, 8])  # with one, most scores are tied
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_it_equals_a_search_of_all_thresholds(weight: float, decimals: int, share: float) -> None:
    rng = np.random.default_rng(int(100 * weight + 10 * share + decimals))
    for cases in (1, 2, 7, 60):
        for _ in range(5):
            erroneous = rng.uniform(size=cases) < share
            scores = np.round(rng.uniform(0, 0.7, cases) + 0.3 * erroneous, decimals)
            found = weighted_youden(scores, erroneous, weight=weight)
            best = brute_force(scores, erroneous, weight)
            assert found.j == pytest.approx(best[0])
            assert index(scores, erroneous, found.threshold, weight) == pytest.approx(best)
            assert math.isfinite(found.threshold)
            for value, expected, there in (
                (found.sensitivity, best[1], erroneous.any()),
                (found.specificity, best[2], not erroneous.all()),
            ):
                assert value == pytest.approx(expected) if there else math.isnan(value)


@pytest.mark.parametrize("least", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("decimals", [1, 8])
def test_the_least_sensitivity_equals_a_search_of_all_thresholds(least: float, decimals: int) -> None:
    rng = np.random.default_rng(int(100 * least + decimals))
    for cases in (2, 7, 60):
        for _ in range(10):
            erroneous = rng.uniform(size=cases) < 0.4
            scores = np.round(rng.uniform(0, 0.7, cases) + 0.3 * erroneous, decimals)
            found = weighted_youden(scores, erroneous, weight=0.1, least_sensitivity=least)
            sensitive = [
                index(scores, erroneous, cut, 0.1)
                for cut in (*np.unique(scores), scores.max() + 1)
                if index(scores, erroneous, cut, 0.1)[1] >= least
            ]
            assert found.j == pytest.approx(max(one[0] for one in sensitive))
            assert index(scores, erroneous, found.threshold, 0.1)[1] >= least


def test_the_weight_moves_the_threshold() -> None:
    scores, erroneous = np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True])
    assert weighted_youden(scores, erroneous, weight=0.7).threshold == 1.5
    assert weighted_youden(scores, erroneous, weight=0.3).threshold == 3.5
    assert weighted_youden(scores, erroneous, weight=0.5).threshold == 1.5  # as good as 3.5, and finds more


def test_the_threshold_lies_between_scores_that_have_no_number_between_them() -> None:
    low = 0.5
    high = float(np.nextafter(low, 1))
    found = weighted_youden(np.array([low, high]), np.array([False, True]))
    assert (found.sensitivity, found.specificity, found.threshold) == (1, 1, high)


def test_one_class_and_one_score() -> None:
    scores = np.array([0.2, 0.5])
    assert weighted_youden(scores, np.array([True, True])).threshold == 0.2
    assert weighted_youden(scores, np.array([False, False])).threshold > 0.5
    same = weighted_youden(np.full(4, 0.3), np.array([True, False, False, False]))
    assert (same.threshold, same.sensitivity, same.specificity) == (0.3, 1, 0)
    assert same.j == pytest.approx(0.4)


def test_a_million_scores_take_seconds() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=1_000_000)
    start = perf_counter()
    weighted_youden(scores, rng.uniform(size=len(scores)) < scores)
    assert perf_counter() - start < 20


def test_what_is_no_score_is_refused() -> None:
    for scores, erroneous, said in (
        ([], [], "one score and one label"),
        ([0.1], [True, False], "one score and one label"),
        ([0.1, math.nan], [True, False], "not finite"),
    ):
        with pytest.raises(ValueError, match=said):
            weighted_youden(np.array(scores), np.array(erroneous))
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\], found 1.1"):
        weighted_youden(np.array([0.1]), np.array([True]), weight=1.1)
    with pytest.raises(ValueError, match="least_sensitivity must be in"):
        weighted_youden(np.array([0.1]), np.array([True]), least_sensitivity=-0.1)


def test_rates_are_counted_and_have_exact_intervals() -> None:
    rng = np.random.default_rng(3)
    erroneous = np.arange(50) < 20
    scores = rng.uniform(size=50) + 0.4 * erroneous
    found = rates(scores, erroneous, threshold=0.6)
    caught = sum(score >= 0.6 for score in scores[:20])
    passed = sum(score < 0.6 for score in scores[20:])
    assert found["sensitivity"] == caught / 20
    assert found["specificity"] == passed / 30
    counts = ("n", "erroneous", "caught", "missed", "false_alarms", "passed")
    assert [found[name] for name in counts] == [50, 20, caught, 20 - caught, 30 - passed, passed]
    pairs = [float(a > b) for a in scores[:20] for b in scores[20:]]
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    for name, count, cases in (("sensitivity", caught, 20), ("specificity", passed, 30)):
        expected = [beta.ppf(0.025, count, cases - count + 1), beta.ppf(0.975, count + 1, cases - count)]
        assert found[f"{name}_95"] == pytest.approx(expected)


def test_rates_of_one_class_are_none_where_not_defined() -> None:
    found = rates(np.array([0.1, 0.9]), np.array([False, False]), threshold=0.5)
    assert (found["sensitivity"], found["sensitivity_95"], found["auroc"]) == (None, None, None)
    assert found["specificity"] == 0.5
    assert math.isnan(auroc(np.array([0.1]), np.array([True])))
    assert clopper_pearson(5, 5) == pytest.approx([0.025 ** (1 / 5), 1])

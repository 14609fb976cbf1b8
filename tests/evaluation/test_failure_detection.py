from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.metrics import roc_auc_score

from nnunet_qa.evaluation.failure_detection import (
    aurc,
    auroc_of_failures,
    bootstrap_interval,
    e_aurc,
    judge,
    naurc,
    optimal_aurc,
    pearson,
    risk_coverage,
    spearman,
)


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    dice = rng.uniform(0, 1, 40)
    return (dice + rng.normal(0, 0.3, 40)).round(1), dice


def by_definition(confidence: np.ndarray, risk: np.ndarray) -> float:
    """Area for scores without ties, straight from the definition."""
    kept = risk[np.argsort(-confidence)]
    heights = [kept[:1].mean(), *(kept[: number + 1].mean() for number in range(len(kept)))]
    return float(integrate.trapezoid(heights, np.arange(len(kept) + 1) / len(kept)))


@pytest.mark.parametrize(
    ("confidence", "risk", "expected"),
    [
        # kept risks 0, 1: means 0, 1/2; area 0 * 1/2 + 1/4 * 1/2
        ([2, 1], [0, 1], 0.125),
        # means 1, 1/2: area 1 * 1/2 + 3/4 * 1/2
        ([1, 2], [0, 1], 0.875),
        # means 0.1, 0.2, 0.4: area (0.1 + 0.15 + 0.3) / 3
        ([3, 2, 1], [0.1, 0.3, 0.8], 0.55 / 3),
        ([5], [0.3], 0.3),
        ([1, 1], [0, 1], 0.5),
    ],
)
def test_aurc_by_hand(confidence: list[float], risk: list[float], expected: float) -> None:
    assert aurc(np.array(confidence), np.array(risk)) == pytest.approx(expected)


def test_aurc_by_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        confidence, risk = rng.permutation(12).astype(float), rng.uniform(size=12)
        assert aurc(confidence, risk) == pytest.approx(by_definition(confidence, risk))


def test_tied_scores_give_the_mean_over_all_their_orders() -> None:
    confidence, risk = np.array([1, 1, 1, 0, 0, 2.0]), np.array([0.1, 0.9, 0.4, 0.2, 0.7, 0.3])
    areas = []
    for order in itertools.permutations(range(6)):
        areas.append(by_definition(confidence + 1e-6 * np.array(order), risk))
    assert aurc(confidence, risk) == pytest.approx(np.mean(areas))
    shuffled = np.random.default_rng(1).permutation(6)
    assert aurc(confidence[shuffled], risk[shuffled]) == pytest.approx(aurc(confidence, risk), abs=1e-15)


def test_a_constant_score_is_chance() -> None:
    risk = np.random.default_rng(0).uniform(size=20)
    assert aurc(np.ones(20), risk) == pytest.approx(risk.mean())
    assert naurc(np.ones(20), risk) == pytest.approx(0)


def test_the_perfect_and_the_worst_ranking() -> None:
    risk = np.random.default_rng(0).uniform(size=20)
    assert aurc(-risk, risk) == optimal_aurc(risk)
    assert e_aurc(-risk, risk) == 0
    assert naurc(-risk, risk) == pytest.approx(1)
    assert e_aurc(risk, risk) == pytest.approx(aurc(risk, risk) - optimal_aurc(risk))
    assert naurc(risk, risk) < 0


def test_nothing_beats_the_perfect_ranking() -> None:
    risk = np.array([0.1, 0.5, 0.5, 0.9])
    best = min(by_definition(np.array(order, float), risk) for order in itertools.permutations(range(4)))
    assert optimal_aurc(risk) == pytest.approx(best)


def test_naurc_without_any_difference_is_not_defined() -> None:
    assert math.isnan(naurc(np.array([1.0, 2.0]), np.array([0.3, 0.3])))


def test_the_curve_ends_at_the_mean_risk() -> None:
    coverage, mean = risk_coverage(np.array([3, 1, 2.0]), np.array([0.0, 0.6, 0.3]))
    assert coverage == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert mean == pytest.approx([0, 0, 0.15, 0.3])


def test_correlations_are_those_of_scipy(scores: tuple[np.ndarray, np.ndarray]) -> None:
    assert spearman(*scores) == pytest.approx(stats.spearmanr(*scores).statistic)
    assert pearson(*scores) == pytest.approx(np.corrcoef(*scores)[0, 1])


@pytest.mark.parametrize("function", [spearman, pearson])
def test_correlations_that_are_not_defined(function: object) -> None:
    for first, second in (([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [3.0, 3.0])):
        assert math.isnan(function(np.array(first), np.array(second)))  # type: ignore[operator]


def test_auroc_of_failures(scores: tuple[np.ndarray, np.ndarray]) -> None:
    q, dice = scores
    expected = roc_auc_score((dice < 0.4).astype(int), 1 - q)
    assert auroc_of_failures(q, dice, failure_dice=0.4) == pytest.approx(expected)
    pairs = [(low < high) + 0.5 * (low == high) for low, high in itertools.product(q[dice < 0.4], q[dice >= 0.4])]
    assert auroc_of_failures(q, dice, failure_dice=0.4) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("failure_dice", [0.0, 1.0])
def test_auroc_of_one_kind_only(failure_dice: float) -> None:
    assert math.isnan(auroc_of_failures(np.array([0.1, 0.2]), np.array([0.3, 0.4]), failure_dice=failure_dice))


def test_the_dice_of_a_failure_is_below_the_limit() -> None:
    assert auroc_of_failures(np.array([0.1, 0.9]), np.array([0.4, 0.5]), failure_dice=0.5) == 1


def test_bootstrap_of_a_mean_agrees_with_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400)
    lower, upper = bootstrap_interval(
        lambda q, _: float(q.mean()), values, values, subjects=range(400), rng=np.random.default_rng(1)
    )
    half = 1.96 * values.std() / 20
    assert (lower, upper) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)


def test_bootstrap_draws_whole_subjects() -> None:
    values = np.repeat(np.random.default_rng(0).normal(0, 1, 20), 20)
    options = {"q": values, "dice": values}

    def width(subjects: list[int]) -> float:
        lower, upper = bootstrap_interval(
            lambda q, _: float(q.mean()), **options, subjects=subjects, rng=np.random.default_rng(1)
        )
        return upper - lower

    grouped = width([number // 20 for number in range(400)])
    assert grouped == pytest.approx(2 * 1.96 * values.std() / np.sqrt(20), rel=0.15)
    assert grouped > 3 * width(list(range(400)))


def test_bootstrap_level() -> None:
    values = np.random.default_rng(0).normal(0, 1, 100)
    widths = []
    for level in (0.5, 0.99):
        lower, upper = bootstrap_interval(
            lambda q, _: float(q.mean()), values, values, subjects=range(100), rng=np.random.default_rng(1), level=level
        )
        widths.append((upper - lower) / (2 * values.std() / 10))
    assert widths == pytest.approx([0.674, 2.576], rel=0.12)


def test_bootstrap_that_is_not_defined() -> None:
    values = np.array([0.1, 0.2, 0.3])
    one = bootstrap_interval(spearman, values, values, subjects=["S"] * 3, rng=np.random.default_rng(0))
    assert all(map(math.isnan, one))
    constant = bootstrap_interval(spearman, np.ones(3), values, subjects=range(3), rng=np.random.default_rng(0))
    assert all(map(math.isnan, constant))


def test_judge(scores: tuple[np.ndarray, np.ndarray]) -> None:
    q, dice = scores
    subjects = [number // 2 for number in range(40)]
    result = judge(q, dice, subjects=subjects, rng=np.random.default_rng(0), failure_dice=0.4, resamples=200)
    assert (result.cases, result.subjects, result.failures) == (40, 20, int((dice < 0.4).sum()))
    assert result.values["aurc"] == aurc(q, 1 - dice)
    assert result.values["e_aurc"] == e_aurc(q, 1 - dice)
    assert result.values["naurc"] == naurc(q, 1 - dice)
    assert result.values["auroc"] == auroc_of_failures(q, dice, failure_dice=0.4)
    assert result.values["spearman"] == spearman(q, dice) > 0.3
    assert result.values["pearson"] == pearson(q, dice)
    assert set(result.intervals) == set(result.values)
    for name, (lower, upper) in result.intervals.items():
        assert lower < upper, name
        assert lower - 0.1 < result.values[name] < upper + 0.1
    again = judge(q, dice, subjects=subjects, rng=np.random.default_rng(0), failure_dice=0.4, resamples=200)
    assert again == result
    assert judge(q, dice, subjects=subjects, rng=np.random.default_rng(0), resamples=0).intervals == {}


@pytest.mark.parametrize(
    ("q", "dice", "subjects", "text"),
    [
        ([0.1], [0.1, 0.2], ["a"], "one length"),
        ([], [], [], "one length"),
        ([0.1, math.nan], [0.1, 0.2], ["a", "b"], "NaN"),
        ([0.1, 0.2], [0.1, math.nan], ["a", "b"], "NaN"),
        ([0.1, 0.2], [0.1, 1.2], ["a", "b"], r"found 0\.1 to 1\.2"),
        ([0.1, 0.2], [0.1, 0.2], ["a"], "1 subjects for 2"),
    ],
)
def test_wrong_input(q: list[float], dice: list[float], subjects: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        judge(np.array(q), np.array(dice), subjects=subjects, rng=np.random.default_rng(0))

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls
from scipy.stats import rankdata

from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.slice_scores import increasing_fit, monotonicity, slab_range

DEPTH = np.arange(41) * 5.0
LINE = np.linspace(-10, 10, 41)  # 1 a 10 mm, 0 at 100 mm


def test_the_fit_is_the_closest_increasing_curve() -> None:
    noisy = np.random.default_rng(0).normal(size=30) + np.linspace(0, 3, 30)
    mirrored = np.concatenate([noisy[1::-1], noisy, noisy[:-3:-1]])
    scores = np.array([np.median(mirrored[k : k + 5]) for k in range(30)])
    # an increasing curve is a start plus steps that are not negative
    steps = np.tril(np.ones((30, 30)))
    solution, _ = nnls(np.hstack([steps, -np.ones((30, 1))]), scores)
    np.testing.assert_allclose(increasing_fit(noisy), steps @ solution[:30] - solution[30], atol=1e-8)


def test_monotonicity_by_hand() -> None:
    scores = np.array([np.nan, 1.0, 2.0, 4.0, 3.0, 7.0, np.nan])
    found = monotonicity(scores, np.arange(7) * 10.0)
    assert (found.slices, found.scored) == (7, 5)
    assert found.increasing == pytest.approx(3 / 4)
    ranks = rankdata([1, 2, 4, 3, 7])
    assert found.spearman == pytest.approx(np.corrcoef(ranks, np.arange(5))[0, 1])


def test_smoothing_takes_distances_for_what_they_are() -> None:
    scores = np.array([0.0, 1.2, 1.0, 1.5])
    near, far = (monotonicity(scores, np.arange(4) * step) for step in (5.0, 100.0))
    assert near.increasing == far.increasing == pytest.approx(2 / 3)
    assert near.increasing_smoothed == 1
    assert far.increasing_smoothed == pytest.approx(2 / 3)
    depth = np.array([0.0, 4.0, 30.0])
    weights = [[np.exp(-0.5 * ((a - b) / 10) ** 2) for b in depth] for a in depth]
    smoothed = [np.average([3, 0, 1], weights=row) for row in weights]
    expected = np.mean([smoothed[1] > smoothed[0], smoothed[2] > smoothed[1]])
    assert monotonicity(np.array([3.0, 0.0, 1.0]), depth).increasing_smoothed == expected


@pytest.mark.parametrize("scores", [[np.nan, np.nan, np.nan], [np.nan, 1.0, np.nan], [2.0, 2.0, 2.0]])
def test_without_two_different_scores_there_is_no_correlation(scores: list[float]) -> None:
    assert np.isnan(monotonicity(np.array(scores), np.arange(3.0)).spearman)


def test_the_range_on_a_line() -> None:
    found = slab_range(LINE, DEPTH, low=-6.1, high=4.3)
    assert (found.start, found.end) == pytest.approx((39, 143))
    assert found.covered == 1


def test_noise_and_single_wrong_slices_hardly_move_it() -> None:
    rng = np.random.default_rng(0)
    scores = LINE + rng.normal(0, 0.4, 41)
    scores[[3, 20, 38]] = [9, -9, -8]
    scores[[7, 33]] = np.nan
    found = slab_range(scores, DEPTH, low=-6, high=6)
    assert found.start == pytest.approx(40, abs=10)
    assert found.end == pytest.approx(160, abs=10)
    assert np.nonzero(scores > -6)[0][0] == 3  # where the first slice above −6 would have begun


def test_a_plateau_lies_inside_the_range_that_begins_with_it() -> None:
    scores = np.repeat([0.0, 1.0, 2.0, 3.0], 5)
    found = slab_range(scores, np.arange(20.0), low=1, high=2)
    assert (found.start, found.end) == (5, 14)


def test_a_scan_that_holds_a_part_of_the_range() -> None:
    found = slab_range(LINE, DEPTH, low=5, high=15)
    assert (found.start, found.end) == pytest.approx((150, 200))
    assert found.covered == pytest.approx(0.45)  # the running median takes the last slice for the one before it
    both = slab_range(LINE, DEPTH, low=-20, high=20)
    assert (both.start, both.end, both.covered) == pytest.approx((0, 200, 19 / 40))


@pytest.mark.parametrize(("low", "high"), [(10, 20), (-30, -10)])
def test_a_scan_without_the_range(low: float, high: float) -> None:
    with pytest.raises(SelectionError, match=r"between the scores .* its scores run from -9.5 to 9.5"):
        slab_range(LINE, DEPTH, low=low, high=high)


def test_a_scan_without_scores() -> None:
    with pytest.raises(SelectionError, match="none of its slices has a score"):
        slab_range(np.full(3, np.nan), np.arange(3.0), low=0, high=1)

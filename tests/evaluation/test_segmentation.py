from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from nnunet_qa.evaluation.segmentation import (
    Empty,
    Overlap,
    foreground_classes,
    ignore_value,
    overlap,
    overlaps,
)


@pytest.fixture(params=[0, 1, 2])
def maps(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(request.param)
    return rng.integers(0, 4, (3, 5, 7)), rng.integers(0, 4, (3, 5, 7))


@pytest.mark.parametrize("values", [(1,), (2,), (1, 3)])
def test_ratios_are_those_of_scikit_learn(maps: tuple[np.ndarray, np.ndarray], values: tuple[int, ...]) -> None:
    predicted, real = (sum((array.ravel() == value) for value in values) for array in maps)
    counts = overlap(*maps, values=values)
    assert counts.dice() == pytest.approx(f1_score(real, predicted))
    assert counts.jaccard() == pytest.approx(jaccard_score(real, predicted))
    assert counts.precision() == pytest.approx(precision_score(real, predicted))
    assert counts.recall() == pytest.approx(recall_score(real, predicted))
    assert counts.in_truth


def test_the_ignored_voxels_do_not_count(maps: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = maps
    inside = truth != 3
    expected = overlap(prediction[inside], truth[inside], values=(1,))
    assert overlap(prediction, truth, values=(1,), ignore=3) == expected
    assert overlap(prediction, truth, values=(1,)) != expected


def test_both_empty() -> None:
    nothing = Overlap(0, 0, 0)
    for ratio in (nothing.dice, nothing.jaccard, nothing.precision, nothing.recall):
        assert ratio() == 1
        assert math.isnan(ratio(Empty.NAN))
    assert not nothing.in_truth


@pytest.mark.parametrize(
    ("counts", "in_truth"), [(Overlap(0, 5, 0), False), (Overlap(0, 0, 5), True), (Overlap(0, 5, 5), True)]
)
def test_nothing_shared_is_zero(counts: Overlap, in_truth: bool) -> None:
    for ratio in (counts.dice, counts.jaccard, counts.precision, counts.recall):
        assert ratio() == 0
        assert ratio(Empty.NAN) == 0
    assert counts.in_truth is in_truth


def test_each_class() -> None:
    prediction, truth = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 3])
    classes = foreground_classes({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
    counts = overlaps(prediction, truth, classes=classes, ignore=3)
    assert counts == {"whole": Overlap(2, 0, 0), "core": Overlap(1, 0, 1)}


def test_classes_of_a_dataset() -> None:
    labels = {"nothing": 0, "a": 1, "b": [2, 3], "ignore": 4}
    assert foreground_classes(labels) == {"a": (1,), "b": (2, 3)}
    assert foreground_classes({"background": [0]}) == {}
    assert ignore_value(labels) == 4
    assert ignore_value({"a": 1}) is None


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ValueError, match=r"found \(2,\) and \(3,\)"):
        overlap(np.zeros(2), np.zeros(3), values=(1,))

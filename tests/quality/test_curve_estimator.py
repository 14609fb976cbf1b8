from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from nnunet_qa.errors import ModelError, SelectionError
from nnunet_qa.quality.curve_estimator import CurveEstimator, subject_folds
from nnunet_qa.quality.curves import Acquisition
from tests.quality.easy_curves import acquisition


class Remembering(CurveEstimator):
    """Gives what it has been fitted to a 0, and anything else the size of its curve."""

    kind = "remembering"

    def __init__(self, *, failing: bool = False, folds: int = 5) -> None:
        super().__init__(folds=folds)
        self.failing = failing
        self.fitted: list[np.ndarray] = []

    def _inputs(self, acquisitions: Sequence[Acquisition]) -> np.ndarray:
        return np.array([one.pixels["lv"].sum() for one in acquisitions])

    def _learn(self, inputs: np.ndarray, erroneous: np.ndarray) -> dict[str, torch.Tensor]:
        assert 0 < erroneous.sum() < len(erroneous)
        self.fitted.append(inputs)
        return {"known": torch.from_numpy(inputs)}

    def _judge(self, model: Mapping[str, torch.Tensor], inputs: np.ndarray) -> np.ndarray:
        if self.failing:
            return np.full(len(inputs), np.nan)
        return np.where(np.isin(inputs, model["known"].numpy()), 0, inputs / 1000)


def series(number: int, subject: str, *, structures: Sequence[str] = ("lv",), scheme: str = "ukbb") -> Acquisition:
    pixels = {name: np.array([[number], [0]]) for name in structures}
    return acquisition(pixels, name=f"a{number}", subject=subject, scheme=scheme)


def some(number: int = 12) -> tuple[list[Acquisition], np.ndarray]:
    """Two series a subject; the larger curves are erroneous."""
    return [series(k, f"s{k // 2}") for k in range(1, number)], np.arange(1, number) > number / 2


@pytest.mark.parametrize("seed", range(20))
def test_subjects_stay_whole_and_every_part_leaves_both_classes_to_learn_from(seed: int) -> None:
    rng = np.random.default_rng(seed)
    subjects = [f"s{number}" for number in rng.integers(0, 12, 60)]
    erroneous = np.array([name in ("s1", "s2", "s3") for name in subjects]) ^ (rng.uniform(size=60) < 0.05)
    parts = subject_folds(subjects, erroneous, folds=5, seed=seed)
    assert sorted(number for _, fold in parts for number in fold) == list(range(60))
    for rest, fold in parts:
        assert sorted([*rest, *fold]) == list(range(60))
        assert not {subjects[k] for k in rest} & {subjects[k] for k in fold}
        assert 0 < erroneous[rest].sum() < len(rest)


def test_there_are_no_more_folds_than_subjects_with_an_error() -> None:
    subjects = [f"s{k}" for k in range(10)]
    assert len(subject_folds(subjects, np.arange(10) < 3, folds=5, seed=0)) == 3
    for flags in (np.arange(10) < 1, np.arange(10) < 9, np.zeros(10, dtype=bool)):
        with pytest.raises(SelectionError, match=r"subject\(s\) with an erroneous .* label more of both"):
            subject_folds(subjects, flags, folds=5, seed=0)
    with pytest.raises(SelectionError, match="1 subject"):
        subject_folds(["one"] * 10, np.arange(10) < 5, folds=5, seed=0)


def test_the_threshold_comes_from_scores_of_subjects_that_were_not_fitted() -> None:
    acquisitions, erroneous = some()
    estimator = Remembering().fit(acquisitions, erroneous)
    assert estimator.threshold_ == pytest.approx(
        0.0065
    )  # between 6 and 7; had a subject been known, some scores would be 0
    assert estimator.metrics_["validation"]["sensitivity"] == estimator.metrics_["validation"]["specificity"] == 1
    assert sorted(estimator.fitted[-1]) == list(range(1, 12))  # what is kept knows all
    assert estimator.predict([series(5, "new")]).tolist() == [False]
    assert estimator.predict([series(20, "new")]).tolist() == [True]
    assert estimator.score([series(20, "x"), series(15, "y")], [True, False]) == 1
    assert np.isnan(estimator.score([series(20, "x")], [True]))
    assert estimator.judge([series(20, "x"), series(15, "y")], [True, False])["false_alarms"] == 1
    assert estimator.predict_proba([]).shape == (0,)


def test_all_acquisitions_need_the_same_curves() -> None:
    acquisitions, erroneous = some()
    odd = [*acquisitions[:-1], series(11, "s5", structures=("lv", "rv"))]
    with pytest.raises(SelectionError, match="a11: has lv, rv, others lv; leave it out"):
        Remembering().fit(odd, erroneous)
    with pytest.raises(SelectionError, match="a1: has no curve of rv, only of lv"):
        Remembering().fit([odd[-1], *acquisitions[:-1]], erroneous)
    aorta = series(11, "s5", structures=("ascending_aorta",), scheme="ukbb_ao")
    with pytest.raises(SelectionError, match="a11: has curves of area, not of volume; has no curve of lv"):
        Remembering().fit([*acquisitions[:-1], aorta], erroneous)
    fitted = Remembering().fit(acquisitions, erroneous)
    assert fitted.predict_proba([odd[-1]]).shape == (1,)  # more than it reads does no harm
    with pytest.raises(ModelError, match="a11: has curves of area, not of volume; has no curve of lv, only of asc"):
        fitted.predict_proba([aorta])


def test_misuse() -> None:
    acquisitions, erroneous = some()
    with pytest.raises(ModelError, match="has not been fitted"):
        Remembering().predict_proba(acquisitions)
    with pytest.raises(ModelError, match="did not converge"):
        Remembering(failing=True).fit(acquisitions, erroneous)
    with pytest.raises(ValueError, match="as many flags"):
        Remembering().fit(acquisitions, erroneous[1:])
    with pytest.raises(ValueError, match="folds must be at least 2"):
        Remembering(folds=1)

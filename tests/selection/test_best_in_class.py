from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import CaseTableError, SelectionError
from nnunet_qa.selection.best_in_class import COLUMNS, best_in_class, combined_score, goodness, score_table


def cine_table(*, frames: int = 3) -> CaseTable:
    """Subjects A (two stacks), B and C in the pool; D annotated."""
    stacks = {"A": ("A1", "A2"), "B": ("B1",), "C": ("",), "D": ("D1",)}
    rows = [
        {
            "case_id": f"{stack or subject}_fr{frame:03d}",
            "subject_id": subject,
            "stack_id": stack,
            "frame_index": frame,
            "role": "labelled" if subject == "D" else "unlabelled",
        }
        for subject, some in stacks.items()
        for stack in some
        for frame in range(frames)
    ]
    return CaseTable.from_rows(rows)


def frame_scores(**values: tuple[float, ...]) -> pd.DataFrame:
    rows = [(f"{stack}_fr{frame:03d}", one) for stack, some in values.items() for frame, one in enumerate(some)]
    return pd.DataFrame(rows, columns=["case_id", "score"])


SCORES = frame_scores(A1=(0.9, 0.9, 0.5), A2=(0.8, 0.8, 0.8), B1=(0.7, 0.95, 0.7), C=(0.6, 0.6, 0.6), D1=(1, 1, 1))


def series(**values: float) -> pd.Series:
    return pd.Series(values)


def test_ranks_are_mixed_by_weight_as_counted_by_hand() -> None:
    q = series(a=0.9, b=0.8, c=0.99, d=0.9)
    code = series(d=0.0, c=2.0, b=1.0, a=0.5)  # the lower, the better
    # of q: b < a = d < c, so 0, 1.5, 1.5, 3 of 3; of code: c < b < a < d
    expected = {"a": (3 * 0.5 + 2 / 3) / 4, "b": (0 + 1 / 3) / 4, "c": 3 / 4, "d": (3 * 0.5 + 1) / 4}
    found = combined_score({"q": q, "code": code}, {"q": 3, "code": 1})
    assert found.to_dict() == pytest.approx(expected)


def test_a_mix_does_not_ask_for_units() -> None:
    rng = np.random.default_rng(0)
    names = [f"c{number}" for number in range(20)]
    q, p = pd.Series(rng.random(20), names), pd.Series(rng.random(20), names)
    one = combined_score({"q": q, "curves": p}, {"q": 1, "curves": 2})
    squeezed = combined_score({"q": 0.98 + q**3 / 50, "curves": p}, {"q": 10, "curves": 20})
    np.testing.assert_allclose(one, squeezed)


def test_goodness_of_each_estimator() -> None:
    assert [goodness(name, 0.25) for name in ("q", "code", "curves", "ensemble")] == [0.25, -0.25, 0.75, 0.25]
    with pytest.raises(SelectionError, match=r'unknown estimator "curve" .did you mean "curves"'):
        goodness("curve", 0.5)


def test_one_estimator_keeps_its_units_and_several_keep_those_of_the_first() -> None:
    code, q = series(a=0.5, b=1.5), series(b=0.9, a=0.7)
    alone = score_table({"code": code}, {"code": 1})
    assert alone[["case_id", "score", "first", "code"]].values.tolist() == [
        ["a", -0.5, -0.5, 0.5],
        ["b", -1.5, -1.5, 1.5],
    ]
    mixed = score_table({"q": q, "code": code}, {"code": 1, "q": 3}).set_index("case_id")
    assert mixed.loc["b"].to_dict() == {"score": 0.75, "first": -1.5, "code": 1.5, "q": 0.9}


@pytest.mark.parametrize(
    ("tables", "weights", "text"),
    [
        ({}, {}, "no estimator"),
        ({"q": series(a=1)}, {"q": 1, "code": 1}, '"code" has a weight and no values'),
        ({"q": series(a=1), "code": series(a=1)}, {"q": 1}, '"code" has values and no weight'),
        ({"q": series(a=1)}, {"q": 0}, "not above 0"),
        ({"q": series(a=1)}, {"q": float("inf")}, "not above 0"),
        ({"q": series(a=1), "code": series(b=1)}, {"q": 1, "code": 1}, 'case "a" has a value of the estimator "q" and'),
        ({"q": series(a=float("nan"))}, {"q": 1}, 'the case "a" has no value of the estimator "q"'),
        ({"dice": series(a=1)}, {"dice": 1}, 'unknown estimator "dice"'),
    ],
)
def test_what_cannot_be_mixed(tables: dict[str, pd.Series], weights: dict[str, float], text: str) -> None:
    with pytest.raises(SelectionError, match=text):
        combined_score(tables, weights)


def test_cases_best_first_ties_by_name() -> None:
    scores = pd.DataFrame({"case_id": list("dcba"), "score": [0.5, 0.9, 0.5, 0.5]})
    found = best_in_class(scores, number=3)
    assert list(found.columns) == list(COLUMNS)
    assert found["case_id"].tolist() == ["c", "a", "b"]
    assert found["rank"].tolist() == [1, 2, 3]
    assert found["subject_id"].tolist() == found["acquisition_id"].tolist() == ["c", "a", "b"]


def test_whole_acquisitions_by_their_worst_frame_or_their_mean() -> None:
    worst = best_in_class(SCORES, number=2, unit="acquisition", cases=cine_table())
    assert worst["acquisition_id"].tolist() == ["A2"] * 3 + ["B1"] * 3
    assert worst["case_id"].tolist() == [f"{stack}_fr00{frame}" for stack in ("A2", "B1") for frame in range(3)]
    assert worst["score"].tolist() == [0.8] * 3 + [0.7] * 3
    assert worst["rank"].tolist() == [1, 1, 1, 2, 2, 2]
    mean = best_in_class(SCORES, number=2, unit="acquisition", cases=cine_table(), aggregate="mean")
    assert mean["acquisition_id"].tolist() == ["A2"] * 3 + ["B1"] * 3
    assert mean["score"].iloc[3] == pytest.approx((0.7 + 0.95 + 0.7) / 3)
    third = best_in_class(SCORES, number=3, unit="acquisition", cases=cine_table(), aggregate="mean")
    assert third["acquisition_id"].iloc[-1] == "A1"  # 0.77 on average, 0.5 in its worst frame


def test_a_subject_without_stack_is_one_acquisition() -> None:
    found = best_in_class(SCORES, number=4, unit="acquisition", cases=cine_table())
    assert found[found["subject_id"] == "C"]["acquisition_id"].tolist() == ["C"] * 3
    assert not found["case_id"].str.startswith("D").any()  # annotated, though it has the best scores


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"number": 4, "per_subject": 1}, ["A2", "B1", "C"]),
        ({"number": 4, "floor": 0.6}, ["A2", "B1", "C"]),  # at the floor is good enough
        ({"number": 4, "floor": 0.61}, ["A2", "B1"]),
        ({"number": 1, "floor": 0.61}, ["A2"]),
        ({"number": 4, "floor": 0.65, "per_subject": 1, "aggregate": "mean"}, ["A2", "B1"]),
    ],
)
def test_limits(limits: dict[str, Any], expected: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    found = best_in_class(SCORES, unit="acquisition", cases=cine_table(), **limits)
    assert found["acquisition_id"].drop_duplicates().tolist() == expected
    fewer = f"the best {limits['number']} were asked for, {len(expected)} fit"
    assert (fewer in caplog.text) == (len(expected) < limits["number"])


def test_a_subject_gives_its_best_acquisition_that_reaches_the_floor() -> None:
    cases = cine_table()
    scores = SCORES.assign(first=SCORES["score"].where(~SCORES["case_id"].str.startswith("A2"), 0.1))
    found = best_in_class(scores, number=1, floor=0.5, per_subject=1, unit="acquisition", cases=cases, aggregate="mean")
    assert found["acquisition_id"].unique().tolist() == ["B1"]  # A2 is best by the mix, and the floor asks the first
    two = best_in_class(scores, number=2, floor=0.5, per_subject=1, unit="acquisition", cases=cases, aggregate="mean")
    assert two["acquisition_id"].unique().tolist() == ["B1", "A1"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"number": 5}, "best 5 acquisitions were asked for, but the pool has only 4"),
        ({"number": 13, "unit": "case"}, "best 13 cases were asked for, but the pool has only 12"),
        ({"floor": 0.99}, r"no prediction reaches the floor 0.99 \(scores go from 0.5 to 0.8\)"),
        ({"cases": None}, "acquisitions are known from cases.csv alone"),
        ({"number": 0}, "must be at least 1"),
        ({"per_subject": 0}, "must be at least 1"),
        ({"scores": SCORES[SCORES["case_id"] != "B1_fr001"]}, 'frame "B1_fr001" of the acquisition "B1" has no score'),
        ({"scores": SCORES.assign(score=SCORES["score"].mask(SCORES.index == 2))}, 'case "A1_fr002" has no score'),
        ({"scores": SCORES[SCORES["case_id"].str.startswith("D")]}, "no case has the role unlabelled"),
    ],
)
def test_mistakes(changes: dict[str, Any], text: str) -> None:
    arguments = {"scores": SCORES, "number": 2, "unit": "acquisition", "cases": cine_table(), **changes}
    with pytest.raises(SelectionError, match=text):
        best_in_class(arguments.pop("scores"), **arguments)


def test_scores_of_another_dataset() -> None:
    with pytest.raises(CaseTableError, match=r'scored case "X_fr000" is not in cases.csv'):
        best_in_class(frame_scores(X=(1.0,)), number=1, cases=cine_table())


def test_subjects_who_are_tested_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    table = CaseTable.from_rows(
        {"case_id": case, "subject_id": case[0], "role": "test" if case == "A3" else "unlabelled"}
        for case in ("A1", "A2", "A3", "B1", "C1")
    )
    assert table.of_tested_subjects() == {"A1", "A2", "A3"}
    scores = pd.DataFrame({"case_id": ["A1", "A2", "B1", "C1"], "score": [0.9, 0.8, 0.4, 0.5]})
    assert best_in_class(scores, number=2, cases=table)["case_id"].tolist() == ["C1", "B1"]
    assert "2 pool cases are left out" in caplog.text
    assert "(A)" in caplog.text
    with pytest.raises(SelectionError, match="the best 3 cases were asked for, but the pool has only 2"):
        best_in_class(scores, number=3, cases=table)

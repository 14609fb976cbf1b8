from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import CaseTableError, SelectionError
from nnunet_qa.selection.minimal import (
    COLUMNS,
    Ranking,
    minimal_set,
    q0_from_validation,
    utility,
    write_minimal_set,
)
from nnunet_qa.selection.queue import read_queue

SCORES = {
    # case: Q of two classes, disagreeing voxels, entropy
    "S1_a": (0.9, 0.1, 7, 0.02),
    "S1_b": (0.2, 0.4, 9, 0.01),
    "S2_a": (0.7, 0.7, 50, 0.30),
    "S2_b": (1.0, 0.8, 3, 0.20),
    "S3_a": (1.0, 1.0, 0, 0.05),
}


def table(**roles: str) -> pd.DataFrame:
    rows = [
        {"case_id": case, "role": roles.get(case, ""), "q": (one + two) / 2, "q_one": one, "q_two": two}
        | {"disagreeing_voxels": voxels, "entropy": entropy}
        for case, (one, two, voxels, entropy) in SCORES.items()
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=1)


def case_table(**roles: str) -> CaseTable:
    return CaseTable.from_rows(
        {"case_id": case, "subject_id": case[:2], "role": roles.get(case, "unlabelled")} for case in SCORES
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"q0": 0.8}, ["S1_b", "S1_a", "S2_a"]),
        ({"q0": 0.7}, ["S1_b", "S1_a"]),  # a case at q0 is not taken
        ({"q0": 0.8, "number": 2}, ["S1_b", "S1_a"]),
        ({"q0": None, "number": 4}, ["S1_b", "S1_a", "S2_a", "S2_b"]),
        ({"q0": 0.8, "per_subject": 1, "cases": case_table()}, ["S1_b", "S2_a"]),
        ({"q0": 1.0, "per_subject": 1}, ["S1_b", "S1_a", "S2_a", "S2_b"]),  # every case a subject of its own
        ({"q0": 0.95, "ranking": Ranking.WORST_CLASS}, ["S1_a", "S1_b", "S2_a", "S2_b"]),
        ({"q0": 0.2, "ranking": Ranking.WORST_CLASS}, ["S1_a"]),
        ({"q0": 0.8, "ranking": Ranking.SIZE}, ["S2_a", "S1_b", "S1_a"]),
        ({"q0": None, "number": 3, "ranking": Ranking.ENTROPY}, ["S2_a", "S2_b", "S3_a"]),
        ({"q0": 0.8, "number": 1, "ranking": Ranking.ENTROPY, "cases": case_table()}, ["S2_a"]),
    ],
)
def test_the_most_useful_come_first_within_the_limits(options: dict[str, Any], expected: list[str]) -> None:
    chosen = minimal_set(table(), **options)
    assert chosen["case_id"].tolist() == expected
    assert chosen["rank"].tolist() == list(range(1, len(expected) + 1))
    assert chosen["q"].tolist() == [sum(SCORES[case][:2]) / 2 for case in expected]
    assert (np.diff(chosen["utility"]) <= 0).all()
    assert tuple(chosen.columns) == COLUMNS


def test_equal_utility_goes_by_identifier() -> None:
    rows = table().assign(q=0.5)
    assert minimal_set(rows, q0=None, number=5)["case_id"].tolist() == sorted(SCORES)


@pytest.mark.parametrize("q0", [0.1, 0.3, 0.7, 0.95])
def test_a_case_whose_worst_class_is_at_q0_is_not_taken(q0: float) -> None:
    rows = pd.DataFrame({"case_id": ["at", "below"], "role": "", "q": [0.99, 0.99], "q_x": [q0, q0 - 1e-9]})
    assert minimal_set(rows, q0=q0, ranking=Ranking.WORST_CLASS)["case_id"].tolist() == ["below"]


def test_the_reason_names_what_decided() -> None:
    assert set(minimal_set(table(), q0=0.8)["reason"]) == {"Q below 0.8"}
    chosen = minimal_set(table(), q0=0.8, number=2, per_subject=1, ranking=Ranking.SIZE)
    assert set(chosen["reason"]) == {"Q below 0.8, ranked by size, at most 1 a subject"}
    features = dict.fromkeys(SCORES, np.ones(2))
    chosen = minimal_set(table(), q0=None, number=2, features=features)
    assert set(chosen["reason"]) == {"ranked by q, diverse"}
    chosen = minimal_set(table(), q0=0.2, ranking=Ranking.WORST_CLASS)  # S1_a, whose Q is 0.5
    assert set(chosen["reason"]) == {"Q of the worst class below 0.2"}
    with pytest.raises(SelectionError, match=r"has Q of the worst class below q0 = 0\.05 \(the lowest is 0\.1\)"):
        minimal_set(table(), q0=0.05, ranking=Ranking.WORST_CLASS)


def test_an_empty_set_is_one_clear_line() -> None:
    with pytest.raises(SelectionError) as caught:
        minimal_set(table(), q0=0.1)
    text = str(caught.value)
    assert "the minimal set is empty: no candidate of 5 has Q below q0 = 0.1 (the lowest is 0.3)" in text
    assert text.endswith("Raise q0, or give a number of cases instead")
    assert "\n" not in text
    with pytest.raises(SelectionError, match=r"Raise q0$"):  # a number would not help
        minimal_set(table(), q0=0.1, number=3)


def test_everything_is_one_clear_line_unless_a_limit_makes_it_less() -> None:
    rows = table()[lambda frame: frame["q"] < 1]
    with pytest.raises(SelectionError) as caught:
        minimal_set(rows, q0=0.95)
    text = str(caught.value)
    assert "the minimal set is everything: all 4 candidates have Q below q0 = 0.95 (the highest is 0.9)" in text
    assert "\n" not in text
    assert len(minimal_set(rows, q0=0.95, number=4)) == 4
    assert len(minimal_set(rows, q0=0.95, per_subject=1, cases=case_table())) == 2


def test_candidates_are_the_unlabelled_cases_that_are_left() -> None:
    rows = table(S1_a="unlabelled", S1_b="labelled", S2_a="unlabelled", S3_a="unlabelled")
    assert minimal_set(rows, q0=0.8)["case_id"].tolist() == ["S1_a", "S2_a"]
    assert minimal_set(rows, q0=0.8, roles=["labelled", "unlabelled"])["case_id"].tolist()[0] == "S1_b"
    scored = table(**dict.fromkeys(SCORES, "unlabelled"))
    assert minimal_set(scored, q0=0.8, cases=case_table(S1_b="labelled"))["case_id"].tolist() == ["S1_a", "S2_a"]
    with pytest.raises(SelectionError, match=r'unknown role "unlabeled" \(did you mean "unlabelled"\?\)'):
        minimal_set(rows, q0=0.8, roles=["labelled", "unlabeled"])
    with pytest.raises(CaseTableError, match="is not in cases"):
        minimal_set(rows, q0=0.8, cases=CaseTable.from_rows([{"case_id": "S1_a", "role": "unlabelled"}]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"q0": None}, "give q0, or a number of cases"),
        ({"q0": 1.1}, r"1\.1 is not between 0 and 1"),
        ({"q0": float("nan")}, "nan is not between 0 and 1"),
        ({"q0": 0.5, "number": 0}, "number of cases is 0"),
        ({"q0": 0.5, "per_subject": 0}, "a subject is 0"),
    ],
)
def test_limits_out_of_range(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SelectionError, match=text):
        minimal_set(table(), **options)


def test_tables_that_do_not_hold_what_is_asked_for() -> None:
    with pytest.raises(SelectionError, match='no column "entropy" for every case; score again with --entropy'):
        minimal_set(table().drop(columns="entropy"), q0=0.8, ranking=Ranking.ENTROPY)
    with pytest.raises(SelectionError, match=r'no column "disagreeing_voxels" for every case; score again$'):
        utility(table().assign(disagreeing_voxels=[1, 2, 3, 4, None]), Ranking.SIZE)
    with pytest.raises(SelectionError, match="no Q by class"):
        minimal_set(table().drop(columns=["q_one", "q_two"]), q0=0.8, ranking=Ranking.WORST_CLASS)
    with pytest.raises(SelectionError, match="no case to choose from"):
        minimal_set(table().iloc[:0], q0=None, number=3)


def test_fewer_than_asked_for_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert len(minimal_set(table(), q0=0.8, number=9)) == 3  # q0 decides
    assert not caplog.text
    assert len(minimal_set(table(), q0=None, number=9)) == 5
    assert "9 cases were asked for, 5 fit" in caplog.text


def test_of_two_cases_that_look_alike_one_is_chosen() -> None:
    look = {"S1_a": [1.0, 0.0], "S1_b": [1.0, 0.0], "S2_a": [0.0, 1.0], "S2_b": [0.0, -3.0], "S3_a": [5.0, 5.0]}
    features = {case: np.array(values) for case, values in look.items()}
    chosen = minimal_set(table(), q0=0.95, number=3, features=features)
    # S3_a looks like no other but Q = 1; S1_a is the second by Q and the image of S1_b once more
    assert chosen["case_id"].tolist() == ["S1_b", "S2_a", "S2_b"]
    annotated = np.array([[0.0, 1.0], [1.0, 0.0]])
    chosen = minimal_set(table(), q0=0.95, number=1, features=features, annotated=annotated)
    assert chosen["case_id"].tolist() == ["S2_b"]
    whole = minimal_set(table(), q0=0.95, features=features)
    assert whole["case_id"].tolist() == ["S1_b", "S2_a", "S2_b", "S1_a"]


def test_a_case_that_its_full_subject_shuts_out_does_not_count_as_chosen() -> None:
    # S1_a is unlike S1_b, but S1 is full; S2_b looks like S1_a, so that only S1_a's absence makes it new
    look = {"S1_b": [0.0], "S1_a": [10.0], "S2_b": [10.5], "S2_a": [3.0], "S3_a": [0.0]}
    features = {case: np.array(values) for case, values in look.items()}
    chosen = minimal_set(table(), q0=0.95, number=2, per_subject=1, cases=case_table(), features=features)
    assert chosen["case_id"].tolist() == ["S1_b", "S2_b"]


def youden(q: np.ndarray, failed: np.ndarray, q0: float) -> float:
    taken = q < q0
    return float(taken[failed].mean() + (~taken)[~failed].mean() - 1)


@pytest.mark.parametrize("seed", range(8))
def test_q0_from_validation_is_the_best_of_all_thresholds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dice = rng.uniform(0, 1, 40)
    q = (0.5 * dice + 0.5 * rng.uniform(0, 1, 40)).round(2)  # with ties
    failed = dice < 0.4
    rows = pd.DataFrame({"q": q, "dice": dice})
    q0 = q0_from_validation(pd.concat([rows, pd.DataFrame({"q": [0.0], "dice": [np.nan]})]), failure=0.4)
    best = max(youden(q, failed, float(threshold)) for threshold in np.arange(0, 1.001, 0.005))
    assert youden(q, failed, q0) == pytest.approx(best)
    assert 0 < q0 <= 1
    assert (q < float(f"{q0:g}")).tolist() == (q < q0).tolist()
    assert not np.isclose(q, q0, rtol=0, atol=0.004).any()  # midway between two values of two decimals


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [(0.6, 0.7, 0.65), (0.6, 0.6001, 0.60005), (0.6, 0.600002, 0.600001), (0.6, 0.600001, 0.600001), (0.6, 1.0, 0.8)],
)
def test_q0_from_validation_parts_failures_exactly(below: float, above: float, expected: float) -> None:
    rows = pd.DataFrame({"q": [0.2, below, above, 1.0], "dice": [0.1, 0.49, 0.5, 0.8]})
    q0 = q0_from_validation(rows)
    assert q0 == expected
    assert (rows["q"] < float(f"{q0:g}")).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("dice", "text"),
    [
        ([0.6, 0.7, 0.8], "0 of 3 validation cases have a Dice below 0.5"),
        ([0.1, 0.2, 0.3], "3 of 3 validation cases"),
        ([None, None, None], "0 of 0 validation cases"),
        ([0.9, 0.8, 0.1], "Q is no lower for failed validation cases"),
    ],
)
def test_q0_that_cannot_be_chosen(dice: list[float | None], text: str) -> None:
    rows = pd.DataFrame({"q": [0.2, 0.5, 0.9], "dice": pd.Series(dice, dtype=float)})
    with pytest.raises(SelectionError, match=text):
        q0_from_validation(rows)
    with pytest.raises(SelectionError, match='no column "dice"'):
        q0_from_validation(rows.drop(columns="dice"))


def test_promote_reads_what_is_written(tmp_path: Path) -> None:
    chosen = minimal_set(table().assign(q=lambda rows: rows["q"] / 3), q0=0.3)
    write_minimal_set(tmp_path / "minimal_set.csv", chosen)
    back = read_queue(tmp_path / "minimal_set.csv")
    assert back["case_id"].tolist() == chosen["case_id"].tolist()
    assert back["q"].tolist() == [0.1, 0.166667, 0.233333]
    assert tuple(back.columns) == COLUMNS

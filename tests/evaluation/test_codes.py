from __future__ import annotations

import json
from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_qa.errors import SelectionError
from nnunet_qa.evaluation.codes import compare_codes, mcnemar, p_text, signed_rank, write_comparison

COLUMNS = ["case_id", "code", "source"]


def arm(*codes: int, source: str = "human", first: int = 0) -> pd.DataFrame:
    return pd.DataFrame(
        [(f"c{first + number:04d}", code, source) for number, code in enumerate(codes)], columns=COLUMNS
    )


def from_table(table: dict[tuple[int, int], int]) -> dict[str, pd.DataFrame]:
    """Two arms with so many scans of each pair of codes (reference, new)."""
    pairs = [pair for pair, count in table.items() for _ in range(count)]
    return {"reference": arm(*(before for before, _ in pairs)), "new": arm(*(after for _, after in pairs))}


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (150, 86, 3.716e-05),  # approval ratings, Agresti (1990), Categorical Data Analysis
        (6, 16, 0.0525),  # this and the next: Fagerland et al. (2013), BMC Medical Research Methodology 13:91
        (1, 7, 0.0703),
        (1, 5, 0.21875),
        (5, 5, 1.0),
        (0, 1, 1.0),
        (0, 10, 2 / 2**10),
    ],
)
def test_mcnemar_of_the_literature(gained: int, lost: int, p: float) -> None:
    by_hand = min(1.0, 2 * sum(comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (gained + lost))
    for found in (mcnemar(gained, lost), mcnemar(lost, gained)):
        assert found == pytest.approx(p, rel=2e-3)
        assert found == pytest.approx(by_hand, rel=1e-9)


def test_nothing_differs() -> None:
    assert np.isnan(mcnemar(0, 0))
    assert np.isnan(signed_rank(np.zeros(9)))
    comparison = compare_codes({"a": arm(0, 1, 2), "b": arm(0, 1, 2), "c": arm(0, 1, 1)})
    same, other = comparison.tests.to_dict("records")
    assert all(np.isnan(same[name]) for name in ("p_success", "p_failure", "p_wilcoxon", "p_failure_holm"))
    assert (other["p_failure"], other["p_failure_holm"], other["p_wilcoxon"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("seed", range(12))
def test_signed_rank_of_few_scans_by_every_assignment_of_signs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = rng.choice([-2, -1, -1, 0, 1, 1, 2], size=int(rng.integers(3, 13)), p=rng.dirichlet(np.ones(7)))
    kept = differences[differences != 0]
    if not len(kept):
        kept = differences = np.array([1])
    ranks = stats.rankdata(np.abs(kept))
    sums = np.array([np.dot(ranks, signs) for signs in product([-1, 1], repeat=len(kept))])
    expected = np.mean(np.abs(sums) >= abs(np.dot(ranks, np.sign(kept))) - 1e-9)
    assert signed_rank(differences) == pytest.approx(expected)
    permuted = stats.wilcoxon(kept, method=stats.PermutationMethod(n_resamples=np.inf)).pvalue
    assert signed_rank(differences) == pytest.approx(permuted)


@pytest.mark.parametrize("chance", [0.5, 0.55, 0.6])
def test_signed_rank_of_many_scans_by_scipy(chance: float) -> None:
    rng = np.random.default_rng(1)
    differences = rng.choice([1, 1, 2], 1500) * np.where(rng.random(1500) < chance, 1, -1)
    with_zeros = np.concatenate([differences, np.zeros(500, int)])
    assert signed_rank(with_zeros) == pytest.approx(stats.wilcoxon(differences, method="approx").pvalue, rel=0.02)


def test_counts_and_tests_of_two_arms() -> None:
    table = {(0, 0): 30, (0, 1): 2, (0, 2): 1, (1, 0): 9, (1, 1): 20, (1, 2): 1, (2, 0): 3, (2, 1): 8, (2, 2): 12}
    comparison = compare_codes(from_table(table))
    assert comparison.reference == "reference"
    assert comparison.source == "human"
    assert comparison.counts.index.tolist() == [0, 1, 2]
    assert comparison.counts["reference"].tolist() == [33, 30, 23]
    assert comparison.counts["new"].tolist() == [42, 30, 14]
    (row,) = comparison.tests.to_dict("records")
    assert (row["arm"], row["reference"], row["cases"]) == ("new", "reference", 86)
    assert (row["success_gained"], row["success_lost"]) == (9 + 3, 2 + 1)
    assert (row["failure_gained"], row["failure_lost"]) == (1 + 1, 3 + 8)
    assert (row["better"], row["worse"]) == (9 + 3 + 8, 2 + 1 + 1)
    assert row["p_success"] == pytest.approx(stats.binomtest(3, 15).pvalue)
    assert row["p_failure"] == pytest.approx(stats.binomtest(2, 13).pvalue)
    differences = np.repeat([-1, -2, 1, 2], [9 + 8, 3, 2 + 1, 1])
    assert row["p_wilcoxon"] == pytest.approx(stats.wilcoxon(differences, method="approx").pvalue, rel=0.2)
    assert row["p_success_holm"] == row["p_success"]


def test_many_arms_are_adjusted() -> None:
    reference = arm(*[2] * 20)
    arms = {"none": reference, **{f"a{n}": arm(*[0] * n, *[2] * (20 - n)) for n in (5, 10, 8)}}
    tests = compare_codes(arms).tests
    assert tests["arm"].tolist() == ["a5", "a10", "a8"]
    assert tests["p_success"].tolist() == pytest.approx([2 / 2**5, 2 / 2**10, 2 / 2**8])
    assert tests["p_success_holm"].tolist() == pytest.approx([2 / 2**5, 3 * 2 / 2**10, 2 * 2 / 2**8])
    assert tests["p_wilcoxon_holm"].tolist() == pytest.approx(tests["p_success_holm"].tolist())


def test_scans_are_paired_by_name() -> None:
    shuffled = arm(0, 1, 2, 0).sample(frac=1, random_state=3)
    comparison = compare_codes({"a": arm(0, 1, 2, 0), "b": shuffled})
    assert (comparison.tests["better"] + comparison.tests["worse"]).tolist() == [0]
    assert comparison.codes.index.tolist() == ["c0000", "c0001", "c0002", "c0003"]


@pytest.mark.parametrize(
    ("arms", "text"),
    [
        ({}, "at least two arms, found 0: none"),
        ({"a": arm(0, 1)}, "at least two arms, found 1: a"),
        ({"a": arm(0, 1), "b": arm(0, 3)}, 'arm "b": the case "c0001" has a code that is not 0, 1 or 2'),
        ({"a": pd.concat([arm(0, 1), arm(2)]), "b": arm(0, 1)}, 'arm "a": the case "c0000" stands there more than'),
        ({"a": arm(0, 1, 2), "b": arm(0, 1)}, '"c0002" has a code in the arm "a" and none in the arm "b" (1 such'),
        ({"a": arm(0, 1), "b": arm(0, 1, 1, 1)}, '"c0002" has a code in the arm "b" and none in the arm "a" (2 such'),
        ({"a": arm(0, 1), "b": arm(0, 1, source="dice")}, 'the arm "a" has codes of source human, the arm "b" of'),
        (
            {"a": pd.concat([arm(0), arm(0, first=1, source="dice")]), "b": arm(0, 1)},
            'arm "a": holds codes of the sources dice, human',
        ),
        ({"a": arm(0), "b": arm()}, 'arm "b": holds no code'),
        ({"a": arm(0), "b": arm(0).drop(columns="source")}, 'arm "b": the column "source" is missing'),
    ],
)
def test_mistakes(arms: dict[str, pd.DataFrame], text: str) -> None:
    with pytest.raises(SelectionError) as raised:
        compare_codes(arms)
    assert text in str(raised.value)


def test_files(tmp_path: Path) -> None:
    table = {(0, 0): 3, (2, 0): 6, (1, 1): 1}
    comparison = compare_codes({**from_table(table), "same": from_table(table)["reference"]})
    write_comparison(tmp_path / "out", comparison, about={"reference": "a.csv"})
    codes = pd.read_csv(tmp_path / "out" / "codes.csv")
    assert codes.columns.tolist() == ["case_id", "code_reference", "code_new", "code_same"]
    assert codes["code_new"].tolist() == comparison.codes["new"].tolist()
    content = json.loads((tmp_path / "out" / "codes.json").read_text())
    assert content["about"] == {"reference": "a.csv"}
    assert (content["source"], content["reference"], content["cases"]) == ("human", "reference", 10)
    assert content["counts"]["new"] == {"success": 9, "minor errors": 1, "failure": 0}
    assert content["tests"][0]["p_failure"] == pytest.approx(2 / 2**6)
    assert content["tests"][0]["p_failure_holm"] == pytest.approx(2 / 2**6)
    assert content["tests"][1]["p_failure"] is None
    text = (tmp_path / "out" / "codes.md").read_text()
    assert "| 0 success | 3 (30.0%) | 9 (90.0%) | 3 (30.0%) |" in text
    assert "| new | +6 -0, p = 0.0312 (p = 0.0312) | +0 -6, p = 0.0312 (p = 0.0312) | 6 better, 0 worse, " in text
    assert "| same | +0 -0, nothing differs | +0 -0, nothing differs | 0 better, 0 worse, nothing differs |" in text


def test_a_very_small_p_is_not_written_as_zero(tmp_path: Path) -> None:
    write_comparison(tmp_path, compare_codes(from_table({(2, 0): 200})), about={})
    content = json.loads((tmp_path / "codes.json").read_text())
    assert content["tests"][0]["p_success"] == pytest.approx(2.0**-199, rel=1e-6)
    assert p_text(content["tests"][0]["p_success"]) == "p < 0.0001"

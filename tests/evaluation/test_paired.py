from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_qa.errors import SelectionError
from nnunet_qa.evaluation.paired import compare, holm

SUBJECTS = {"A": 5, "B": 1, "C": 2, "D": 3, "E": 2, "F": 4, "G": 2}


def table(effects: dict[str, float], *, seeds: int = 3, noise: float = 0.1, subjects: int = 7) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    cases = [(s, f"{s}_{k}") for s, n in list(SUBJECTS.items())[:subjects] for k in range(n)]
    shift = {subject: rng.normal(0, noise) for subject in SUBJECTS}
    rows = []
    for arm, effect in effects.items():
        for seed in range(seeds):
            for subject, case in cases:
                value = 0.5 + effect * (1 + shift[subject] / max(noise, 1e-9)) + rng.normal(0, noise)
                rows.append({"arm": arm, "seed": seed, "subject_id": subject, "case_id": case, "dice": value})
    return pd.DataFrame(rows)


def run(frame: pd.DataFrame, **changes: object) -> pd.DataFrame:
    return compare(frame, **{"reference": "random", "metric": "dice", "rng": np.random.default_rng(0), **changes})  # type: ignore[arg-type]


def exact_signed_rank(differences: np.ndarray) -> float:
    """Two-sided p by going through all signs."""
    ranks = stats.rankdata(np.abs(differences))
    seen = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
    sums = [
        sum(r for r, up in zip(ranks, signs, strict=True) if up)
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    return min(1.0, 2 * float(np.mean(np.array(sums) <= seen)))


def test_numbers_against_a_computation_by_hand() -> None:
    frame = table({"qu": 0.05, "random": 0.0}).sample(frac=1, random_state=1)  # the order of rows must not matter
    (row,) = run(frame).to_dict("records")
    wide = frame.pivot(index=["seed", "subject_id", "case_id"], columns="arm", values="dice")
    difference = wide["qu"] - wide["random"]
    means = difference.groupby("subject_id").mean().to_numpy()
    assert (row["arm"], row["reference"], row["metric"]) == ("qu", "random", "dice")
    assert (row["pairs"], row["subjects"], row["seeds"]) == (19 * 3, 7, 3)
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["mean"] - row["reference_mean"] == pytest.approx(difference.mean())
    assert row["p_wilcoxon"] == row["p_wilcoxon_holm"] == pytest.approx(exact_signed_rank(means))
    t = means.mean() / (means.std(ddof=1) / math.sqrt(7))
    assert row["p_t"] == row["p_t_holm"] == pytest.approx(2 * stats.t.sf(abs(t), 6))
    by_seed = wide.groupby("seed").mean()
    assert row["seeds_better"] == int((by_seed["qu"] > by_seed["random"]).sum())


def test_the_interval_draws_whole_subjects() -> None:
    frame = table({"qu": 0.05, "random": 0.0})
    (row,) = run(frame, resamples=4000).to_dict("records")
    wide = frame.pivot(index=["subject_id", "seed", "case_id"], columns="arm", values="dice")
    groups = [part.to_numpy() for _, part in (wide["qu"] - wide["random"]).groupby("subject_id")]
    rng = np.random.default_rng(99)
    draws = [np.concatenate([groups[k] for k in rng.integers(7, size=7)]).mean() for _ in range(4000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.005)
    singles = np.concatenate(groups)
    naive = [singles[rng.integers(57, size=57)].mean() for _ in range(2000)]
    assert row["high"] - row["low"] > 1.3 * np.ptp(np.quantile(naive, [0.025, 0.975]))


def test_a_larger_level_gives_a_wider_interval_and_one_seed_of_the_rng_the_same_one() -> None:
    frame = table({"qu": 0.05, "random": 0.0})
    (narrow,), (wide,), (again,) = (run(frame, level=level).to_dict("records") for level in (0.5, 0.95, 0.95))
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]
    assert (wide["low"], wide["high"]) == (again["low"], again["high"])


def test_several_arms_are_adjusted_together() -> None:
    found = run(table({"qu": 0.2, "entropy": 0.03, "random": 0.0, "full": 0.3}))
    assert found["arm"].tolist() == ["qu", "entropy", "full"]
    for test in ("p_wilcoxon", "p_t"):
        assert found[f"{test}_holm"].tolist() == pytest.approx(holm(found[test].to_numpy()).tolist())
        assert (found[f"{test}_holm"] > found[test]).any()


@pytest.mark.parametrize("seed", range(5))
def test_holm_decides_as_its_step_down_procedure(seed: int) -> None:
    p = np.random.default_rng(seed).uniform(0, 0.1, 6).round(2)  # with ties
    for alpha in np.linspace(0.005, 0.5, 60):
        rejected = np.zeros(6, bool)
        for step, place in enumerate(np.argsort(p, kind="stable")):
            if p[place] > alpha / (6 - step):
                break
            rejected[place] = True
        near = np.abs(holm(p) - alpha) < 1e-9
        assert ((holm(p) <= alpha) == rejected)[~near].all()


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert holm([0.02, float("nan"), 0.5]) == pytest.approx([0.04, float("nan"), 0.5], nan_ok=True)
    assert holm([]).tolist() == []


def test_nothing_to_test() -> None:
    same = table({"random": 0.0})
    both = pd.concat([same, same.assign(arm="qu")])
    (row,) = run(both).to_dict("records")
    assert (row["difference"], row["low"], row["high"], row["seeds_better"]) == (0, 0, 0, 0)
    assert all(math.isnan(row[name]) for name in ("p_wilcoxon", "p_t", "p_wilcoxon_holm", "p_t_holm"))
    (row,) = run(table({"qu": 0.1, "random": 0.0}, subjects=1)).to_dict("records")
    assert row["subjects"] == 1
    assert row["difference"] != 0
    assert all(math.isnan(row[name]) for name in ("low", "high", "p_wilcoxon", "p_t"))
    shifted = pd.concat([same, same.assign(arm="qu", dice=same["dice"] + 0.125)])
    (row,) = run(shifted).to_dict("records")
    assert row["difference"] == pytest.approx(0.125)
    assert math.isnan(row["p_t"])  # no spread
    assert row["p_wilcoxon"] == pytest.approx(2 / 2**7)
    assert row["seeds_better"] == 3


def test_wrong_tables_are_named() -> None:
    frame = table({"qu": 0.1, "random": 0.0})
    whose = (frame["seed"] == 1) & (frame["case_id"] == "C_1")
    cases = {
        r'arm "random", seed 1: the case "C_1" has no partner in the arm "qu" \(1 such cases\)': frame[
            ~(whose & (frame["arm"] == "qu"))
        ],
        'arm "qu", seed 1: the case "C_1" has no partner in the arm "random"': frame[
            ~(whose & (frame["arm"] == "random"))
        ],
        'arm "qu", seed 0: the case "A_0" stands there more than once': pd.concat([frame, frame.iloc[:1]]),
        'arm "qu", seed 1: the case "C_1" has no dice': frame.assign(
            dice=frame["dice"].mask(whose & (frame["arm"] == "qu"))
        ),
        'the case "C_1" has more than one subject': frame.assign(
            subject_id=frame["subject_id"].mask(whose & (frame["arm"] == "qu"), "Z")
        ),
        'the column "seed" is missing; found: arm': frame.drop(columns="seed"),
        'there is no arm but the reference "random"': frame[frame["arm"] == "random"],
    }
    for line, wrong in cases.items():
        with pytest.raises(SelectionError, match=line):
            run(wrong)
    with pytest.raises(
        SelectionError, match=r'there is no arm "randon" \(did you mean "random"\?\); found: qu, random'
    ):
        run(frame, reference="randon")

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.image_quality import METRICS, Definition
from nnunet_qa.selection.initial import DEFAULT_EPSILON, initial_set, write_initial_set


def measured(*rows: tuple[float, float, float, float], names: str = "abcdefghij") -> pd.DataFrame:
    """A table of cases, each with one slice row that must not count."""
    table = [
        {"case_id": name, "level": level, "slice_index": index, **dict(zip(METRICS, values, strict=True))}
        for name, row in zip(names, rows, strict=False)
        for level, index, values in (("case", None, row), ("slice", 0, (0.0, 0.0, 0.0, 0.0)))
    ]
    return pd.DataFrame(table)


def many(number: int = 200, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).lognormal(size=(number, 4))
    return measured(*map(tuple, values), names=[f"c{index:03d}" for index in range(number)])  # type: ignore[arg-type]


def selected(table: pd.DataFrame) -> list[str]:
    return table["case_id"][table["selected"]].tolist()


def reasons(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["case_id"], table["reason"], strict=True))


FIVE = measured((1, 1, 0, 0), (2, 2, 1, 5), (9, 1, 0, 0), (1, 9, 0, 0), (9, 9, 0, 0))
"""Means 4.4 and 4.4: a and b pass."""


def test_below_both_means() -> None:
    table = initial_set(FIVE, epsilon=0)
    assert selected(table) == ["a", "b"]
    assert reasons(table)["c"] == "dropped: blurriness 9 not below the mean 4.4"
    assert reasons(table)["d"] == "dropped: psnr_inv 9 not below the mean 4.4"
    assert reasons(table)["e"] == "dropped: blurriness 9 not below the mean 4.4, psnr_inv 9 not below the mean 4.4"
    assert reasons(table)["a"].startswith("kept: passes both thresholds")
    assert table[list(METRICS)].to_numpy().tolist() == FIVE.loc[FIVE["level"] == "case", list(METRICS)].values.tolist()
    assert table["blurriness_highest"].tolist() == [4.4] * 5
    assert table["psnr_inv_lowest"].isna().all()
    assert table["subject_id"].tolist() == list("abcde")


def test_a_value_at_the_mean_is_not_below_it() -> None:
    table = measured((1, 1, 0, 0), (2, 2, 0, 0), (3, 3, 0, 0))
    assert selected(initial_set(table, epsilon=0)) == ["a"]


def test_quantiles_instead_of_means() -> None:
    table = many()
    cases = table[table["level"] == "case"]
    found = initial_set(table, quantiles=(0.3, 0.8), epsilon=0)
    passes = (cases["blurriness"] < np.quantile(cases["blurriness"], 0.3)) & (
        cases["psnr_inv"] < np.quantile(cases["psnr_inv"], 0.8)
    )
    assert selected(found) == cases["case_id"][passes].tolist()
    assert found["reason"].str.contains("not below the quantile 0.3").any()


def test_the_percentiles_of_the_reference_code() -> None:
    table = many()
    cases = table[table["level"] == "case"]
    blur, psnr = cases["blurriness"], cases["psnr_inv"]
    passes = blur.between(*np.percentile(blur, [20, 80])) & psnr.between(*np.percentile(psnr, [10, 90]))
    found = initial_set(table, definition=Definition.REFERENCE_CODE, epsilon=0)
    assert selected(found) == cases["case_id"][passes].tolist()
    assert found["reason"].str.contains("outside the percentiles 20 to 80").any()


@pytest.mark.parametrize("definition", Definition)
def test_of_two_alike_the_sharper_one_stays(definition: Definition) -> None:
    # b and c are alike; the others set the scale and the thresholds
    rows = [
        (0.8, 1, 0, 0),
        (1.0, 1, 5, 5),
        (1.1, 1, 5.1, 5),
        (0.9, 1, 10, 0),
        (1.2, 1, 0, 10),
        (9, 9, 5, 5),
        (0, 0, 20, 20),
    ]
    table = initial_set(measured(*rows), definition=definition, epsilon=0.2)
    kept, dropped = ("b", "c") if definition is Definition.PAPER else ("c", "b")
    assert kept in selected(table)
    assert reasons(table)[dropped] == f"dropped: within epsilon 0.2 of the sharper case {kept}"
    assert {"b", "c"} <= set(selected(initial_set(measured(*rows), definition=definition, epsilon=0.01)))


@pytest.mark.parametrize("epsilon", [0.1, None, 0.7, 1.5])
def test_the_filter_leaves_a_packing(epsilon: float | None) -> None:
    table = initial_set(many(), epsilon=epsilon)
    epsilon = DEFAULT_EPSILON if epsilon is None else epsilon
    candidates = table[table["selected"] | table["reason"].str.contains("within epsilon")].copy()
    points = candidates[["cov", "roi_mean"]].to_numpy()
    points = (points - points.mean(axis=0)) / points.std(axis=0)
    blur = candidates["blurriness"].to_numpy()
    kept = candidates["selected"].to_numpy()
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    between = distance[kept][:, kept][np.triu_indices(kept.sum(), 1)]
    assert (between >= epsilon).all()
    assert 0 < kept.sum() < len(candidates)
    for index in np.flatnonzero(~kept):
        named = (
            candidates["reason"].iloc[index].removeprefix(f"dropped: within epsilon {epsilon:g} of the sharper case ")
        )
        other = candidates["case_id"].tolist().index(named)
        assert kept[other]
        assert distance[index, other] < epsilon
        assert blur[other] < blur[index]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 2, 3, 7, 9, 20, 37])
def test_target_size_is_met_and_its_epsilon_gives_the_same(size: int, seed: int) -> None:
    table = many(seed=seed)
    found = initial_set(table, target_size=size)
    assert len(selected(found)) == size
    if not found["reason"].str.contains("asked for").any():
        assert selected(initial_set(table, epsilon=found["epsilon"][0])) == selected(found)


def test_target_size_where_images_are_the_same() -> None:
    same = [(1, 1, 0, 0), (1.1, 1, 0, 0), (1.2, 1, 0, 0), (1.3, 1, 7, 7), (9, 9, 0, 0)]
    table = initial_set(measured(*same), target_size=3)
    assert selected(table) == ["a", "b", "c"]
    assert reasons(table)["d"] == "dropped: less sharp than the 3 that were asked for"
    assert selected(initial_set(measured(*same), target_size=2)) == ["a", "d"]
    assert selected(initial_set(measured(*same), target_size=4)) == ["a", "b", "c", "d"]
    assert selected(initial_set(measured(*same), target_size=1)) == ["a"]


def test_thousands_of_images_need_little_memory() -> None:
    rows = [
        {**dict(zip(METRICS, row, strict=True)), "level": "case"} for row in np.random.default_rng(0).random((6000, 4))
    ]
    table = pd.DataFrame(rows).assign(case_id=[f"c{number}" for number in range(6000)])
    tracemalloc.start()
    found = initial_set(table, quantiles=(1, 1), target_size=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["selected"].sum() == 8
    assert found["reason"].str.contains("within epsilon").sum() > 5900
    assert peak < 6000**2 * 8  # bytes of one matrix of distances


def test_one_candidate() -> None:
    table = measured((1, 1, 3, 3), (2, 2, 0, 0), (3, 3, 1, 1))
    assert selected(initial_set(table, target_size=1)) == ["a"]
    assert selected(initial_set(table)) == ["a"]


def test_the_order_of_the_table_makes_no_difference() -> None:
    table = many()
    shuffled = table.sample(frac=1, random_state=0)
    found, other = initial_set(table), initial_set(shuffled).sort_values("case_id", ignore_index=True)
    pd.testing.assert_frame_equal(found, other)


def test_subjects() -> None:
    assert initial_set(FIVE, subjects=dict(zip("abcde", "xxyyz", strict=True)))["subject_id"].tolist() == list("xxyyz")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"target_size": 3}, "3 images were asked for, but only 2 of 5 pass both thresholds"),
        ({"target_size": 0}, "target size is 0"),
        ({"epsilon": -1}, "epsilon is -1"),
        ({"epsilon": 1, "target_size": 2}, "either an epsilon or a target size"),
        ({"quantiles": (0.5, 1.5)}, "0.5 and 1.5 must lie above 0"),
        ({"quantiles": (0.5, 0.5), "definition": Definition.REFERENCE_CODE}, "its own percentiles"),
        ({"quantiles": (0.2, 0.2)}, "none of the 5 images passes both thresholds"),
    ],
)
def test_what_cannot_be_had(arguments: dict, said: str) -> None:
    with pytest.raises(SelectionError, match=said):
        initial_set(FIVE, **arguments)


def test_wrong_tables() -> None:
    with pytest.raises(SelectionError, match='no column "roi_mean"'):
        initial_set(FIVE.drop(columns="roi_mean"))
    with pytest.raises(SelectionError, match="no row of level case"):
        initial_set(FIVE[FIVE["level"] == "slice"])
    with pytest.raises(SelectionError, match='"a" stands more than once'):
        initial_set(pd.concat([FIVE, FIVE[:1]]))
    broken = FIVE.copy()
    broken.loc[2, "cov"] = np.nan
    with pytest.raises(SelectionError, match='"b" has no cov'):
        initial_set(broken)


def test_the_file(tmp_path: Path) -> None:
    table = initial_set(many(), target_size=5)
    write_initial_set(tmp_path / "out" / "initial_set.csv", table)
    read = pd.read_csv(tmp_path / "out" / "initial_set.csv")
    assert read.columns.tolist() == table.columns.tolist()
    assert read["selected"].tolist() == table["selected"].tolist()
    np.testing.assert_allclose(read[list(METRICS)], table[list(METRICS)], rtol=1e-7)
    assert read["reason"].tolist() == table["reason"].tolist()

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_qa.experiments.report_parts import (
    compare_dice,
    comparison_table,
    dice_of_cases,
    image_means,
    images_of,
    machines_table,
    ranked_cases,
)
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.files import write_json

SUBJECTS = 4
TITLES = {"base": "Base", "a": "A", "b": "B"}


def images(arm: str, seed: int, lift: float) -> pd.DataFrame:
    """Two classes of two cases of each of four subjects."""
    rng = np.random.default_rng(7)  # every arm has the same images
    rows = [
        {"arm": arm, "seed": seed, "case_id": f"S{subject}_{case}", "subject_id": f"S{subject}", "class": name}
        for subject in range(SUBJECTS)
        for case in "xy"
        for name in ("small", "large")
    ]
    dice = rng.uniform(0.2, 0.6, len(rows)) + lift * np.linspace(0.5, 1.5, len(rows))
    counts = {"tp": 1, "fp": 1, "fn": 1, "tn": 1, "precision": 0.5, "recall": 0.5, "jaccard": 0.5, "accuracy": 0.5}
    return pd.DataFrame(rows).assign(dice=dice, foreground=True, **counts)


def every(*arms: tuple[str, int, float]) -> pd.DataFrame:
    return pd.concat([images(*arm) for arm in arms], ignore_index=True)


def test_images_of_a_cell_carry_its_name(tmp_path: Path) -> None:
    table = pd.DataFrame({"case_id": ["001"], "subject_id": ["01"], "class": ["a"], "dice": [0.5]})
    table.to_csv(tmp_path / "test_images.csv", index=False)
    found = images_of(Cell("arm", 3, tmp_path, {}))
    assert found.to_dict("records") == [
        {"arm": "arm", "seed": 3, "case_id": "001", "subject_id": "01", "class": "a", "dice": 0.5}
    ]


def test_the_dice_of_a_case_is_the_mean_over_its_classes() -> None:
    table = every(("base", 0, 0.0))
    found = dice_of_cases(table).set_index("case_id")["dice"]
    assert found["S2_y"] == pytest.approx(table.loc[table["case_id"] == "S2_y", "dice"].mean())
    assert image_means(table)["dice"] == pytest.approx(table["dice"].mean())


def test_arms_are_compared_on_the_draws_that_both_have() -> None:
    table = every(("base", 0, 0.0), ("base", 1, 0.0), ("a", 0, 0.1), ("a", 1, 0.1), ("b", 1, -0.1), ("c", 2, 0.1))
    found = compare_dice(table, reference="base").set_index("arm")
    assert found["draws"].to_dict() == {"a": "0, 1", "b": "1"}
    whole = dice_of_cases(table).pivot(index=["seed", "subject_id", "case_id"], columns="arm", values="dice")
    difference = (whole["a"] - whole["base"]).dropna()
    assert found.loc["a", "difference"] == pytest.approx(difference.mean())
    by_subject = difference.groupby("subject_id").mean()
    assert found.loc["a", "p_wilcoxon"] == pytest.approx(stats.wilcoxon(by_subject).pvalue)
    assert found.loc["a", "p_wilcoxon_holm"] == found.loc["a", "p_wilcoxon"]  # alone with its draws
    row = comparison_table(found.reset_index(), TITLES).splitlines()[2]
    assert row.startswith(f"| A | 0, 1 | {difference.mean():+.3f} |")
    assert row.endswith("| 2 of 2 | 4/16 |")


def test_arms_may_be_left_out_and_a_missing_reference_gives_no_row() -> None:
    table = every(("base", 0, 0.0), ("a", 0, 0.1), ("b", 0, 0.2))
    assert compare_dice(table, reference="base", without=["a"])["arm"].tolist() == ["b"]
    assert compare_dice(table, reference="none").empty
    assert compare_dice(table[table["arm"] == "base"], reference="base").empty


def test_one_subject_has_neither_interval_nor_p() -> None:
    table = every(("base", 0, 0.0), ("a", 0, 0.1))
    one = compare_dice(table[table["subject_id"] == "S0"], reference="base")
    assert "| n/a | n/a | n/a |" in comparison_table(one, TITLES)


def test_cases_are_ranked_by_dice_and_empty_ones_left_out() -> None:
    table = every(("base", 0, 0.0))
    empty = table["case_id"] == "S1_x"
    table.loc[empty, ["foreground", "dice"]] = [False, 1.0]
    table.loc[(table["case_id"] == "S2_y") & (table["class"] == "small"), "foreground"] = False  # one class is there
    found = ranked_cases(table)
    assert sorted(found["case_id"]) == sorted(set(table["case_id"]) - {"S1_x"})
    assert found["dice"].is_monotonic_decreasing
    assert found.columns.tolist() == ["case_id", "dice"]


def test_machines_with_their_versions_and_minutes(tmp_path: Path) -> None:
    machine = {"processor": "Some CPU", "cores": 2, "gpu": None, "torch": "2.9", "nnunet_qa": "0.1"}
    cells = [Cell("a", seed, tmp_path / str(seed), {}) for seed in range(3)]
    for cell, own in zip(cells, (machine, machine, {**machine, "gpu": "Some GPU"}), strict=True):
        cell.folder.mkdir()
        write_json(cell.folder / "done.json", {"seconds": 90.0, "machine": own})
    lines = machines_table(cells).splitlines()
    assert lines[2:] == ["| Some CPU | 2 | 2.9 | 0.1 | 2 | 3 |", "| Some GPU | 2 | 2.9 | 0.1 | 1 | 2 |"]

from __future__ import annotations

import statistics

import pandas as pd
import pytest

from nnunet_qa.experiments.tables import markdown_table, mean_sd


def test_a_markdown_table() -> None:
    text = markdown_table(["Arm", "D", "J"], [["full", "0.7", "0.5"], ["half", "0.6", "0.4"]])
    lines = text.split("\n")
    assert lines == ["| Arm | D | J |", "| :--- | ---: | ---: |", "| full | 0.7 | 0.5 |", "| half | 0.6 | 0.4 |"]


def test_mean_and_spread() -> None:
    values = [0.5, 0.75, 0.1]
    expected = f"{statistics.mean(values):.3f} ({statistics.stdev(values):.3f})"
    assert mean_sd(pd.Series([*values, None])) == expected
    assert mean_sd(pd.Series(values), 1) == "0.5 (0.3)"


@pytest.mark.parametrize(
    ("values", "expected"), [([0.25], "0.250"), ([0.25, None], "0.250"), ([None], "n/a"), ([], "n/a")]
)
def test_a_single_value_has_no_spread(values: list[float | None], expected: str) -> None:
    assert mean_sd(pd.Series(values, dtype=float)) == expected

"""Tables for people: Markdown, and mean with spread."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is flush left, the others flush right.

    >>> print(markdown_table(["Arm", "D"], [["full", "0.71"]]))
    | Arm | D |
    | :--- | ---: |
    | full | 0.71 |
    """
    lines = [heads, [":---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_sd(values: pd.Series, digits: int = 3) -> str:
    """Mean and, where there are several values, standard deviation (n - 1) in brackets.

    >>> mean_sd(pd.Series([0.4, 0.6]))
    '0.500 (0.141)'
    """
    known = values.dropna()
    if known.empty:
        return "n/a"
    mean = f"{known.mean():.{digits}f}"
    return f"{mean} ({known.std(ddof=1):.{digits}f})" if len(known) > 1 else mean

"""Quality codes of the arms on the same test scans, from their Dice, and how they move (paper 002, Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_qa.evaluation.codes import NAMES, TESTED, CodeComparison, compare_codes, p_text, share
from nnunet_qa.experiments.report_parts import dice_of_cases, draws_text, shared_draws
from nnunet_qa.experiments.tables import markdown_table
from nnunet_qa.files import write_csv
from nnunet_qa.quality.codes import CodeSource, CodeThresholds
from nnunet_qa.reports.code_figures import codes_picture


def codes_of_cases(images: pd.DataFrame, thresholds: CodeThresholds) -> pd.DataFrame:
    """Code of every test scan by its mean Dice over the classes.

    Args:
        images: what `images_of` gave, of all cells.
        thresholds: Dice of each code.

    Returns:
        One row an `arm`, `seed`, `case_id`: `subject_id`, `code`, `source`, `dice`.
    """
    table = dice_of_cases(images)
    table.insert(4, "code", [int(thresholds.code(dice)) for dice in table["dice"]])
    table.insert(5, "source", CodeSource.DICE.value)
    return table


def compared_codes(
    codes: pd.DataFrame, reference: str, titles: Mapping[str, str]
) -> dict[tuple[int, ...], CodeComparison]:
    """Each arm against the reference, by the draws that both have; a scan of two draws counts as two.

    Args:
        codes: what `codes_of_cases` gave.
        reference: the arm that the others are compared with.
        titles: names of the arms in the comparison.
    """
    pairs = codes.assign(case_id=codes["case_id"] + ", draw " + codes["seed"].astype(str))
    by_arm = {str(arm): rows for arm, rows in pairs.groupby("arm", sort=False)}
    found = {}
    for draws, arms in shared_draws({arm: set(rows["seed"]) for arm, rows in by_arm.items()}, reference).items():
        kept = {titles[arm]: by_arm[arm][by_arm[arm]["seed"].isin(draws)] for arm in (reference, *arms)}
        found[draws] = compare_codes(kept)
    return found


def codes_section(folder: Path, codes: pd.DataFrame, reference: str, titles: Mapping[str, str]) -> list[str]:
    """Text on the codes; writes `code_comparison.csv` and a bar chart for each set of draws that arms share."""
    parts = [_counts(codes, titles)]
    comparisons = compared_codes(codes, reference, titles)
    if not comparisons:
        return parts
    tests = []
    for draws, comparison in comparisons.items():
        tests.append(comparison.tests.assign(draws=draws_text(draws)))
        name = f"codes_{'_'.join(map(str, draws))}.png"
        codes_picture(folder / name, comparison, heading=f"draws: {draws_text(draws)}")
        parts.append(f"![Codes of each arm, draws: {draws_text(draws)}]({name})")
    table = pd.concat(tests, ignore_index=True)
    write_csv(folder / "code_comparison.csv", table.round(6))
    note = (
        "+ scans that have the code in this arm alone, - in the reference alone, with McNemar's exact test; better and "
        "worse: scans whose code fell or rose, with Wilcoxon's signed-rank test of the codes. Two-sided p, in brackets "
        "adjusted by Holm's method over the arms with the same draws. A scan counts once in every draw that tests it: "
        "the draws are pooled as pairs of draw and scan. The tests take these as independent, which scans of one "
        "subject are not, so p is too small; the comparison of Dice above goes by subject."
    )
    return [*parts, _tests(table), note]


def _counts(codes: pd.DataFrame, titles: Mapping[str, str]) -> str:
    rows = []
    for arm, part in codes.groupby("arm", sort=False):
        shares = [share(int((part["code"] == code).sum()), len(part)) for code in NAMES]
        rows.append([titles[str(arm)], draws_text(part["seed"].unique()), str(len(part)), *shares])
    return markdown_table(["Arm", "Draws", "Scans", *(name.capitalize() for name in NAMES.values())], rows)


def _tests(table: pd.DataFrame) -> str:
    rows = []
    for row in table.to_dict("records"):
        cells = [f"+{row[f'{name}_gained']} -{row[f'{name}_lost']}, {_both(row, name)}" for name in TESTED]
        cells.append(f"{row['better']} better, {row['worse']} worse, {_both(row, 'wilcoxon')}")
        rows.append([row["arm"], row["draws"], str(row["cases"]), *cells])
    against = f"Against: {table['reference'].iloc[0]}"
    return markdown_table([against, "Draws", "Scans", *(name.capitalize() for name in TESTED), "Code"], rows)


def _both(row: Mapping[str, Any], name: str) -> str:
    p, adjusted = row[f"p_{name}"], row[f"p_{name}_holm"]
    return p_text(p) if pd.isna(p) else f"{p_text(p)} ({p_text(adjusted)})"

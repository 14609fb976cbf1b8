"""Comparison of arms by the quality codes of the same scans, as Figure 4 of paper 002 (QA discriminator) shows them.

McNemar's exact test asks whether more scans became a success (or a failure) than ceased to be one, Wilcoxon's
signed-rank test whether codes moved at all. Both take scans as independent of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from nnunet_qa.errors import SelectionError
from nnunet_qa.evaluation.paired import holm
from nnunet_qa.files import write_csv, write_json, write_text

TABLE, SUMMARY, TEXT = "codes.csv", "codes.json", "codes.md"
NAMES = {0: "success", 1: "minor errors", 2: "failure"}
TESTED = {"success": 0, "failure": 2}
"""Codes that are compared by McNemar's test, by the name that their columns carry."""


@dataclass(frozen=True)
class CodeComparison:
    """Codes of several arms on the same scans.

    Attributes:
        source: who or what gave the codes, the same for all.
        codes: one row a scan (index `case_id`), one column an arm; the first arm is the reference.
        counts: number of scans of each code (index 0, 1, 2), one column an arm.
        tests: one row for each other arm: `arm`, `reference`, number of `cases`; for `success` and `failure` how many
            scans have that code in this arm alone (`success_gained`) and in the reference alone (`success_lost`) with
            the `p_success` of McNemar's exact test; how many scans have a `better` and a `worse` code than in the
            reference with the `p_wilcoxon` of the signed-rank test. p are two-sided, and NaN where nothing differs;
            adjusted over the arms by Holm's method they end in `_holm`.
    """

    source: str
    codes: pd.DataFrame
    counts: pd.DataFrame
    tests: pd.DataFrame

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return str(self.codes.columns[0])


def compare_codes(arms: Mapping[str, pd.DataFrame]) -> CodeComparison:
    """Count the codes of each arm, and compare each arm with the first.

    Args:
        arms: by name, one row a scan: `case_id`, `code` (0 success, 1 minor errors, 2 failure) and `source`.

    Raises:
        SelectionError: there is one arm only, a code is not 0, 1 or 2, a scan stands in an arm twice or not in all, or
            codes of several sources would be mixed.
    """
    if len(arms) < 2:
        raise SelectionError(f"a comparison needs at least two arms, found {len(arms)}: {', '.join(arms) or 'none'}")
    for name, frame in arms.items():
        _check(name, frame)
    sources = {name: str(frame["source"].iloc[0]) for name, frame in arms.items()}
    reference, *others = arms
    for name in others:
        if sources[name] != sources[reference]:
            raise SelectionError(
                f'the arm "{reference}" has codes of source {sources[reference]}, the arm "{name}" of source '
                f"{sources[name]}; compare codes of one source"
            )
        _check_cases(reference, set(arms[reference]["case_id"]), name, set(arms[name]["case_id"]))
    codes = pd.DataFrame({name: frame.set_index("case_id")["code"].astype(int) for name, frame in arms.items()})
    codes = codes.sort_index()
    counts = pd.DataFrame({name: [int((codes[name] == code).sum()) for code in NAMES] for name in arms}, index=[*NAMES])
    tests = pd.DataFrame([_tests(name, codes[name], reference, codes[reference]) for name in others])
    for column in [column for column in tests.columns if column.startswith("p_")]:
        tests[f"{column}_holm"] = holm(tests[column].to_numpy())
    return CodeComparison(sources[reference], codes, counts, tests)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: are scans that differ as often better as worse (1947, Psychometrika 12)?

    Args:
        gained: scans that hold in this arm alone.
        lost: scans that hold in the reference alone.

    Returns:
        2 P(X <= min(gained, lost)), at most 1, X binomial with gained + lost draws of 1/2; NaN where both are 0.

    >>> mcnemar(1, 5)
    0.21875
    """
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else float("nan")


def signed_rank(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of codes, exact for every number of scans.

    Codes differ by 1 or 2, so there are only two ranks, and under the null hypothesis how many differences of each are
    positive is binomial.

    Args:
        differences: code less code of the reference, -2 to 2; zeros do not count.

    Returns:
        The share of all assignments of signs whose rank sum is at least as far from its mean; NaN where all are zero.
    """
    sizes = [int((np.abs(differences) == size).sum()) for size in (1, 2)]
    if not sum(sizes):
        return float("nan")
    ranks = ((sizes[0] + 1) / 2, sizes[0] + (sizes[1] + 1) / 2)
    ones, twos = (rank * (np.arange(size + 1) - size / 2) for rank, size in zip(ranks, sizes, strict=True))
    chances = [stats.binom.pmf(np.arange(size + 1), size, 0.5) for size in sizes]
    found = sum(
        rank * np.sign(differences[np.abs(differences) == size]).sum() / 2 for size, rank in enumerate(ranks, 1)
    )
    as_far = np.abs(np.add.outer(ones, twos)) >= abs(found) - 1e-9
    return min(1.0, float(np.outer(*chances)[as_far].sum()))


def share(count: int, cases: int) -> str:
    """A number of scans with its percentage.

    >>> share(606, 2027)
    '606 (29.9%)'
    """
    return f"{count} ({count / cases:.1%})"


def p_text(p: float) -> str:
    """A p-value for a person.

    >>> [p_text(p) for p in (0.25, 1e-7, float("nan"))]
    ['p = 0.2500', 'p < 0.0001', 'nothing differs']
    """
    if np.isnan(p):
        return "nothing differs"
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def write_comparison(folder: Path, comparison: CodeComparison, *, about: Mapping[str, str]) -> None:
    """Write `codes.csv` (one row a scan, `code_<arm>`), `codes.json` and `codes.md`, each in one step.

    Args:
        folder: where to; created if needed.
        comparison: what `compare_codes` returned.
        about: what was compared (files, settings), for the two summaries.

    Raises:
        StorageError: a file cannot be written.
    """
    write_csv(folder / TABLE, comparison.codes.add_prefix("code_").reset_index())
    tests = [
        {name: None if value != value else value for name, value in row.items()}  # JSON has no NaN
        for row in comparison.tests.to_dict("records")
    ]
    counts = {
        str(arm): {name: int(column[code]) for code, name in NAMES.items()} for arm, column in comparison.counts.items()
    }
    content = {
        "about": dict(about),
        "source": comparison.source,
        "reference": comparison.reference,
        "cases": len(comparison.codes),
        "counts": counts,
        "tests": tests,
    }
    write_json(folder / SUMMARY, content)
    write_text(folder / TEXT, _text(comparison, about))


def _text(comparison: CodeComparison, about: Mapping[str, str]) -> str:
    arms, cases = [str(arm) for arm in comparison.codes.columns], len(comparison.codes)
    lines = ["# Quality codes", "", *(f"- {name}: `{value}`" for name, value in about.items())]
    lines += [f"- source of the codes: {comparison.source}", f"- scans: {cases}", ""]
    lines += [f"| code | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    for code, name in NAMES.items():
        found = (share(int(comparison.counts[arm][code]), cases) for arm in arms)
        lines.append(f"| {code} {name} | {' | '.join(found)} |")
    lines += ["", f"| against {comparison.reference} | success | failure | better, worse |", "|---|---|---|---|"]
    for row in comparison.tests.to_dict("records"):
        cells = [f"+{row[f'{name}_gained']} -{row[f'{name}_lost']}, {_both(row, name)}" for name in TESTED]
        cells.append(f"{row['better']} better, {row['worse']} worse, {_both(row, 'wilcoxon')}")
        lines.append(f"| {row['arm']} | {' | '.join(cells)} |")
    lines += [
        "",
        "+ scans that have the code in this arm alone, - in the reference alone. Success and failure: McNemar's exact "
        "test; better and worse: Wilcoxon's exact signed-rank test; two-sided, in brackets adjusted over the "
        "arms by Holm's method. The tests take scans as independent: with several scans of a subject, p is too small.",
    ]
    return "\n".join(lines) + "\n"


def _both(row: Mapping[str, Any], name: str) -> str:
    p, adjusted = row[f"p_{name}"], row[f"p_{name}_holm"]
    return p_text(p) if np.isnan(p) else f"{p_text(p)} ({p_text(adjusted)})"


def _check(name: str, frame: pd.DataFrame) -> None:
    for column in ("case_id", "code", "source"):
        if column not in frame.columns:
            raise SelectionError(f'arm "{name}": the column "{column}" is missing')
    if frame.empty:
        raise SelectionError(f'arm "{name}": holds no code')
    sources = sorted(map(str, frame["source"].unique()))
    if len(sources) > 1:
        raise SelectionError(
            f'arm "{name}": holds codes of the sources {", ".join(sources)}; keep the rows of one (--source)'
        )
    for what, wrong in {
        "has a code that is not 0, 1 or 2": ~frame["code"].isin([*NAMES]),
        "stands there more than once; keep one code a scan": frame["case_id"].duplicated(),
    }.items():
        if wrong.any():
            raise SelectionError(f'arm "{name}": the case "{frame["case_id"][wrong].iloc[0]}" {what}')


def _check_cases(reference: str, base: set[str], name: str, cases: set[str]) -> None:
    for these, arm, those, other in ((base, reference, cases, name), (cases, name, base, reference)):
        alone = sorted(these - those)
        if alone:
            raise SelectionError(
                f'the case "{alone[0]}" has a code in the arm "{arm}" and none in the arm "{other}" ({len(alone)} such '
                "cases); arms are compared on the same scans"
            )


def _tests(name: str, ours: pd.Series, reference: str, base: pd.Series) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": name, "reference": reference, "cases": len(ours)}
    for what, code in TESTED.items():
        gained, lost = (int(((a == code) & (b != code)).sum()) for a, b in ((ours, base), (base, ours)))
        row |= {f"{what}_gained": gained, f"{what}_lost": lost, f"p_{what}": mcnemar(gained, lost)}
    difference = (ours - base).to_numpy()
    row |= {"better": int((difference < 0).sum()), "worse": int((difference > 0).sum())}
    return row | {"p_wilcoxon": signed_rank(difference)}

"""`nnunet-qa best-in-class`: the pool cases whose predictions are good enough to train on."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from nnunet_qa.config import Unit
from nnunet_qa.errors import SelectionError, nearest

_SHOWN = 20


class Aggregate(str, Enum):
    """How the scores of its frames make that of an acquisition."""

    MIN = "min"
    MEAN = "mean"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("best-in-class")(best_in_class)


def best_in_class(
    dataset: str = typer.Option(..., "-d", help="Dataset whose pool was predicted; its cases.csv is needed."),
    model: str = typer.Option(..., "--model", help="Name of the model that predicted, for the provenance."),
    quality: Path | None = typer.Option(None, "--quality", help="Estimator q: quality.csv."),
    codes: Path | None = typer.Option(
        None, "--codes", help="Estimator code: qa_predicted.csv of `nnunet-qa discriminator predict`."
    ),
    curves: Path | None = typer.Option(
        None, "--curves", help="Estimator curves: what `nnunet-qa curve-classifier predict` wrote."
    ),
    ensemble: Path | None = typer.Option(
        None, "--ensemble", help="Estimator ensemble: what `nnunet-qa pairwise-dice` wrote."
    ),
    weights: list[str] | None = typer.Option(
        None, "--weight", help="ESTIMATOR=NUMBER, repeatable, the one that the floor asks first. Default: 1 each."
    ),
    number: int = typer.Option(30, "-k", help="How many acquisitions, or cases."),
    unit: Unit = typer.Option(Unit.CASE, "--unit", help="Rank single cases, or acquisitions with all their frames."),
    per_subject: int | None = typer.Option(None, "--per-subject", help="At most so many of one subject."),
    floor: float | None = typer.Option(
        None,
        "--floor",
        help="None below this, in units of the first estimator: Q, minus the code, 1 - p_erroneous, or pairwise Dice.",
    ),
    aggregate: Aggregate = typer.Option(
        Aggregate.MIN, "--aggregate", help="Score of an acquisition: that of its worst frame, or their mean."
    ),
    output: Path = typer.Option(Path("ranking.csv"), "-o", help="Where to write."),
) -> None:
    """Rank the predictions of the pool and write the best, for `nnunet-qa inject`.

    With several estimators each counts by the ranks that it gives, so that none decides because its numbers spread
    more.

    Example: `nnunet-qa best-in-class -d 111 --model fold_0 --curves predicted.csv --unit acquisition -k 30`
    """
    from nnunet_qa.cases import CaseTable
    from nnunet_qa.cli.case_table import find_cases
    from nnunet_qa.data.paths import dataset_name
    from nnunet_qa.selection import best_in_class as library
    from nnunet_qa.selection.best_in_class_files import read_estimators, write_ranking

    given = {"q": quality, "code": codes, "curves": curves, "ensemble": ensemble}
    files = {library.Estimator(name): path for name, path in given.items() if path is not None}
    if not files:
        raise SelectionError("give at least one of --quality, --codes, --curves and --ensemble")
    wanted = _weights(weights, [one.value for one in files], sorted(given))
    path = find_cases(dataset, None)
    assert path is not None
    cases = CaseTable.read(path)
    scores = library.score_table(read_estimators(files, cases), wanted)
    ranking = library.best_in_class(
        scores,
        number=number,
        per_subject=per_subject,
        floor=floor,
        unit=unit,
        cases=cases,
        aggregate=aggregate.value,
    )
    name = dataset_name(dataset)
    ranking = ranking.merge(scores[["case_id", *wanted]], on="case_id", how="left")
    write_ranking(output, ranking, dataset=name, model=model, estimator=_mix(wanted))
    _show(ranking, list(wanted))
    ranked = scores["case_id"].nunique()
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(
        f"Wrote {output}: {ranking['rank'].nunique()} {unit.value}s, {len(ranking)} of {ranked} judged cases of {name}."
    )


def _weights(texts: list[str] | None, names: list[str], known: list[str]) -> dict[str, float]:
    """Weight of each estimator, those named by the user first."""
    weights: dict[str, float] = {}
    for text in texts or []:
        name, _, number = text.partition("=")
        if name not in known:
            raise SelectionError(
                f'--weight {text}: unknown estimator "{name}"{nearest(name, known)}; there are {", ".join(known)}'
            )
        try:
            weights[name] = float(number)
        except ValueError:
            raise SelectionError(f"--weight {text}: give a number, as in --weight {name}=1") from None
    return {**weights, **{name: 1.0 for name in names if name not in weights}}


def _mix(weights: dict[str, float]) -> str:
    """The estimator, or the mix, as the provenance says it."""
    if len(weights) == 1:
        return next(iter(weights))
    return " ".join(f"{name}:{weight:g}" for name, weight in weights.items())


def _show(ranking: object, estimators: list[str]) -> None:
    import pandas as pd

    assert isinstance(ranking, pd.DataFrame)
    shown = Table("rank", "case", "subject", "acquisition", "score", *estimators, title="Best in class")
    for row in ranking.head(_SHOWN).to_dict("records"):
        texts = [str(row[name]) for name in ("rank", "case_id", "subject_id", "acquisition_id")]
        shown.add_row(*texts, *(f"{row[name]:.4f}" for name in ("score", *estimators)))
    Console().print(shown)

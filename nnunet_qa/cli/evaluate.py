"""`nnunet-qa evaluate`: Dice of predictions, and how well Q would have found the failures; `evaluate codes` beside it.

The first is the subcommand `folders`, which need not be named.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from nnunet_qa.cli import evaluate_codes
from nnunet_qa.cli.options import DatasetJson, Processes

if TYPE_CHECKING:
    from nnunet_qa.evaluation.summary import Evaluation

_DEFAULT = "folders"


class _Group(TyperGroup):
    """The subcommands; where the first word is an option, it belongs to the default one."""

    def __init__(self, **settings: Any) -> None:
        subcommands = typer.Typer(rich_markup_mode="markdown")
        subcommands.command(_DEFAULT)(folders)
        evaluate_codes.register(subcommands)
        super().__init__(commands=dict(typer.main.get_group(subcommands).commands), **settings)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the name of the default subcommand."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    app.command("evaluate", cls=_Group)(evaluate)  # type: ignore[arg-type]  # Typer gives a group the same settings


def evaluate() -> None:
    """Compare predictions with the truth (`folders`, the default), or arms by their quality codes (`codes`).

    The options of the default are shown by `nnunet-qa evaluate folders --help`.

    Example: `nnunet-qa evaluate -p predictions -gt labelsTs -d 101`
    """


def folders(
    predictions: Path = typer.Option(..., "-p", help="Folder of predicted label maps."),
    truths: Path = typer.Option(..., "-gt", help="Folder of true label maps, with the same names."),
    dataset: str | None = typer.Option(None, "-d", help="Dataset that gives dataset.json and cases.csv."),
    dataset_json: DatasetJson = None,
    cases: Path | None = typer.Option(None, "--cases", help="Case table with the subjects. Default: that of -d."),
    output: Path | None = typer.Option(None, "-o", help="Where to write. Default: the folder of predictions."),
    failure_dice: float = typer.Option(0.5, "--failure-dice", min=0, max=1, help="A case has failed below this Dice."),
    resamples: int = typer.Option(1000, "--resamples", min=0, help="Bootstrap draws; 0 for no intervals."),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of the bootstrap."),
    jobs: Processes = 2,
) -> None:
    """Compare predictions with the truth; with a quality.csv beside them, say how well Q finds failures.

    Writes evaluation.csv (one row a case: the scores, dice, dice_<label>), evaluation.json and evaluation.md.

    Example: `nnunet-qa evaluate -p predictions -gt labelsTs -d 101`
    """
    import numpy as np

    from nnunet_qa.cases import CaseTable
    from nnunet_qa.cli.case_table import find_cases
    from nnunet_qa.cli.dataset_json import find_dataset_json
    from nnunet_qa.data.paths import read_json
    from nnunet_qa.evaluation import summary
    from nnunet_qa.evaluation.folders import Protocol, compare_folders
    from nnunet_qa.quality.table import FILE_NAME, read_quality

    source = find_dataset_json(predictions, dataset, dataset_json)
    protocol = Protocol.of(read_json(source), str(source))
    case_table = find_cases(_with_case_table(dataset), cases)
    known = CaseTable.read(case_table).subjects() if case_table is not None else None
    has_scores = (predictions / FILE_NAME).is_file()
    quality = read_quality(predictions / FILE_NAME) if has_scores else None
    table = compare_folders(predictions, truths, protocol=protocol, jobs=jobs)
    if quality is not None:
        table = summary.join_quality(table, quality)
    evaluation = summary.evaluate(
        table,
        classes=list(protocol.classes),
        subjects=summary.subjects_of(table["case_id"].tolist(), known),
        rng=np.random.default_rng(seed),
        failure_dice=failure_dice,
        resamples=resamples,
    )
    about: dict[str, Any] = {"predictions": predictions, "truth": truths, "labels": source, "case table": case_table}
    if has_scores:
        about |= {"bootstrap draws": resamples, "seed": seed}
    folder = output if output is not None else predictions
    summary.write_evaluation(
        folder, table, evaluation, about={name: str(value) for name, value in about.items() if value is not None}
    )
    _show(evaluation)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if not has_scores:
        console.print(
            f"No {FILE_NAME} beside the predictions, so there is no Q to judge (`nnunet-qa score` writes it)."
        )
    if known is None:
        console.print("No case table was given (-d or --cases), so every case counts as a subject of its own.")
    console.print(f"Wrote {', '.join(str(folder / name) for name in (summary.TABLE, summary.SUMMARY, summary.TEXT))}")


def _show(evaluation: Evaluation) -> None:
    shown = Table("", "", show_header=False, title="Evaluation")
    for name, text in evaluation.rows():
        shown.add_row(name, text)
    Console().print(shown)


def _with_case_table(dataset: str | None) -> str | None:
    """The dataset, where it has a case table; evaluation goes without one."""
    from nnunet_qa.cases import FILE_NAME
    from nnunet_qa.data.paths import dataset_name, raw_dataset_folder_if_known

    if dataset is None:
        return None
    folder = raw_dataset_folder_if_known(dataset_name(dataset))
    return dataset if folder is not None and (folder / FILE_NAME).is_file() else None

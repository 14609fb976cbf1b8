"""`nnunet-qa promote`: newly annotated cases become training cases."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from nnunet_qa.errors import SelectionError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("promote")(promote)


def promote(
    more: list[str] | None = typer.Argument(None, hidden=True),
    dataset: str = typer.Option(..., "-d", help="Dataset number or name."),
    labels: Path = typer.Option(..., "--labels", help="Folder with the new labels, named like case.nii.gz."),
    cases: list[str] | None = typer.Option(
        None, "--cases", help="Cases to promote, one or more. Default: every label in the folder."
    ),
    queue: Path | None = typer.Option(
        None,
        "--queue",
        help="Promote those cases of a queue.csv, initial_set.csv or minimal_set.csv that have a label.",
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check everything and change nothing."),
) -> None:
    """Move annotated cases from imagesUn to imagesTr, with their labels: all of them, or none.

    Labels are checked against their images first. dataset.json, cases.csv and the folds follow; a new case joins the
    fold of its subject. A promotion that was killed is undone when the command runs again. A case that was promoted
    before with the same label is left alone, so one folder of labels can grow from round to round.

    Example: `nnunet-qa promote -d 101 --labels annotated --cases S01_004 S02_011`
    """
    from nnunet_qa.data.paths import PREPROCESSED, base_folder, raw_dataset_folder
    from nnunet_qa.data.promote import promote as promote_cases
    from nnunet_qa.selection.queue import read_queue

    if more and not cases:
        raise SelectionError(f'"{more[0]}" is no option; name cases with --cases')
    if cases and queue is not None:
        raise SelectionError("give --cases or --queue, not both")
    wanted = [*cases, *(more or [])] if cases else None
    if queue is not None:
        wanted = read_queue(queue)["case_id"].tolist()
    raw = raw_dataset_folder(dataset)
    preprocessed = base_folder(PREPROCESSED) / raw.name
    result = promote_cases(
        raw,
        labels,
        preprocessed_folder=preprocessed,
        cases=wanted,
        labels_optional=queue is not None,
        dry_run=dry_run,
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if result.already:
        console.print(f"{len(result.already)} cases were promoted before, with the same label.")
    if result.waiting:
        console.print(f"{len(result.waiting)} cases of the queue have no label yet: {_some(result.waiting)}.")
    if not result.cases:
        console.print("Nothing to promote; nothing changed.")
        return
    verb = "Would promote" if dry_run else "Promoted"
    console.print(f"{verb} {len(result.cases)} cases: {_some(result.cases)}.")
    console.print(f"Annotated cases: {result.annotated}; left in imagesUn: {result.pool}.")
    if result.splits is not None:
        sizes = ", ".join(str(len(fold["val"])) for fold in result.splits)
        console.print(f"Folds: {len(result.splits)}, with {sizes} validation cases.")
    if not dry_run:
        console.print(_next(int(raw.name[7:10]), planned=any(preprocessed.glob("*Plans*.json"))))


def _next(number: int, *, planned: bool) -> str:
    if not planned:
        return f"Next: nnUNetv2_plan_and_preprocess -d {number}."
    return (
        f"Next: nnUNetv2_preprocess -d {number}, or nnUNetv2_plan_and_preprocess -d {number} to plan anew, which may "
        "give a network that earlier weights do not fit. The cache of the unlabelled pool brings itself up to date."
    )


def _some(cases: tuple[str, ...], at_most: int = 10) -> str:
    shown = ", ".join(cases[:at_most])
    return shown if len(cases) <= at_most else f"{shown} and {len(cases) - at_most} more"

"""`nnunet-qa cases`: a case table and subject-grouped folds for a dataset that nnU-Net already knows."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from nnunet_qa.cli.options import DatasetOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("cases")(cases)


def cases(
    dataset: DatasetOption,
    subject_regex: str | None = typer.Option(
        None,
        "--subject-regex",
        help="Regular expression at the start of a case's name; its first group, or all of it, is the subject. "
        "Default: every case is a subject of its own.",
    ),
    folds: int = typer.Option(5, "--folds", min=2, help="Number of folds; fewer where there are fewer subjects."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a case table or folds that say something else."),
) -> None:
    r"""Write cases.csv from the file names in imagesTr, imagesUn and imagesTs, and folds that part no subject.

    Example: `nnunet-qa cases -d 101 --subject-regex '(S\d+)_'`
    """
    from nnunet_qa.cases import Role
    from nnunet_qa.data.existing import describe_dataset
    from nnunet_qa.data.paths import PREPROCESSED, base_folder, raw_dataset_folder

    raw = raw_dataset_folder(dataset)
    described = describe_dataset(
        raw,
        preprocessed_folder=base_folder(PREPROCESSED) / raw.name,
        subject_regex=subject_regex,
        overwrite=overwrite,
        folds=folds,
    )
    shown = Table("role", "cases", "subjects", title=raw.name)
    frame = described.table.frame
    for role in Role:
        rows = frame[frame["role"] == role.value]
        shown.add_row(role.value, str(len(rows)), str(rows["subject_id"].nunique()))
    Console().print(shown)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for path in described.written:
        console.print(f"Wrote {path}", markup=False)
    if not described.written:
        console.print("Everything was there already; nothing changed.")
    if subject_regex is None:
        console.print("Every case is a subject of its own; if subjects have several, give --subject-regex.")

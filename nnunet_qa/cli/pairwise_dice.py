"""`nnunet-qa pairwise-dice`: how much the members of an ensemble agree on each case."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from nnunet_qa.cli.options import Processes


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("pairwise-dice")(pairwise_dice)


def pairwise_dice(
    folders: list[Path] = typer.Option(..., "-i", help="Folder of a member's predictions; give one for each member."),
    dataset: str = typer.Option(..., "-d", help="Dataset whose dataset.json declares the labels."),
    output: Path = typer.Option(..., "-o", help="CSV file to write."),
    jobs: Processes = 2,
) -> None:
    """Mean Dice over all pairs of several predictions of each case, for `nnunet-qa best-in-class --ensemble`.

    Example: `nnunet-qa pairwise-dice -i fold_0 -i fold_1 -i fold_2 -d 101 -o pairwise_dice.csv`
    """
    from nnunet_qa.data.existing import read_dataset_json
    from nnunet_qa.data.paths import raw_dataset_folder
    from nnunet_qa.evaluation import pairwise
    from nnunet_qa.evaluation.folders import Protocol
    from nnunet_qa.files import write_csv

    raw = raw_dataset_folder(dataset)
    protocol = Protocol.of(read_dataset_json(raw), str(raw / "dataset.json"))
    table = pairwise.pairwise_dice(folders, protocol=protocol, jobs=jobs)
    write_csv(output, table.round(6))
    mean = table["pairwise_dice"].mean()
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(
        f"Wrote {output}: {len(table)} cases, mean pairwise Dice {mean:.3f}"
    )

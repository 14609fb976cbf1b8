"""`nnunet-qa demo`: the whole loop on a phantom, in a few minutes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from nnunet_qa.cli.device import chosen_device
from nnunet_qa.cli.options import DeviceOption, StartAnew


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    output: Path = typer.Option(Path("demo_out"), "-o", help="Folder for everything that the demo writes."),
    dataset: str = typer.Option(
        "oct-chiu", "--dataset", metavar="SOURCE", help="Layout of the phantom, named as in `nnunet-qa convert`."
    ),
    device: DeviceOption = None,
    jobs: int = typer.Option(2, "--jobs", "-np", min=1, help="Processes of each step."),
    overwrite: StartAnew = False,
) -> None:
    """Draw a phantom and run the loop on it: convert, plan, train, predict with quality, what to annotate next.

    Takes some minutes on two cores. Prints each command, so that you can type them for your own data.

    Example: `nnunet-qa demo -o demo_out`
    """
    from nnunet_qa.experiments.demo import Demo

    console = Console()
    run = Demo(output.resolve(), dataset, device=chosen_device(device).type, jobs=jobs)
    run.begin(overwrite=overwrite)
    with console.status("drawing the phantom") as status:
        run.write_phantom()
        total = len(run.steps())
        for number, step in enumerate(run.run(), start=1):
            console.print(f"[bold]{number}/{total} {step.name}[/bold]", highlight=False)
            console.print(f"  $ {' '.join(step.command)}", highlight=False, markup=False, soft_wrap=True)
            status.update(step.name)
        status.update("drawing the picture")
        picture = run.picture()
    if run.source.tests:
        console.print((run.folder / "evaluation.md").read_text(encoding="utf-8"), markup=False, highlight=False)
    console.print(_queue_table(run.folder / "queue.csv"))
    console.print(f"Lowest Q, both outputs overlaid: {picture}", soft_wrap=True, highlight=False)


def _queue_table(path: Path) -> Table:
    queue = pd.read_csv(path)
    table = Table(title="What to annotate next")
    for column in ("rank", "case_id", "subject_id", "q"):
        table.add_column(column, justify="right" if column in ("rank", "q") else "left")
    for row in queue.itertuples():
        table.add_row(str(row.rank), str(row.case_id), str(row.subject_id), f"{row.q:.3f}")
    return table

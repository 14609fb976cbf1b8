"""`nnunet-qa move-plans`: plans of an annotated dataset for one of unlabelled images."""

from __future__ import annotations

import typer

from nnunet_qa.cli.options import ReplacePlans


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("move-plans")(move_plans)


def move_plans(
    source: str = typer.Option(..., "-s", metavar="DATASET", help="Number or name of the planned dataset."),
    target: str = typer.Option(..., "-t", metavar="DATASET", help="Number or name of the raw dataset with imagesUn."),
    plans: str = typer.Option("nnUNetPlans", "-sp", metavar="PLANS", help="Plans of the source."),
    identifier: str = typer.Option(..., "-tp", metavar="PLANS", help="Their name at the target."),
    overwrite: ReplacePlans = False,
) -> None:
    """Give a dataset that needs no annotated case the plans of another, so that weights trained on one fit the other.

    Example: `nnunet-qa move-plans -s 101 -t 102 -tp nnUNetPlansFrom101`
    """
    from nnunet_qa.data.moved_plans import move_plans as run

    path = run(source, target, plans=plans, identifier=identifier, overwrite=overwrite)
    typer.echo(str(path))
    typer.echo(f"next: nnunet-qa pool -d {target} -c 2d -p {identifier}", err=True)
    typer.echo(f"then: nnUNetv2_train {target} 2d all -p {identifier} -tr RestorationTrainer", err=True)

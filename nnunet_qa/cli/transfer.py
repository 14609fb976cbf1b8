"""`nnunet-qa transfer`: start the training of one dataset from weights of another."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from nnunet_qa.cli.options import ReplacePlans
from nnunet_qa.cli.plans import numbers


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("transfer")(transfer)


def transfer(
    model: Path = typer.Option(
        ..., "-i", metavar="FOLDER", help="Trained model: nnUNet_results/DatasetXXX/TRAINER__PLANS__CONFIGURATION."
    ),
    fold: str = typer.Option(..., "-f", metavar="FOLD", help="Fold of the trained model: a number or all."),
    checkpoint: str = typer.Option("checkpoint_final.pth", "-chk", help="Checkpoint file in the fold."),
    dataset: str = typer.Option(..., "-d", metavar="DATASET", help="Number or name of the dataset to train, planned."),
    configuration: str = typer.Option(..., "-c", metavar="CONFIGURATION", help="The one to train, such as 2d."),
    plans: str = typer.Option("nnUNetPlans", "-p", metavar="PLANS", help="Plans of that dataset to start from."),
    identifier: str = typer.Option(..., "-o", metavar="PLANS", help="Name of the new plans."),
    patch_size: str | None = typer.Option(
        None, "--patch-size", metavar="N,N[,N]", help="Default: the planned one, rounded to what the network can halve."
    ),
    batch_size: int | None = typer.Option(None, "--batch-size", metavar="N", help="Patches a batch; default: planned."),
    overwrite: ReplacePlans = False,
) -> None:
    """Write plans and weights with which one dataset's training starts from another's, such as OCT from CT.

    The plans keep the dataset's preprocessed data and take the trained network; the weights are made to fit the data.

    Example: `nnunet-qa transfer -i nnUNet_results/Dataset105_CT/QAsemiTrainer__nnUNetPlans__2d -f 0 -d 101 -c 2d -o
    nnUNetPlansFromCT`
    """
    from nnunet_qa.data.transfer import transfer as run
    from nnunet_qa.environment import set_up

    set_up()
    done = run(
        model,
        dataset,
        fold=fold,
        configuration=configuration,
        identifier=identifier,
        checkpoint=checkpoint,
        plans=plans,
        patch_size=numbers(patch_size, "--patch-size"),
        batch_size=batch_size,
        overwrite=overwrite,
    )
    typer.echo(f"plans: {done.plans}\nweights: {done.weights}")
    for line in done.changes:
        typer.echo(line)
    which = f"-tr {done.trainer} -p {identifier}"
    images = f"$nnUNet_raw/{done.plans.parent.name}/imagesUn"
    typer.echo("Next:")
    typer.echo(
        f"  nnUNetv2_train {dataset} {configuration} 0 {which} -pretrained_weights {shlex.quote(str(done.weights))}"
    )
    typer.echo(f'  nnunet-qa score -i "{images}" -o predictions -d {dataset} -c {configuration} {which} -f 0')

"""`nnunet-qa plans`: smaller plans for a CPU or a small GPU."""

from __future__ import annotations

import typer

from nnunet_qa.cli.options import ReplacePlans
from nnunet_qa.data.plans import PlansError, Smaller, write_smaller_plans


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("plans")(plans)


def plans(
    dataset: str = typer.Option(..., "-d", metavar="DATASET", help="Number or name of a preprocessed dataset."),
    configuration: str = typer.Option(..., "-c", metavar="CONFIGURATION", help="The one to make smaller, such as 2d."),
    source: str = typer.Option("nnUNetPlans", "-p", metavar="PLANS", help="Plans to start from."),
    identifier: str = typer.Option("nnUNetPlansSmall", "-o", metavar="PLANS", help="Name of the new plans."),
    features: str | None = typer.Option(
        None, "--features", metavar="N,N,…", help="Features of each stage, finest first; fewer than planned cut stages."
    ),
    batch_size: int | None = typer.Option(None, "--batch-size", metavar="N", help="Patches a batch."),
    patch_size: str | None = typer.Option(
        None, "--patch-size", metavar="N,N[,N]", help="Voxels along each axis, in the order of the plans."
    ),
    image_size: str | None = typer.Option(
        None,
        "--image-size",
        metavar="N,N[,N]",
        help="Resample the median image to so many voxels, which are the patch too; needs preprocessing anew.",
    ),
    hu_window: tuple[float, float] | None = typer.Option(
        None,
        "--hu-window",
        metavar="LOW HIGH",
        help="Clip CT to this range of HU and scale it to 0 to 1; needs preprocessing anew.",
    ),
    overwrite: ReplacePlans = False,
) -> None:
    """Write smaller plans beside the existing ones.

    Without --image-size and --hu-window they use data that is already preprocessed.

    Example: `nnunet-qa plans -d 101 -c 2d --features 16,32,64,128 --batch-size 8 --patch-size 80,192`
    """
    smaller = Smaller(
        features=numbers(features, "--features"),
        batch_size=batch_size,
        patch_size=numbers(patch_size, "--patch-size"),
        image_size=numbers(image_size, "--image-size"),
        hu_window=hu_window,
    )
    path = write_smaller_plans(
        dataset,
        configuration,
        smaller=smaller,
        source=source,
        identifier=identifier,
        overwrite=overwrite,
    )
    typer.echo(str(path))
    if smaller.needs_preprocessing:
        typer.echo(f"first: nnUNetv2_preprocess -d {dataset} -plans_name {identifier} -c {configuration}", err=True)
    typer.echo(f"train with: nnUNetv2_train {dataset} {configuration} 0 -p {identifier} -tr QAsemiTrainer", err=True)


def numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Whole numbers of an option such as `--patch-size 96,192`; None where it was not given.

    Raises:
        PlansError: the text is something else.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise PlansError(f'{option} "{text}": must be whole numbers parted by commas, such as 16,32,64') from error

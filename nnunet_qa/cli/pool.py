"""`nnunet-qa pool`: preprocess the unlabelled images of a dataset."""

from __future__ import annotations

import typer
from rich.console import Console

from nnunet_qa.cli.options import DatasetOption, Processes
from nnunet_qa.data.paths import preprocessed_dataset_folder, raw_dataset_folder, read_json, read_plans
from nnunet_qa.errors import DatasetError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("pool")(pool)


def pool(
    dataset: DatasetOption,
    configurations: list[str] = typer.Option(
        ["2d", "3d_fullres", "3d_lowres"], "-c", help="Configuration, repeatable. Default: those that the plans have."
    ),
    plans_identifier: str = typer.Option("nnUNetPlans", "-p", help="Plans identifier."),
    jobs: Processes = 2,
) -> None:
    """Preprocess imagesUn/ for training, with the plan's own preprocessor.

    QAsemiTrainer does this at its start; as a command it can run beforehand and on another machine. What is done
    already is kept, so a stopped run goes on.

    Example: `nnunet-qa pool -d 101 -c 2d --jobs 8`
    """
    from nnunet_qa.data.journal import refuse_unsettled
    from nnunet_qa.data.pool import pool_images, prepare_pool

    raw = raw_dataset_folder(dataset)
    preprocessed = preprocessed_dataset_folder(dataset)
    plans = read_plans(dataset, plans_identifier)
    dataset_json = read_json(preprocessed / "dataset.json")
    refuse_unsettled(raw)
    images = pool_images(raw, dataset_json)
    if not images:
        raise DatasetError(f"{raw / 'imagesUn'}: no unlabelled image there; put some in, named like case_0000.nii.gz")
    known = plans.get("configurations", {})
    wanted = list(dict.fromkeys(configurations))
    if wanted == ["2d", "3d_fullres", "3d_lowres"]:
        wanted = [name for name in wanted if name in known]
    for configuration in wanted:
        done = prepare_pool(images, preprocessed, plans, configuration, dataset_json, jobs=jobs)
        Console(stderr=True).print(f"{configuration}: {len(done.case_ids)} cases in {done.folder}", soft_wrap=True)

"""`nnunet-qa interact`: predict a folder with clicks, from files or of a simulated user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from nnunet_qa.cli.device import chosen_device
from nnunet_qa.cli.options import DeviceOption
from nnunet_qa.data.paths import RESULTS, base_folder, dataset_name
from nnunet_qa.errors import ClickError

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_qa.inference.interactive_folder import SimulatedUser
    from nnunet_qa.interaction.click_files import Mark


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("interact")(interact)


def interact(
    images: Path = typer.Option(..., "-i", help="Folder of images, named like case_0000.nii.gz."),
    output: Path = typer.Option(..., "-o", help="Where masks, clicks.csv and dice.csv go."),
    dataset: str = typer.Option(..., "-d", help="Dataset number or name of the trained model."),
    configuration: str = typer.Option(..., "-c", help="Configuration: 2d, 3d_fullres, …"),
    clicks: Path | None = typer.Option(
        None, "--clicks", help="Folder of <case>.mrk.json or <case>.csv; or a CSV with a column case_id."
    ),
    simulated: Path | None = typer.Option(
        None, "--simulate", help="Folder of true label maps, from which a simulated user clicks."
    ),
    truths: Path | None = typer.Option(None, "-gt", help="With --clicks: true label maps, for Dice after each click."),
    number: int | None = typer.Option(None, "--number", min=0, help="Rounds of a simulated user. Default: 5."),
    mode: str | None = typer.Option(
        None, "--mode", help="How a simulated user begins: points or line. Default: points."
    ),
    least_error: int | None = typer.Option(
        None, "--least-error", min=0, help="Errors of fewer voxels get no simulated click. Default: 5."
    ),
    folds: str = typer.Option("", "-f", help="Folds, with commas between them: 0,1,2. Default: all that are trained."),
    trainer: str = typer.Option("InteractiveTrainer", "-tr", help="Trainer of the model."),
    plans: str = typer.Option("nnUNetPlans", "-p", help="Plans identifier."),
    checkpoint: str = typer.Option("checkpoint_final.pth", "-chk", help="Checkpoint file in each fold."),
    disable_tta: bool = typer.Option(False, "--disable_tta", help="No mirroring of the prediction before any click."),
    previous: Path | None = typer.Option(None, "-prev_stage_predictions", help="Predictions of the previous stage."),
    device: DeviceOption = None,
    overwrite: bool = typer.Option(False, "--overwrite", help="Predict everything again instead of going on."),
) -> None:
    """Correct predictions with clicks, and write the masks and a table of all clicks.

    Clicks come from 3D Slicer (`.mrk.json`) or CSV, or from a simulated user who knows the truth: first in the middle
    of the object, then in that of the largest error. With truths, dice.csv and dice.png say what each round brings. A
    run that was stopped goes on where it was.

    Example: `nnunet-qa interact -i imagesTs -o corrected -d 101 -c 2d --clicks clicks`
    """
    options: dict[str, Any] = {"number": number, "mode": mode, "least_error": least_error}
    options = {name: value for name, value in options.items() if value is not None}
    if (clicks is None) == (simulated is None):
        raise ClickError("give either --clicks or --simulate")
    if simulated is not None and truths is not None:
        raise ClickError("-gt goes with --clicks; --simulate has label maps of its own")
    if clicks is not None:
        _check_clicks(clicks, output, list(options))

    from nnunet_qa.environment import set_up
    from nnunet_qa.inference.interactive import InteractivePredictor
    from nnunet_qa.inference.interactive_folder import CLICKS, PICTURE, interact_folder
    from nnunet_qa.reports.interaction_figures import dice_against_clicks

    simulation = _simulation(**options)
    set_up()
    model = base_folder(RESULTS) / dataset_name(dataset) / f"{trainer}__{plans}__{configuration}"
    predictor = InteractivePredictor.from_model(
        model,
        folds=[fold.strip() for fold in folds.split(",") if fold.strip()],
        checkpoint=checkpoint,
        device=chosen_device(device),
        mirroring=not disable_tta,
    )
    if clicks is not None:
        user: SimulatedUser | dict[str, list[Mark]] = _marks(clicks, images, predictor.predictor.dataset_json)
    else:
        user = simulation
    table = interact_folder(
        predictor,
        images,
        output,
        user=user,
        truths=truths or simulated,
        previous_stage=previous,
        overwrite=overwrite,
    )
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if table is not None:
        dice_against_clicks(output / PICTURE, table)
        console.print(f"{_gain(table)}; see {output / PICTURE}.")
    console.print(f"Wrote the masks and {output / CLICKS}.")


def _check_clicks(clicks: Path, output: Path, options: list[str]) -> None:
    """Refuse what goes with a simulated user alone, and clicks in a folder that is cleared."""
    if options:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise ClickError(f"{names}: for the user of --simulate; clicks from files are taken as they are")
    if clicks.resolve().is_relative_to(output.resolve()):
        raise ClickError(f"{clicks}: lies in {output}, whose tables are written anew; copy it, or choose another -o")


def _simulation(*, mode: str = "points", **more: Any) -> SimulatedUser:
    """The simulated user of the options that were given."""
    from nnunet_qa.config_limited_data import ClickMode
    from nnunet_qa.inference.interactive_folder import SimulatedUser

    known = [one.value for one in ClickMode]
    if mode not in known:
        raise ClickError(f'--mode "{mode}": must be one of {", ".join(known)}')
    return SimulatedUser(mode=ClickMode(mode), **more)


def _marks(clicks: Path, images: Path, dataset_json: dict[str, Any]) -> dict[str, list[Mark]]:
    """The clicks in files, by case."""
    from nnunet_qa.data.pool import case_files
    from nnunet_qa.interaction.click_files import find_marks

    cases = case_files(images, dataset_json["file_ending"], len(dataset_json["channel_names"]))
    return find_marks(clicks, list(cases), dataset_json["labels"])


def _gain(table: pd.DataFrame) -> str:
    """What all clicks together brought."""
    first = table[table["round"] == 0]["dice"].mean()
    last = table.groupby(["case_id", "label"])["dice"].last().mean()
    return f"Mean Dice {first:.3f} without clicks, {last:.3f} with all of them"

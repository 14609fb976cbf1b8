"""`nnunet-qa crf`: refine predicted masks with a fully connected CRF, and find settings for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from nnunet_qa.cli.options import DatasetJson, Processes
from nnunet_qa.errors import CRFError

if TYPE_CHECKING:
    from nnunet_qa.inference.crf_tune import Tuned


def register(app: typer.Typer) -> None:
    """Add the group and its commands."""
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="markdown",
        help="Move the borders of predicted masks to edges of the image (fully connected CRF).",
    )
    for command in (tune, apply):
        group.command(command.__name__)(command)
    app.add_typer(group, name="crf")


def tune(
    dataset: str = typer.Option(..., "-d", help="Number or name of the raw dataset with images and labels."),
    probabilities: list[Path] = typer.Option(
        ..., "-p", help="Folder with .npz of validation cases, fold_X/validation; once for each fold."
    ),
    output: Path = typer.Option(..., "-o", help="The file of settings to write, such as crf.json."),
    mode: str = typer.Option("3d", "--mode", help="3d: a volume at once. 2d: each slice alone."),
    trials: int = typer.Option(50, "--trials", min=1, help="How many settings are drawn."),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of the draws."),
    jobs: Processes = 2,
) -> None:
    """Draw settings, try them on validation cases, keep those of the highest mean Dice, and say what they gain.

    A run that was stopped goes on where it was; the trials lie in <name>_trials.csv beside the file of settings.

    Example: `nnunet-qa crf tune -d 101 -p fold_0/validation -o crf.json`
    """
    from nnunet_qa.data.existing import read_dataset_json
    from nnunet_qa.data.paths import raw_dataset_folder
    from nnunet_qa.files import write_json
    from nnunet_qa.inference import crf_tune
    from nnunet_qa.inference.crf import Mode
    from nnunet_qa.inference.crf_folder import CaseReader

    known = [one.value for one in Mode]
    if mode not in known:
        raise CRFError(f'--mode "{mode}": must be one of {", ".join(known)}')
    if output.suffix != ".json":
        raise CRFError(f"{output}: name a file that ends in .json, such as crf.json")
    state = output.with_name(f"{output.stem}_trials.csv")
    if output.exists() and not state.exists():
        raise CRFError(f"{output}: is there already and has no {state.name} beside it; choose another name")
    raw = raw_dataset_folder(dataset)
    dataset_json = read_dataset_json(raw)
    reader = CaseReader.of(dataset_json, str(raw / "dataset.json"))
    tuned = crf_tune.tune(
        crf_tune.tuning_cases(dataset, probabilities),
        reader=reader,
        labels=dataset_json["labels"],
        trials=trials,
        seed=seed,
        mode=Mode(mode),
        state=state,
        jobs=jobs,
    )
    write_json(output, tuned.as_json())
    console = _console()
    for line in _findings(tuned):
        console.print(line)
    console.print(f"Wrote {output} and {state}. Next: nnunet-qa crf apply -s {output} -p … -i … -o …")


def apply(
    probabilities: Path = typer.Option(
        ..., "-p", help="Folder of predictions with .npz (nnUNetv2_predict --save_probabilities)."
    ),
    images: Path = typer.Option(..., "-i", help="Folder of the images that were predicted."),
    output: Path = typer.Option(..., "-o", help="Folder for the refined masks."),
    settings: Path | None = typer.Option(
        None, "-s", help="File of settings, JSON or YAML, as `crf tune` writes it. Default: settings tuned on nothing."
    ),
    dataset: str | None = typer.Option(None, "-d", help="Dataset that gives dataset.json."),
    dataset_json: DatasetJson = None,
    jobs: Processes = 2,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace masks that were made with other settings."),
) -> None:
    """Refine predictions and write masks with the same names and geometry; a run that was stopped goes on.

    Example: `nnunet-qa crf apply -p predictions -i imagesTs -o refined -s crf.json`
    """
    from nnunet_qa.cli.dataset_json import find_dataset_json
    from nnunet_qa.data.paths import read_json
    from nnunet_qa.inference.crf import CRFSettings
    from nnunet_qa.inference.crf_folder import apply_folder

    chosen = CRFSettings.read(settings) if settings is not None else CRFSettings()
    source = find_dataset_json(probabilities, dataset, dataset_json)
    count = apply_folder(
        probabilities,
        images,
        output,
        dataset_json=read_json(source),
        source=str(source),
        settings=chosen,
        overwrite=overwrite,
        jobs=jobs,
    )
    console = _console()
    if settings is None:
        console.print("The settings are not tuned; `nnunet-qa crf tune` finds some on validation cases.")
    if chosen.does_nothing:
        console.print("Both weights are 0: these settings change nothing.")
    console.print(f"{count} refined masks are in {output}.")


def _findings(tuned: Tuned) -> list[str]:
    """What the tuning says about the CRF, for people."""
    lines = [
        f"Mean Dice of {tuned.cases} cases of {tuned.subjects} subjects: {tuned.dice_before:.4f} as predicted, "
        f"{tuned.dice_before + tuned.gain:.4f} ({tuned.gain:+.4f}) with the best of {tuned.trials - 1} settings."
    ]
    if tuned.settings.does_nothing:
        return [*lines, "No drawn setting is better than none, so the file says to change nothing."]
    if tuned.subjects < 2:
        return [*lines, "With one subject nothing can be said about others; tune on more."]
    low, high = tuned.held_out_interval
    lines.append(
        f"On subjects that did not choose the settings: {tuned.held_out_gain:+.4f} (95% interval {low:+.4f} to "
        f"{high:+.4f}, bootstrap over subjects)."
    )
    if not low > 0:
        lines.append("So a gain on other subjects is not shown.")
    return lines


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

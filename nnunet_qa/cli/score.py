"""`nnunet-qa score`: predict a folder as `nnUNetv2_predict` does, with the quality of each case."""

from __future__ import annotations

import os
from pathlib import Path

import typer
from rich.console import Console

from nnunet_qa.cli.device import chosen_device
from nnunet_qa.cli.options import DeviceOption
from nnunet_qa.data.paths import RESULTS, base_folder, dataset_name


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("score")(score)


def score(
    images: Path = typer.Option(..., "-i", help="Folder of images, named like case_0000.nii.gz."),
    output: Path = typer.Option(..., "-o", help="Where segmentations and quality.csv go."),
    dataset: str = typer.Option(..., "-d", help="Dataset number or name of the trained model."),
    configuration: str = typer.Option(..., "-c", help="Configuration: 2d, 3d_fullres, …"),
    folds: str = typer.Option("", "-f", help="Folds, with commas between them: 0,1,2. Default: all that are trained."),
    trainer: str = typer.Option("QAsemiTrainer", "-tr", help="Trainer of the model; any with deep supervision."),
    plans: str = typer.Option("nnUNetPlans", "-p", help="Plans identifier."),
    checkpoint: str = typer.Option("checkpoint_final.pth", "-chk", help="Checkpoint file in each fold."),
    step_size: float = typer.Option(0.5, "-step_size", min=0.01, max=1.0, help="Step of the sliding window."),
    disable_tta: bool = typer.Option(False, "--disable_tta", help="No test-time mirroring."),
    npz: bool = typer.Option(False, "--npz", "--save_probabilities", help="Also write the class probabilities."),
    second: bool = typer.Option(False, "--second", help="Also write the second output into second_output/."),
    entropy: bool = typer.Option(False, "--entropy", help="Also measure the mean predictive entropy, in nats."),
    mc_dropout: bool = typer.Option(False, "--mc-dropout", help="Predict with dropout on; segmentations vary with it."),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of --mc-dropout."),
    num_parts: int = typer.Option(1, "-num_parts", "--num-parts", min=1, help="How many runs share this folder."),
    part_id: int = typer.Option(0, "-part_id", "--part-id", min=0, help="Which of them this is, from 0."),
    previous: Path | None = typer.Option(None, "-prev_stage_predictions", help="Predictions of the previous stage."),
    jobs: int = typer.Option(2, "--jobs", "-np", min=1, help="Background processes for reading, as many for writing."),
    device: DeviceOption = None,
    overwrite: bool = typer.Option(False, "--overwrite", help="Predict everything again instead of going on."),
) -> None:
    """Predict a folder of images and write quality.csv beside the segmentations.

    The segmentations are those of `nnUNetv2_predict`. Q is the agreement of the network's two finest outputs, from 0 to
    1, for each case, class and slice. A run that was stopped goes on where it was.

    With `--mc-dropout` both outputs are samples, so the segmentations are no longer those of `nnUNetv2_predict`.

    Example: `nnunet-qa score -i imagesUn -o predictions -d 101 -c 2d -f 0`
    """
    from nnunet_qa.environment import set_up
    from nnunet_qa.inference.score import ScoreOptions, find_case_table, score_folder

    set_up()
    options = ScoreOptions(
        folds=tuple(fold.strip() for fold in folds.split(",") if fold.strip()),
        checkpoint=checkpoint,
        step_size=step_size,
        mirroring=not disable_tta,
        save_probabilities=npz,
        save_second=second,
        entropy=entropy,
        mc_dropout=mc_dropout,
        seed=seed,
        num_parts=num_parts,
        part_id=part_id,
        processes=jobs,
        previous_stage=os.fspath(previous) if previous is not None else None,
    )
    model = base_folder(RESULTS) / dataset_name(dataset) / f"{trainer}__{plans}__{configuration}"
    table = score_folder(
        model,
        images,
        output,
        options,
        device=chosen_device(device),
        overwrite=overwrite,
        cases=find_case_table(images),
    )
    if table is None:
        Console(stderr=True).print("This part is done; the last part to finish writes quality.csv.")
    else:
        Console(stderr=True).print(f"Wrote {table}. Next: nnunet-qa select -q {table} -d {dataset}", soft_wrap=True)

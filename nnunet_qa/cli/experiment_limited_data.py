"""`nnunet-qa experiment limited-data`: models of few patients, with pretraining and with clicks, as in paper 004."""

from __future__ import annotations

from pathlib import Path

import typer

from nnunet_qa.cli.device import Device, chosen_device
from nnunet_qa.cli.experiment_parts import check_settings, parsed_names, parsed_seeds, run_cells, show
from nnunet_qa.errors import SelectionError


def limited_data(
    dataset: str = typer.Option(..., "-d", help="Raw dataset with every case annotated and a cases.csv."),
    output: Path = typer.Option(..., "-o", help="Folder of the experiment; run again to go on."),
    configuration: str = typer.Option("2d", "-c", help="2d or 3d_fullres."),
    budget: str = typer.Option("cpu", "--budget", help="cpu, gpu, or a YAML file with a budget."),
    seeds: str = typer.Option("0,1,2", "--seeds", help="Draws, with commas between them; may be extended later."),
    sizes: str = typer.Option("1,2,3,5,10,all", "--sizes", help="Annotated patients; may be extended later."),
    groups: str = typer.Option(
        "seg,pretrained,interactive,both,semi", "--groups", help="What is compared; paper is the sixth, 2d only."
    ),
    clicks: int = typer.Option(5, "--clicks", min=1, help="Most simulated clicks on a test case (2d: on a slice)."),
    pretraining: int = typer.Option(2, "--pretraining", min=1, help="Steps of the restoration, in those of a model."),
    test_folds: int = typer.Option(3, "--test-folds", min=2, help="Seed s tests fold s of so many folds of patients."),
    validation_subjects: int = typer.Option(1, "--validation-subjects", min=1, help="Patients for validation."),
    device: Device | None = typer.Option(None, "-device", help="Default: cuda where there is one, else cpu."),
    jobs: int = typer.Option(1, "--jobs", "-np", min=1, help="Processes of each command."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Start anew instead of going on."),
    report_only: bool = typer.Option(False, "--report-only", help="Write tables and figures of what is done."),
) -> None:
    """Dice against annotated patients: alone, pretrained, interactive, both, and QAsemiTrainer (paper 004).

    Each model trains in nnU-Net folders of its own below the output folder, and is never run twice.

    Example: `nnunet-qa experiment limited-data -d 114 -o mandible --sizes 1,2,3 --groups seg,interactive`
    """
    from nnunet_qa.data.paths import raw_dataset_folder
    from nnunet_qa.environment import set_up
    from nnunet_qa.experiments.budget import Budget
    from nnunet_qa.experiments.limited_data import LimitedDataExperiment, Protocol
    from nnunet_qa.experiments.limited_data_report import write_report

    if report_only and overwrite:
        raise SelectionError("--overwrite deletes what --report-only reports; give one of them")
    set_up()
    experiment = LimitedDataExperiment(
        source=raw_dataset_folder(dataset).absolute(),
        folder=output.absolute(),
        protocol=Protocol(
            configuration=configuration,
            budget=Budget.named(budget),
            sizes=parsed_sizes(sizes),
            pretraining=pretraining,
            clicks=clicks,
            test_folds=test_folds,
            validation_subjects=validation_subjects,
        ),
        device=chosen_device(device).type,
        jobs=jobs,
    )
    if report_only:
        check_settings(experiment.runner)
    else:
        wanted, draws = experiment.arms_of(parsed_names(groups) or []), parsed_seeds(seeds)
        experiment.check(draws, wanted)
        run_cells(experiment.runner, wanted, draws, overwrite=overwrite)
    show(write_report(experiment))


def parsed_sizes(text: str) -> tuple[int | str, ...]:
    """Different numbers of patients parted by commas, from 1 up, or `all`.

    Raises:
        SelectionError: they are not.

    >>> parsed_sizes("1, 5,all")
    (1, 5, 'all')
    """
    from nnunet_qa.experiments.limited_data import ALL

    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if part != ALL and not (part.isdecimal() and int(part) > 0)]
    if wrong or len(set(parts)) < len(parts):
        raise SelectionError(
            f'--sizes "{text}": must be different numbers of patients from 1 up, or all, parted by commas, such as '
            "1,2,3,all"
        )
    return tuple(part if part == ALL else int(part) for part in parts)

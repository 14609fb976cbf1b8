"""`nnunet-qa experiment semi-qc`: the best of one's own predictions as labels, as paper 003 compares it."""

from __future__ import annotations

from pathlib import Path

import typer

from nnunet_qa.cli.device import Device, chosen_device
from nnunet_qa.cli.experiment_parts import check_settings, parsed_names, parsed_seeds, run_cells, show
from nnunet_qa.config import Unit
from nnunet_qa.errors import SelectionError


def semi_qc(
    dataset: str = typer.Option(..., "-d", help="Raw dataset with every case annotated and a cases.csv."),
    output: Path = typer.Option(..., "-o", help="Folder of the experiment; run again to go on."),
    configuration: str = typer.Option("2d", "-c", help="2d or 3d_fullres."),
    budget: str = typer.Option("cpu", "--budget", help="cpu, gpu, or a YAML file with a budget."),
    seeds: str = typer.Option("0,1,2", "--seeds", help="Draws, with commas between them; may be extended later."),
    arms: str = typer.Option("", "--arms", help="Arms, with commas between them. Default: all."),
    number: int = typer.Option(30, "-k", "--number", min=1, help="Pool cases, or acquisitions, that join."),
    per_subject: int | None = typer.Option(None, "--per-subject", min=1, help="At most so many of one subject."),
    unit: Unit = typer.Option(Unit.CASE, "--unit", help="Choose single cases, or whole acquisitions."),
    scheme: str | None = typer.Option(
        None, "--scheme", help="For cine series: ukbb, ukbb_ao, acdc, or your own, lv=1,myocardium=2. Default: no cine."
    ),
    erroneous_below: float = typer.Option(
        0.7, "--erroneous-below", min=0.0, max=1.0, help="Mean Dice below which an acquisition is erroneous."
    ),
    success: float = typer.Option(0.8, "--success", min=0.0, max=1.0, help="Dice from which a case has code 0."),
    failure: float = typer.Option(0.5, "--failure", min=0.0, max=1.0, help="Dice below which a case has code 2."),
    fit_epochs: int = typer.Option(50, "--fit-epochs", min=1, help="Epochs of the discriminator, at most."),
    fit_per_code: int = typer.Option(4, "--fit-per-code", min=1, help="Simulated errors of each code and case."),
    fit_rate: float = typer.Option(1e-4, "--fit-learning-rate", min=1e-9, help="Learning rate of the discriminator."),
    crf_trials: int = typer.Option(20, "--crf-trials", min=1, help="Settings of the CRF that are tried."),
    half: float = typer.Option(0.5, "--half", min=0.0, max=1.0, help="Part of the subjects that is annotated."),
    test_folds: int = typer.Option(3, "--test-folds", min=2, help="Seed s tests fold s of so many folds of subjects."),
    validation_subjects: int = typer.Option(1, "--validation-subjects", min=1, help="Subjects for validation."),
    device: Device | None = typer.Option(None, "-device", help="Default: cuda where there is one, else cpu."),
    jobs: int = typer.Option(1, "--jobs", "-np", min=1, help="Processes of each command."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Start anew instead of going on."),
    report_only: bool = typer.Option(False, "--report-only", help="Write tables and figures of what is done."),
) -> None:
    """Half of the labels and the best predictions of the rest, against random ones, a CRF and all labels (paper 003).

    With --scheme predictions are chosen by a curve classifier, else by Q. Each arm and seed trains in nnU-Net folders
    of its own, and is never run twice.

    Example: `nnunet-qa experiment semi-qc -d 115 -o hearts --scheme lv=1 --unit acquisition -k 4 --seeds 0,1,2`
    """
    from nnunet_qa.data.paths import raw_dataset_folder
    from nnunet_qa.environment import set_up
    from nnunet_qa.experiments.budget import Budget
    from nnunet_qa.experiments.semi_qc import Protocol, SemiQCExperiment
    from nnunet_qa.experiments.semi_qc_report import write_report
    from nnunet_qa.quality.codes import CodeThresholds
    from nnunet_qa.quality.curves import LabelScheme

    if report_only and overwrite:
        raise SelectionError("--overwrite deletes what --report-only reports; give one of them")
    set_up()
    protocol = Protocol(
        configuration=configuration,
        budget=Budget.named(budget),
        number=number,
        per_subject=per_subject,
        unit=unit,
        scheme=None if scheme is None else LabelScheme.parse(scheme),
        erroneous_below=erroneous_below,
        thresholds=CodeThresholds(success, failure),
        fit={"epochs": fit_epochs, "per-code": fit_per_code, "learning-rate": fit_rate},
        crf_trials=crf_trials,
        half=half,
        test_folds=test_folds,
        validation_subjects=validation_subjects,
    )
    experiment = SemiQCExperiment(
        source=raw_dataset_folder(dataset).absolute(),
        folder=output.absolute(),
        protocol=protocol,
        device=chosen_device(device).type,
        jobs=jobs,
    )
    if not report_only:
        wanted, draws = parsed_names(arms), parsed_seeds(seeds)
        experiment.check(draws, wanted)
        run_cells(experiment.runner, wanted, draws, overwrite=overwrite)
    else:
        check_settings(experiment.runner)
    show(write_report(experiment))

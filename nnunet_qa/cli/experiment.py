"""`nnunet-qa experiment`: the protocols of the papers, with known labels in the annotator's place."""

from __future__ import annotations

from pathlib import Path

import typer

from nnunet_qa.cli.device import Device, chosen_device
from nnunet_qa.cli.experiment_limited_data import limited_data
from nnunet_qa.cli.experiment_parts import check_settings, parsed_names, parsed_seeds, run_cells, show
from nnunet_qa.cli.experiment_semi_qc import semi_qc
from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.roi import Roi


def register(app: typer.Typer) -> None:
    """Add the group and its experiments."""
    group = typer.Typer(
        name="experiment", no_args_is_help=True, help="Compare methods on a fully annotated dataset, as the papers do."
    )
    group.command("qu-net-plus-plus")(qu_net_plus_plus)
    group.command("qa-loss")(qa_loss)
    group.command("semi-qc")(semi_qc)
    group.command("limited-data")(limited_data)
    app.add_typer(group)


def qu_net_plus_plus(
    dataset: str = typer.Option(..., "-d", help="Raw dataset with every case annotated and a cases.csv."),
    output: Path = typer.Option(..., "-o", help="Folder of the experiment; run again to go on."),
    configuration: str = typer.Option("2d", "-c", help="2d or 3d_fullres."),
    budget: str = typer.Option("cpu", "--budget", help="cpu, gpu, paper, or a YAML file with a budget."),
    seeds: str = typer.Option("0,1,2", "--seeds", help="Draws, with commas between them; may be extended later."),
    arms: str = typer.Option("", "--arms", help="Arms, with commas between them. Default: all."),
    q0: float = typer.Option(0.9, "--q0", min=0.0, max=1.0, help="Cases with Q below it go into S_m."),
    failure_dice: float = typer.Option(0.5, "--failure-dice", min=0.0, max=1.0, help="Failure, for q0 by validation."),
    annotated: float = typer.Option(
        0.25, "--annotated", min=0.0, max=1.0, help="Part of the pool to annotate at most."
    ),
    initial_size: int = typer.Option(5, "--initial-size", min=1, help="Cases in S0."),
    roi: Roi = typer.Option(Roi.NONE, "--roi", help="Region for CoV and mean: none, nonzero, retina or lungs."),
    test_folds: int = typer.Option(3, "--test-folds", min=2, help="Seed s tests fold s of so many folds of subjects."),
    validation_subjects: int = typer.Option(1, "--validation-subjects", min=1, help="Subjects for validation."),
    transfer_from: Path | None = typer.Option(
        None, "--transfer-from", help="Model folder of another modality (…/nnUNet_results/DatasetXXX/<model>)."
    ),
    device: Device | None = typer.Option(None, "-device", help="Default: cuda where there is one, else cpu."),
    jobs: int = typer.Option(1, "--jobs", "-np", min=1, help="Processes of each command."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Start anew instead of going on."),
    report_only: bool = typer.Option(False, "--report-only", help="Write tables and figures of what is done."),
) -> None:
    """QU-net++ against random, foreground-aware random and entropy, with subjects kept apart (paper 001, Table I).

    Each arm and seed trains in nnU-Net folders of its own below the output folder, and is never run twice.

    Example: `nnunet-qa experiment qu-net-plus-plus -d 111 -o oct_experiment --seeds 0,1,2`
    """
    from nnunet_qa.data.paths import raw_dataset_folder
    from nnunet_qa.environment import set_up
    from nnunet_qa.experiments.budget import Budget
    from nnunet_qa.experiments.qu_net_plus_plus import Protocol, QUNetPlusPlusExperiment
    from nnunet_qa.experiments.qu_net_plus_plus_report import write_report

    if report_only and overwrite:
        raise SelectionError("--overwrite deletes what --report-only reports; give one of them")
    if roi in (Roi.MASK, Roi.LABELS):
        raise SelectionError(f"--roi {roi.value} needs masks that an experiment does not have; see --help")
    set_up()
    protocol = Protocol(
        configuration=configuration,
        budget=Budget.named(budget),
        q0=q0,
        failure_dice=failure_dice,
        annotated=annotated,
        initial_size=initial_size,
        roi=roi,
        test_folds=test_folds,
        validation_subjects=validation_subjects,
        transfer_from=transfer_from.absolute() if transfer_from is not None else None,
    )
    experiment = QUNetPlusPlusExperiment(
        source=raw_dataset_folder(dataset).absolute(),
        folder=output.absolute(),
        protocol=protocol,
        device=chosen_device(device).type,
        jobs=jobs,
    )
    if not report_only:
        wanted, draws = parsed_names(arms) or experiment.default_arms(), parsed_seeds(seeds)
        experiment.check(wanted, draws)
        run_cells(experiment.runner, wanted, draws, overwrite=overwrite)
    else:
        check_settings(experiment.runner)
    show(write_report(experiment))


def qa_loss(
    dataset: str = typer.Option(..., "-d", help="Raw dataset with every case annotated and a cases.csv."),
    output: Path = typer.Option(..., "-o", help="Folder of the experiment; run again to go on."),
    configuration: str = typer.Option("2d", "-c", help="2d or 3d_fullres."),
    budget: str = typer.Option("cpu", "--budget", help="cpu, gpu, or a YAML file with a budget."),
    seeds: str = typer.Option("0,1,2", "--seeds", help="Draws, with commas between them; may be extended later."),
    arms: str = typer.Option("", "--arms", help="Arms, with commas between them. Default: all."),
    labelled: int = typer.Option(6, "--labelled", min=2, help="Annotated cases; the others become the pool."),
    success: float = typer.Option(0.8, "--success", min=0.0, max=1.0, help="Dice from which a case has code 0."),
    failure: float = typer.Option(0.5, "--failure", min=0.0, max=1.0, help="Dice below which a case has code 2."),
    weight: float = typer.Option(0.1, "--weight", min=0.0, help="Weight of the loss of pool images."),
    start: float = typer.Option(0.4, "--start", min=0.0, max=0.99, help="Part of the epochs without pool images."),
    ramp_up: float = typer.Option(0.2, "--ramp-up", min=0.0, max=1.0, help="Part over which their weight then grows."),
    test_folds: int = typer.Option(3, "--test-folds", min=2, help="Seed s tests fold s of so many folds of subjects."),
    validation_subjects: int = typer.Option(1, "--validation-subjects", min=1, help="Subjects for validation."),
    fit_epochs: int = typer.Option(15, "--fit-epochs", min=1, help="Epochs of the discriminator, at most."),
    fit_patches: int = typer.Option(300, "--fit-patches", min=2, help="Patches that the discriminator learns from."),
    fit_rate: float = typer.Option(3e-4, "--fit-learning-rate", min=1e-7, help="Learning rate of the discriminator."),
    device: Device | None = typer.Option(None, "-device", help="Default: cuda where there is one, else cpu."),
    jobs: int = typer.Option(1, "--jobs", "-np", min=1, help="Processes of each command."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Start anew instead of going on."),
    report_only: bool = typer.Option(False, "--report-only", help="Write tables and figures of what is done."),
) -> None:
    """The QA loss against annotated cases alone, mean teacher and cross pseudo supervision (paper 002).

    Every arm trains on the same few annotated cases and, but for the first, the same unlabelled ones; test subjects are
    kept apart. Each arm and seed trains in nnU-Net folders of its own, and is never run twice.

    Example: `nnunet-qa experiment qa-loss -d 111 -o oct_qa_loss --labelled 6 --success 0.7 --failure 0.4`
    """
    from nnunet_qa.data.paths import raw_dataset_folder
    from nnunet_qa.environment import set_up
    from nnunet_qa.experiments.budget import Budget
    from nnunet_qa.experiments.qa_loss import Protocol, QALossExperiment
    from nnunet_qa.experiments.qa_loss_report import write_report
    from nnunet_qa.quality.codes import CodeThresholds

    if report_only and overwrite:
        raise SelectionError("--overwrite deletes what --report-only reports; give one of them")
    set_up()
    protocol = Protocol(
        configuration=configuration,
        budget=Budget.named(budget),
        labelled=labelled,
        thresholds=CodeThresholds(success, failure),
        weight=weight,
        start=start,
        ramp_up=ramp_up,
        test_folds=test_folds,
        validation_subjects=validation_subjects,
        simulation={"epochs": fit_epochs, "patches": fit_patches, "learning_rate": fit_rate},
    )
    experiment = QALossExperiment(
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

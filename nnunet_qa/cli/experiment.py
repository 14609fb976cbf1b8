"""`nnunet-qa experiment`: the protocols of the papers, with known labels in the annotator's place."""

from __future__ import annotations

from pathlib import Path

import typer

from nnunet_qa.cli.experiment_limited_data import limited_data
from nnunet_qa.cli.experiment_options import (
    Arms,
    Configuration,
    Jobs,
    Output,
    ReportOnly,
    Seeds,
    Source,
    TestFolds,
    ValidationSubjects,
)
from nnunet_qa.cli.experiment_parts import carry_out
from nnunet_qa.cli.experiment_qa_loss import qa_loss
from nnunet_qa.cli.experiment_semi_qc import semi_qc
from nnunet_qa.cli.options import DeviceOption, StartAnew
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
    dataset: Source,
    output: Output,
    configuration: Configuration = "2d",
    budget: str = typer.Option("cpu", "--budget", help="cpu, gpu, paper, or a YAML file with a budget."),
    seeds: Seeds = "0,1,2",
    arms: Arms = "",
    q0: float = typer.Option(0.9, "--q0", min=0.0, max=1.0, help="Cases with Q below it go into S_m."),
    failure_dice: float = typer.Option(0.5, "--failure-dice", min=0.0, max=1.0, help="Failure, for q0 by validation."),
    annotated: float = typer.Option(
        0.25, "--annotated", min=0.0, max=1.0, help="Part of the pool to annotate at most."
    ),
    initial_size: int = typer.Option(5, "--initial-size", min=1, help="Cases in S0."),
    roi: Roi = typer.Option(Roi.NONE, "--roi", help="Region for CoV and mean: none, nonzero, retina or lungs."),
    test_folds: TestFolds = 3,
    validation_subjects: ValidationSubjects = 1,
    transfer_from: Path | None = typer.Option(
        None, "--transfer-from", help="Model folder of another modality (…/nnUNet_results/DatasetXXX/<model>)."
    ),
    device: DeviceOption = None,
    jobs: Jobs = 1,
    overwrite: StartAnew = False,
    report_only: ReportOnly = False,
) -> None:
    """QU-net++ against random, foreground-aware random and entropy, with subjects kept apart (paper 001, Table I).

    Each arm and seed trains in nnU-Net folders of its own below the output folder, and is never run twice.

    Example: `nnunet-qa experiment qu-net-plus-plus -d 111 -o oct_experiment --seeds 0,1,2`
    """
    from nnunet_qa.experiments.budget import Budget
    from nnunet_qa.experiments.qu_net_plus_plus import Protocol, QUNetPlusPlusExperiment
    from nnunet_qa.experiments.qu_net_plus_plus_report import write_report

    if roi in (Roi.MASK, Roi.LABELS):
        raise SelectionError(f"--roi {roi.value} needs masks that an experiment does not have; see --help")
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
    carry_out(
        QUNetPlusPlusExperiment,
        protocol,
        write_report,
        dataset=dataset,
        output=output,
        arms=arms,
        seeds=seeds,
        device=device,
        jobs=jobs,
        overwrite=overwrite,
        report_only=report_only,
    )

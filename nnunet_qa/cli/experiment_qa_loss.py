"""`nnunet-qa experiment qa-loss`: a QA loss on unlabelled images, as paper 002 compares it."""

from __future__ import annotations

import typer

from nnunet_qa.cli.experiment_options import (
    Arms,
    BudgetName,
    Configuration,
    Failure,
    FitEpochs,
    Jobs,
    Output,
    ReportOnly,
    Seeds,
    Source,
    Success,
    TestFolds,
    ValidationSubjects,
)
from nnunet_qa.cli.experiment_parts import carry_out
from nnunet_qa.cli.options import DeviceOption, StartAnew


def qa_loss(
    dataset: Source,
    output: Output,
    configuration: Configuration = "2d",
    budget: BudgetName = "cpu",
    seeds: Seeds = "0,1,2",
    arms: Arms = "",
    labelled: int = typer.Option(6, "--labelled", min=2, help="Annotated cases; the others become the pool."),
    success: Success = 0.8,
    failure: Failure = 0.5,
    weight: float = typer.Option(0.1, "--weight", min=0.0, help="Weight of the loss of pool images."),
    start: float = typer.Option(0.4, "--start", min=0.0, max=0.99, help="Part of the epochs without pool images."),
    ramp_up: float = typer.Option(0.2, "--ramp-up", min=0.0, max=1.0, help="Part over which their weight then grows."),
    test_folds: TestFolds = 3,
    validation_subjects: ValidationSubjects = 1,
    fit_epochs: FitEpochs = 15,
    fit_patches: int = typer.Option(300, "--fit-patches", min=2, help="Patches that the discriminator learns from."),
    fit_rate: float = typer.Option(3e-4, "--fit-learning-rate", min=1e-7, help="Learning rate of the discriminator."),
    device: DeviceOption = None,
    jobs: Jobs = 1,
    overwrite: StartAnew = False,
    report_only: ReportOnly = False,
) -> None:
    """The QA loss against annotated cases alone, mean teacher and cross pseudo supervision (paper 002).

    Every arm trains on the same few annotated cases and, but for the first, the same unlabelled ones; test subjects are
    kept apart. Each arm and seed trains in nnU-Net folders of its own, and is never run twice.

    Example: `nnunet-qa experiment qa-loss -d 111 -o oct_qa_loss --labelled 6 --success 0.7 --failure 0.4`
    """
    from nnunet_qa.experiments.budget import Budget
    from nnunet_qa.experiments.qa_loss import Protocol, QALossExperiment
    from nnunet_qa.experiments.qa_loss_report import write_report
    from nnunet_qa.quality.codes import CodeThresholds

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
    carry_out(
        QALossExperiment,
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

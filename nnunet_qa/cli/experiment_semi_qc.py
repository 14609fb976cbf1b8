"""`nnunet-qa experiment semi-qc`: the best of one's own predictions as labels, as paper 003 compares it."""

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
from nnunet_qa.cli.options import DeviceOption, SchemeEndDiastole, SchemeKind, StartAnew
from nnunet_qa.config import Unit
from nnunet_qa.errors import SelectionError


def semi_qc(
    dataset: Source,
    output: Output,
    configuration: Configuration = "2d",
    budget: BudgetName = "cpu",
    seeds: Seeds = "0,1,2",
    arms: Arms = "",
    number: int = typer.Option(30, "-k", "--number", min=1, help="Pool cases, or acquisitions, that join."),
    per_subject: int | None = typer.Option(None, "--per-subject", min=1, help="At most so many of one subject."),
    unit: Unit = typer.Option(Unit.CASE, "--unit", help="Choose single cases, or whole acquisitions."),
    scheme: str | None = typer.Option(
        None, "--scheme", help="For cine series: ukbb, ukbb_ao, acdc, or your own, lv=1,myocardium=2. Default: no cine."
    ),
    kind: SchemeKind = None,
    end_diastole: SchemeEndDiastole = None,
    erroneous_below: float = typer.Option(
        0.7, "--erroneous-below", min=0.0, max=1.0, help="Mean Dice below which an acquisition is erroneous."
    ),
    success: Success = 0.8,
    failure: Failure = 0.5,
    fit_epochs: FitEpochs = 50,
    fit_per_code: int = typer.Option(4, "--fit-per-code", min=1, help="Simulated errors of each code and case."),
    fit_rate: float = typer.Option(1e-4, "--fit-learning-rate", min=1e-9, help="Learning rate of the discriminator."),
    crf_trials: int = typer.Option(20, "--crf-trials", min=1, help="Settings of the CRF that are tried."),
    half: float = typer.Option(0.5, "--half", min=0.0, max=1.0, help="Part of the subjects that is annotated."),
    test_folds: TestFolds = 3,
    validation_subjects: ValidationSubjects = 1,
    device: DeviceOption = None,
    jobs: Jobs = 1,
    overwrite: StartAnew = False,
    report_only: ReportOnly = False,
) -> None:
    """Half of the labels and the best predictions of the rest, against random ones, a CRF and all labels (paper 003).

    With --scheme predictions are chosen by a curve classifier, else by Q. Each arm and seed trains in nnU-Net folders
    of its own, and is never run twice.

    Example: `nnunet-qa experiment semi-qc -d 115 -o hearts --scheme lv=1 --unit acquisition -k 4 --seeds 0,1,2`
    """
    from nnunet_qa.experiments.budget import Budget
    from nnunet_qa.experiments.semi_qc import Protocol, SemiQCExperiment
    from nnunet_qa.experiments.semi_qc_report import write_report
    from nnunet_qa.quality.codes import CodeThresholds
    from nnunet_qa.quality.curves import LabelScheme

    if scheme is None and (kind or end_diastole):
        raise SelectionError("--kind and --end-diastole say more of a label scheme; give --scheme too")
    protocol = Protocol(
        configuration=configuration,
        budget=Budget.named(budget),
        number=number,
        per_subject=per_subject,
        unit=unit,
        scheme=None if scheme is None else LabelScheme.parse(scheme, kind=kind, end_diastole=end_diastole),
        erroneous_below=erroneous_below,
        thresholds=CodeThresholds(success, failure),
        fit={"epochs": fit_epochs, "per-code": fit_per_code, "learning-rate": fit_rate},
        crf_trials=crf_trials,
        half=half,
        test_folds=test_folds,
        validation_subjects=validation_subjects,
    )
    carry_out(
        SemiQCExperiment,
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

"""`nnunet-qa experiment limited-data`: models of few patients, with pretraining and with clicks, as in paper 004."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from nnunet_qa.cli.experiment_options import BudgetName, Configuration, Jobs, Output, ReportOnly, Seeds, Source
from nnunet_qa.cli.experiment_parts import carry_out
from nnunet_qa.cli.options import DeviceOption, StartAnew
from nnunet_qa.errors import SelectionError


def limited_data(
    dataset: Source,
    output: Output,
    configuration: Configuration = "2d",
    budget: BudgetName = "cpu",
    seeds: Seeds = "0,1,2",
    sizes: str = typer.Option("1,2,3,5,10,all", "--sizes", help="Annotated patients; may be extended later."),
    groups: str = typer.Option(
        "seg,pretrained,interactive,both,semi", "--groups", help="What is compared; paper is the sixth, 2d only."
    ),
    clicks: int = typer.Option(5, "--clicks", min=1, help="Most simulated clicks on a test case (2d: on a slice)."),
    settings: Path | None = typer.Option(
        None, "--settings", help="A qa.yaml; its sections interaction and qa_loss hold for the models that use them."
    ),
    pretraining: int = typer.Option(2, "--pretraining", min=1, help="Steps of the restoration, in those of a model."),
    test_folds: int = typer.Option(3, "--test-folds", min=2, help="Seed s tests fold s of so many folds of patients."),
    validation_subjects: int = typer.Option(1, "--validation-subjects", min=1, help="Patients for validation."),
    device: DeviceOption = None,
    jobs: Jobs = 1,
    overwrite: StartAnew = False,
    report_only: ReportOnly = False,
) -> None:
    """Dice against annotated patients: alone, pretrained, interactive, both, and QAsemiTrainer (paper 004).

    Each model trains in nnU-Net folders of its own below the output folder, and is never run twice.

    Example: `nnunet-qa experiment limited-data -d 114 -o mandible --sizes 1,2,3 --groups seg,interactive`
    """
    from nnunet_qa.experiments.budget import Budget
    from nnunet_qa.experiments.limited_data import LimitedDataExperiment, Protocol
    from nnunet_qa.experiments.limited_data_report import write_report

    protocol = Protocol(
        configuration=configuration,
        budget=Budget.named(budget),
        sizes=parsed_sizes(sizes),
        pretraining=pretraining,
        clicks=clicks,
        **_sections(settings),
        test_folds=test_folds,
        validation_subjects=validation_subjects,
    )
    carry_out(
        LimitedDataExperiment,
        protocol,
        write_report,
        dataset=dataset,
        output=output,
        arms=groups,
        seeds=seeds,
        device=device,
        jobs=jobs,
        overwrite=overwrite,
        report_only=report_only,
    )


def _sections(settings: Path | None) -> dict[str, dict[str, Any]]:
    """What a qa.yaml says in the sections that the experiment leaves to its user."""
    from nnunet_qa.config import QAConfig

    if settings is None:
        return {}
    given = QAConfig.read(settings).model_dump(mode="json", exclude_unset=True)
    other = sorted(set(given) - {"interaction", "qa_loss"})
    if other:
        raise SelectionError(
            f"{settings}: {', '.join(other)}: the experiment sets that itself; keep interaction and qa_loss only"
        )
    return given


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

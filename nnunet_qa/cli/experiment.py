"""`nnunet-qa experiment`: the protocols of the papers, with known labels in the annotator's place."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from nnunet_qa.cli.device import Device, chosen_device
from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.roi import Roi


def register(app: typer.Typer) -> None:
    """Add the group and its experiments."""
    group = typer.Typer(
        name="experiment", no_args_is_help=True, help="Compare methods on a fully annotated dataset, as the papers do."
    )
    group.command("qu-net-plus-plus")(qu_net_plus_plus)
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
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not report_only:
        wanted, draws = _names(arms) or experiment.default_arms(), _seeds(seeds)
        experiment.check(wanted, draws)
        experiment.runner.begin(overwrite=overwrite)
        for cell in experiment.runner.run(wanted, draws):
            console.print(f"{cell.arm}, seed {cell.seed}: {'done before' if cell.done else 'running'}", markup=False)
    report = write_report(experiment)
    Console(highlight=False, soft_wrap=True).print(report.read_text(encoding="utf-8"), markup=False)
    console.print(f"Wrote {report} and what it refers to.", markup=False)


def _names(text: str) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] or None


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SelectionError(f'--seeds "{text}": must be whole numbers parted by commas, such as 0,1,2') from error
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise SelectionError(f'--seeds "{text}": must be different numbers from 0 up')
    return seeds

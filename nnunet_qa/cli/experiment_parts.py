"""What the experiments' commands do once their protocol is known: find the data, run the cells, show the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from nnunet_qa.cli.device import Device, chosen_device
from nnunet_qa.errors import SelectionError

if TYPE_CHECKING:
    from nnunet_qa.experiments.experiment import BaseProtocol, Experiment
    from nnunet_qa.experiments.runner import Runner

    E = TypeVar("E", bound=Experiment[Any])


def carry_out(
    kind: type[E],
    protocol: BaseProtocol,
    write_report: Callable[[E], Path],
    *,
    dataset: str,
    output: Path,
    arms: str,
    seeds: str,
    device: Device | None,
    jobs: int,
    overwrite: bool,
    report_only: bool,
) -> None:
    """Run an experiment of a kind and show its report; but for the first three these are options as they are typed.

    Raises:
        NnunetQAError: an option, the dataset or the settings of an earlier run do not fit.
    """
    from nnunet_qa.data.paths import raw_dataset_folder
    from nnunet_qa.environment import set_up

    if report_only and overwrite:
        raise SelectionError("--overwrite deletes what --report-only reports; give one of them")
    set_up()
    experiment = kind(
        source=raw_dataset_folder(dataset).absolute(),
        folder=output.absolute(),
        protocol=protocol,
        device=chosen_device(device).type,
        jobs=jobs,
    )
    if report_only:
        check_settings(experiment.runner)
    else:
        wanted, draws = experiment.wanted(parsed_names(arms)), parsed_seeds(seeds)
        experiment.check(draws, wanted)
        run_cells(experiment.runner, wanted, draws, overwrite=overwrite)
    show(write_report(experiment))


def run_cells(runner: Runner, arms: list[str] | None, seeds: list[int], *, overwrite: bool) -> None:
    """Run the cells, each named on the standard error stream before it runs."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    runner.begin(overwrite=overwrite)
    for cell in runner.run(arms, seeds):
        console.print(f"{cell.arm}, seed {cell.seed}: {'done before' if cell.done else 'running'}", markup=False)


def check_settings(runner: Runner) -> None:
    """Refuse to report what was run with other settings, such as thresholds."""
    from nnunet_qa.experiments.runner import MARK

    if (runner.folder / MARK).is_file():
        runner.begin()


def show(report: Path) -> None:
    """Print a report."""
    Console(highlight=False, soft_wrap=True).print(report.read_text(encoding="utf-8"), markup=False)
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"Wrote {report} and what it refers to.", markup=False)


def parsed_names(text: str) -> list[str] | None:
    """Names parted by commas; None for an empty text."""
    return [name.strip() for name in text.split(",") if name.strip()] or None


def parsed_seeds(text: str) -> list[int]:
    """Different whole numbers parted by commas.

    Raises:
        SelectionError: they are not.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SelectionError(f'--seeds "{text}": must be whole numbers parted by commas, such as 0,1,2') from error
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise SelectionError(f'--seeds "{text}": must be different numbers from 0 up')
    return seeds

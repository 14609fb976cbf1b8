"""The runner of all experiments: arms × seeds, each in a folder of its own, done once and never again.

An experiment's folder holds `experiment.json` (its settings; a run with others is refused) and
`runs/<arm>/seed_<k>/` for each cell. A cell is done when its `done.json` is there, written last; a cell that was
stopped goes on with the step that it was at. Nothing here knows what an arm does.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nnunet_qa import __version__
from nnunet_qa.data.journal import locked
from nnunet_qa.data.paths import read_json
from nnunet_qa.errors import DatasetError, SelectionError, nearest
from nnunet_qa.experiments.commands import environment_of, run_command
from nnunet_qa.files import clear, make_folder, write_json, write_text

MARK, DONE = "experiment.json", "done.json"


@dataclass(frozen=True)
class Cell:
    """One arm with one seed.

    Attributes:
        arm: name of the arm.
        seed: which draw, from 0.
        folder: where everything of this cell lies.
        environment: environment of its commands; nnU-Net's folders lie in the cell's.
        lock: descriptor of the lock on the folder, which its commands hold too.
    """

    arm: str
    seed: int
    folder: Path
    environment: Mapping[str, str]
    lock: int | None = None

    @property
    def done(self) -> bool:
        """Whether the cell has been run to its end."""
        return (self.folder / DONE).is_file()

    def result(self) -> dict[str, Any]:
        """What the arm returned, with the seconds it took and the machine it ran on."""
        return read_json(self.folder / DONE)

    def step(self, name: str, work: Callable[[], Any]) -> None:
        """Do a piece of work unless an earlier run has finished it."""
        mark = self.folder / f".{name}-done"
        if not mark.is_file():
            work()
            write_text(mark, "")

    def call(self, name: str, *command: str) -> None:
        """Run a command as a step; what it prints goes into the cell's `log.txt`.

        Raises:
            DependencyError: it failed.
        """
        log = self.folder / "log.txt"
        self.step(name, lambda: run_command(command, environment=self.environment, log=log, lock=self.lock))


@dataclass(frozen=True)
class Arm:
    """One way of doing it, compared with others.

    Attributes:
        name: also the name of its folder.
        run: does the work of one cell and returns what is to be remembered of it (JSON).
        needs: arms of the same seed whose results it uses; they are run first.
        title: for tables and figures.
    """

    name: str
    run: Callable[[Cell], dict[str, Any]]
    needs: tuple[str, ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Runner:
    """An experiment in a folder.

    Attributes:
        folder: holds everything that the experiment writes.
        settings: what determines the results (JSON); arms and seeds may be added later and are not in it.
        arms: all that there are, those that others need before these.
        jobs: processes of each command.
    """

    folder: Path
    settings: dict[str, Any]
    arms: tuple[Arm, ...]
    jobs: int = 1

    def begin(self, *, overwrite: bool = False) -> None:
        """Make the folder, or go on in it.

        Raises:
            DatasetError: the folder holds something else, or the experiment with other settings.
        """
        settings = json.loads(json.dumps(self.settings, default=str))
        with locked(make_folder(self.folder), wait=True):
            self._begin(self.folder / MARK, settings, overwrite=overwrite)

    def _begin(self, mark: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
        if overwrite and mark.is_file():
            clear(self.folder, mark)
        if mark.is_file():
            old = read_json(mark)
            changed = sorted(key for key in {*old, *settings} if old.get(key) != settings.get(key))
            if changed:
                raise DatasetError(
                    f"{self.folder}: was begun with other settings ({', '.join(changed)}); choose another -o, or "
                    "--overwrite to start anew"
                )
        elif any(self.folder.iterdir()):
            raise DatasetError(f"{self.folder}: holds something else than an experiment; choose another -o")
        write_json(mark, settings)

    def cell(self, arm: str, seed: int) -> Cell:
        """The cell of an arm and a seed."""
        folder = self.folder / "runs" / arm / f"seed_{seed}"
        return Cell(arm, seed, folder, environment_of(folder, jobs=self.jobs))

    def chosen(self, names: Sequence[str] | None) -> list[Arm]:
        """The arms of these names with all that they need, in the order in which they run; None for all.

        Raises:
            SelectionError: there is no such arm.
        """
        known = {arm.name: arm for arm in self.arms}
        wanted = set(known if names is None else names)
        for name in sorted(wanted):
            if name not in known:
                raise SelectionError(f'unknown arm "{name}"{nearest(name, known)}; arms are {", ".join(known)}')
        for arm in reversed(self.arms):
            if arm.name in wanted:
                wanted |= set(arm.needs)
        return [arm for arm in self.arms if arm.name in wanted]

    def run(self, arms: Sequence[str] | None, seeds: Sequence[int]) -> Iterator[Cell]:
        """Run every cell that is not done, seed by seed; yields each before it runs.

        Several processes may run one experiment: a cell that another one is at is waited for.
        """
        for seed in seeds:
            for arm in self.chosen(arms):
                cell = self.cell(arm.name, seed)
                yield cell
                make_folder(cell.folder)
                with locked(cell.folder, wait=True) as lock:
                    if not cell.done:
                        start = time.monotonic()
                        result = arm.run(replace(cell, lock=lock))
                        took = round(time.monotonic() - start, 1)
                        write_json(cell.folder / DONE, {**result, "seconds": took, "machine": machine()})

    def done(self, names: Sequence[str] | None = None) -> list[Cell]:
        """All cells that are done, by arm and seed."""
        cells = []
        for arm in self.chosen(names):
            folders = (self.folder / "runs" / arm.name).glob("seed_*")
            seeds = sorted(int(folder.name.removeprefix("seed_")) for folder in folders)
            cells += [cell for seed in seeds if (cell := self.cell(arm.name, seed)).done]
        return cells


def machine() -> dict[str, Any]:
    """What the results were made on."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
        "nnunet_qa": __version__,
    }

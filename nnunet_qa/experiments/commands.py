"""Commands as a user types them, run with their output in a log file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_qa.environment import EXT_TRAINER, FOLDERS, with_external_trainer
from nnunet_qa.errors import DependencyError


def environment_of(folder: Path, *, jobs: int) -> dict[str, str]:
    """Environment in which nnU-Net's three folders lie below one folder and our trainers are found.

    Args:
        folder: holds `nnUNet_raw`, `nnUNet_preprocessed` and `nnUNet_results`.
        jobs: processes of each command.
    """
    own = {name: str(folder / name) for name in FOLDERS}
    trainer = with_external_trainer(os.environ.get(EXT_TRAINER))
    processes = {"nnUNet_def_n_proc": str(jobs), "nnUNet_n_proc_DA": str(max(1, jobs // 2))}
    timely = {"PYTHONUNBUFFERED": "1"}  # people read the log of a training that runs
    return {**os.environ, **own, EXT_TRAINER: trainer, **processes, **timely}


def run_command(command: Sequence[str], *, environment: Mapping[str, str], log: Path, lock: int | None = None) -> None:
    """Run one command; what it prints is appended to a log file.

    Args:
        command: program and arguments.
        environment: of the command.
        log: the log file.
        lock: descriptor of a lock that the command is to hold too, so that it is held while an orphan goes on working.

    Raises:
        DependencyError: the command is not installed, or it ended with another status than 0.
    """
    beside = Path(sys.executable).parent / command[0]
    program = str(beside) if beside.is_file() else shutil.which(command[0])
    if program is None:
        raise DependencyError(f"the command {command[0]} is not installed; run `pip install nnunet-qa` again")
    with log.open("a", encoding="utf-8") as output:
        output.write(f"\n$ {' '.join(command)}\n")
        output.flush()
        held = () if lock is None else (lock,)
        done = subprocess.run(
            [program, *command[1:]], stdout=output, stderr=output, env=environment, pass_fds=held, check=False
        )
    if done.returncode != 0:
        raise DependencyError(f"`{' '.join(command)}` ended with status {done.returncode}; see the end of {log}")

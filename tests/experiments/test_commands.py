from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from nnunet_qa.environment import EXT_TRAINER, external_trainer_folder
from nnunet_qa.errors import DependencyError
from nnunet_qa.experiments.commands import environment_of, run_command

PYTHON = Path(sys.executable).name


def test_the_environment_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", "/somewhere/else")
    monkeypatch.setenv(EXT_TRAINER, "/my/trainers")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = environment_of(tmp_path, jobs=5)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert found[name] == str(tmp_path / name)
    assert found[EXT_TRAINER].split(os.pathsep) == ["/my/trainers", str(external_trainer_folder())]
    assert (found["nnUNet_def_n_proc"], found["nnUNet_n_proc_DA"], found["OMP_NUM_THREADS"]) == ("5", "2", "7")
    assert found["PATH"] == os.environ["PATH"]
    assert os.environ["nnUNet_raw"] == "/somewhere/else"
    assert environment_of(tmp_path, jobs=1)["nnUNet_n_proc_DA"] == "1"
    assert found["PYTHONUNBUFFERED"] == "1"


def test_output_is_appended_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    script = "import os, sys; print(os.environ['GREETING']); print('oops', file=sys.stderr)"
    for greeting in ("hello", "again"):
        run_command([PYTHON, "-c", script], environment={**os.environ, "GREETING": greeting}, log=log)
    lines = log.read_text().splitlines()
    assert lines.count("oops") == 2
    assert lines.index("hello") < lines.index("again")
    assert lines[1] == f"$ {PYTHON} -c {script}"


def test_a_command_that_fails_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(DependencyError) as caught:
        run_command([PYTHON, "-c", "raise SystemExit(3)"], environment=os.environ, log=tmp_path / "log.txt")
    assert "ended with status 3" in str(caught.value)
    assert str(tmp_path / "log.txt") in str(caught.value)


def test_a_command_holds_the_lock_that_it_is_given(tmp_path: Path) -> None:
    command = [PYTHON, "-c", "import os, sys; os.fstat(int(sys.argv[1]))"]
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        command.append(str(descriptor))
        run_command(command, environment=os.environ, log=tmp_path / "log.txt", lock=descriptor)
        with pytest.raises(DependencyError):  # it is not there unless it is handed on
            run_command(command, environment=os.environ, log=tmp_path / "log.txt")
    finally:
        os.close(descriptor)


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="no-such-command is not installed"):
        run_command(["no-such-command"], environment=os.environ, log=tmp_path / "log.txt")
    assert not (tmp_path / "log.txt").exists()

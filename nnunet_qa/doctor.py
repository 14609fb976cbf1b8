"""Checks of an installation: does nnU-Net start here, find its folders and find the trainers of this package?

Each check looks at one thing and never raises; what it found is a `Check`. Everything heavy (torch, nnU-Net) is
imported inside the check that needs it, so that one broken package is one line of the report and not the end of it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import pickle
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from nnunet_qa.environment import EXT_TRAINER, FOLDERS, has_external_trainer
from nnunet_qa.errors import NnunetQAError

NNUNET_RANGE = SpecifierSet(">=2.8.1,<2.9")
"""Versions of nnU-Net that this package is written for, as in pyproject.toml."""
PYTHON_RANGE = SpecifierSet(">=3.10")
LOW_SPACE_GB = 5.0
TRAINER = "QAsemiTrainer"


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: what was looked at.
        ok: whether nnU-Net and this package can work with it.
        text: what was found and, where something is wrong, what to do; one line.
        warning: it works, but not for long or not well (only with `ok`).
    """

    name: str
    ok: bool
    text: str
    warning: bool = False

    @property
    def status(self) -> str:
        """`ok`, `warn` or `missing`."""
        return "missing" if not self.ok else "warn" if self.warning else "ok"


def check_python() -> Check:
    """The version of the interpreter."""
    version = platform.python_version()
    if PYTHON_RANGE.contains(version, prereleases=True):
        return Check("Python", True, version)
    return Check(
        "Python", False, f"{version}, needed is {PYTHON_RANGE}; make a virtual environment with another Python"
    )


def check_nnunet() -> Check:
    """The installed version of nnU-Net, without importing it."""
    name = "nnU-Net"
    remedy = f'run `pip install "nnunetv2{NNUNET_RANGE}"`'
    try:
        version = importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, f"not installed; {remedy}")
    if not NNUNET_RANGE.contains(version):
        return Check(name, False, f"{version}, needed is {NNUNET_RANGE}; {remedy}")
    return Check(name, True, version)


def check_torch() -> Check:
    """Whether torch and torchvision can be imported together.

    A torch wheel and a torchvision wheel of different builds (CPU-only torch from PyTorch's index, torchvision from
    PyPI) install without complaint and fail at import. nnU-Net imports all its trainers when it looks for one, and
    some need torchvision, so that no training starts at all.
    """
    name = "torch"
    try:
        torch = _quiet_import("torch")
    except Exception as error:
        return Check(name, False, f"cannot be imported ({_line(error)}); see https://pytorch.org/get-started")
    try:
        torchvision = _quiet_import("torchvision")
    except Exception as error:
        return Check(
            name,
            False,
            f"{torch.__version__}, but torchvision cannot be imported with it ({_line(error)}), and without it nnU-Net "
            "finds no trainer; install both in the same build, as a plain `pip install torch torchvision` does",
        )
    return Check(name, True, f"{torch.__version__} with torchvision {torchvision.__version__}")


def check_folder(variable: str, environment: Mapping[str, str]) -> Check:
    """Whether one of nnU-Net's data folders is set, exists and can be written to.

    Args:
        variable: `nnUNet_raw`, `nnUNet_preprocessed` or `nnUNet_results`.
        environment: the environment variables.
    """
    value = environment.get(variable)
    if not value:
        return Check(variable, False, 'not set; run `eval "$(nnunet-qa env --base FOLDER)"`')
    folder = Path(value)
    if not os.path.isdir(folder):  # unlike Path.is_dir it does not raise where a parent cannot be read
        return Check(variable, False, f"{folder} is not a folder; create it with `mkdir -p`")
    try:
        # Permission bits say nothing about a read-only mount or a full quota; writing does.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"nnunet-qa")
    except OSError as error:
        return Check(variable, False, f"{folder} cannot be written to ({error.strerror}); choose another folder")
    return Check(variable, True, str(folder))


def check_space(variable: str, environment: Mapping[str, str]) -> Check | None:
    """Free space where one of nnU-Net's data folders lies; None where there is no such folder."""
    value = environment.get(variable)
    if not value or not os.path.isdir(value):
        return None
    free = shutil.disk_usage(value).free / 1e9
    low = free < LOW_SPACE_GB
    text = f"{free:.1f} GB free" + (f", less than {LOW_SPACE_GB:g} GB: a training may fill it" if low else "")
    return Check(f"space in {variable}", True, text, warning=low)


def check_external_trainers(environment: Mapping[str, str]) -> Check:
    """Whether `nnUNet_extTrainer` names the folder of our trainers and no folder that does not exist."""
    value = environment.get(EXT_TRAINER)
    if not value:
        return Check(EXT_TRAINER, False, 'not set; run `eval "$(nnunet-qa env)"`')
    # nnU-Net passes over a folder that is not there without a word, and then says that the trainer is unknown.
    for entry in value.split(os.pathsep):
        if entry.strip() and not os.path.isdir(entry):
            return Check(EXT_TRAINER, False, f"{entry} is not a folder; take it out of {EXT_TRAINER}")
    try:
        ours = has_external_trainer(value)
    except NnunetQAError as error:
        return Check(EXT_TRAINER, False, str(error))
    if not ours:
        return Check(EXT_TRAINER, False, f'{value} lacks the trainers of nnunet-qa; run `eval "$(nnunet-qa env)"`')
    return Check(EXT_TRAINER, True, value)


def check_trainer(name: str = TRAINER, *, package: str = "nnunet_qa.trainers") -> Check:
    """Whether nnU-Net's own search finds a trainer, the same class that a normal import gives, and picklable.

    A class of another identity or one that cannot be pickled trains, but fails later: in the worker processes of
    multi-GPU training, and wherever `isinstance` decides.

    Args:
        name: class of the trainer.
        package: where a normal import gets it.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

            found = find(name)
    except Exception as error:
        if "Could not find requested nnunet trainer" in str(error):
            return Check(
                name, False, f'nnU-Net does not find it; {EXT_TRAINER} is wrong, run `eval "$(nnunet-qa env)"`'
            )
        return Check(name, False, f"nnU-Net's search for it failed: {_line(error)}")
    return _check_class(name, found, package)


def _check_class(name: str, found: Any, package: str) -> Check:
    another = f"remove the other {name} from {EXT_TRAINER}"
    try:
        imported = getattr(importlib.import_module(package), name)
    except Exception as error:
        return Check(name, False, f"found in {found.__module__}, but {package} does not give it ({_line(error)})")
    if found is not imported:
        return Check(name, False, f"nnU-Net finds the one of {found.__module__}, not that of {package}; {another}")
    try:
        pickle.loads(pickle.dumps(found))
    except Exception as error:
        return Check(name, False, f"cannot be pickled ({_line(error)}); {another}")
    return Check(name, True, f"found by nnU-Net, in {found.__module__}")


def check_device() -> Check:
    """What nnU-Net computes on: GPU and its memory, or the processor and its cores."""
    try:
        torch = _quiet_import("torch")
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            others = torch.cuda.device_count() - 1
            more = f", and {others} more" if others else ""
            return Check("device", True, f"cuda: {properties.name}, {properties.total_memory / 1e9:.0f} GB{more}")
    except Exception as error:
        return Check("device", False, f"torch cannot say which devices there are: {_line(error)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("device", True, f"cpu: {cores} cores; train with `-device cpu` and small plans (`nnunet-qa plans`)")


def all_checks(environment: Mapping[str, str] | None = None) -> list[Callable[[], Check | None]]:
    """The checks in the order of the report, each to be called; those without an answer give None.

    Args:
        environment: the environment variables; None for those of this process.
    """
    present = os.environ if environment is None else environment
    checks: list[Callable[[], Check | None]] = [check_python, check_nnunet, check_torch]
    for variable in FOLDERS:
        checks.append(lambda name=variable: check_folder(name, present))  # type: ignore[misc]
    checks += [lambda: check_external_trainers(present), check_trainer, check_device]
    for variable in FOLDERS:
        checks.append(lambda name=variable: check_space(name, present))  # type: ignore[misc]
    return checks


def _quiet_import(name: str) -> Any:
    """A module, without the warnings that concern its authors and not the reader of the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _line(error: Exception) -> str:
    """An error as one line that names its kind."""
    return " ".join(f"{type(error).__name__}: {error}".split())

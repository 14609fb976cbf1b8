"""The environment variables of nnU-Net: what to export, and where it finds the trainers of this package.

nnU-Net 2.8 searches its own package for a trainer and then every folder in `nnUNet_extTrainer`. The folder that belongs
there is the `external` folder of `nnunet_qa.trainers`; it is no package, because nnU-Net puts it on `sys.path` and
imports what it finds as top-level modules.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from nnunet_qa.errors import DependencyError

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
"""The three variables that name a folder for data, in the order in which nnU-Net uses them."""
EXT_TRAINER = "nnUNet_extTrainer"
_PACKAGE = "nnunet_qa.trainers"


def external_trainer_folder() -> Path:
    """Folder with the shim through which nnU-Net finds the trainers of the installed package.

    Raises:
        DependencyError: the package was installed without its trainers.
    """
    # find_spec locates the package without running it: importing a trainer takes seconds, `env` must be quick.
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(location).resolve() / "external"
        if folder.is_dir():
            return folder
    raise DependencyError(f"the trainers ({_PACKAGE}) are not installed; run `pip install --force-reinstall nnunet-qa`")


def has_external_trainer(value: str | None) -> bool:
    """Whether a value of `nnUNet_extTrainer` already names the folder of `external_trainer_folder`."""
    folder = os.path.realpath(external_trainer_folder())
    # An empty entry is no folder, though realpath would take it for the current one.
    return any(os.path.realpath(entry) == folder for entry in (value or "").split(os.pathsep) if entry.strip())


def with_external_trainer(value: str | None) -> str:
    """A value of `nnUNet_extTrainer` that names our folder once, after whatever it named before.

    Args:
        value: the present value; None or empty where the variable is not set.

    Raises:
        DependencyError: the package was installed without its trainers.
    """
    if has_external_trainer(value):
        return value or ""
    entries = [entry for entry in (value or "").split(os.pathsep) if entry.strip()]
    return os.pathsep.join([*entries, str(external_trainer_folder())])


def set_up() -> None:
    """Set `nnUNet_extTrainer` for this process and its children, so that nnU-Net finds our trainers.

    Every command of this package that starts nnU-Net calls this; nobody has to export the variable for it.

    Raises:
        DependencyError: the package was installed without its trainers.
    """
    os.environ[EXT_TRAINER] = with_external_trainer(os.environ.get(EXT_TRAINER))


def proposed_values(present: Mapping[str, str], *, base: Path | None = None) -> dict[str, str]:
    """Values to export, by variable; a folder that is neither set nor proposed is left out.

    Args:
        present: the present environment; what is set there is kept.
        base: folder under which the unset ones are to lie, each under the name of its variable.

    Raises:
        DependencyError: the package was installed without its trainers.
    """
    values = {}
    for name in FOLDERS:
        if present.get(name):
            values[name] = present[name]
        elif base is not None:
            values[name] = str(Path(os.path.abspath(base.expanduser())) / name)
    return {**values, EXT_TRAINER: with_external_trainer(present.get(EXT_TRAINER))}


def export_lines(values: Mapping[str, str]) -> list[str]:
    """Lines for a POSIX shell, quoted so that a space or a quote in a path does no harm.

    >>> export_lines({"nnUNet_raw": "/my data/raw"})
    ["export nnUNet_raw='/my data/raw'"]
    """
    return [f"export {name}={shlex.quote(value)}" for name, value in values.items()]

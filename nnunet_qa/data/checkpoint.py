"""Reading weights and checkpoints that a user hands over: tensors, numbers and plain Python, never code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from packaging.version import Version

from nnunet_qa.errors import DependencyError, ModelError

_SCALAR = np.float32(0).__reduce__()[0]
# What a checkpoint of nnU-Net holds besides tensors and plain Python: the numpy scalars of its log. NumPy 1 and 2 give
# the function that builds them different names, and a checkpoint may come from either.
_ALLOWED: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64)),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a transfer needs of a checkpoint.

    Attributes:
        weights: the network's state dict, on the CPU.
        trainer: name of the trainer's class.
        configuration: name of the configuration that was trained.
    """

    weights: dict[str, torch.Tensor]
    trainer: str
    configuration: str


def read_tensors(path: Path) -> Any:
    """Read what `torch.save` wrote: tensors, numbers, texts, lists and dicts, and never code.

    Raises:
        ModelError: the file is missing, damaged, or holds other objects; those are refused, not built.
        DependencyError: torch is older than 2.6, whose safe mode had a hole.
    """
    try:
        return _loaded(path, (), "is damaged or holds no weights; copy or make it again", "which could run code")
    except PermissionError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


def read_content(path: Path) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net without unpickling anything but tensors, numpy scalars and plain Python.

    Raises:
        ModelError: the file is missing, damaged, or holds other objects.
        DependencyError: torch is older than 2.6 and cannot be told which numpy types are harmless.
    """
    damaged = "damaged, or no checkpoint; copy or train it again"
    content = _loaded(path, _ALLOWED, damaged, "which nnU-Net does not write and which could run code")
    return content if isinstance(content, dict) else {}


def _loaded(path: Path, allowed: Sequence[Any], damaged: str, foreign: str) -> Any:
    """What torch's safe mode reads; the texts say what a file is that it does not take."""
    if Version(torch.__version__) < Version("2.6"):
        raise DependencyError(f"torch {torch.__version__} cannot read weights safely; install torch 2.6 or newer")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ModelError(f"{path}: {damaged}") from error
        raise ModelError(f"{path}: holds {found[1]}, {foreign}; it was not loaded") from error
    except Exception as error:  # torch has no error of its own for a file that is cut off or is something else
        raise ModelError(f"{path}: {damaged}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what a transfer needs of a checkpoint of nnU-Net.

    Raises:
        ModelError: the file is damaged, is no checkpoint of nnU-Net, or holds other objects than `read_content` takes.
        DependencyError: see `read_content`.
    """
    content = read_content(path)
    weights, arguments, trainer = (content.get(key) for key in ("network_weights", "init_args", "trainer_name"))
    configuration = arguments.get("configuration") if isinstance(arguments, dict) else None
    if not (
        isinstance(weights, dict)
        and weights
        and all(isinstance(value, torch.Tensor) for value in weights.values())
        and isinstance(trainer, str)
        and isinstance(configuration, str)
    ):
        raise ModelError(f"{path}: no checkpoint that nnU-Net's trainers write (weights, trainer and configuration)")
    return Checkpoint(weights=dict(weights), trainer=trainer, configuration=configuration)

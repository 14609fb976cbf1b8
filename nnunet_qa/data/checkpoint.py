"""Reading a checkpoint that a user hands over: tensors, numbers and plain Python, never code."""

from __future__ import annotations

import re
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


def read_content(path: Path) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net without unpickling anything but tensors, numpy scalars and plain Python.

    Raises:
        ModelError: the file is damaged, or holds other objects.
        DependencyError: torch is older than 2.6 and cannot be told which numpy types are harmless.
    """
    if Version(torch.__version__) < Version("2.6"):
        raise DependencyError(f"torch {torch.__version__} cannot read checkpoints safely; install torch 2.6 or newer")
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign is None:
            raise ModelError(f"{path}: damaged, or no checkpoint; copy or train it again") from error
        raise ModelError(
            f"{path}: holds {foreign[1]}, which nnU-Net does not write and which could run code; it was not loaded"
        ) from error
    except Exception as error:  # torch has no error of its own for a file that is cut off or is something else
        raise ModelError(f"{path}: damaged, or no checkpoint; copy or train it again") from error
    return content if isinstance(content, dict) else {}


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

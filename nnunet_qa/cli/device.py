"""nnU-Net's `-device` option."""

from __future__ import annotations

import multiprocessing
from enum import Enum
from typing import TYPE_CHECKING

from nnunet_qa.errors import ModelError

if TYPE_CHECKING:
    import torch


class Device(str, Enum):
    """Devices that nnU-Net knows."""

    CUDA = "cuda"
    CPU = "cpu"
    MPS = "mps"


def chosen_device(wanted: Device | None) -> torch.device:
    """The device that was asked for, or CUDA where there is one and else the CPU.

    Raises:
        ModelError: the device is not there.
    """
    import torch  # takes seconds, and most commands need none

    if wanted is None:
        wanted = Device.CUDA if torch.cuda.is_available() else Device.CPU
    if wanted is Device.CUDA and not torch.cuda.is_available():
        raise ModelError("-device cuda: no CUDA device is available; use -device cpu")
    if wanted is Device.MPS and not torch.backends.mps.is_available():
        raise ModelError("-device mps: this machine has none; use -device cpu")
    if wanted is Device.CPU:
        torch.set_num_threads(multiprocessing.cpu_count())
    return torch.device(wanted.value)

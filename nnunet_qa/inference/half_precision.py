"""Half precision where it makes a network faster."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def half_precision(device: torch.device) -> AbstractContextManager[object]:
    """Half precision on CUDA, as nnU-Net has it, and on processors with instructions for bfloat16; else none.

    Args:
        device: where the network computes.
    """
    if device.type == "cuda":
        return torch.autocast("cuda")
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases of PyTorch do not tell
    if device.type == "cpu" and (known.get("avx512_bf16") or known.get("amx_bf16")):
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()

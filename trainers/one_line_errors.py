"""Mistakes of the user as one line, also below nnU-Net's commands, which know nothing of our errors."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

import torch

from nnunet_qa.errors import ModelError, NnunetQAError


def install() -> None:
    """Print an uncaught mistake of the user as one line and exit with status 2; everything else stays as it was.

    Mistakes are every NnunetQAError, and weights that nnU-Net's `-pretrained_weights` cannot take.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mistake = error if isinstance(error, NnunetQAError) else pretrained_weights_error(error, trace)
        if mistake is not None:
            sys.stderr.write(f"nnunet-qa: error: {mistake}\n")
            sys.exit(2)
        before(kind, error, trace)

    sys.excepthook = hook


def pretrained_weights_error(error: BaseException, trace: TracebackType | None) -> ModelError | None:
    """What nnU-Net's `load_pretrained_weights` stumbled over, or None where the error is none of its."""
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    file = next(
        (frame.f_locals["fname"] for frame in frames if frame.f_code.co_name == "load_pretrained_weights"), None
    )
    out_of_memory = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))  # says nothing about the file
    if file is None or not isinstance(error, Exception) or out_of_memory:
        return None
    if isinstance(error, OSError):
        return ModelError(f"{file}: the pretrained weights cannot be read ({error.strerror or error})")
    # nnU-Net's text names the key in its first sentence and then prints whole tensors
    reason = (str(error).strip().splitlines() or [""])[0].split(". ")[0]
    if isinstance(error, AssertionError):
        return ModelError(
            f"{file}: weights of another architecture: {reason}. `nnunet-qa transfer` makes plans that fit"
        )
    return ModelError(f"{file}: no pretrained weights that nnU-Net can load ({type(error).__name__}: {reason})")

"""Mistakes of the user as one line, also below nnU-Net's commands, which know nothing of our errors."""

from __future__ import annotations

import sys
from types import TracebackType

from nnunet_qa.errors import NnunetQAError


def install() -> None:
    """Print an uncaught NnunetQAError as one line and exit with status 2; everything else stays as it was."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, NnunetQAError):
            sys.stderr.write(f"nnunet-qa: error: {error}\n")
            sys.exit(2)
        before(kind, error, trace)

    sys.excepthook = hook

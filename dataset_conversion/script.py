"""Running a conversion script by path: as `nnunet-qa convert …`, mistakes as one line with exit status 2."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from nnunet_qa.dataset_conversion.report import summary
from nnunet_qa.errors import NnunetQAError
from nnunet_qa.files import storage_error


def run_script(command: Callable[..., None]) -> None:
    """Run a Typer command function on the arguments of this process."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    app = typer.Typer(
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode="markdown",
    )
    app.command()(command)
    try:
        app()
    except NnunetQAError as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(str(storage_error(os.fsdecode(error.filename), error)))


def tell(folder: Path) -> None:
    """Print what a command has converted."""
    typer.echo(f"Wrote {folder}: {summary(folder)}")


def _fail(line: str) -> None:
    typer.echo(f"error: {line}", err=True)
    sys.exit(2)

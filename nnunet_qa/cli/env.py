"""`nnunet-qa env`: the lines that set nnU-Net's environment variables."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import typer

from nnunet_qa.environment import FOLDERS, export_lines, proposed_values


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("env")(env)


def env(
    base: Path | None = typer.Option(
        None, "--base", metavar="FOLDER", help="Propose FOLDER/nnUNet_raw and so on for the variables that are not set."
    ),
) -> None:
    """Print the export lines for nnU-Net's paths and for the trainers of this package.

    Use it as `eval "$(nnunet-qa env --base ~/nnunet)"`. What is already set is kept.
    """
    values = proposed_values(os.environ, base=base)
    for line in export_lines(values):
        typer.echo(line)
    # A shell evaluates the standard output, so whatever is meant for a person goes to the other stream.
    unset = [name for name in FOLDERS if name not in values]
    if unset:
        typer.echo(f"not set: {', '.join(unset)}; `nnunet-qa env --base FOLDER` proposes values", err=True)
    absent = [values[name] for name in FOLDERS if name in values and not os.path.isdir(values[name])]
    if absent:
        typer.echo(f"not there yet, create with: mkdir -p {' '.join(map(shlex.quote, absent))}", err=True)

"""`nnunet-qa doctor`: what of the installation is in order, one line each."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.text import Text

from nnunet_qa.doctor import all_checks

_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("doctor")(doctor)


def doctor() -> None:
    """Check versions, folders, trainers, device and disk space; exit status 1 where something is missing."""
    console = Console(soft_wrap=True, highlight=False)
    missing = 0
    # Line by line, because the search for the trainer takes seconds.
    for look in all_checks():
        check = look()
        if check is None:
            continue
        missing += not check.ok
        status = Text(f"{check.status:<8}", style=_COLOURS[check.status])
        console.print(status + Text(f"{check.name:<29}{check.text}"))
    if missing:
        raise typer.Exit(1)

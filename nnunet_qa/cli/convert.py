"""`nnunet-qa convert SOURCE`: the conversion scripts as subcommands."""

from __future__ import annotations

import typer

from nnunet_qa.dataset_conversion import oct_chiu, oct_ocsc, oct_retouch

COMMANDS = {
    "oct-chiu": oct_chiu.command,
    "oct-ocsc": oct_ocsc.command,
    "oct-retouch": oct_retouch.command,
}


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(
        help="Convert a public data set to nnU-Net's raw format, with the unlabelled pool and the case table.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    for name, command in COMMANDS.items():
        group.command(name)(command)
    app.add_typer(group, name="convert")

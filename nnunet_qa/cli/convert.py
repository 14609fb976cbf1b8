"""`nnunet-qa convert SOURCE`: the conversion scripts as subcommands."""

from __future__ import annotations

import typer

from nnunet_qa.dataset_conversion import (
    covid_kaggle,
    covid_medseg,
    covid_radiopaedia,
    covid_zenodo,
    fibula,
    folder,
    oct_chiu,
    oct_ocsc,
    oct_retouch,
    ukbiobank,
)

COMMANDS = {
    "oct-chiu": oct_chiu.command,
    "oct-ocsc": oct_ocsc.command,
    "oct-retouch": oct_retouch.command,
    "covid-medseg": covid_medseg.command,
    "covid-radiopaedia": covid_radiopaedia.command,
    "covid-kaggle": covid_kaggle.command,
    "covid-zenodo": covid_zenodo.command,
    "ukbiobank": ukbiobank.command,
    "fibula": fibula.command,
    "folder": folder.command,
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

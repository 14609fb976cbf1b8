"""The `nnunet-qa` command: one small module a subcommand; mistakes print one line and exit with status 2."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import typer
from rich.console import Console

from nnunet_qa import __version__
from nnunet_qa.cli import (
    best_in_class,
    body_part,
    cases,
    convert,
    crf,
    curve_classifier,
    curves,
    demo,
    discriminator,
    doctor,
    env,
    evaluate,
    experiment,
    inject,
    interact,
    montage,
    move_plans,
    pairwise_dice,
    phantom,
    plans,
    pool,
    promote,
    score,
    select,
    transfer,
)
from nnunet_qa.errors import NnunetQAError

app = typer.Typer(
    name="nnunet-qa",
    help="Few annotations, many scans: what to annotate next, which predictions to trust. On top of nnU-Net v2.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for module in (
    env,
    doctor,
    convert,
    cases,
    plans,
    move_plans,
    pool,
    score,
    interact,
    select,
    promote,
    pairwise_dice,
    best_in_class,
    inject,
    montage,
    discriminator,
    body_part,
    curves,
    curve_classifier,
    crf,
    evaluate,
    transfer,
    experiment,
    phantom,
    demo,
):
    module.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nnunet-qa {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    verbose: bool = typer.Option(False, "--verbose", help="Log what is done, not only what goes wrong."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")


def main() -> None:
    """Run the command line; errors that the user can mend become one line and exit status 2."""
    debug = "--debug" in sys.argv
    # libraries below nnU-Net announce what they will drop one day; that is not the user's business
    warnings.simplefilter("ignore", FutureWarning)
    try:
        app()
    except NnunetQAError as error:
        if debug:
            raise
        _fail(str(error))
    except OSError as error:
        if debug or error.filename is None:
            raise
        _fail(f"{os.fsdecode(error.filename)}: {error.strerror}")


def _fail(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(f"nnunet-qa: error: {line}", markup=False, highlight=False)
    sys.exit(2)


if __name__ == "__main__":
    main()

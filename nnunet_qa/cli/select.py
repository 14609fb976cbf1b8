"""`nnunet-qa select`: which cases to annotate next; `select initial` and its like choose in other ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from nnunet_qa.cli import select_initial, select_minimal
from nnunet_qa.config import DEFAULT_NUMBER, limits
from nnunet_qa.errors import SelectionError, nearest

_SHOWN = 20
_SUBCOMMANDS = (select_initial, select_minimal)


class _Group(TyperGroup):
    """The queue command with the subcommands beside its options."""

    def __init__(self, **settings: Any) -> None:
        subcommands = typer.Typer(rich_markup_mode="markdown")
        for module in _SUBCOMMANDS:
            module.register(subcommands)
        commands = dict(typer.main.get_group(subcommands).commands)
        super().__init__(commands=commands, invoke_without_command=True, **settings)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    app.command("select", cls=_Group)(select)  # type: ignore[arg-type]  # Typer gives a group the same settings


def select(
    context: typer.Context,
    quality: Path | None = typer.Option(
        None, "-q", help="quality.csv, as `nnunet-qa score` or a QA training writes it. Needed without a subcommand."
    ),
    dataset: str | None = typer.Option(None, "-d", help="Dataset whose cases.csv gives the subjects and roles."),
    cases: Path | None = typer.Option(None, "--cases", help="A case table, instead of -d."),
    threshold: float | None = typer.Option(None, "--threshold", help="Take cases with Q below this, in [0, 1]."),
    number: int | None = typer.Option(
        None, "-n", help=f"Take at most so many, lowest Q first. Default {DEFAULT_NUMBER} without --threshold."
    ),
    per_subject: int | None = typer.Option(None, "--per-subject", help="Take at most so many of one subject."),
    roles: list[str] | None = typer.Option(
        None, "--role", help="Role of the candidates, repeatable. Default: unlabelled where there are any, else all."
    ),
    output: Path | None = typer.Option(None, "-o", help="Where to write. Default: queue.csv beside quality.csv."),
) -> None:
    """Write the annotation queue: the cases whose predictions agree least with themselves, worst first.

    Example: `nnunet-qa select -q predictions/quality.csv -d 101 -n 20 --per-subject 2`
    """
    if context.invoked_subcommand is not None:
        if any(value not in (None, [], ()) for value in context.params.values()):
            raise SelectionError(f"put the options behind the subcommand {context.invoked_subcommand}")
        return
    if quality is None:
        raise SelectionError("give the scores with -q quality.csv, or a subcommand (see `nnunet-qa select --help`)")
    from nnunet_qa.cases import CaseTable, Role
    from nnunet_qa.cli.case_table import find_cases
    from nnunet_qa.quality.table import read_quality
    from nnunet_qa.selection.queue import FILE_NAME, annotation_queue, write_queue

    known = [role.value for role in Role]
    for role in roles or []:
        if role not in known:
            raise SelectionError(f'unknown role "{role}"{nearest(role, known)}; roles are {", ".join(known)}')
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    path = find_cases(dataset, cases)
    queue = annotation_queue(
        read_quality(quality),
        **limits(threshold, number, per_subject),
        roles=roles or None,
        cases=CaseTable.read(path) if path is not None else None,
    )
    if path is None:
        console.print("No case table was given (-d or --cases), so every case counts as a subject of its own.")
    target = output if output is not None else quality.parent / FILE_NAME
    write_queue(target, queue)
    shown = Table("rank", "case", "subject", "Q", "reason", title="Annotate next")
    for row in queue.head(_SHOWN).itertuples(index=False):
        shown.add_row(str(row.rank), str(row.case_id), str(row.subject_id), f"{row.q:.4f}", str(row.reason))
    Console().print(shown)
    rest = f" (the first {_SHOWN} are shown)" if len(queue) > _SHOWN else ""
    console.print(f"Wrote {target}: {len(queue)} cases{rest}.", markup=False)

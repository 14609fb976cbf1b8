"""`nnunet-qa evaluate codes`: how many scans succeed and fail in each arm of an experiment, with the tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from nnunet_qa.errors import SelectionError, nearest

if TYPE_CHECKING:
    import pandas as pd

_PICTURE = "codes.png"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("codes")(codes)


def codes(
    arms: list[str] | None = typer.Option(
        None, "--arm", help="NAME=qa_codes.csv of one arm; give one for each, the reference first."
    ),
    dice: list[str] | None = typer.Option(
        None, "--dice", help="NAME=evaluation.csv of one arm, instead of --arm: the codes then follow from the Dice."
    ),
    success: float | None = typer.Option(None, "--success", help="With --dice: success from this Dice up. [0.8]"),
    failure: float | None = typer.Option(None, "--failure", help="With --dice: failure below this Dice. [0.5]"),
    source: str | None = typer.Option(
        None, "--source", help="With --arm: take the codes of this source alone, human for example."
    ),
    output: Path = typer.Option(..., "-o", help="Folder to write to."),
) -> None:
    """Count the quality codes of arms on the same scans, and test them against the first arm.

    Codes are 0 success, 1 minor errors, 2 failure. Writes codes.csv (one row a scan), codes.json and codes.md (counts,
    McNemar's exact test for success and for failure, Wilcoxon's signed-rank test, adjusted over the arms), codes.png.

    Example: `nnunet-qa evaluate codes --arm supervised=a/qa_codes.csv --arm qa_loss=b/qa_codes.csv -o comparison`
    """
    from nnunet_qa.evaluation import codes as comparing
    from nnunet_qa.reports.code_figures import codes_picture

    if bool(arms) == bool(dice):
        raise SelectionError("give the arms either with --arm NAME=qa_codes.csv or with --dice NAME=evaluation.csv")
    files = _named(arms or dice or [])
    about = {name: str(path) for name, path in files.items()}
    if arms:
        if success is not None or failure is not None:
            raise SelectionError("--success and --failure belong to --dice; the codes of --arm are given")
        frames = {name: _codes_of(path, source) for name, path in files.items()}
    else:
        from nnunet_qa.quality.codes import CodeThresholds, read_dice

        if source is not None:
            raise SelectionError("--source belongs to --arm; the codes of --dice all follow from the Dice")
        given = {"success": success, "failure": failure}
        thresholds = CodeThresholds(**{name: value for name, value in given.items() if value is not None})
        frames = {name: read_dice(path, thresholds) for name, path in files.items()}
        about |= {"success from Dice": f"{thresholds.success:g}", "failure below Dice": f"{thresholds.failure:g}"}
    comparison = comparing.compare_codes(frames)
    comparing.write_comparison(output, comparison, about=about)
    codes_picture(output / _PICTURE, comparison)
    shown = Table("code", *comparison.counts.columns, title=f"Quality codes of {len(comparison.codes)} scans")
    for code, name in comparing.NAMES.items():
        found = (comparing.share(int(count), len(comparison.codes)) for count in comparison.counts.loc[code])
        shown.add_row(f"{code} {name}", *found)
    Console().print(shown)
    written = (comparing.TABLE, comparing.SUMMARY, comparing.TEXT, _PICTURE)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(f"Wrote {', '.join(str(output / name) for name in written)}")


def _named(texts: list[str]) -> dict[str, Path]:
    """Files by the name of their arm."""
    files: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not name or not file:
            raise SelectionError(f'"{text}": write NAME=FILE, for example supervised=predictions/qa_codes.csv')
        if name in files:
            raise SelectionError(f'two arms are called "{name}"; give each a name of its own')
        files[name] = Path(file)
    return files


def _codes_of(path: Path, source: str | None) -> pd.DataFrame:
    from nnunet_qa.quality.codes import CodeSource, read_codes

    frame = read_codes(path)
    if source is None:
        return frame
    known = [one.value for one in CodeSource]
    if source not in known:
        raise SelectionError(f'unknown source "{source}"{nearest(source, known)}; sources are {", ".join(known)}')
    frame = frame[frame["source"] == source]
    if frame.empty:
        raise SelectionError(f"{path}: holds no code of source {source}")
    return frame

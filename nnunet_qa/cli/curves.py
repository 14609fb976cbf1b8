"""`nnunet-qa curves`: volumes or areas over the cardiac cycle, and clinical measures, from label files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from nnunet_qa.cli.options import CasesFile, Processes, SchemeEndDiastole, SchemeKind
from nnunet_qa.errors import CurveError, NnunetQAError
from nnunet_qa.quality.curves import LabelScheme

if TYPE_CHECKING:
    import pandas as pd

    from nnunet_qa.quality.curves import Acquisition

AGREEMENT, FIGURES = "agreement.csv", "figures"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("curves")(curves)


def curves(
    folder: Path = typer.Option(..., "-i", help="Folder of label files: 4D series, or a file a frame."),
    output: Path = typer.Option(..., "-o", help="Folder for acquisitions.jsonl, curves.csv and measures.csv."),
    scheme: str = typer.Option(
        ..., "--scheme", help="Which label is what: ukbb, ukbb_ao, acdc, or your own, lv=1,myocardium=2,rv=3."
    ),
    kind: SchemeKind = None,
    end_diastole: SchemeEndDiastole = None,
    dataset: str | None = typer.Option(None, "-d", help="Dataset whose cases.csv says which frames belong together."),
    cases: CasesFile = None,
    pattern: str = typer.Option("*", "--pattern", help="Which files of the folder, such as '*/label_sa.nii.gz'."),
    spacing: tuple[float, float, float] | None = typer.Option(
        None, "--spacing", help="Z Y X in mm, for files that state none."
    ),
    pulse_pressure: Path | None = typer.Option(
        None,
        "--pulse-pressure",
        help="CSV with subject_id and pulse_pressure_mmhg, for the distensibility of the aorta.",
    ),
    against: Path | None = typer.Option(
        None, "--against", help="Output of this command for manual labels: writes agreement.csv and Bland–Altman plots."
    ),
    figures: bool = typer.Option(False, "--figures", help="Also draw the curves of each acquisition."),
    jobs: Processes = 1,
) -> None:
    """Volumes (mL) or areas (mm²) over the cardiac cycle, and the clinical measures that follow from them.

    An acquisition that cannot be used is named at the end, with exit status 2; the others are written all the same.

    Example: `nnunet-qa curves -i predictions --scheme ukbb -d 111 -o curves --jobs 4`
    """
    from nnunet_qa.cases import CaseTable
    from nnunet_qa.cli.case_table import find_cases
    from nnunet_qa.evaluation.clinical import compare_measures, read_measures, read_pulse_pressures
    from nnunet_qa.quality.curve_files import CURVES, FILE_NAME, MEASURES, read_acquisitions

    case_table = find_cases(dataset, cases)
    manual = None if against is None else read_measures(against / MEASURES)
    pressures = None if pulse_pressure is None else read_pulse_pressures(pulse_pressure)
    failures: list[NnunetQAError] = []
    acquisitions: Iterable[Acquisition] = read_acquisitions(
        folder,
        scheme=LabelScheme.parse(scheme, kind=kind, end_diastole=end_diastole),
        cases=None if case_table is None else CaseTable.read(case_table),
        pattern=pattern,
        spacing=spacing,
        jobs=jobs,
        failed=failures.append,
    )
    number = _write(output, _drawn(acquisitions, output / FIGURES) if figures else acquisitions, pressures, failures)
    ours = read_measures(output / MEASURES)
    _show(ours, number)
    written = [FILE_NAME, CURVES, MEASURES]
    if manual is not None:
        _write_agreement(output, compare_measures(ours, manual), ours, manual)
        written.append(AGREEMENT)
    _say(f"Wrote {', '.join(str(output / name) for name in written)}")
    if failures:
        raise CurveError(f"{len(failures)} of {len(failures) + number} acquisitions were left out; see the lines above")


def _write(
    output: Path,
    acquisitions: Iterable[Acquisition],
    pressures: Mapping[str, float] | None,
    failures: Sequence[NnunetQAError],
) -> int:
    """Write what could be read and say what is left out or lacks its pulse pressure; how many were written."""
    from nnunet_qa.quality.curve_files import write_curves

    lacking: list[str] = []
    try:
        number = write_curves(output, acquisitions, pulse_pressures=pressures, without_pressure=lacking.append)
    finally:
        for failure in failures:
            _say(f"left out: {failure}")
    if lacking:
        _say(f"{len(lacking)} of {number} acquisitions have no pulse pressure, such as {lacking[0]}")
    return number


def _drawn(acquisitions: Iterable[Acquisition], folder: Path) -> Iterator[Acquisition]:
    """Draw each acquisition as it passes."""
    from nnunet_qa.reports.clinical_figures import curve_picture

    for acquisition in acquisitions:
        curve_picture(folder / f"{acquisition.acquisition_id}.png", acquisition)
        yield acquisition


def _write_agreement(output: Path, agreement: pd.DataFrame, ours: pd.DataFrame, manual: pd.DataFrame) -> None:
    from nnunet_qa.files import write_csv
    from nnunet_qa.reports.clinical_figures import bland_altman_picture

    write_csv(output / AGREEMENT, agreement.round(6))
    both = ours.index.intersection(manual.index)
    shown = Table("measure", "n", "mean (SD)", "manual", "bias", "limits of agreement", title="Agreement")
    for row in agreement.to_dict("records"):
        name = row["measure"]
        bland_altman_picture(
            output / FIGURES / f"bland_altman_{name}.png",
            ours.loc[both, name].tolist(),
            manual.loc[both, name].tolist(),
            measure=name,
        )
        shown.add_row(
            *(name, str(row["n"])),
            *(f"{row[f'{side}mean']:.2f} ({row[f'{side}sd']:.2f})" for side in ("", "manual_")),
            *(f"{row['bias']:.2f}", f"{row['lower']:.2f} to {row['upper']:.2f}"),
        )
    Console().print(shown)


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(text)


def _show(ours: pd.DataFrame, number: int) -> None:
    shown = Table("measure", "mean", "SD", "known", title=f"Clinical measures of {number} acquisitions")
    for name in ours.columns:
        shown.add_row(name, f"{ours[name].mean():.2f}", f"{ours[name].std():.2f}", str(ours[name].count()))
    Console().print(shown)

"""Clinical measures of the arms on test acquisitions, beside those of the true masks (paper 003, Table 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from nnunet_qa.evaluation.clinical import compare_measures, read_measures
from nnunet_qa.experiments.report_parts import draws_text
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.experiments.semi_qc import BEST, FULL, HALF, SemiQCExperiment
from nnunet_qa.experiments.semi_qc_cells import CURVES, TRUE_CURVES
from nnunet_qa.experiments.tables import markdown_table
from nnunet_qa.files import write_csv
from nnunet_qa.quality.curve_files import MEASURES
from nnunet_qa.reports.clinical_figures import bland_altman_picture, measure_label

_SHOWN = ("edv_ml", "ef_percent", "_max_mm2", "_strain_percent")
_DRAWN = (FULL, HALF, BEST)


def measures_section(
    folder: Path, experiment: SemiQCExperiment, cells: Sequence[Cell], titles: Mapping[str, str]
) -> list[str]:
    """Text on the measures; writes `measures.csv` and Bland–Altman figures."""
    if experiment.protocol.scheme is None:
        return ["The cases are no cine series (no label scheme was given), so there is nothing to measure."]
    tables, shown = [], []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        own = [cell for cell in cells if cell.arm == arm]
        ours, true = (_of_draws(own, name) for name in (CURVES, TRUE_CURVES))
        table = compare_measures(ours, true)
        table.insert(0, "draws", draws_text([cell.seed for cell in own]))
        table.insert(0, "arm", arm)
        tables.append(table)
        for measure in table["measure"][table["measure"].str.endswith(_SHOWN)] if arm in _DRAWN else ():
            name = f"bland_altman_{arm}_{measure}.png"
            both = ours.index.intersection(true.index, sort=True)
            values = (ours.loc[both, measure].tolist(), true.loc[both, measure].tolist())
            heading = f"{titles[arm]}: {measure_label(measure)[0]}"
            bland_altman_picture(folder / name, *values, measure=measure, heading=heading)
            shown.append(f"![{heading}]({name})")
    every = pd.concat(tables, ignore_index=True)
    write_csv(folder / "measures.csv", every.round(4))
    note = (
        "Mean (SD) over the test acquisitions of all draws, over all frames of each; an acquisition that two draws "
        "test counts twice. Bias: predicted minus true masks, with the limits of agreement (bias ± 1.96 SD). n: "
        "acquisitions where both are defined. `measures.csv` holds the other measures."
    )
    return [_table(every, titles), note, *shown]


def _of_draws(cells: Sequence[Cell], name: str) -> pd.DataFrame:
    """Measures of the acquisitions of all draws of an arm; the draw goes into their names."""
    tables = []
    for cell in cells:
        table = read_measures(cell.folder / name / MEASURES)
        tables.append(table.set_axis([f"{acquisition}, draw {cell.seed}" for acquisition in table.index]))
    return pd.concat(tables)


def _table(every: pd.DataFrame, titles: Mapping[str, str]) -> str:
    rows = []
    for measure, part in every[every["measure"].str.endswith(_SHOWN)].groupby("measure", sort=False):
        name, unit = measure_label(str(measure))
        for row in part.to_dict("records"):
            means = [f"{row[mean]:.1f} ({row[sd]:.1f})" for mean, sd in (("manual_mean", "manual_sd"), ("mean", "sd"))]
            limits = f"{row['lower']:+.1f} to {row['upper']:+.1f}"
            cells = [row["draws"], str(row["n"]), *means, f"{row['bias']:+.1f}", limits]
            rows.append([f"{name} ({unit})", titles[row["arm"]], *cells])
    return markdown_table(["Measure", "Arm", "Draws", "n", "True masks", "Predicted", "Bias", "Limits"], rows)

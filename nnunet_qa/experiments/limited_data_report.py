"""Tables and figures of the experiment of paper 004, from the cells that are done."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_qa.data.checkpoint import read_content
from nnunet_qa.evaluation.paired import compare
from nnunet_qa.experiments.limited_data import (
    BASELINE,
    BOTH,
    DICE,
    GROUPS,
    INTERACTIVE,
    PRETRAINED,
    RESTORATION,
    LimitedDataExperiment,
)
from nnunet_qa.experiments.report_parts import done_cells, draws_text, machines_table, write_page
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.experiments.tables import markdown_table, mean_sd
from nnunet_qa.files import make_folder, write_csv
from nnunet_qa.reports.limited_data_figures import clicks_picture, convergence_picture, patients_picture

PAPER_DICE = {
    BASELINE: {1: 0.348, 2: 0.749, 3: 0.795, 5: 0.819, 10: 0.831, 30: 0.974, 70: 0.981},
    PRETRAINED: {1: 0.392, 2: 0.830, 3: 0.855, 5: 0.858, 10: 0.904, 30: 0.977, 70: 0.984},
    INTERACTIVE: {1: 0.588, 2: 0.929, 3: 0.949, 5: 0.943, 10: 0.948, 30: 0.977, 70: 0.983},
}
"""Test Dice of paper 004, Table 1, fibula in CT, by patients; one click a slice in the interactive group."""
AT = 1
"""Clicks (on a slice, in 2D) at which the interactive groups are compared, as in the paper."""


def write_report(experiment: LimitedDataExperiment) -> Path:
    """Write `report/`: Table 1 beside the paper's, comparisons, curves over patients, epochs and clicks, and costs.

    Returns:
        `report/README.md`.

    Raises:
        SelectionError: no model of the groups is done.
        ModelError: a checkpoint cannot be read.
    """
    cells = done_cells(experiment.runner, without=(RESTORATION,))
    folder = make_folder(experiment.folder / "report")
    dice = pd.concat([_dice(cell) for cell in cells], ignore_index=True)
    write_csv(folder / "per_case.csv", dice.round(6))
    counted = _counted(dice)
    results = pd.DataFrame([_result(cell, counted) for cell in cells])
    write_csv(folder / "results.csv", results.round(6))
    parts = [
        f"# Few annotated patients: {experiment.source.name}",
        _settings(experiment),
        "## Table 1: Dice on test patients",
        _table(results),
        _pictures(folder, results),
        "## Each group against annotated patients alone",
        _comparisons(folder, counted),
        "## Figure 4: best validation Dice while training",
        _convergence(folder, experiment, cells),
        "## What clicks bring",
        _clicks(folder, dice),
        "## What it costs people",
        _costs(results, dice),
        "## Restoration",
        _restoration(folder, experiment),
        "## What ran where",
        machines_table(experiment.runner.done()),
    ]
    return write_page(folder, parts)


def _dice(cell: Cell) -> pd.DataFrame:
    record = cell.result()
    table = pd.read_csv(cell.folder / DICE, dtype={"case_id": str, "subject_id": str})
    front = {"group": record["group"], "size": str(record["size"]), "patients": record["patients"], "seed": cell.seed}
    return pd.concat([pd.DataFrame(front, index=table.index), table], axis=1)


def _counted(dice: pd.DataFrame) -> pd.DataFrame:
    """The rows that count in the tables: after `AT` clicks where there are clicks, else without any."""
    wanted = np.where(dice["group"].isin([INTERACTIVE, BOTH]), AT, 0)
    return dice[dice["clicks"] == wanted]


def _result(cell: Cell, counted: pd.DataFrame) -> dict[str, Any]:
    record = cell.result()
    own = counted[
        (counted["group"] == record["group"])
        & (counted["size"] == str(record["size"]))
        & (counted["seed"] == cell.seed)
    ]
    kept = {name: record[name] for name in ("patients", "cases", "voxels", "slices", "seconds")}
    means = {"dice": own["dice"].mean(), "dice_sd_cases": own["dice"].std(ddof=1), "test": len(own)}
    return {"group": record["group"], "size": str(record["size"]), "seed": cell.seed, **kept, **means}


def _settings(experiment: LimitedDataExperiment) -> str:
    protocol = experiment.protocol
    steps = protocol.budget.iterations
    return (
        f"Configuration {protocol.configuration}, {steps} steps for every model, {protocol.pretraining * steps} for "
        f"the restoration, on the images of all training patients. Draw s tests fold s of {protocol.test_folds} folds "
        "of patients and puts the training patients in an order of its own; a model of n patients learns from the "
        "first n. Plans come from all training patients. Steps, plans, validation and test patients are the same for "
        "all groups."
    )


def _groups(results: pd.DataFrame) -> list[str]:
    return [group for group in GROUPS if group in set(results["group"])]


def _sizes(results: pd.DataFrame) -> list[str]:
    order = results.groupby("size")["patients"].mean().sort_values(kind="stable")
    return [str(size) for size in order.index]


def _table(results: pd.DataFrame) -> str:
    groups = _groups(results)
    printed = [group for group in groups if group in PAPER_DICE]
    rows = []
    for size in _sizes(results):
        own = results[results["size"] == size]
        row = [size if size.isdigit() else f"{size} ({own['patients'].mean():.0f})", draws_text(set(own["seed"]))]
        for group in groups:
            values = own.loc[own["group"] == group, "dice"]
            row.append(f"{mean_sd(values)}, n={len(values)}" if len(values) else "–")
        paper = [PAPER_DICE[group].get(int(size)) if size.isdigit() else None for group in printed]
        rows.append([*row, *("–" if value is None else f"{value:.3f}" for value in paper)])
    heads = ["Patients", "Draws", *(GROUPS[group] for group in groups), *(f"Paper: {GROUPS[g]}" for g in printed)]
    note = (
        "Mean over draws (SD over draws) of the mean over test cases and classes, n draws. Interactive groups after "
        f"{AT} simulated click a case, in 2D a slice. The paper's figures are of another bone (fibula) and other "
        "patients: only the shape of the columns compares."
    )
    return f"{markdown_table(heads, rows)}\n\n{note}"


def _pictures(folder: Path, results: pd.DataFrame) -> str:
    patients_picture(folder / "patients.png", results, titles=GROUPS)
    return "![Test Dice against the number of annotated patients](patients.png)"


def _comparisons(folder: Path, counted: pd.DataFrame) -> str:
    """Each group against the baseline of the same size, on the draws that both have."""
    tables = []
    for size in _sizes(counted):
        own = counted[counted["size"] == size]
        base = set(own.loc[own["group"] == BASELINE, "seed"])
        for group in _groups(own):
            draws = base & set(own.loc[own["group"] == group, "seed"])
            if group == BASELINE or not draws:
                continue
            pair = own[own["group"].isin([BASELINE, group]) & own["seed"].isin(draws)]
            found = compare(
                pair.rename(columns={"group": "arm"}), reference=BASELINE, metric="dice", rng=np.random.default_rng(0)
            )
            tables.append(found.assign(size=size))
    if not tables:
        return "Nothing to compare yet."
    table = pd.concat(tables, ignore_index=True)
    write_csv(folder / "comparison.csv", table.round(6))
    rows = [
        [
            row.size,
            GROUPS[row.arm],
            f"{row.difference:+.3f}",
            "n/a" if np.isnan(row.low) else f"{row.low:+.3f} to {row.high:+.3f}",
            "n/a" if np.isnan(row.p_wilcoxon) else f"{row.p_wilcoxon:.3f}",
            f"{row.seeds_better} of {row.seeds}",
            f"{row.subjects}/{row.pairs}",
        ]
        for row in table.itertuples(index=False)
    ]
    heads = ["Patients", "Group", "Difference in Dice", "95 % interval", "p Wilcoxon", "Better in draws"]
    note = (
        "Paired by test case; intervals draw patients, the test takes one number a patient and is not adjusted for the "
        "number of rows."
    )
    return f"{markdown_table([*heads, 'Patients/pairs'], rows)}\n\n{note}"


def _convergence(folder: Path, experiment: LimitedDataExperiment, cells: Sequence[Cell]) -> str:
    tables = []
    per_epoch = experiment.protocol.budget.iterations_per_epoch
    for cell in cells:
        record = cell.result()
        path = experiment.training(cell, record["group"]).checkpoint
        logged = read_content(path).get("logging", {}).get("mean_fg_dice", []) if path.is_file() else []
        best = np.maximum.accumulate(np.nan_to_num(np.asarray(logged, dtype=float)))
        steps = per_epoch * np.arange(1, len(best) + 1)
        front = {"group": record["group"], "size": str(record["size"]), "seed": cell.seed}
        tables.append(pd.DataFrame({**front, "step": steps, "best_dice": best}))
    curves = pd.concat(tables, ignore_index=True)
    if curves.empty:
        return "The checkpoints are gone, and their logs with them."
    write_csv(folder / "convergence.csv", curves.round(6))
    convergence_picture(folder / "convergence.png", curves, titles=GROUPS)
    note = "nnU-Net's pseudo Dice on patches of validation patients; the interactive groups get a click on each."
    return f"![Best validation Dice against steps](convergence.png)\n\n{note}"


def _clicks(folder: Path, dice: pd.DataFrame) -> str:
    own = dice[dice["group"].isin([INTERACTIVE, BOTH])]
    if own.empty:
        return "No interactive model is done yet."
    by_draw = own.groupby(["group", "size", "patients", "clicks", "seed"], sort=False)["dice"].mean().reset_index()
    clicks_picture(folder / "clicks.png", by_draw, titles=GROUPS)
    means = by_draw.groupby(["group", "size", "clicks"], sort=False)["dice"].mean().unstack("clicks")
    rows = [
        [GROUPS[str(group)], str(size), *(f"{value:.3f}" for value in row)]
        for (group, size), row in means.sort_index(axis=1).iterrows()
    ]
    drops = means.sort_index(axis=1).diff(axis=1).min(axis=1).min()
    note = f"Mean over draws. The largest fall from one number of clicks to the next is {max(0.0, -float(drops)):.4f}."
    heads = ["Group", "Patients", *(f"{clicks} click{'s' * (clicks != 1)}" for clicks in sorted(means.columns))]
    return f"![Dice against clicks](clicks.png)\n\n{markdown_table(heads, rows)}\n\n{note}"


def _costs(results: pd.DataFrame, dice: pd.DataFrame) -> str:
    rows = []
    for size in _sizes(results):
        own = results[results["size"] == size]
        means = own.drop_duplicates("seed")[["cases", "slices", "voxels"]].mean()
        rows.append([size, *(f"{value:,.0f}" for value in means)])
    heads = ["Patients", "Annotated cases", "Slices with foreground", "Voxels drawn"]
    own = dice[dice["group"].isin([INTERACTIVE, BOTH])]
    note = "Means over draws."
    if len(own):
        placed = own.loc[own["clicks"] == AT, "placed"].mean()
        note += (
            f" At use an interactive model got {placed:.1f} clicks a test case (one, in 2D one on each slice that "
            f"needs it); up to {own['clicks'].max()} times as many were tried. The others ask for none."
        )
    return f"{markdown_table(heads, rows)}\n\n{note}"


def _restoration(folder: Path, experiment: LimitedDataExperiment) -> str:
    done = experiment.runner.done([RESTORATION])
    for cell in done:
        picture = experiment.restoration(cell.seed).checkpoint.parent / "restored.png"
        if picture.is_file():
            shutil.copyfile(picture, folder / "restored.png")
            return "![Distorted, original, and restored at two checkpoints (Figure 5)](restored.png)"
    return "" if done else "Not done yet."

"""Tables and figures of the experiment of paper 003, from the cells that are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_qa.experiments.report_parts import (
    arm_panel,
    arm_titles,
    class_dice,
    compare_dice,
    comparison_table,
    dice_of_cases,
    done_cells,
    draws_text,
    fullest_draw,
    images_of,
    machines_table,
    p_with_holm,
    ranked_cases,
    write_page,
    write_tables,
)
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.experiments.semi_qc import BEST, HALF, SemiQCExperiment
from nnunet_qa.experiments.semi_qc_chosen import chosen_section
from nnunet_qa.experiments.semi_qc_measures import measures_section
from nnunet_qa.experiments.tables import markdown_table, mean_sd
from nnunet_qa.files import make_folder, write_csv
from nnunet_qa.reports.segmentation_figures import ErrorPanel, arms_picture
from nnunet_qa.reports.semi_qc_figures import change_picture, change_slope, contours_picture

_COUNTS = ("pool", "pseudo", "left", "validation", "test")
_PERCENTILES = (10, 50, 90)


def write_report(experiment: SemiQCExperiment) -> Path:
    """Write `report/`: Tables 1 to 3 and Figures 2 and 3 of the paper, what was chosen, and what ran where.

    Returns:
        `report/README.md`.

    Raises:
        SelectionError: no cell is done.
    """
    cells, titles = done_cells(experiment.runner), arm_titles(experiment.runner)
    folder = make_folder(experiment.folder / "report")
    images, results = write_tables(folder, cells, _result)
    arms_picture(folder / "arms.png", results.assign(arm=results["arm"].map(titles)), heading="Test Dice by arm")
    parts = [
        f"# Training on the best predictions of {experiment.source.name}",
        _settings(experiment),
        "## Table 1: subjects and images",
        _counts_table(results, titles),
        "## Table 2: Dice on test subjects",
        *_dice(folder, results, images, titles),
        "![Dice of each arm](arms.png)",
        "## Table 3: clinical measures of test acquisitions",
        *measures_section(folder, experiment, cells, titles),
        "## Figure 2: change of Dice by the Dice before",
        *_changes(folder, images, titles),
        "## Figure 3: contours",
        *_contours(folder, experiment, cells, titles),
        "## What was chosen",
        *chosen_section(folder, experiment, cells, titles),
        "## What ran where",
        machines_table(cells),
    ]
    return write_page(folder, parts)


def _settings(experiment: SemiQCExperiment) -> str:
    protocol = experiment.protocol
    scheme = "no cine series" if protocol.scheme is None else f"label scheme {protocol.scheme.name}"
    limit = "" if protocol.per_subject is None else f", at most {protocol.per_subject} of one subject"
    fit = ", ".join(f"{name} {value}" for name, value in protocol.fit.items()) or "defaults"
    return (
        f"Configuration {protocol.configuration}, {scheme}, {protocol.budget.iterations} steps. Of the subjects beside "
        f"test and validation, {protocol.half:.0%} are annotated; {protocol.number} {protocol.unit.value}s of the "
        f"others join with their predictions{limit}. Erroneous is a mean Dice below {protocol.erroneous_below:g}. "
        f"Codes: success from {protocol.thresholds.success:g}, failure below {protocol.thresholds.failure:g}; "
        f"discriminator: {fit}. CRF: best of {protocol.crf_trials} settings on validation cases. Draw s tests fold s "
        f"of {protocol.test_folds} folds of subjects."
    )


def _result(cell: Cell, images: pd.DataFrame) -> dict[str, Any]:
    """One row: how many cases and subjects the arm had, its Dice and that of each class."""
    record = cell.result()
    dice = dice_of_cases(images)["dice"]
    return {
        "arm": cell.arm,
        "seed": cell.seed,
        "annotated": record["pool"],  # as `arms_picture` calls it
        **{name: record[name] for part in _COUNTS for name in (part, f"{part}_subjects")},
        "measured": record["measured"],
        "seconds": record["seconds"],
        "dice": dice.mean(),
        "dice_sd_cases": dice.std(ddof=1),
        **class_dice(images),
    }


def _counts_table(results: pd.DataFrame, titles: Mapping[str, str]) -> str:
    rows = []
    for arm, part in results.groupby("arm", sort=False):
        both = [f"{part[f'{name}_subjects'].mean():.0f}/{part[name].mean():.0f}" for name in _COUNTS]
        rows.append([titles[str(arm)], draws_text(part["seed"]), *both])
    heads = ["Arm", "Draws", "Annotated", "With pseudo-labels", "Left in the pool", "Validation", "Test"]
    return f"{markdown_table(heads, rows)}\n\nSubjects/images, means over the draws."


def _dice(folder: Path, results: pd.DataFrame, images: pd.DataFrame, titles: Mapping[str, str]) -> list[str]:
    classes = [name for name in results.columns if name.startswith("dice_") and name != "dice_sd_cases"]
    tests = compare_dice(images, reference=BEST)
    by_arm = {} if tests.empty else {row.arm: p_with_holm(row.p_t, row.p_t_holm) for row in tests.itertuples()}
    cases = dice_of_cases(images)
    rows = []
    for arm, part in results.groupby("arm", sort=False):
        own = cases[cases["arm"] == arm]["dice"]
        dice = [mean_sd(part["dice"]), "n/a" if len(own) < 2 else f"{own.std(ddof=1):.3f}"]
        each = [mean_sd(part[name]) for name in classes]
        measured = f"{part['measured'].mean():.0f}"
        rows.append([titles[str(arm)], draws_text(part["seed"]), measured, *dice, *each, by_arm.get(str(arm), "")])
    heads = ["Arm", "Draws", "Images", "Dice", "SD over images", *(name.removeprefix("dice_") for name in classes)]
    note = (
        "Mean over test images and classes (SD over draws), and the SD over the images of all draws. Where the case "
        "table names phases (ED, ES), only images with a phase count, for labels of the others may be warped from "
        "them. Every draw has its own test subjects; rows with other draws do not compare. p: paired t-test against "
        f'"{titles[BEST]}" on the mean differences of the subjects, in brackets adjusted by Holm\'s method.'
    )
    parts = [markdown_table([*heads, "p t-test (Holm)"], rows), note]
    if tests.empty:
        return [*parts, f'Nothing to compare: no draw has both "{titles[BEST]}" and another arm.']
    write_csv(folder / "comparison.csv", tests.round(6))
    more = (
        f'Arm minus "{titles[BEST]}" over the same test images of the same draws: above 0 the arm is better. Intervals '
        "draw subjects, tests take one number a subject. Neither knows how much a repeated training differs."
    )
    return [*parts, comparison_table(tests, titles), more]


def _changes(folder: Path, images: pd.DataFrame, titles: Mapping[str, str]) -> list[str]:
    """Change of each test image against the half arm of the same draw."""
    keys = ["seed", "subject_id", "case_id"]
    cases = dice_of_cases(images)
    base = cases[cases["arm"] == HALF].set_index(keys)["dice"]
    tables = {}
    for arm in cases["arm"].unique():
        own = cases[cases["arm"] == arm].set_index(keys)["dice"]
        both = pd.DataFrame({"base": base, "dice": own}).dropna()
        if arm != HALF and len(both):
            tables[str(arm)] = both.assign(change=both["dice"] - both["base"]).reset_index()
    if not tables:
        return [f'No draw has both "{titles[HALF]}" and another arm.']
    write_csv(folder / "changes.csv", pd.concat([t.assign(arm=arm) for arm, t in tables.items()]).round(6))
    change_picture(folder / "changes.png", {titles[arm]: table for arm, table in tables.items()}, base=titles[HALF])
    rows = []
    for arm, table in tables.items():
        slope, _, p = change_slope(table["base"].to_numpy(), table["change"].to_numpy())
        worse = f"{(table['change'] < 0).sum()} of {len(table)}"
        line = ["n/a", "n/a"] if np.isnan(slope) else [f"{slope:+.2f}", f"{p:.3f}" if p >= 0.001 else "< 0.001"]
        rows.append([titles[arm], f"{table['change'].mean():+.3f}", worse, *line])
    note = (
        "A slope below 0 says that images which the first model segments badly gain most; part of any such slope is "
        "chance, for an image that was bad by chance gets better by chance. p takes images as independent."
    )
    heads = [f'Against "{titles[HALF]}"', "Mean change", "Worse", "Slope", "p of the slope"]
    return ["![Change of Dice by the Dice before](changes.png)", markdown_table(heads, rows), note]


def _contours(
    folder: Path, experiment: SemiQCExperiment, cells: Sequence[Cell], titles: Mapping[str, str]
) -> list[str]:
    """Test images at percentiles of the Dice of the half arm (the first one, where it is not done), by every arm."""
    seed, own = fullest_draw(cells)
    base = next((cell for cell in own if cell.arm == HALF), own[0])
    holdout = experiment.holdout(seed)
    ranked = ranked_cases(images_of(base))[::-1].reset_index(drop=True)
    if ranked.empty:
        return ["No test image holds foreground."]
    panels: dict[str, list[ErrorPanel]] = {}
    for percentile in _PERCENTILES:
        case = str(ranked["case_id"].iloc[round(percentile / 100 * (len(ranked) - 1))])
        row = [arm_panel(holdout, cell, case, titles[cell.arm]) for cell in own]
        panels[f"{case}\n{percentile}th percentile"] = row
    contours_picture(folder / "contours.png", panels)
    return [
        "![Contours of each arm and of the truth](contours.png)",
        f'Test images of draw {seed} at the 10th, 50th and 90th percentile of the Dice of "{titles[base.arm]}".',
    ]

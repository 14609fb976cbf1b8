"""Tables and figures of the experiment of paper 002, from the cells that are done."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_qa.data.checkpoint import read_content
from nnunet_qa.experiments.qa_loss import FULL, QA, SUPERVISED, QALossExperiment
from nnunet_qa.experiments.qa_loss_codes import codes_of_cases, codes_section
from nnunet_qa.experiments.qa_loss_discriminators import discriminator_section, judged_arms
from nnunet_qa.experiments.report_parts import (
    arm_panel,
    arm_titles,
    class_dice,
    compare_dice,
    comparison_table,
    done_cells,
    draws_text,
    fullest_draw,
    image_means,
    images_of,
    machines_table,
    ranked_cases,
    write_page,
    write_tables,
)
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.experiments.tables import markdown_table, mean_sd
from nnunet_qa.files import make_folder, write_csv
from nnunet_qa.reports.qa_loss_figures import qa_loss_picture
from nnunet_qa.reports.segmentation_figures import arms_picture, errors_picture

_LOGGED = {"qa_loss": "qa_loss", "dice": "ema_fg_dice", "disagreement": "disagreement_pool"}
_EPOCH = re.compile(r": Epoch (\d+)\s*$")
_STOPPED = re.compile(r"QA loss: stopped by its guard: (.*?)\s*$")
_PEERS = ("mean_teacher", "cross_pseudo")


def write_report(experiment: QALossExperiment) -> Path:
    """Write `report/`: results by arm and seed, per image, paired comparisons, codes, discriminators and the figures.

    Returns:
        `report/README.md`.

    Raises:
        SelectionError: no cell is done.
        ModelError: a discriminator or checkpoint cannot be read.
    """
    cells, titles = done_cells(experiment.runner), arm_titles(experiment.runner)
    folder = make_folder(experiment.folder / "report")
    images, results = write_tables(folder, cells, _result)
    arms_picture(folder / "arms.png", results.assign(arm=results["arm"].map(titles)), heading="Test Dice by arm")
    codes = codes_of_cases(images, experiment.protocol.thresholds)
    write_csv(folder / "codes.csv", codes.round(6))
    parts = [
        f"# QA loss on {experiment.source.name}",
        _settings(experiment),
        "## Dice",
        _dice_table(results, titles, experiment),
        "![Dice of each arm](arms.png)",
        f"## Dice of each arm against: {titles[SUPERVISED]}",
        _comparison(folder, images, titles),
        "## Quality codes by Dice",
        *codes_section(folder, codes, SUPERVISED, titles),
        "## The discriminator on test subjects",
        *_discriminators(folder, experiment, cells, codes, titles),
        "## What the QA loss did",
        *_curves(folder, experiment, cells, titles),
        "## Examples",
        *_examples(folder, experiment, cells, titles),
        "## What ran where",
        machines_table(cells),
    ]
    return write_page(folder, parts)


def _settings(experiment: QALossExperiment) -> str:
    protocol = experiment.protocol
    simulation = ", ".join(f"{name} {value}" for name, value in protocol.simulation.items()) or "defaults"
    return (
        f"Configuration {protocol.configuration}. Codes by Dice: success from {protocol.thresholds.success:g}, failure "
        f"below {protocol.thresholds.failure:g}. Pool images take part after {protocol.start:.0%} of the epochs, their "
        f"weight grows to {protocol.weight:g} over the next {protocol.ramp_up:.0%}. Discriminator: {simulation}. "
        f"Draw s tests fold s of {protocol.test_folds} folds of subjects."
    )


def _result(cell: Cell, images: pd.DataFrame) -> dict[str, Any]:
    """One row: how many cases the arm had, the means over the classes, and the Dice of each class."""
    record = cell.result()
    return {
        "arm": cell.arm,
        "seed": cell.seed,
        "annotated": record["pool"],
        "unlabelled": 0 if cell.arm == SUPERVISED else record["unlabelled"],
        "test": record["test"],
        "seconds": record["seconds"],
        **image_means(images),
        **class_dice(images),
    }


def _dice_table(results: pd.DataFrame, titles: Mapping[str, str], experiment: QALossExperiment) -> str:
    rows = []
    for arm, part in results.groupby("arm", sort=False):
        counts = "/".join(f"{part[name].mean():.0f}" for name in ("annotated", "unlabelled", "test"))
        dice = [mean_sd(part[column]) for column in ("dice", "dice_foreground", "dice_pooled")]
        draws, steps = draws_text(part["seed"]), str(experiment.protocol.budget.iterations)
        rows.append([titles[str(arm)], counts, draws, steps, *dice, mean_sd(part["seconds"], 0)])
    heads = ["Arm", "Annotated/unlabelled/test", "Draws", "Steps", "Dice", "Dice, with foreground", "Dice, pooled"]
    note = (
        "Mean (SD over draws) of the mean over test cases and classes; a class that a case rightly leaves empty counts "
        "1. `With foreground` leaves those out, `pooled` counts the voxels of all cases together. Numbers of cases are "
        "means over the draws. Every draw has its own test subjects and its own annotated cases, the same for all "
        "arms; rows with other draws do not compare. A step is one of the optimiser; with unlabelled cases it takes as "
        "many pool patches as annotated ones besides. Seconds are those of training, the discriminator where the arm "
        "fits one, and testing."
    )
    return f"{markdown_table([*heads, 'Seconds'], rows)}\n\n{note}"


def _comparison(folder: Path, images: pd.DataFrame, titles: Mapping[str, str]) -> str:
    table = compare_dice(images, reference=SUPERVISED)
    if table.empty:
        return f'Nothing to compare: no draw has both "{titles[SUPERVISED]}" and another arm.'
    write_csv(folder / "comparison.csv", table.round(6))
    note = (
        f'Arm minus "{titles[SUPERVISED]}" over the same test cases of the same draws: above 0 the arm is better. '
        "Intervals draw subjects, tests take one number a subject. Neither knows how much a repeated training differs: "
        "nnU-Net draws no seed, so a small difference may be that alone."
    )
    return f"{comparison_table(table, titles)}\n\n{note}"


def _discriminators(
    folder: Path, experiment: QALossExperiment, cells: Sequence[Cell], codes: pd.DataFrame, titles: Mapping[str, str]
) -> list[str]:
    table = judged_arms(experiment, cells, codes)
    if table.empty:
        return ["No arm has fitted one yet."]
    write_csv(folder / "discriminator.csv", table.round(6))
    return discriminator_section(folder, experiment, cells, table, titles)


def _curves(folder: Path, experiment: QALossExperiment, cells: Sequence[Cell], titles: Mapping[str, str]) -> list[str]:
    """The log of every arm with a QA loss, beside the Dice of the supervised one, and what the guard did."""
    shown = [cell for cell in cells if cell.arm not in (*_PEERS, FULL)]
    curves = pd.concat([_logged(experiment, cell) for cell in shown] or [pd.DataFrame()], ignore_index=True)
    if curves.empty or curves["qa_loss"].isna().all():
        return ["No arm with a QA loss is done yet."]
    write_csv(folder / "curves.csv", curves.round(6))
    found = {
        (cell.arm, cell.seed): stop for cell in shown if (stop := guard_stop(experiment.model_of(cell) / "fold_0"))
    }
    qa_loss_picture(
        folder / "curves.png",
        curves.assign(arm=curves["arm"].map(titles)),
        reference=titles[SUPERVISED],
        stopped={(titles[arm], seed): epoch for (arm, seed), (epoch, _) in found.items()},
    )
    texts = ["![QA loss, pseudo Dice and disagreement by epoch](curves.png)"]
    if not found:
        return [*texts, "The guard stopped no QA loss."]
    rows = [[titles[arm], str(seed), str(epoch), reason] for (arm, seed), (epoch, reason) in found.items()]
    return [*texts, markdown_table(["Stopped by its guard", "Draw", "Epoch", "Because"], rows)]


def _logged(experiment: QALossExperiment, cell: Cell) -> pd.DataFrame:
    """What a training logged each epoch, one row an epoch; no row where its checkpoint is gone."""
    path = experiment.training(cell, cell.result()["trainer"], {}).checkpoint
    logged = read_content(path).get("logging", {}) if path.is_file() else {}
    table = pd.DataFrame({name: pd.Series(logged.get(key, []), dtype=float) for name, key in _LOGGED.items()})
    table.insert(0, "epoch", table.index)
    table.insert(0, "seed", cell.seed)
    table.insert(0, "arm", cell.arm)
    return table


def guard_stop(fold: Path) -> tuple[int, str] | None:
    """Epoch in which the guard stopped the QA loss of a training, and why; None where it did not.

    Args:
        fold: folder with nnU-Net's `training_log_*.txt`, one for each time that the training was started.
    """
    for log in sorted(fold.glob("training_log_*.txt")):
        epoch = 0
        for line in log.read_text(encoding="utf-8").splitlines():
            if found := _EPOCH.search(line):
                epoch = int(found[1])
            elif found := _STOPPED.search(line):
                return epoch, found[1]
    return None


def _examples(
    folder: Path, experiment: QALossExperiment, cells: Sequence[Cell], titles: Mapping[str, str]
) -> list[str]:
    """The same test cases as each arm of one draw segments them: those with best, middle and worst Dice of one arm."""
    seed, own = fullest_draw(cells)
    base, holdout = own[0], experiment.holdout(seed)  # the supervised arm, where it is done
    ranked = ranked_cases(images_of(base))
    if ranked.empty:
        return ["No test case holds foreground."]
    places = {"best": 0, "middle": len(ranked) // 2, "worst": len(ranked) - 1}
    shown = {name: str(ranked["case_id"].iloc[place]) for name, place in places.items()}
    groups = {
        "examples.png": [cell for cell in own if cell.arm in (SUPERVISED, QA, *_PEERS, FULL)],
        "examples_variants.png": [cell for cell in own if cell.arm not in (SUPERVISED, *_PEERS, FULL)],
    }
    texts = []
    for name, group in groups.items():
        if len(group) > (name != "examples.png"):  # the QA loss alone is no variant
            panels = {
                row: [arm_panel(holdout, cell, case, titles[cell.arm]) for cell in group] for row, case in shown.items()
            }
            errors_picture(folder / name, panels, heading=f"draw {seed}: {', '.join(shown.values())}")
            texts.append(f"![The same test cases as segmented by each arm]({name})")
    note = f'Best, middle and worst test case with foreground of "{titles[base.arm]}" in draw {seed}.'
    return [*texts, note]

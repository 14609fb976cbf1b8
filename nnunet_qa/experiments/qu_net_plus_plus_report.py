"""Tables and figures of the experiment of paper 001, from the cells that are done."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_qa.evaluation.segmentation import foreground_classes, ignore_value
from nnunet_qa.experiments.qu_net_plus_plus import (
    INITIAL,
    REFERENCE,
    TRANSFER_INITIAL,
    QUNetPlusPlusExperiment,
)
from nnunet_qa.experiments.qu_net_plus_plus_choices import choices, choices_table
from nnunet_qa.experiments.report_parts import (
    arm_titles,
    compare_dice,
    comparison_table,
    done_cells,
    draws_text,
    error_panel,
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
from nnunet_qa.inference.levels import level_segmentations
from nnunet_qa.quality.table import FILE_NAME as QUALITY
from nnunet_qa.quality.table import read_quality
from nnunet_qa.reports.segmentation_figures import (
    arms_picture,
    errors_picture,
    level_losses_picture,
    level_outputs_picture,
)

ONE_STAGE = (INITIAL, TRANSFER_INITIAL)
"""Arms that were trained for half as long as the others."""
_PAPER = {"precision": "Pr", "recall": "Re", "jaccard": "J", "dice": "D", "accuracy": "Acc"}
_SHOWN = 4


def write_report(experiment: QUNetPlusPlusExperiment) -> Path:
    """Write `report/`: results by arm and seed, per image, paired comparisons, Table I and the figures.

    Returns:
        `report/README.md`.

    Raises:
        SelectionError: no cell is done.
    """
    cells, titles = done_cells(experiment.runner), arm_titles(experiment.runner)
    folder = make_folder(experiment.folder / "report")
    images, results = write_tables(folder, cells, _result)
    parts = [f"# QU-net++ on {experiment.source.name}", "## Table I", _table(results, titles, experiment)]
    comparison = compare_dice(images, reference=REFERENCE, without=ONE_STAGE)
    if not comparison.empty:
        write_csv(folder / "comparison.csv", comparison.round(6))
        parts += [f"## Dice of each arm against {titles[REFERENCE]}", _comparison_table(comparison, titles)]
    looked_at = choices(experiment)
    if not looked_at.empty:
        write_csv(folder / "choices.csv", looked_at.round(6))
        parts += ["## What was chosen", choices_table(looked_at, titles)]
    parts += ["## Figures", *_figures(experiment, folder, results, titles), "## What ran where", machines_table(cells)]
    return write_page(folder, parts)


def _result(cell: Cell, images: pd.DataFrame) -> dict[str, Any]:
    """One row: how many images were annotated, and the means over the classes."""
    record = cell.result()
    return {
        "arm": cell.arm,
        "seed": cell.seed,
        "annotated": len(record["train"]),
        "pool": record["pool"],
        "test": record["test"],
        "s_m": len(record["s_m"]) if "s_m" in record else None,
        "seconds": record["seconds"],
        **image_means(images),
    }


def _table(results: pd.DataFrame, titles: dict[str, str], experiment: QUNetPlusPlusExperiment) -> str:
    """Table I: mean (SD) over the draws."""
    stage = experiment.protocol.budget.iterations
    rows = []
    for name in (arm.name for arm in experiment.runner.arms if arm.name in set(results["arm"])):
        part = results[results["arm"] == name]
        counts = f"{part['annotated'].mean():.0f}/{part['test'].mean():.0f}"
        draws = draws_text(part["seed"])
        steps = str(stage if name in ONE_STAGE else 2 * stage)
        more = [mean_sd(part["dice_foreground"]), mean_sd(part["dice_pooled"])]
        rows.append([titles[name], counts, draws, steps, *(mean_sd(part[metric]) for metric in _PAPER), *more])
    heads = ["Arm", "#Train/#Test", "Draws", "Steps", *_PAPER.values(), "D, with foreground", "D, pooled"]
    note = (
        "Mean (SD over draws) of the mean over the test images; an image without foreground counts 1 when it was "
        "rightly left empty. `D, with foreground` leaves those out, `D, pooled` counts the voxels of all images "
        "together. #Train is the number of annotated pool images, averaged over the draws. Each draw has its own test "
        "subjects, so rows with other draws do not compare; the next table pairs them. Steps are all steps of the "
        "optimiser; nnU-Net draws no seed for them, so a training that is repeated gives other figures (see "
        f'"{titles["replicate"]}").'
    )
    return f"{markdown_table(heads, rows)}\n\n{note}"


def _comparison_table(table: pd.DataFrame, titles: dict[str, str]) -> str:
    note = (
        "Arm minus QU-net++ over the same images of the same draws: above 0 the arm is better. Intervals draw "
        "subjects, tests take one number a subject; neither knows how much a repeated training differs, which "
        f'"{titles["replicate"]}" shows: the same images from the same first weights.'
    )
    return f"{comparison_table(table, titles)}\n\n{note}"


def _figures(
    experiment: QUNetPlusPlusExperiment, folder: Path, results: pd.DataFrame, titles: dict[str, str]
) -> list[str]:
    order = [arm.name for arm in experiment.runner.arms]
    shown = results.sort_values("arm", key=lambda arms: arms.map(order.index), kind="stable")
    arms_picture(folder / "arms.png", shown.assign(arm=shown["arm"].map(titles)), heading="Test Dice by arm")
    texts = ["![Dice of each arm](arms.png)"]
    cells = [cell for cell in experiment.runner.done([REFERENCE]) if cell.arm == REFERENCE]
    if not cells:
        return texts
    first, best = experiment.runner.cell(INITIAL, cells[0].seed), cells[0]
    shutil.copyfile(first.folder / "initial_set.csv", folder / "initial_set.csv")
    for name in (first, best):
        if (losses := _level_losses(experiment, name)) is not None:
            picture = f"level_losses_{name.arm}.png"
            level_losses_picture(folder / picture, losses, heading=f"{titles[name.arm]}: loss of each level, training")
            texts.append(f"![Loss of each level]({picture})")
    ranked, holdout = ranked_cases(images_of(best)), experiment.holdout(best.seed)
    if not ranked.empty:
        half = max(1, min(_SHOWN, len(ranked) // 2))
        groups = {"best": ranked.head(half), "worst": ranked.tail(half)[::-1]}
        panels = {
            name: [error_panel(holdout, best, row.case_id, row.dice) for row in part.itertuples()]
            for name, part in groups.items()
        }
        errors_picture(folder / "errors.png", panels, heading=f"{titles[REFERENCE]}, draw {best.seed}")
        texts.append("![Best and worst test images](errors.png)")
        if _has_levels(experiment, best):
            middle = str(ranked["case_id"].iloc[len(ranked) // 2])
            _draw_levels(experiment, best, middle, folder / "levels.png")
            texts.append("![Output of each level](levels.png)")
    return texts


def _level_losses(experiment: QUNetPlusPlusExperiment, cell: Cell) -> pd.DataFrame | None:
    path = experiment.model_of(cell) / "fold_0" / "level_losses.csv"
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    levels = [name for name in table.columns if name.startswith("level_")]
    training = table[table["part"] == "train"].set_index("epoch")[levels]
    return training.rename(columns=lambda name: f"L{name.removeprefix('level_')}")


def _has_levels(experiment: QUNetPlusPlusExperiment, cell: Cell) -> bool:
    return (cell.folder / "imagesTs" / QUALITY).is_file() and (experiment.model_of(cell) / "plans.json").is_file()


def _draw_levels(experiment: QUNetPlusPlusExperiment, cell: Cell, case: str, path: Path) -> None:
    predictor = nnUNetPredictor(
        use_mirroring=experiment.protocol.budget.mirroring,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(experiment.model_of(cell)), (0,), "checkpoint_final.pth")
    holdout = experiment.holdout(cell.seed)
    levels: Sequence[np.ndarray] = level_segmentations(predictor, holdout.images(case))
    quality = read_quality(cell.folder / "imagesTs" / QUALITY).set_index("case_id")["q"]
    image, truth = holdout.image(case), holdout.labels(holdout.label(case))
    labels = holdout.dataset_json["labels"]
    level_outputs_picture(
        path,
        image,
        levels,
        truth,
        title=case,
        q=float(quality[case]),
        classes=foreground_classes(labels),
        ignore=ignore_value(labels),
    )

"""What the arms of the experiment of paper 003 chose, judged by the truth that they could not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from nnunet_qa.data.paths import read_json
from nnunet_qa.experiments.report_parts import draws_text
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.experiments.semi_qc import RANKING, SemiQCExperiment
from nnunet_qa.experiments.semi_qc_choices import SCORES
from nnunet_qa.experiments.tables import markdown_table, mean_sd
from nnunet_qa.files import write_csv
from nnunet_qa.quality.curve_classifier_file import FILE_NAME as CLASSIFIER


def chosen_section(
    folder: Path, experiment: SemiQCExperiment, cells: Sequence[Cell], titles: Mapping[str, str]
) -> list[str]:
    """Text on the choices; writes `chosen.csv`."""
    choosing = [cell for cell in cells if (cell.folder / SCORES).is_file()]
    if not choosing:
        return ["No arm that chooses is done yet."]
    table = pd.DataFrame([judged_choice(cell, experiment.protocol.erroneous_below) for cell in choosing])
    write_csv(folder / "chosen.csv", table.round(6))
    rows = []
    for arm, part in table.groupby("arm", sort=False):
        dice = [mean_sd(part[name]) for name in ("pool_dice", "chosen_dice")]
        counts = [f"{part[name].sum():.0f} of {part[of].sum():.0f}" for name, of in _SHARES]
        rows.append([titles[str(arm)], draws_text(part["seed"]), *dice, *counts, mean_sd(part["spearman"], 2)])
    heads = ["Arm", "Draws", "Dice of the pool", "Dice of the chosen", "Erroneous in the pool", "Among the chosen"]
    note = (
        f"Of {experiment.protocol.unit.value}s, over all frames: true mean Dice of the predicted labels (SD over "
        "draws), how many are erroneous by it over all draws, and Spearman's correlation of the score with it over "
        "the pool. With a CRF, what is chosen is judged after it, the pool before. Nobody knew these Dice but the "
        "oracle."
    )
    return [markdown_table([*heads, "Spearman"], rows), note, *_classifiers(choosing, titles)]


_SHARES = (("pool_erroneous", "pool_units"), ("chosen_erroneous", "chosen_units"))


def judged_choice(cell: Cell, erroneous_below: float) -> dict[str, Any]:
    """One row: what a cell chose among what, by the true Dice.

    Args:
        cell: a cell that is done and chooses.
        erroneous_below: mean Dice below which something is erroneous.
    """
    text = {"case_id": str, "unit": str}
    pool = pd.read_csv(cell.folder / SCORES, dtype=text)
    ranking = pd.read_csv(cell.folder / RANKING, dtype=text)
    units = pool.groupby("unit")[["score", "dice"]].mean()
    chosen = ranking.groupby(ranking["case_id"].map(pool.set_index("case_id")["unit"]))["dice"].mean()
    constant = len(units) < 3 or bool(np.isclose(np.ptp(units, axis=0), 0).any())
    return {
        "arm": cell.arm,
        "seed": cell.seed,
        "pool_units": len(units),
        "pool_dice": units["dice"].mean(),
        "pool_erroneous": int((units["dice"] < erroneous_below).sum()),
        "chosen_units": len(chosen),
        "chosen_dice": chosen.mean(),
        "chosen_erroneous": int((chosen < erroneous_below).sum()),
        "spearman": float("nan") if constant else float(spearmanr(units["score"], units["dice"]).statistic),
    }


def _classifiers(cells: Sequence[Cell], titles: Mapping[str, str]) -> list[str]:
    """What the curve classifiers said of annotated subjects that they had not seen."""
    rows = []
    for cell in cells:
        path = (cell.folder / CLASSIFIER).with_suffix(".json")
        if path.is_file():
            found = read_json(path)["metrics"]["validation"]
            figures = [found.get(name) for name in ("sensitivity", "specificity", "auroc")]
            shown = ["n/a" if value is None else f"{value:.2f}" for value in figures]
            rows.append([titles[cell.arm], str(cell.seed), *shown])
    if not rows:
        return []
    heads = ["Curve classifier of", "Draw", "Sensitivity", "Specificity", "AUROC"]
    note = "Cross-validated over annotated subjects: networks' predictions, simulated errors and true labels together."
    return [markdown_table(heads, rows), note]

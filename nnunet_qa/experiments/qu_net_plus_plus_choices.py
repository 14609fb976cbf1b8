"""What each arm of the experiment of paper 001 chose, looked at with the labels that it did not see.

Says why a choice helps or does not: whether Q finds the images on which the first model is wrong, whether the chosen
ones hold foreground, and whether they are one image several times over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from nnunet_qa.evaluation.per_image import evaluate_images
from nnunet_qa.experiments.qu_net_plus_plus import INITIAL, TRANSFER, QUNetPlusPlusExperiment
from nnunet_qa.experiments.tables import markdown_table, mean_sd
from nnunet_qa.quality.table import FILE_NAME as QUALITY
from nnunet_qa.quality.table import read_quality
from nnunet_qa.selection.diversity import thumbnail

POOL = "pool"


def choices(experiment: QUNetPlusPlusExperiment) -> pd.DataFrame:
    """Look at S_m of every arm that starts from the first model, and at the whole rest of the pool.

    Returns:
        One row a seed and arm (`pool` for the whole rest): number of `cases`, `subjects` among them, the part
        `with_foreground`, mean `q`, mean `dice` of the first model on them, `distance` (mean distance of a thumbnail
        to the nearest of the others, larger is more diverse). For the pool also `below_q0`, the part with Q below q0,
        `empty`, the part on which the first model predicts nothing, and `spearman` of Q and Dice.
    """
    rows: list[dict[str, Any]] = []
    for first in experiment.runner.done([INITIAL]):
        known = _known(experiment, first.seed)
        looks = {case: thumbnail(experiment.holdout(first.seed).image(case)) for case in known.index}
        rho = spearmanr(known["q"], known["dice"]).statistic if known["q"].nunique() > 1 else float("nan")
        whole = {
            "below_q0": float((known["q"] < experiment.protocol.q0).mean()),
            "empty": float((known["predicted"] == 0).mean()),
            "spearman": float(rho),
        }
        rows.append({"seed": first.seed, "arm": POOL, **_look(known, looks), **whole})
        for cell in experiment.runner.done():
            record = cell.result()
            # the transferred arm has a first model of its own
            if cell.seed == first.seed and cell.arm != TRANSFER and record.get("s_m"):
                chosen = known.loc[record["s_m"]]
                rows.append({"seed": cell.seed, "arm": cell.arm, **_look(chosen, looks)})
    return pd.DataFrame(rows)


def choices_table(table: pd.DataFrame, titles: dict[str, str]) -> str:
    """The table for people: means (SD) over the seeds."""
    columns = ["cases", "subjects", "with_foreground", "q", "dice", "distance"]
    rows = [
        [titles.get(str(arm), "Rest of the pool"), *(mean_sd(part[column], 2) for column in columns)]
        for arm, part in table.groupby("arm", sort=False)
    ]
    heads = ["Chosen by", "Cases", "Subjects", "With foreground", "Q", "Dice of the first model", "Distance"]
    pool = table[table["arm"] == POOL]
    note = (
        f"First model on the rest of the pool: Q below q0 for {mean_sd(pool['below_q0'], 2)} of the images, nothing "
        f"predicted for {mean_sd(pool['empty'], 2)}, Spearman of Q and Dice {mean_sd(pool['spearman'], 2)}. Distance: "
        "of a thumbnail to the nearest other one that was chosen; larger is more diverse."
    )
    return f"{markdown_table(heads, rows)}\n\n{note}"


def _known(experiment: QUNetPlusPlusExperiment, seed: int) -> pd.DataFrame:
    """Q and true Dice of the first model on the pool cases that are not in S0."""
    first, holdout = experiment.runner.cell(INITIAL, seed), experiment.holdout(seed)
    left = sorted(set(holdout.parts.pool) - set(first.result()["train"]))
    truth = evaluate_images(first.folder / "imagesTr", holdout.raw / "labelsTr", left, holdout.dataset_json)
    truth["predicted"] = truth["tp"] + truth["fp"]
    table = truth.groupby("case_id").agg(
        dice=("dice", "mean"), foreground=("foreground", "any"), predicted=("predicted", "sum")
    )
    table["q"] = read_quality(first.folder / "imagesTr" / QUALITY).set_index("case_id")["q"]
    subjects = holdout.cases.subjects()
    table["subject"] = [subjects[str(case)] for case in table.index]
    return table


def _look(chosen: pd.DataFrame, looks: dict[str, np.ndarray]) -> dict[str, Any]:
    vectors = np.stack([looks[str(case)] for case in chosen.index])
    apart = cdist(vectors, vectors)
    np.fill_diagonal(apart, np.inf)
    return {
        "cases": len(chosen),
        "subjects": chosen["subject"].nunique(),
        "with_foreground": float(chosen["foreground"].mean()),
        "q": float(chosen["q"].mean()),
        "dice": float(chosen["dice"].mean()),
        "distance": float(apart.min(axis=1).mean()) if len(chosen) > 1 else float("nan"),
    }

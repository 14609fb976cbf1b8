"""What a cell of the experiment of paper 004 measures: Dice of test cases, with and without clicks, and cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nnunet_qa.evaluation.per_image import evaluate_images
from nnunet_qa.experiments.holdout import Holdout
from nnunet_qa.experiments.training import Training

TEST = "imagesTs"


def tested_dice(training: Training) -> pd.DataFrame:
    """Predict the test cases with nnU-Net's command: `case_id`, `clicks` (0) and `dice`, the mean over the classes."""
    training.predict(TEST)
    holdout = training.holdout
    truths = holdout.raw / "labelsTs"
    table = evaluate_images(training.cell.folder / TEST, truths, holdout.parts.test, holdout.dataset_json)
    return table.groupby("case_id", sort=False)["dice"].mean().reset_index().assign(clicks=0)


def simulated_dice(training: Training, clicks: int) -> pd.DataFrame:
    """Segment the test cases with simulated clicks, one after the other (in 2D one after the other on each slice).

    Returns:
        `case_id`, `clicks` from 0 up, `dice` as of `tested_dice`, and `placed`, the clicks on all slices together. A
        case at which nothing is left to click keeps what it has.
    """
    table = pd.read_csv(training.interact(TEST, clicks), dtype={"case_id": str})
    rounds = table.groupby(["case_id", "round"], sort=False).agg(dice=("dice", "mean"), placed=("clicks", "first"))
    every = pd.MultiIndex.from_product([table["case_id"].unique(), range(clicks + 1)], names=["case_id", "clicks"])
    rounds.index = rounds.index.set_names(["case_id", "clicks"])
    return rounds.reindex(every).groupby(level="case_id", sort=False).ffill().reset_index()


def annotation_cost(holdout: Holdout, cases: Sequence[str]) -> dict[str, int]:
    """What people had to draw in these cases: `voxels` of any class, and `slices` that hold some."""
    voxels = slices = 0
    for case in cases:
        drawn = holdout.labels(holdout.label(case)) > 0
        voxels += int(drawn.sum())
        slices += int(np.any(drawn, axis=(-2, -1)).sum())
    return {"voxels": voxels, "slices": slices}

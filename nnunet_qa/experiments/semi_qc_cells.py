"""Data of the cells of the experiment of paper 003: injected datasets, predictions refined by a CRF, and measures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_qa.data.images import holds_volumes, read_array
from nnunet_qa.data.inject import inject
from nnunet_qa.environment import FOLDERS
from nnunet_qa.evaluation.per_image import evaluate_images
from nnunet_qa.experiments.holdout import Holdout
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.experiments.training import Training
from nnunet_qa.files import make_folder
from nnunet_qa.quality.curve_files import read_acquisitions, write_curves
from nnunet_qa.quality.curves import LabelScheme

POOL, TEST = "imagesUn", "imagesTs"
CRF_FOLDER, CRF_SETTINGS = "imagesUn_crf", "crf.json"
CURVES, TRUE_CURVES = "curves", "true_curves"
"""Folders of a cell with what `nnunet-qa curves` would write of the predicted and of the true test acquisitions."""


def prepare_injected(
    cell: Cell, half: Training, ranking: pd.DataFrame, predictions: Path, *, round_number: int
) -> None:
    """Give a cell a dataset in which the ranked pool cases are training cases, planned as the half and preprocessed.

    Args:
        cell: the cell.
        half: the training on people's labels alone, whose fold is kept.
        ranking: the chosen cases, see `nnunet_qa.data.inject.inject`.
        predictions: the label maps that become their labels.
        round_number: which round of injection this is, for the case table.
    """
    holdout = half.holdout
    name = holdout.source.name
    raw, preprocessed = cell.folder / FOLDERS[0] / name, cell.folder / FOLDERS[1] / name

    def work() -> None:
        for folder in FOLDERS:
            make_folder(cell.folder / folder)
        inject(
            holdout.raw,
            raw,
            ranking,
            predictions,
            source_preprocessed=half.cell.folder / FOLDERS[1] / name,
            target_preprocessed=preprocessed,
            round_number=round_number,
            overwrite=True,
        )
        for file in ("dataset_fingerprint.json", f"{half.plans}.json"):
            shutil.copyfile(holdout.folder / FOLDERS[1] / name / file, preprocessed / file)

    cell.step("inject", work)
    data = ("-d", holdout.number, "-c", holdout.configuration, "-plans_name", half.plans, "-np", str(half.jobs))
    cell.call("preprocess", "nnUNetv2_preprocess", *data)


def without_empty(ranking: pd.DataFrame, predictions: Path, dataset_json: dict[str, Any]) -> pd.DataFrame:
    """The ranking without empty predictions, which no injection takes; all of it where every one is empty."""
    ending, volumes = dataset_json["file_ending"], holds_volumes(dataset_json)
    paths = [predictions / f"{case}{ending}" for case in ranking["case_id"]]
    found = np.array([read_array(path, volumes=volumes).any() for path in paths])
    return ranking[found] if found.any() else ranking


def crf_predictions(cell: Cell, source: Training, *, trials: int) -> Path:
    """The pool's predictions after a CRF whose settings were chosen on the validation cases; their folder.

    Args:
        cell: where settings and predictions go.
        source: the training whose predictions are refined; it has kept the probabilities of validation and pool.
        trials: how many settings are tried.
    """
    holdout = source.holdout
    settings, output = cell.folder / CRF_SETTINGS, cell.folder / CRF_FOLDER
    own = replace(cell, environment=source.cell.environment)  # the dataset as the source knows it
    more = ("-d", holdout.number, "--jobs", str(source.jobs))
    mode = "2d" if holdout.configuration == "2d" else "3d"
    draws = ("--mode", mode, "--trials", str(trials), "--seed", str(cell.seed))
    validation = source.checkpoint.parent / "validation"
    own.call("crf-tune", "nnunet-qa", "crf", "tune", "-p", str(validation), "-o", str(settings), *draws, *more)
    files = ("-p", str(source.cell.folder / POOL), "-i", str(holdout.raw / POOL), "-o", str(output))
    own.call("crf-apply", "nnunet-qa", "crf", "apply", *files, "-s", str(settings), *more)
    return output


def case_dice(predictions: Path, truths: Path, cases: Sequence[str], dataset_json: dict[str, Any]) -> pd.Series:
    """Mean Dice over the classes of each case; arguments as of `evaluate_images`."""
    return evaluate_images(predictions, truths, cases, dataset_json).groupby("case_id", sort=False)["dice"].mean()


def measured_cases(holdout: Holdout) -> list[str]:
    """Test cases whose Dice counts.

    Where the case table names phases (ED, ES), these are the annotated frames: labels of the frames between them may
    have been warped from them.
    """
    frame = holdout.cases.frame
    named = set(frame["case_id"][frame["phase"] != ""])
    return [case for case in holdout.parts.test if case in named] or list(holdout.parts.test)


def write_measures(cell: Cell, holdout: Holdout, scheme: LabelScheme) -> None:
    """Write curves and clinical measures of the test acquisitions, predicted and true, over all their frames."""
    ending = holdout.dataset_json["file_ending"]
    for name, labels in ((CURVES, cell.folder / TEST), (TRUE_CURVES, holdout.raw / "labelsTs")):
        files = [labels / f"{case}{ending}" for case in holdout.parts.test]
        found = read_acquisitions(files, scheme=scheme, cases=holdout.cases, show_progress=False)
        write_curves(cell.folder / name, found)

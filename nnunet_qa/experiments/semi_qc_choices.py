"""How the arms of the experiment of paper 003 choose the predictions that become labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable
from nnunet_qa.config import Unit
from nnunet_qa.evaluation.folders import Protocol as Compared
from nnunet_qa.evaluation.pairwise import pairwise_dice
from nnunet_qa.experiments.holdout import Holdout
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.experiments.semi_qc_cells import POOL, case_dice
from nnunet_qa.experiments.semi_qc_curves import fit_classifier, judge_curves
from nnunet_qa.experiments.training import Training
from nnunet_qa.files import write_csv
from nnunet_qa.quality.curve_classifier_file import FILE_NAME as CLASSIFIER
from nnunet_qa.quality.discriminator_file import FILE_NAME as DISCRIMINATOR
from nnunet_qa.quality.table import FILE_NAME as QUALITY
from nnunet_qa.selection.best_in_class import Estimator, best_in_class, goodness
from nnunet_qa.selection.best_in_class_files import read_estimators

if TYPE_CHECKING:
    from nnunet_qa.experiments.semi_qc import SemiQCExperiment

SCORES = "scores.csv"
"""In the folder of a cell that chooses, one row a pool case: `case_id`, `unit` (itself or its acquisition), `score`,
and the true `dice` of the prediction, which only the oracle asks."""


class Choice(str, Enum):
    """What predictions of the pool are chosen by; the oracle asks the true Dice, which nobody has."""

    RANDOM = "random"
    CURVES = "curves"
    Q = "q"
    CODE = "code"
    ENSEMBLE = "ensemble"
    ORACLE = "oracle"

    def ranked(self, experiment: SemiQCExperiment, cell: Cell, source: Training) -> pd.DataFrame:
        """The chosen cases, for `nnunet_qa.data.inject.inject`; the scores of all go into `SCORES`.

        Args:
            experiment: the experiment.
            cell: the cell that chooses.
            source: the training whose predictions of the pool, in its cell, are ranked.
        """
        holdout, protocol = source.holdout, experiment.protocol
        predictions, pool = source.cell.folder / POOL, holdout.parts.unlabelled
        table = CaseTable.read(holdout.raw / CASES)
        units = chosen_units(holdout, pool, protocol.unit)
        dice = case_dice(predictions, experiment.truths(), pool, holdout.dataset_json)
        if self is Choice.RANDOM:
            scores = _random(units, np.random.default_rng(cell.seed))
        elif self is Choice.ORACLE:
            scores = dice.fillna(1.0)  # rightly empty
        else:
            file = predictions / QUALITY if self is Choice.Q else self._judged(experiment, cell, source)
            scores = goodness(self.value, read_estimators({Estimator(self.value): file}, table)[self.value])
        rows = pd.DataFrame({"unit": units, "score": scores, "dice": dice}).rename_axis("case_id").reset_index()
        write_csv(cell.folder / SCORES, rows)
        best = best_in_class(
            rows[["case_id", "score"]],
            number=protocol.number,
            per_subject=protocol.per_subject,
            unit=protocol.unit,
            cases=table,
            aggregate="mean",
        )
        return best.assign(estimator=self.value, model=source.cell.arm)

    def _judged(self, experiment: SemiQCExperiment, cell: Cell, source: Training) -> Path:
        """A file with the judgements of the pool by a discriminator, a curve classifier, or two trainings."""
        holdout, protocol = source.holdout, experiment.protocol
        predictions = source.cell.folder / POOL
        path = cell.folder / f"{self.value}.csv"
        if self is Choice.CURVES:
            known = source.cell.folder / CLASSIFIER  # a second round keeps the classifier of the first
            classifier = known if known.is_file() else cell.folder / CLASSIFIER
            if classifier != known:
                cell.step("classifier", lambda: fit_classifier(experiment, cell, holdout))
            cell.step("judge", lambda: judge_curves(experiment, classifier, holdout, predictions, path))
            return path
        if self is Choice.ENSEMBLE:
            compared = Compared.of(holdout.dataset_json, str(experiment.source / "dataset.json"))
            write_csv(path, pairwise_dice(experiment.members(cell.seed), protocol=compared, jobs=experiment.jobs))
            return path
        own = replace(cell, environment=source.cell.environment)  # the dataset as the source knows it
        model, discriminator = ("-d", holdout.number, "-c", holdout.configuration), cell.folder / DISCRIMINATOR
        more = ("--plans", source.plans, "--jobs", str(source.jobs), "-device", source.device)
        thresholds = ("--success", str(protocol.thresholds.success), "--failure", str(protocol.thresholds.failure))
        fit = [part for name, value in protocol.fit.items() for part in (f"--{name}", str(value))]
        how = ("-o", str(discriminator), "--seed", str(cell.seed), "--overwrite", *thresholds, *fit)
        own.call("fit", "nnunet-qa", "discriminator", "fit", *model, *more, *how)
        files = ("-i", str(discriminator), "-p", str(predictions), "-o", str(path))
        own.call("judge", "nnunet-qa", "discriminator", "predict", *model, *more, *files)
        return path


def chosen_units(holdout: Holdout, cases: Iterable[str], unit: Unit) -> dict[str, str]:
    """What each case is chosen with: itself, or its acquisition."""
    if unit is Unit.CASE:
        return {case: case for case in cases}
    known = holdout.cases.acquisitions()
    return {case: known[case] for case in cases}


def _random(units: dict[str, str], rng: np.random.Generator) -> pd.Series:
    """A random score for each case, the same for all frames of an acquisition."""
    names = sorted(set(units.values()))
    drawn = dict(zip(names, rng.permutation(len(names)) / len(names), strict=True))
    return pd.Series({case: drawn[name] for case, name in units.items()})

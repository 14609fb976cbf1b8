"""The curve classifier of the experiment of paper 003, fitted without anyone's review.

The paper asks people which of a thousand predicted series are good. Here the annotated subjects take their place: what
networks that have not seen them predict (two folds), and simulated errors of their labels, are good or erroneous by
their Dice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from nnunet_qa.data.splits import write_splits
from nnunet_qa.environment import FOLDERS
from nnunet_qa.evaluation.segmentation import foreground_classes
from nnunet_qa.experiments.commands import environment_of
from nnunet_qa.experiments.holdout import Holdout
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.experiments.semi_qc_cells import case_dice
from nnunet_qa.files import make_folder, write_csv
from nnunet_qa.quality.codes import Code, CodeThresholds, mean_dice
from nnunet_qa.quality.curve_classifier import CurveLSTM
from nnunet_qa.quality.curve_classifier_file import FILE_NAME as CLASSIFIER
from nnunet_qa.quality.curve_classifier_file import load, save
from nnunet_qa.quality.curve_files import read_acquisitions
from nnunet_qa.quality.curves import Acquisition, LabelScheme, acquisition_of
from nnunet_qa.quality.simulated_errors import corrupted

if TYPE_CHECKING:
    from nnunet_qa.experiments.semi_qc import SemiQCExperiment

LEARNT = "curve_labels.csv"
"""What a classifier learnt from: `acquisition_id`, `source`, `dice`, and whether it is `erroneous`."""
COPIES = 6
"""Simulated errors of each annotated acquisition."""
FOLDS = 2
"""Networks that predict annotated subjects which they have not seen."""

_Judged = tuple[Acquisition, str, float]  # with its source and mean Dice


def fit_classifier(experiment: SemiQCExperiment, cell: Cell, holdout: Holdout) -> None:
    """Fit a classifier on the annotated acquisitions of a seed, and write it and `LEARNT` into the cell.

    Args:
        experiment: the experiment.
        cell: the cell that chooses by curves.
        holdout: the parts of its seed.
    """
    protocol, scheme = experiment.protocol, experiment.scheme
    calls = [
        delayed(simulated)(holdout, cases, scheme, protocol.thresholds, np.random.default_rng([cell.seed, index]))
        for index, cases in enumerate(_frames(holdout, holdout.parts.pool).values())
    ]
    found: list[_Judged] = [one for part in Parallel(n_jobs=experiment.jobs)(calls) for one in part]
    found += _cross_validated(experiment, cell, holdout, scheme)
    dice = np.array([value for _, _, value in found])
    erroneous = dice < protocol.erroneous_below
    learnt = {
        "acquisition_id": [one.acquisition_id for one, _, _ in found],
        "source": [source for _, source, _ in found],
        "dice": dice.round(6),
        "erroneous": erroneous,
    }
    write_csv(cell.folder / LEARNT, pd.DataFrame(learnt))
    classifier = CurveLSTM(seed=cell.seed).fit([one for one, _, _ in found], erroneous)
    save(classifier, cell.folder / CLASSIFIER, about={"experiment": "semi-qc", "seed": cell.seed})


def judge_curves(
    experiment: SemiQCExperiment, classifier: Path, holdout: Holdout, predictions: Path, path: Path
) -> None:
    """Write what a classifier says of the predicted acquisitions of the pool, to `path`."""
    ending = holdout.dataset_json["file_ending"]
    files = [predictions / f"{case}{ending}" for case in holdout.parts.unlabelled]
    acquisitions = list(
        read_acquisitions(
            files, scheme=experiment.scheme, cases=holdout.cases, jobs=experiment.jobs, show_progress=False
        )
    )
    said = load(classifier).predict_proba(acquisitions)  # not rounded: good ones crowd near 0
    write_csv(path, pd.DataFrame({"acquisition_id": [one.acquisition_id for one in acquisitions], "p_erroneous": said}))


def _frames(holdout: Holdout, cases: tuple[str, ...] | list[str]) -> dict[str, list[str]]:
    """Frames of each acquisition, in their order."""
    frame = holdout.cases.frame.set_index("case_id").loc[list(cases)]
    known = holdout.cases.acquisitions()
    found: dict[str, list[str]] = {}
    for case in frame.sort_values("frame_index").index:
        found.setdefault(known[case], []).append(case)
    return found


def simulated(
    holdout: Holdout, cases: list[str], scheme: LabelScheme, thresholds: CodeThresholds, rng: np.random.Generator
) -> list[_Judged]:
    """The true labels of an annotated acquisition, and simulated errors of some or all of its frames.

    In every other copy each frame has errors of its own, so that curves jump; in the others the same errors stay over
    the cycle, as those of a network often do.

    Args:
        holdout: the dataset.
        cases: frames of the acquisition, in their order.
        scheme: what the labels stand for.
        thresholds: which Dice an error of each severity has.
        rng: for all that is random.
    """
    classes = foreground_classes(holdout.dataset_json["labels"])
    files = [holdout.label(case) for case in cases]
    (true,) = read_acquisitions(files, scheme=scheme, cases=holdout.cases, show_progress=False)
    found: list[_Judged] = [(true, "truth", 1.0)]
    volumes = [holdout.labels(file).astype(np.int16) for file in files]
    for copy in range(COPIES):
        code = Code(int(rng.integers(Code.MINOR, Code.FAILURE + 1)))
        part = rng.random() if copy > 1 else 1.0  # of the frames
        seed, wrong, dice = int(rng.integers(2**32)), [], []
        for volume in volumes:
            own = rng if copy % 2 else np.random.default_rng(seed)
            changed = None
            if rng.random() < part:
                changed = corrupted(volume, classes=classes, code=code, thresholds=thresholds, rng=own)
            wrong.append(volume if changed is None else changed.labels)
            dice.append(mean_dice(wrong[-1], volume, list(classes.values())))
        name = f"{true.acquisition_id}_simulated{copy}"
        labels = acquisition_of(np.stack(wrong), true.spacing, scheme, acquisition_id=name, subject_id=true.subject_id)
        found.append((labels, "simulated", float(np.mean(dice))))
    return found


def _cross_validated(
    experiment: SemiQCExperiment, cell: Cell, holdout: Holdout, scheme: LabelScheme
) -> Iterator[_Judged]:
    """What networks predict for annotated subjects that they have not seen: nnU-Net's validation in two folds."""
    subjects = holdout.cases.subjects()
    names = sorted({subjects[case] for case in holdout.parts.pool})
    order = np.random.default_rng(cell.seed).permutation(names).tolist()
    for fold in range(FOLDS):
        unseen = set(order[fold::FOLDS])
        cases = [case for case in holdout.parts.pool if subjects[case] in unseen]
        rest = [case for case in holdout.parts.pool if subjects[case] not in unseen]
        folder = make_folder(cell.folder / f"cross_validation_{fold}")
        own = Cell(cell.arm, cell.seed, folder, environment_of(folder, jobs=experiment.jobs), cell.lock)
        training = experiment.training(own)
        holdout.populate(own, rest)
        write_splits(folder / FOLDERS[1] / holdout.source.name, [{"train": rest, "val": cases}])
        training.go_on(stages=1)
        predictions = training.checkpoint.parent / "validation"
        dice = case_dice(predictions, experiment.truths(), cases, holdout.dataset_json)
        frames = _frames(holdout, cases)
        files = [predictions / f"{case}{holdout.dataset_json['file_ending']}" for case in cases]
        for one in read_acquisitions(files, scheme=scheme, cases=holdout.cases, show_progress=False):
            yield one, "cross_validation", float(dice.loc[frames[one.acquisition_id]].mean())

"""The experiment of paper 003: train on the best of your own predictions, chosen without their truth.

Half of the subjects are annotated, the rest are the pool. A first model learns from the half and predicts the pool;
each further arm adds some of these predictions as labels, chosen in its own way, and trains anew with the same network
and number of steps. Test subjects are seen by nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import Role
from nnunet_qa.config import Unit
from nnunet_qa.data.images import label_values
from nnunet_qa.data.raw_dataset import FOLDERS
from nnunet_qa.errors import CurveError, DatasetError, SelectionError
from nnunet_qa.experiments.experiment import BaseProtocol, Experiment, write_metrics
from nnunet_qa.experiments.holdout import Holdout, Parts
from nnunet_qa.experiments.runner import Arm, Cell
from nnunet_qa.experiments.semi_qc_cells import (
    POOL,
    TEST,
    case_dice,
    crf_predictions,
    measured_cases,
    prepare_injected,
    without_empty,
    write_measures,
)
from nnunet_qa.experiments.semi_qc_choices import Choice, chosen_units
from nnunet_qa.experiments.training import Training
from nnunet_qa.files import write_csv
from nnunet_qa.inference.crf import library
from nnunet_qa.quality.codes import CodeThresholds
from nnunet_qa.quality.curve_files import check_frames
from nnunet_qa.quality.curves import LabelScheme

FULL, HALF, RANDOM, CRF, BEST, TWO = "full", "half", "half_random", "half_random_crf", "half_best", "half_best_twice"
AGAIN = "half_again"
BY = {Choice.Q: "half_q", Choice.CODE: "half_code", Choice.ENSEMBLE: "half_ensemble", Choice.ORACLE: "half_oracle"}
"""Arms that choose by something else than the paper does."""
RANKING = "ranking.csv"
TRAINER = "QAsemiTrainer"
_PLAIN: Mapping[str, Any] = {"head_weights": "all", "pool": {"enabled": False}}
_BY = {
    Choice.CURVES: "curves",
    Choice.Q: "Q",
    Choice.CODE: "the discriminator's code",
    Choice.ENSEMBLE: "agreement",
    Choice.ORACLE: "the true Dice",
}


@dataclass(frozen=True, kw_only=True)
class Protocol(BaseProtocol):
    """What the experiment does, apart from where; of the two stages of the budget only the first is used.

    Attributes:
        number: pool cases, or acquisitions, that join the training.
        per_subject: at most so many of one subject; None for any number.
        unit: choose single cases, or acquisitions.
        scheme: what the labels stand for, for curves and clinical measures; None where the cases are no cine series,
            and then the best are chosen by Q.
        erroneous_below: mean Dice below which an acquisition counts as erroneous.
        thresholds: Dice of each quality code, for the discriminator and for simulated errors.
        fit: options of `nnunet-qa discriminator fit`, by name.
        crf_trials: settings of the CRF that are tried on validation cases.
        half: part of the subjects beside test and validation that are annotated.
    """

    number: int = 30
    per_subject: int | None = None
    unit: Unit = Unit.CASE
    scheme: LabelScheme | None = None
    erroneous_below: float = 0.7
    thresholds: CodeThresholds = field(default_factory=CodeThresholds)
    fit: Mapping[str, int | float] = field(default_factory=dict)
    crf_trials: int = 20
    half: float = 0.5

    def settings(self) -> dict[str, Any]:
        """What determines the results, as JSON."""
        plain = ("configuration", "number", "per_subject", "erroneous_below", "crf_trials")
        parts = ("half", "test_folds", "validation_subjects")
        return {
            **{name: getattr(self, name) for name in (*plain, *parts)},
            "unit": self.unit.value,
            "scheme": None if self.scheme is None else {**vars(self.scheme), "values": dict(self.scheme.values)},
            "thresholds": asdict(self.thresholds),
            "fit": dict(self.fit),
            "budget": self.budget.model_dump(mode="json"),
        }


@dataclass(frozen=True, kw_only=True)
class SemiQCExperiment(Experiment[Protocol]):
    """The experiment on one dataset."""

    name: ClassVar[str] = "semi-qc"

    @property
    def best(self) -> Choice:
        """What the arm `half_best` chooses by: curves as the paper does, or Q where there are none."""
        return Choice.CURVES if self.protocol.scheme is not None else Choice.Q

    @property
    def scheme(self) -> LabelScheme:
        """What the labels stand for, in an experiment with curves."""
        assert self.protocol.scheme is not None
        return self.protocol.scheme

    def _arms(self) -> list[Arm]:
        number, unit = self.protocol.number, self.protocol.unit.value
        best = f"Half + {number} best by"
        arms = [
            Arm(FULL, self._full, (), "All annotated"),
            Arm(HALF, self._half, (), "Half annotated"),
            Arm(AGAIN, self._half, (), "Half annotated, trained again"),
            Arm(RANDOM, lambda cell: self._pseudo(cell, Choice.RANDOM), (HALF,), f"Half + {number} random {unit}s"),
            Arm(CRF, lambda cell: self._pseudo(cell, Choice.RANDOM, crf=True), (HALF,), "The same after a CRF"),
            Arm(BEST, lambda cell: self._pseudo(cell, self.best), (HALF,), f"{best} {_BY[self.best]}"),
        ]
        for choice, name in BY.items():
            if choice is not self.best:

                def chooses(cell: Cell, choice: Choice = choice) -> dict[str, Any]:
                    return self._pseudo(cell, choice)

                needs = (HALF, AGAIN) if choice is Choice.ENSEMBLE else (HALF,)
                arms.append(Arm(name, chooses, needs, f"{best} {_BY[choice]}"))
        return [*arms, Arm(TWO, self._twice, (HALF, BEST), f"{best} {_BY[self.best]}, second round")]

    def check(self, seeds: Sequence[int], arms: Sequence[str] | None = None) -> None:
        """Refuse, before anything is written, what could not be run to its end.

        Args:
            seeds: which draws.
            arms: names of the arms; None for all.

        Raises:
            SelectionError: there is no such arm, more is to join than the pool has, or the scheme does not fit.
            DatasetError: the parts cannot be made.
            CurveError: a series is not annotated in every frame, or the case table does not say which frames make it.
            DependencyError: the arm of the CRF is to be run, and pydensecrf2 is not installed.
        """
        chosen = [arm.name for arm in self.runner.chosen(arms)]
        protocol = self.protocol
        for seed in seeds:
            holdout = self.holdout(seed)
            units = set(chosen_units(holdout, holdout.parts.unlabelled, protocol.unit).values())
            if protocol.number > len(units):
                raise SelectionError(
                    f"{protocol.number} {protocol.unit.value}s are to join the training, but the pool of draw {seed} "
                    f"has {len(units)}; lower the number"
                )
        if protocol.scheme is not None:
            self._check_series(holdout, protocol.scheme)
        if CRF in chosen and not all(self.runner.cell(CRF, seed).done for seed in seeds):
            library()

    def _check_series(self, holdout: Holdout, scheme: LabelScheme) -> None:
        """Curves need whole acquisitions with every frame annotated, and labels that the scheme knows."""
        if self.protocol.unit is not Unit.ACQUISITION:
            raise SelectionError("curves judge whole acquisitions; choose acquisitions too, not single cases")
        known = {0, *scheme.values.values()}
        for value in sorted(label_values(holdout.dataset_json["labels"])):
            if value not in known:
                raise SelectionError(
                    f'{self.source}: the label {value} is not in the label scheme "{scheme.name}"; name another, or '
                    "your own, such as lv=1,myocardium=2,rv=3"
                )
        frame = holdout.cases.frame
        for name, own in frame.groupby(frame["case_id"].map(holdout.cases.acquisitions())):
            try:
                _check_annotated(str(name), own)
            except CurveError as error:
                raise CurveError(
                    f"{self.source / CASES}: {error}. Curves and measures need every frame annotated (phantoms: "
                    "`nnunet-qa phantom dataset --labelled-frames all`); or leave the label scheme out"
                ) from error

    def holdout(self, seed: int, *, everything: bool = False) -> Holdout:
        """The parts of one seed; nothing is written.

        Args:
            seed: which draw.
            everything: with the labels of the pool, for the arm that shows what could be reached.
        """
        holdout = super().holdout(seed)
        return holdout.with_everything() if everything else holdout

    def _parts(self, seed: int) -> Parts:
        """Subjects, not cases, are halved: the frames of an acquisition stay together."""
        parts, subjects = super()._parts(seed), self._subjects()
        names = sorted({subjects[case] for case in parts.pool})
        number = round(self.protocol.half * len(names))
        if not 2 <= number < len(names):
            raise DatasetError(
                f"{self.source}: {len(names)} subjects are left beside test and validation; {number} annotated ones "
                "are too few, or leave no pool. Change the half, the test folds or the validation subjects"
            )
        kept = set(np.random.default_rng(seed).permutation(names)[:number].tolist())
        pool = tuple(case for case in parts.pool if subjects[case] in kept)
        return replace(parts, pool=pool, unlabelled=tuple(case for case in parts.pool if subjects[case] not in kept))

    def training(self, cell: Cell) -> Training:
        """The model of a cell."""
        return self._training_on(cell, self.holdout(cell.seed, everything=cell.arm == FULL), TRAINER, _PLAIN)

    def members(self, seed: int) -> list[Path]:
        """Folders of what two trainings on the annotated half predict for the pool."""
        return [self.runner.cell(arm, seed).folder / POOL for arm in (HALF, AGAIN)]

    def truths(self) -> Path:
        """Folder of the labels of all cases, for tests, the oracle and what people annotated."""
        return self.source / FOLDERS[Role.LABELLED][1]

    def _full(self, cell: Cell) -> dict[str, Any]:
        training = self.training(cell)
        training.holdout.prepare()
        training.train(training.holdout.parts.pool, stages=1)
        return self._tested(training)

    def _half(self, cell: Cell) -> dict[str, Any]:
        training = self.training(cell)
        training.holdout.prepare()
        for_crf = cell.arm == HALF  # which starts from probabilities
        training.train(training.holdout.parts.pool, stages=1, npz=for_crf)
        training.score(POOL, *(["--npz"] if for_crf else []))
        return self._tested(training)

    def _twice(self, cell: Cell) -> dict[str, Any]:
        """The best of what the model of the first round predicts, chosen anew, in place of the first ones."""
        earlier = self.training(replace(self.runner.cell(BEST, cell.seed), lock=cell.lock))
        earlier.score(POOL)
        return self._pseudo(cell, self.best, earlier=earlier)

    def _pseudo(
        self, cell: Cell, choice: Choice, *, earlier: Training | None = None, crf: bool = False
    ) -> dict[str, Any]:
        """Choose, inject, train from scratch, test."""
        half = self.training(self.runner.cell(HALF, cell.seed))
        source = earlier or half
        training = self.training(cell)
        holdout = training.holdout
        ranking = choice.ranked(self, cell, source)
        predictions = source.cell.folder / POOL
        if crf:
            predictions = crf_predictions(cell, source, trials=self.protocol.crf_trials)
        ranking = without_empty(ranking, predictions, holdout.dataset_json)
        dice = case_dice(predictions, self.truths(), ranking["case_id"].tolist(), holdout.dataset_json)
        write_csv(cell.folder / RANKING, ranking.assign(dice=ranking["case_id"].map(dice)))
        prepare_injected(cell, half, ranking, predictions, round_number=1 if earlier is None else 2)
        training.go_on(stages=1)
        return self._tested(training, set(ranking["case_id"]))

    def _tested(self, training: Training, chosen: Collection[str] = ()) -> dict[str, Any]:
        """Test the model; what is to be remembered of the cell, which also trained on the chosen pool cases."""
        training.score(TEST)
        holdout, cell = training.holdout, training.cell
        cases = measured_cases(holdout)
        write_metrics(cell, holdout, cases)
        if self.protocol.scheme is not None:
            write_measures(cell, holdout, self.protocol.scheme)
        parts = {name: getattr(holdout.parts, name) for name in ("pool", "validation", "test")}
        parts["pseudo"] = [case for case in holdout.parts.unlabelled if case in chosen]
        parts["left"] = [case for case in holdout.parts.unlabelled if case not in chosen]
        subjects = holdout.cases.subjects()
        counts = {name: len(own) for name, own in parts.items()}
        people = {f"{name}_subjects": len({subjects[case] for case in own}) for name, own in parts.items()}
        return {"plans": training.plans, **counts, **people, "measured": len(cases)}


def _check_annotated(name: str, rows: pd.DataFrame) -> None:
    """Refuse rows of an acquisition that is annotated in some of its frames only."""
    left = rows[rows["role"] != Role.LABELLED.value]
    if len(left) == len(rows):
        return  # the experiment has no use for it
    check_frames(name, [None if pd.isna(index) else int(index) for index in rows["frame_index"]])
    for case, role in zip(left["case_id"], left["role"], strict=True):
        raise CurveError(f'{name}: the frame "{case}" is {role}, not {Role.LABELLED.value}')

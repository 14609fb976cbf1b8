"""What the experiments share: a protocol on one dataset, its runner, the parts of a draw, and testing a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.errors import DatasetError
from nnunet_qa.evaluation.per_image import evaluate_images
from nnunet_qa.experiments.budget import Budget
from nnunet_qa.experiments.holdout import Holdout, Parts, part_subjects
from nnunet_qa.experiments.runner import Arm, Cell, Runner
from nnunet_qa.experiments.training import Training
from nnunet_qa.files import write_csv

METRICS = "test_images.csv"
"""In a cell: the metrics of each test image and class."""


@dataclass(frozen=True, kw_only=True)
class BaseProtocol(ABC):
    """What an experiment does, apart from where.

    Attributes:
        configuration: `2d`, `3d_fullres`, …
        budget: size of the trainings.
        test_folds: see `part_subjects`.
        validation_subjects: see `part_subjects`.
    """

    configuration: str = "2d"
    budget: Budget
    test_folds: int = 3
    validation_subjects: int = 1

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the results, as JSON."""


P = TypeVar("P", bound=BaseProtocol)


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC, Generic[P]):
    """An experiment on one dataset.

    Attributes:
        name: of the experiment, as its command is called.
        source: `nnUNet_raw/DatasetXXX` with every case annotated and a cases.csv.
        folder: holds everything that the experiment writes.
        protocol: what is done.
        device: `cpu`, `cuda` or `mps`.
        jobs: processes of each command.
    """

    name: ClassVar[str]

    source: Path
    folder: Path
    protocol: P
    device: str = "cpu"
    jobs: int = 1

    @cached_property
    def runner(self) -> Runner:
        """The runner with all arms."""
        settings = {"experiment": self.name, "source": self.source, **self.protocol.settings()}
        return Runner(self.folder, settings, tuple(self._arms()), jobs=self.jobs)

    @abstractmethod
    def _arms(self) -> list[Arm]:
        """All arms, those that others need before these."""

    def wanted(self, names: list[str] | None) -> list[str] | None:
        """Names of the arms that a user's words ask for; None for all."""
        return names

    @abstractmethod
    def check(self, seeds: Sequence[int], arms: Sequence[str] | None = None) -> None:
        """Refuse, before anything is written, what could not be run to its end.

        Args:
            seeds: which draws.
            arms: names of the arms; None for all.

        Raises:
            SelectionError: there is no such arm.
            DatasetError: the parts cannot be made.
        """

    def holdout(self, seed: int) -> Holdout:
        """The parts of one draw as a dataset; nothing is written."""
        protocol, folder = self.protocol, self.folder / "holdout" / f"seed_{seed}"
        return Holdout(self.source, folder, self._parts(seed), protocol.configuration, protocol.budget, self.jobs)

    def _parts(self, seed: int) -> Parts:
        """Who is in which part of a draw."""
        folds, validation = self.protocol.test_folds, self.protocol.validation_subjects
        return part_subjects(self._subjects(), seed=seed, test_folds=folds, validation_subjects=validation)

    def _subjects(self) -> dict[str, str]:
        """Subject of each annotated case."""
        table = CaseTable.read(self.source / CASES)
        annotated = set(table.case_ids(Role.LABELLED))
        if not annotated:
            raise DatasetError(f"{self.source / CASES}: no case is labelled; the experiment needs annotated cases")
        return {case: subject for case, subject in table.subjects().items() if case in annotated}

    def _training_on(
        self,
        cell: Cell,
        holdout: Holdout,
        trainer: str,
        settings: Mapping[str, Any] | None = None,
        *,
        plans: str | None = None,
    ) -> Training:
        """The model of a cell, with the plans of the holdout unless others are named."""
        return Training(
            cell=cell,
            holdout=holdout,
            trainer=trainer,
            plans=plans or holdout.plans,
            device=self.device,
            jobs=self.jobs,
            settings=settings or {},
        )


def write_metrics(cell: Cell, holdout: Holdout, cases: Sequence[str]) -> None:
    """Compare the predicted test images of a cell with their labels, and write `METRICS`.

    Args:
        cell: the cell, whose `imagesTs` holds the predictions.
        holdout: its data.
        cases: identifiers of the test cases that count.
    """
    table = evaluate_images(cell.folder / "imagesTs", holdout.raw / "labelsTs", cases, holdout.dataset_json)
    table.insert(1, "subject_id", table["case_id"].map(holdout.cases.subjects()))
    write_csv(cell.folder / METRICS, table)

"""The experiment of paper 002: does a QA loss on unlabelled images help, beside peers that use the same images?

A few cases are annotated, the rest of the pool is not; every arm trains on the same annotated cases with the same
network and number of steps, and is tested on subjects that nobody has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from nnunet_qa.errors import DatasetError
from nnunet_qa.experiments.experiment import BaseProtocol, Experiment, write_metrics
from nnunet_qa.experiments.holdout import Holdout, Parts
from nnunet_qa.experiments.runner import Arm, Cell
from nnunet_qa.experiments.training import Training
from nnunet_qa.quality.codes import CodeThresholds
from nnunet_qa.quality.discriminator_file import FILE_NAME

SUPERVISED, QA, FULL = "supervised", "qa_loss", "full"
_PLAIN: Mapping[str, Any] = {"head_weights": "all", "pool": {"enabled": False}}


@dataclass(frozen=True, kw_only=True)
class Protocol(BaseProtocol):
    """What the experiment does, apart from where; of the two stages of the budget only the first is used.

    Attributes:
        labelled: annotated cases, drawn with the seed, of as many subjects as possible.
        thresholds: Dice of each quality code.
        weight: of the QA loss, the consistency and the cross pseudo supervision alike.
        start: part of the epochs before pool images take part, in every arm that uses them.
        ramp_up: part of the epochs over which the weight then grows.
        simulation: settings of the discriminator that the QA arms fit, as in `qa_loss.simulation` of `qa.yaml`.
    """

    labelled: int = 6
    thresholds: CodeThresholds = field(default_factory=CodeThresholds)
    weight: float = 0.1
    start: float = 0.4
    ramp_up: float = 0.2
    simulation: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What determines the results, as JSON."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("budget", "thresholds")}
        return {**own, "thresholds": asdict(self.thresholds), "budget": self.budget.model_dump(mode="json")}


@dataclass(frozen=True, kw_only=True)
class QALossExperiment(Experiment[Protocol]):
    """The experiment on one dataset."""

    name: ClassVar[str] = "qa-loss"

    def _arms(self) -> list[Arm]:
        weight = self._weight()
        peers = {
            "mean_teacher": ("Mean teacher", "MeanTeacherTrainer"),
            "cross_pseudo": ("Cross pseudo supervision", "CrossPseudoTrainer"),
        }
        variants: dict[str, tuple[str, dict[str, Any]]] = {
            "qa_hard": ("QA loss, hardened overlays", {"hard": True}),
            "qa_noise": ("QA loss, noise on the montage", {"noise": 0.1}),
            "qa_all_outputs": ("QA loss, through all outputs", {"outputs": "all"}),
            "qa_entropy": ("QA loss and entropy", {"entropy_weight": 1.0}),
            "qa_weak": ("QA loss, a tenth of the weight", {"weight": self.protocol.weight / 10}),
            "qa_strong": ("QA loss, ten times the weight", {"weight": 10 * self.protocol.weight}),
            "qa_refit": ("QA loss, discriminator refitted", {"refit_every": self._quarter()}),
        }
        if self.protocol.configuration != "2d":
            variants["qa_views"] = ("QA loss, three views", {"views": [0, 1, 2]})
        own_fit = ("qa_noise", "qa_refit", "qa_views")  # its montages, or what it is to withstand, are others
        arms = [
            Arm(SUPERVISED, lambda cell: self._run(cell, "QAsemiTrainer", _PLAIN), (), "Annotated cases alone"),
            Arm(QA, lambda cell: self._run(cell, "QAsemiTrainer", self._qa({})), (), "QA loss"),
        ]
        for name, (title, trainer) in peers.items():

            def peer(cell: Cell, name: str = name, trainer: str = trainer) -> dict[str, Any]:
                return self._run(cell, trainer, {"head_weights": "all", name: weight})

            arms.append(Arm(name, peer, (), title))
        for name, (title, settings) in variants.items():

            def variant(cell: Cell, name: str = name, settings: dict[str, Any] = settings) -> dict[str, Any]:
                shared = {} if name in own_fit else {"discriminator": str(self.discriminator(cell.seed))}
                return self._run(cell, "QAsemiTrainer", self._qa({**shared, **settings}))

            arms.append(Arm(name, variant, () if name in own_fit else (QA,), title))
        arms.append(Arm(FULL, lambda cell: self._run(cell, "QAsemiTrainer", _PLAIN), (), "All cases annotated"))
        return arms

    def _quarter(self) -> int:
        """A quarter of the epochs, after which the discriminator is fitted anew."""
        return max(1, self.protocol.budget.epochs() // 4)

    def _weight(self) -> dict[str, float]:
        return {name: getattr(self.protocol, name) for name in ("weight", "start", "ramp_up")}

    def _qa(self, more: Mapping[str, Any]) -> dict[str, Any]:
        protocol = self.protocol
        settings = {**self._weight(), "codes": asdict(protocol.thresholds)}
        qa = {**settings, "simulation": dict(protocol.simulation), **more}
        return {"head_weights": "all", "scoring": {"every_epoch": True, "final": False}, "qa_loss": qa}

    def check(self, seeds: Sequence[int], arms: Sequence[str] | None = None) -> None:
        """Refuse, before anything is written, what could not be run to its end.

        Args:
            seeds: which draws.
            arms: names of the arms; None for all.

        Raises:
            SelectionError: there is no such arm.
            DatasetError: the parts cannot be made.
        """
        self.runner.chosen(arms)
        for seed in seeds:
            self._parts(seed)

    def holdout(self, seed: int, *, everything: bool = False) -> Holdout:
        """The parts of one seed; nothing is written.

        Args:
            seed: which draw.
            everything: with the labels of the unlabelled cases, for the arm that shows what could be reached.
        """
        holdout = super().holdout(seed)
        return holdout.with_everything() if everything else holdout

    def _parts(self, seed: int) -> Parts:
        subjects = self._subjects()
        rng = np.random.default_rng(seed)
        parts = super()._parts(seed).with_labelled(self.protocol.labelled, subjects, rng)
        if len({subjects[case] for case in parts.pool}) < 2:
            raise DatasetError(
                f"{self.source}: the labelled cases are of one subject; a discriminator needs two. Label more, or "
                "change the test folds and validation subjects"
            )
        return parts

    def discriminator(self, seed: int) -> Path:
        """The discriminator that the arm with the QA loss has fitted."""
        cell = self.runner.cell(QA, seed)
        return self.training(cell, "QAsemiTrainer", {}).checkpoint.parent / FILE_NAME

    def training(self, cell: Cell, trainer: str, settings: Mapping[str, Any]) -> Training:
        """The model of a cell."""
        holdout = self.holdout(cell.seed, everything=cell.arm == FULL)
        return self._training_on(cell, holdout, trainer, settings)

    def model_of(self, cell: Cell) -> Path:
        """Model folder of a cell that is done."""
        return self.training(cell, cell.result()["trainer"], {}).model

    def _run(self, cell: Cell, trainer: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        training = self.training(cell, trainer, settings)
        holdout = training.holdout
        holdout.prepare()
        training.train(holdout.parts.pool, stages=1)
        training.score("imagesTs")
        write_metrics(cell, holdout, holdout.parts.test)
        parts = {name: len(getattr(holdout.parts, name)) for name in ("pool", "unlabelled", "validation", "test")}
        return {"trainer": trainer, "plans": training.plans, "settings": yaml.safe_dump(dict(settings)), **parts}

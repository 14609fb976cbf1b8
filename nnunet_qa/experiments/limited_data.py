"""The experiment of paper 004: how good is a model of few patients, and what pretraining and clicks add to it.

The training patients of a draw are put in order once; a model of n patients learns from the first n, so the subsets are
nested. All models of a draw share plans, preprocessed data, validation and test patients and the number of steps. The
plans come from the images of all training patients, as if nnU-Net had planned a large dataset of which n are annotated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from nnunet_qa.config_limited_data import InteractionConfig
from nnunet_qa.errors import SelectionError, nearest
from nnunet_qa.experiments.experiment import BaseProtocol, Experiment
from nnunet_qa.experiments.limited_data_cells import annotation_cost, simulated_dice, tested_dice
from nnunet_qa.experiments.runner import Arm, Cell
from nnunet_qa.experiments.training import Training
from nnunet_qa.files import write_csv

RESTORATION = "restoration"
BASELINE, PRETRAINED, INTERACTIVE, BOTH, SEMI, PAPER = "seg", "pretrained", "interactive", "both", "semi", "paper"
GROUPS = {
    BASELINE: "Annotated patients alone",
    PRETRAINED: "Pretrained by restoration",
    INTERACTIVE: "Interactive",
    BOTH: "Pretrained and interactive",
    SEMI: "QAsemiTrainer, the rest as pool",
    PAPER: "The paper's U-Net",
}
"""What is compared, in the order of the tables."""
ALL = "all"
"""In place of a number of patients: as many as there are."""
DICE = "dice.csv"
"""In a cell: mean Dice over the classes, one row a test case and number of clicks."""
TRAINERS = {
    INTERACTIVE: "InteractiveTrainer",
    BOTH: "InteractiveTrainer",
    PAPER: "PaperUNetTrainer",
    RESTORATION: "RestorationTrainer",
}
"""Trainers of the arms; of the others `QAsemiTrainer`. All but the paper's train the network of the plans."""
_PLAIN: Mapping[str, Any] = {"pool": {"enabled": False}}


@dataclass(frozen=True, kw_only=True)
class Protocol(BaseProtocol):
    """What the experiment does, apart from where; of the two stages of the budget only the first is used.

    Attributes:
        sizes: numbers of annotated patients, or `ALL`.
        pretraining: how many stages of the budget the restoration trains.
        clicks: most clicks that are simulated on a test case (on a slice of it in 2D).
        qa_loss: settings of the QA loss of `SEMI`.
        interaction: settings of the section `interaction` of qa.yaml.
    """

    sizes: tuple[int | str, ...] = (1, 2, 3, 5, 10, ALL)
    pretraining: int = 2
    clicks: int = 5
    qa_loss: Mapping[str, Any] = field(default_factory=dict)
    interaction: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What determines the results, as JSON; sizes may be added later."""
        plain = ("configuration", "pretraining", "clicks", "test_folds", "validation_subjects")
        return {
            **{name: getattr(self, name) for name in plain},
            "qa_loss": dict(self.qa_loss),
            # with its defaults, which another version may change
            "interaction": InteractionConfig(**self.interaction).model_dump(mode="json"),
            "budget": self.budget.model_dump(mode="json"),
        }


def arm_name(group: str, size: int | str) -> str:
    """Name of an arm.

    >>> arm_name("seg", 3), arm_name("seg", "all")
    ('seg_3', 'seg_all')
    """
    return f"{group}_{size}"


@dataclass(frozen=True, kw_only=True)
class LimitedDataExperiment(Experiment[Protocol]):
    """The experiment on one dataset."""

    name: ClassVar[str] = "limited-data"

    def _arms(self) -> list[Arm]:
        arms = [Arm(RESTORATION, self._restoration, (), "Restoration, no label")]
        for size in self.protocol.sizes:
            for group, title in GROUPS.items():
                if self._exists(group, size):

                    def run(cell: Cell, group: str = group, size: int | str = size) -> dict[str, Any]:
                        return self._run(cell, group, size)

                    needs = (RESTORATION,) if group in (PRETRAINED, BOTH) else ()
                    arms.append(Arm(arm_name(group, size), run, needs, f"{title}, {size}"))
        return arms

    def _exists(self, group: str, size: int | str) -> bool:
        """A discriminator needs two patients, a pool needs some that are left, and the paper's network is 2D."""
        if group == SEMI:
            return size not in (1, ALL)
        return group != PAPER or self.protocol.configuration == "2d"

    def wanted(self, names: list[str] | None) -> list[str]:
        """Names of the arms of some groups, of all sizes.

        Args:
            names: names of groups.

        Raises:
            SelectionError: there is no such group, or none for this configuration and these sizes.
        """
        groups = names or []
        for group in groups:
            if group not in GROUPS:
                raise SelectionError(f'unknown group "{group}"{nearest(group, GROUPS)}; groups are {", ".join(GROUPS)}')
        known = [arm_name(group, size) for size in self.protocol.sizes for group in groups if self._exists(group, size)]
        if not known:
            raise SelectionError(
                f"{', '.join(groups) or 'no group'}: nothing to run; {SEMI} needs two patients and some that are left, "
                f"{PAPER} the configuration 2d"
            )
        return known

    def check(self, seeds: Sequence[int], arms: Sequence[str] | None = None) -> None:
        """Refuse, before anything is written, what could not be run to its end.

        Args:
            seeds: which draws.
            arms: names of the arms; None for all.

        Raises:
            SelectionError: there is no such arm, or more patients are asked for than there are.
            DatasetError: the parts cannot be made.
        """
        chosen = {arm.name for arm in self.runner.chosen(arms)}
        for seed in seeds:
            patients = self.patients(seed)
            for size in self.protocol.sizes:
                own = [group for group in GROUPS if arm_name(group, size) in chosen]
                if size == ALL or not own:
                    continue
                needed = int(size) + (SEMI in own)  # a pool needs a patient more
                if needed > len(patients):
                    left = f", with one for the pool of {SEMI}" if SEMI in own else ""
                    raise SelectionError(
                        f"the size {size} needs {needed} patients{left}, but draw {seed} has {len(patients)} beside "
                        f'test and validation; leave out that size ("{ALL}" takes all there are), or change the test '
                        "folds or the validation subjects"
                    )

    def patients(self, seed: int) -> list[str]:
        """The training patients of a draw in the order in which they are annotated."""
        subjects = self._subjects()
        names = sorted({subjects[case] for case in self._parts(seed).pool})
        return [str(name) for name in np.random.default_rng(seed).permutation(names)]

    def annotated(self, seed: int, size: int | str) -> tuple[list[str], list[str]]:
        """Cases of the first patients of a draw, and those of the others."""
        patients = self.patients(seed)
        first = set(patients if size == ALL else patients[: int(size)])
        subjects, pool = self._subjects(), self._parts(seed).pool
        return [case for case in pool if subjects[case] in first], [
            case for case in pool if subjects[case] not in first
        ]

    def training(self, cell: Cell, group: str) -> Training:
        """The model of a cell."""
        holdout, settings = self.holdout(cell.seed), dict(_PLAIN)
        if group in (INTERACTIVE, BOTH):
            settings["interaction"] = dict(self.protocol.interaction)
        elif group == SEMI:
            settings = {"qa_loss": dict(self.protocol.qa_loss)}
        elif group in (PAPER, RESTORATION):  # with the learning rate of their own loss and optimiser
            holdout = replace(holdout, budget=holdout.budget.model_copy(update={"initial_lr": None}))
        return self._training_on(cell, holdout, TRAINERS.get(group, "QAsemiTrainer"), settings)

    def restoration(self, seed: int) -> Training:
        """The pretraining of a draw."""
        return self.training(self.runner.cell(RESTORATION, seed), RESTORATION)

    def _restoration(self, cell: Cell) -> dict[str, Any]:
        """Pretrain on the images of all training patients; nobody sees their labels."""
        training = self.training(cell, RESTORATION)
        training.holdout.prepare()
        training.train(training.holdout.parts.pool, stages=self.protocol.pretraining)
        return {"images": len(training.holdout.parts.pool), "trainer": training.trainer}

    def _run(self, cell: Cell, group: str, size: int | str) -> dict[str, Any]:
        training = self.training(cell, group)
        holdout = training.holdout
        holdout.prepare()
        cases, rest = self.annotated(cell.seed, size)
        holdout.populate(cell, cases, unlabelled=rest if group == SEMI else ())
        if group == SEMI:
            what = ("-d", holdout.number, "-c", holdout.configuration, "-p", holdout.plans, "--jobs", str(self.jobs))
            cell.call("pool", "nnunet-qa", "pool", *what)
        pretrained = group in (PRETRAINED, BOTH)
        training.go_on(stages=1, weights=self.restoration(cell.seed).checkpoint if pretrained else None)
        if group in (INTERACTIVE, BOTH):
            table = simulated_dice(training, self.protocol.clicks)
        else:
            table = tested_dice(training)
        table.insert(1, "subject_id", table["case_id"].map(self._subjects()))
        write_csv(cell.folder / DICE, table)
        return {
            "group": group,
            "size": size,
            "patients": len({self._subjects()[case] for case in cases}),
            "cases": len(cases),
            "test": len(holdout.parts.test),
            "trainer": training.trainer,
            **annotation_cost(holdout, cases),
        }

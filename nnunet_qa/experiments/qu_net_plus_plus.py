"""The experiment of paper 001 (Table I), with the baselines that it lacks; subjects are kept apart.

Algorithm 1 with an annotator played by known labels: choose S0 by image quality, train on it, score the rest of the
pool, take what has Q below q0 into S_m, annotate, fine-tune from the first weights. The arms that choose other cases
instead of S_m start from the same weights, annotate as many cases and train as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from nnunet_qa.data.paths import read_json
from nnunet_qa.environment import FOLDERS
from nnunet_qa.errors import DatasetError, ModelError, SelectionError
from nnunet_qa.evaluation.per_image import evaluate_images
from nnunet_qa.evaluation.segmentation import foreground_classes
from nnunet_qa.experiments.experiment import BaseProtocol, Experiment, write_metrics
from nnunet_qa.experiments.holdout import Holdout, Parts
from nnunet_qa.experiments.runner import Arm, Cell
from nnunet_qa.experiments.training import Training
from nnunet_qa.files import write_json
from nnunet_qa.quality.measure import measure_cases
from nnunet_qa.quality.roi import Roi
from nnunet_qa.quality.table import FILE_NAME as QUALITY
from nnunet_qa.quality.table import read_quality
from nnunet_qa.selection.diversity import thumbnail
from nnunet_qa.selection.initial import initial_set, write_initial_set
from nnunet_qa.selection.minimal import Ranking, minimal_set, q0_from_validation, write_minimal_set

INITIAL, REFERENCE, TRANSFER_INITIAL, TRANSFER = "initial", "qu_net_plus_plus", "transfer_initial", "transfer"


@dataclass(frozen=True, kw_only=True)
class Protocol(BaseProtocol):
    """What the experiment does, apart from where.

    Attributes:
        q0: a case of the pool with Q below it goes into S_m.
        failure_dice: Dice below which a validation case has failed, for the arm that chooses q0 by validation.
        annotated: part of the pool, in (0, 1], that may be annotated: S0 and S_m together, or at random.
        initial_size: cases in S0.
        roi: region of interest of the image quality.
        transfer_from: folder of a model trained on another modality, for the transfer arms.
    """

    q0: float = 0.9
    failure_dice: float = 0.5
    annotated: float = 0.25
    initial_size: int = 5
    roi: Roi = Roi.NONE
    transfer_from: Path | None = None

    def settings(self) -> dict[str, Any]:
        """What determines the results, as JSON; where the weights of the transfer arms come from stands in theirs."""
        left_out = ("budget", "roi", "transfer_from")
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        return {**own, "roi": self.roi.value, "budget": self.budget.model_dump(mode="json")}


@dataclass(frozen=True, kw_only=True)
class QUNetPlusPlusExperiment(Experiment[Protocol]):
    """The experiment on one dataset."""

    name: ClassVar[str] = "qu-net-plus-plus"
    _holdouts: dict[int, Holdout] = field(default_factory=dict)

    def wanted(self, names: list[str] | None) -> list[str]:
        """The named arms, else all that can be run: those of transfer only where there is a model to start from."""
        if names is not None:
            return names
        transfer = () if self.protocol.transfer_from is not None else (TRANSFER_INITIAL, TRANSFER)
        return [arm.name for arm in self.runner.arms if arm.name not in transfer]

    def check(self, seeds: Sequence[int], arms: Sequence[str] | None = None) -> None:
        """Refuse, before anything is written, what could not be run to its end.

        Raises:
            NnunetQAError: the parts cannot be made, an arm is unknown, or the model to start from does not fit.
        """
        names = [arm.name for arm in self.runner.chosen(arms)]
        for seed in seeds:
            self._parts(seed)
        model = self.protocol.transfer_from
        if TRANSFER_INITIAL not in names:
            return
        if model is None:
            raise SelectionError("the transfer arms need a trained model to start from; name it with --transfer-from")
        trainer = self.protocol.budget.unet_plus_plus
        if not (model / "fold_0" / "checkpoint_final.pth").is_file() or not model.name.startswith(f"{trainer}__"):
            raise ModelError(
                f"{model}: holds no fold 0 trained with {trainer}; --transfer-from takes such a model folder"
            )

    def _arms(self) -> list[Arm]:
        budget = self.protocol.budget

        def chosen(name: str, choose: Callable[[Cell], list[str]], title: str) -> Arm:
            return Arm(name, lambda cell: self._second(cell, choose(cell)), (INITIAL, REFERENCE), title)

        def ranked(name: str, ranking: Ranking, title: str) -> Arm:
            return chosen(name, lambda cell: self._same_size(cell, ranking=ranking), title)

        arms = [
            Arm("unet_random", lambda cell: self._random(cell, budget.unet), (), "U-net, random"),
            Arm("unet_plus_plus_random", lambda cell: self._random(cell, budget.unet_plus_plus), (), "U-net++, random"),
            Arm(INITIAL, self._first, (), "U-net++ on S0 alone"),
            Arm(REFERENCE, self._reference, (INITIAL,), "QU-net++"),
            chosen("random_same_size", self._any, "S0 + random, same size"),
            chosen("foreground_random", self._with_foreground, "S0 + foreground-aware random, same size"),
            ranked("entropy", Ranking.ENTROPY, "S0 + highest entropy, same size"),
            Arm("full", self._full, (), "U-net++, full set"),
            chosen(
                "replicate",
                lambda cell: self.runner.cell(REFERENCE, cell.seed).result()["s_m"],
                "QU-net++, trained again",
            ),
            ranked("worst_class", Ranking.WORST_CLASS, "QU-net++, Q per class"),
            ranked("size", Ranking.SIZE, "QU-net++, Q weighted by size"),
            chosen("diverse", lambda cell: self._same_size(cell, diverse=True), "QU-net++, diverse"),
            Arm("q0_validation", self._with_validated_q0, (INITIAL,), "QU-net++, q0 from validation"),
            Arm(TRANSFER_INITIAL, self._first_transferred, (), "U-net++ on S0, transferred weights"),
            Arm(TRANSFER, self._transferred, (TRANSFER_INITIAL,), "QU-net++, transferred weights"),
        ]
        # with one class, the worst class is the only one
        return [arm for arm in arms if arm.name != "worst_class" or self._classes() > 1]

    def _classes(self) -> int:
        return len(foreground_classes(read_json(self.source / "dataset.json")["labels"]))

    def holdout(self, seed: int) -> Holdout:
        """The parts of one seed; nothing is written."""
        if seed not in self._holdouts:
            self._holdouts[seed] = super().holdout(seed)
        return self._holdouts[seed]

    def _parts(self, seed: int) -> Parts:
        parts, protocol = super()._parts(seed), self.protocol
        allowed = round(protocol.annotated * len(parts.pool))
        if not 1 <= protocol.initial_size < allowed:
            raise DatasetError(
                f"{self.source}: of {len(parts.pool)} pool cases {allowed} may be annotated, S0 alone has "
                f"{protocol.initial_size}; leave room for S_m: raise --annotated or lower --initial-size"
            )
        return parts

    def _allowed(self, seed: int) -> int:
        return round(self.protocol.annotated * len(self.holdout(seed).parts.pool))

    # ------------------------------------------------------------------ arms

    def _random(self, cell: Cell, trainer: str) -> dict[str, Any]:
        pool = self.holdout(cell.seed).parts.pool
        rng = np.random.default_rng(cell.seed)  # the same draw for U-net and U-net++
        return self._train_and_test(
            cell, rng.choice(pool, self._allowed(cell.seed), replace=False).tolist(), trainer, 2
        )

    def _full(self, cell: Cell) -> dict[str, Any]:
        pool = list(self.holdout(cell.seed).parts.pool)
        return self._train_and_test(cell, pool, self.protocol.budget.unet_plus_plus, 2)

    def _first(self, cell: Cell, weights: Path | None = None, plans: str | None = None) -> dict[str, Any]:
        chosen = self._by_image_quality(cell)
        trainer = self.protocol.budget.unet_plus_plus
        result = self._train_and_test(cell, chosen, trainer, 1, weights=weights, plans=plans)
        self._score_pool(cell, trainer, result["plans"])
        return result

    def _first_transferred(self, cell: Cell) -> dict[str, Any]:
        holdout, plans, model = self.holdout(cell.seed), "nnUNetPlansTransfer", str(self.protocol.transfer_from)
        holdout.prepare()
        source = cell.folder / "transfer.json"
        if source.is_file() and read_json(source)["transfer_from"] != model:
            raise ModelError(
                f"{source}: this cell was begun with other weights; give the same --transfer-from as before"
            )
        write_json(source, {"transfer_from": model})
        holdout.populate(cell, ())
        options = ("-d", holdout.number, "-c", holdout.configuration, "-p", holdout.plans, "-o", plans)
        cell.call("transfer", "nnunet-qa", "transfer", "-i", model, "-f", "0", *options, "--overwrite")
        (weights,) = (cell.folder / FOLDERS[1] / self.source.name).glob(f"{plans}_from_*.pth")
        return {**self._first(cell, weights, plans), "transfer_from": model}

    def _reference(self, cell: Cell) -> dict[str, Any]:
        return self._second(cell, self._lowest_q(cell, self.protocol.q0))

    def _with_validated_q0(self, cell: Cell) -> dict[str, Any]:
        q0 = self._validated_q0(cell.seed)
        used = self.protocol.q0 if q0 is None else q0
        return {**self._second(cell, self._lowest_q(cell, used)), "q0": used, "q0_was_chosen": q0 is not None}

    def _transferred(self, cell: Cell) -> dict[str, Any]:
        chosen = self._lowest_q(cell, self.protocol.q0, TRANSFER_INITIAL)
        return self._second(cell, chosen, TRANSFER_INITIAL)

    def _second(self, cell: Cell, chosen: list[str], start: str = INITIAL) -> dict[str, Any]:
        """Fine-tune the first model on S0 and what was chosen."""
        first = self.runner.cell(start, cell.seed)
        earlier = first.result()
        weights = self.model_of(first) / "fold_0" / "checkpoint_final.pth"
        cases = [*earlier["train"], *chosen]
        how: dict[str, Any] = {"weights": weights, "plans": earlier["plans"], "earlier": first}
        return {**self._train_and_test(cell, cases, earlier["trainer"], 1, **how), "s_m": chosen}

    # ------------------------------------------------------------------ choices

    def _by_image_quality(self, cell: Cell) -> list[str]:
        holdout = self.holdout(cell.seed)
        holdout.prepare()
        images = {case: holdout.images(case) for case in holdout.parts.pool}
        table = measure_cases(
            images,
            roi=self.protocol.roi,
            file_ending=holdout.dataset_json["file_ending"],
            jobs=self.jobs,
            show_progress=False,
        )
        chosen = _first_set(table, self.protocol.initial_size)
        write_initial_set(cell.folder / "initial_set.csv", chosen)
        return chosen.loc[chosen["selected"], "case_id"].tolist()

    def _pool_scores(self, seed: int, start: str = INITIAL) -> pd.DataFrame:
        """Q of every pool case that is not in S0."""
        first = self.runner.cell(start, seed)
        table = read_quality(first.folder / "imagesTr" / QUALITY)
        left = set(self.holdout(seed).parts.pool) - set(first.result()["train"])
        return table[table["case_id"].isin(left)]

    def _lowest_q(self, cell: Cell, q0: float, start: str = INITIAL) -> list[str]:
        """S_m of Algorithm 1, lowest Q first where more cases lie below q0 than may be annotated; it may be empty."""
        scores = self._pool_scores(cell.seed, start)
        if not (scores["q"] < q0).any():  # the first model agrees with itself everywhere
            return []
        chosen = minimal_set(scores, q0=q0, number=self._allowed(cell.seed) - self.protocol.initial_size)
        write_minimal_set(cell.folder / "minimal_set.csv", chosen)
        return chosen["case_id"].tolist()

    def _validated_q0(self, seed: int) -> float | None:
        """q0 by the first model's Dice on validation cases; None where they are all failures or all successes."""
        first, holdout = self.runner.cell(INITIAL, seed), self.holdout(seed)
        cases, folder = holdout.parts.validation, first.folder / "imagesTr"
        truth = evaluate_images(folder, holdout.raw / "labelsTr", cases, holdout.dataset_json)
        dice = truth.groupby("case_id")["dice"].mean()
        table = read_quality(folder / QUALITY)
        table = table[table["case_id"].isin(cases)]
        if (dice < self.protocol.failure_dice).nunique() < 2:
            return None
        return q0_from_validation(table.assign(dice=table["case_id"].map(dice)), failure=self.protocol.failure_dice)

    def _size(self, seed: int) -> int:
        return len(self.runner.cell(REFERENCE, seed).result()["s_m"])

    def _same_size(self, cell: Cell, *, ranking: Ranking = Ranking.Q, diverse: bool = False) -> list[str]:
        """As many as QU-net++ takes, ranked otherwise."""
        number = self._size(cell.seed)
        if number == 0:
            return []
        scores, features, annotated = self._pool_scores(cell.seed), None, None
        if diverse:
            first = self.runner.cell(INITIAL, cell.seed).result()["train"]
            features = {case: self._thumbnail(cell.seed, case) for case in scores["case_id"]}
            annotated = np.stack([self._thumbnail(cell.seed, case) for case in first])
        chosen = minimal_set(scores, q0=None, ranking=ranking, number=number, features=features, annotated=annotated)
        write_minimal_set(cell.folder / "minimal_set.csv", chosen)
        return chosen["case_id"].tolist()

    def _thumbnail(self, seed: int, case: str) -> np.ndarray:
        return thumbnail(self.holdout(seed).image(case))

    def _any(self, cell: Cell) -> list[str]:
        return self._draw(cell, self._pool_scores(cell.seed)["case_id"].tolist())

    def _with_foreground(self, cell: Cell) -> list[str]:
        """Random among the cases with foreground, filled up with others where there are too few."""
        holdout = self.holdout(cell.seed)
        cases = self._pool_scores(cell.seed)["case_id"].tolist()
        have = [case for case in cases if (holdout.labels(holdout.label(case)) > 0).any()]
        return self._draw(cell, have, [case for case in cases if case not in have])

    def _draw(self, cell: Cell, cases: Sequence[str], then: Sequence[str] = ()) -> list[str]:
        rng = np.random.default_rng(cell.seed)
        order = [*rng.permutation(sorted(cases)), *rng.permutation(sorted(then))]
        return [str(case) for case in order[: self._size(cell.seed)]]

    # ------------------------------------------------------------------ training and testing

    def _train_and_test(
        self,
        cell: Cell,
        train: list[str],
        trainer: str,
        stages: int,
        *,
        weights: Path | None = None,
        plans: str | None = None,
        earlier: Cell | None = None,
    ) -> dict[str, Any]:
        holdout = self.holdout(cell.seed)
        holdout.prepare()
        training = self._training(cell, trainer, plans or holdout.plans)
        training.train(train, stages=stages, weights=weights, earlier=earlier)
        if trainer == self.protocol.budget.unet:  # nothing reads its Q, and the paper's U-net has none
            training.predict("imagesTs")
        else:
            training.score("imagesTs")
        write_metrics(cell, holdout, holdout.parts.test)
        return {
            "trainer": trainer,
            "plans": training.plans,
            "train": train,
            "pool": len(holdout.parts.pool),
            "test": len(holdout.parts.test),
        }

    def _score_pool(self, cell: Cell, trainer: str, plans: str) -> None:
        self._training(cell, trainer, plans).score("imagesTr", "--entropy")

    def _training(self, cell: Cell, trainer: str, plans: str) -> Training:
        return self._training_on(cell, self.holdout(cell.seed), trainer, plans=plans)

    def model_of(self, cell: Cell) -> Path:
        """Model folder of a cell that is done."""
        record = cell.result()
        return self._training(cell, record["trainer"], record["plans"]).model


def _first_set(table: pd.DataFrame, size: int) -> pd.DataFrame:
    """S0 of the paper; where too few images of a small pool lie below both means, below higher and higher quantiles.

    Raises:
        SelectionError: even the highest leave too few.
    """
    for quantile in (None, 0.6, 0.7, 0.8, 0.9):
        try:
            return initial_set(table, target_size=size, quantiles=None if quantile is None else (quantile, quantile))
        except SelectionError as error:
            failure = error
    raise failure

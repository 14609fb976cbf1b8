"""Injection: pool cases whose predictions look best join the training with these as labels (paper 003, section 2.3).

At set epochs the network predicts the pool, estimators of quality rank the predictions, and the best ones go into the
bank; from then on the training loader draws them like annotated cases. A later round ranks the whole pool anew and
takes the place of the one before. Pool cases of subjects that are kept for validation never take part.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from torch import distributed as dist

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.config import InjectionConfig
from nnunet_qa.data.bank import CHOSEN, Bank, Group, JoinedDataset
from nnunet_qa.errors import CaseTableError, DatasetError, SelectionError

from .final_scoring import preprocessed_image, scoring_predictor
from .injection_estimators import Estimators
from .pool_trainer import gathered

if TYPE_CHECKING:
    from .qa_semi_trainer import QAsemiTrainer

BANK = "pseudo_labels"
DEFAULT_NUMBER = 30
WINDOW = 5
"""Most epochs over which the validation loss before a round is averaged."""


class Injection:
    """The rounds of one training.

    Args:
        trainer: whose pool is predicted.

    Attributes:
        rounds: how many there have been.
        stopped: why there will be no more; None while there may be.
    """

    def __init__(self, trainer: QAsemiTrainer) -> None:
        self.trainer = trainer
        self.bank = Bank(Path(trainer.output_folder) / BANK)
        self.rounds = 0
        self.stopped: str | None = None
        self._losses: list[float] = []
        self._last = 0

    @property
    def config(self) -> InjectionConfig:
        """Settings of the injection."""
        return self.trainer.config.injection

    def state(self) -> dict[str, Any]:
        """What a resumed training needs beside the bank."""
        return {"rounds": self.rounds, "stopped": self.stopped, "losses": self._losses, "last": self._last}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self.rounds, self.stopped, self._last = state["rounds"], state["stopped"], state["last"]
        self._losses = list(state["losses"])

    def begin(self) -> None:
        """Refuse, before the training starts, what could not be done.

        Raises:
            SelectionError: more cases are asked for than there are, or there is no such label scheme.
            CaseTableError: cases.csv lacks a pool case, is missing where acquisitions are asked for, or names frames
                of them that are not in the pool.
            ConfigError: the code is asked for and there is no discriminator.
            CurveError: an acquisition lacks a frame, or the dataset has labels that the scheme does not know.
            ModelError: the curve classifier cannot be read or does not fit.
            DatasetError: the pseudo-labels of an earlier round are missing, or their cases have left the pool.
        """
        candidates = self.candidates()
        units = self._estimators.units(candidates)
        if not units:
            raise SelectionError(
                "injection: no pool case may be trained on, for all are of subjects that this fold validates or that "
                "are tested; train another fold, or set injection.enabled to false in qa.yaml"
            )
        if self.config.number is not None and self.config.number > len(units):
            raise SelectionError(
                f"injection.number in qa.yaml asks for {self.config.number} {self.config.unit.value}s, but the pool "
                f"has {len(units)} that may be trained on; lower it"
            )
        self._estimators.check(candidates)
        self.bank.check(self.rounds)
        gone = sorted(set(self.bank.cases(self.rounds)) - set(candidates)) if self.rounds else []
        if gone:
            raise DatasetError(
                f"{self.bank.round(self.rounds)}: the case {gone[0]} was chosen in this round and may no longer be "
                "trained on as one of the pool; train anew without --c"
            )

    def check_images(self) -> None:
        """Refuse, once the pool is preprocessed, series whose frames do not fit each other.

        Raises:
            CurveError: see `Estimators.check_images`.
        """
        trainer = self.trainer
        if "curves" in self.config.weights:
            assert trainer.pool is not None
            dataset = trainer.pool.dataset(trainer.folder_with_segs_from_previous_stage)
            self._estimators.check_images({case: dataset.load_case(case)[3] for case in self.candidates()})

    @cached_property
    def _cases(self) -> CaseTable | None:
        table = self.trainer._case_table()
        if table is None:
            return None
        known = table.subjects()
        for case in sorted(self.trainer.pool_images):
            if case not in known:
                raise CaseTableError(
                    f'{CASES}: the pool case "{case}" is missing, so its subject is not known; add it before injection'
                )
        return table

    @cached_property
    def _estimators(self) -> Estimators:
        return Estimators(self.trainer, self._cases)

    def candidates(self) -> list[str]:
        """Pool cases that may be trained on: unlabelled ones of subjects that are neither validated nor tested."""
        pool, table = sorted(self.trainer.pool_images), self._cases
        if table is None:
            return pool
        subjects = table.subjects()
        _, validation = self.trainer.do_split()
        kept = table.case_ids(Role.TEST) if self.trainer.fold == "all" else [*validation, *table.case_ids(Role.TEST)]
        barred = {subjects.get(case, case) for case in kept}
        unlabelled = set(table.case_ids(Role.UNLABELLED))
        found = [case for case in pool if case in unlabelled and subjects[case] not in barred]
        if "curves" not in self.config.weights:
            return found
        # a curve without its annotated frames would not be whole
        acquisitions = table.acquisitions()
        annotated = {acquisitions[case] for case in table.case_ids(Role.LABELLED)}
        return [case for case in found if acquisitions[case] not in annotated]

    def due(self) -> bool:
        """Whether a round takes place at the start of this epoch."""
        epochs = [int(part * self.trainer.num_epochs) for part in self.config.at]
        passed = sum(epoch <= self.trainer.current_epoch for epoch in epochs)
        return self.stopped is None and passed > self.rounds

    def take_place(self) -> None:
        """A round: predict, rank, fill the bank, and open the training loader anew."""
        trainer, number = self.trainer, self.rounds + 1
        recent = self._recent_loss()
        if self.config.stop_when_worse and self._losses and recent > self._losses[-1]:
            self.stopped = (
                f"the loss of annotated validation cases was {recent:.4f} after round {self.rounds} and "
                f"{self._losses[-1]:.4f} before it"
            )
            trainer.print_to_log_file(f"injection: no further rounds: {self.stopped}")
            return
        if trainer.local_rank == 0:
            self.bank.forget(self.rounds)
            self.bank.begin(number)
        self._wait()
        rows = list(self._predicted(number))
        if trainer.is_ddp:
            rows = gathered(rows, trainer.world_size)
        if trainer.local_rank == 0:
            ranking = self._ranked(pd.DataFrame(rows))
            self.bank.finish(number, ranking, groups=self._groups())
            chosen = int(ranking[CHOSEN].sum())
            trainer.print_to_log_file(
                f"injection: round {number}: {chosen} of {len(ranking)} pool cases join the training; ranking in "
                f"{self.bank.round(number)}"
            )
        self._wait()
        self.rounds, self._last = number, trainer.current_epoch
        self._losses.append(recent)
        self._open_loaders_anew()

    def _groups(self) -> list[Group]:
        """Label values of which patches are drawn, as nnU-Net's preprocessor notes their places."""
        labels = self.trainer.label_manager
        groups: list[Group] = list(labels.foreground_regions if labels.has_regions else labels.foreground_labels)
        if labels.has_ignore_label:
            groups.append(tuple([-1, *labels.all_labels]))
        return groups

    def joined(self, annotated: Any) -> Any:
        """The annotated cases of the training, with the pseudo-labelled ones of the last round."""
        trainer = self.trainer
        if not self.rounds:
            return annotated
        assert trainer.pool is not None
        pool = trainer.pool.dataset(trainer.folder_with_segs_from_previous_stage)
        return JoinedDataset(annotated, pool, self.bank, self.rounds, groups=self._groups())

    def number_of_cases(self) -> int:
        """How many pool cases take part in the training as it is."""
        return len(self.bank.cases(self.rounds)) if self.rounds else 0

    def _recent_loss(self) -> float:
        """Mean loss of annotated validation cases over the last epochs since the last round; infinite before any."""
        losses = self.trainer.logger.local_logger.my_fantastic_logging["val_losses"][: self.trainer.current_epoch]
        recent = losses[self._last :][-WINDOW:]
        return float(np.mean(recent)) if recent else float("inf")

    def _predicted(self, number: int) -> Iterator[dict[str, Any]]:
        """Predict this rank's share of the candidates into the bank; what the estimators say of each."""
        trainer = self.trainer
        assert trainer.pool is not None
        predictor = scoring_predictor(trainer)
        estimators = Estimators(trainer, self._cases)
        dataset = trainer.pool.dataset(trainer.folder_with_segs_from_previous_stage)
        for case in self.candidates()[trainer.local_rank :: trainer.world_size]:
            image, ignored, properties = preprocessed_image(trainer, dataset, case)
            quality, logits = predictor.quality_of_preprocessed(torch.from_numpy(image), properties, case)
            labels = np.asarray(trainer.label_manager.convert_logits_to_segmentation(logits))[None].astype(np.int16)
            labels[ignored] = -1  # outside of the body, as nnU-Net marks it in annotated cases
            self.bank.add(number, case, labels)
            yield {"case_id": case, "q": quality.q, **estimators.of_case(case, image, labels[0], logits, properties)}

    def _ranked(self, rows: pd.DataFrame) -> pd.DataFrame:
        estimators = self._estimators
        table = estimators.of_acquisitions(rows.sort_values("case_id", ignore_index=True))
        units = estimators.units(self.candidates())
        return estimators.ranked(table, number=self.config.number or min(DEFAULT_NUMBER, max(1, len(units) // 2)))

    def _open_loaders_anew(self) -> None:
        trainer = self.trainer
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            if isinstance(loader, (NonDetMultiThreadedAugmenter, MultiThreadedAugmenter)):
                loader._finish()
        trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()

    def _wait(self) -> None:
        if self.trainer.is_ddp:
            dist.barrier()

"""QAsemiTrainer: nnU-Net with the QA loss of paper 002 on the images of the pool.

A frozen discriminator looks at montages of what the network predicts for pool images and gives each a quality code;
its squared distance to 0 is the loss. With `injection` it also trains on the best of its own predictions of pool images
(paper 003). Settings: `qa_loss` and `injection` in `qa.yaml`. Without a pool it trains as nnUNetTrainer does.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import distributed as dist

from nnunet_qa.config import QALossConfig, QAOutputs
from nnunet_qa.inference.qa_montage import Renderer, renderer_of
from nnunet_qa.losses.qa import QALoss, foreground_probabilities
from nnunet_qa.losses.qa_guard import reason_to_stop
from nnunet_qa.quality.disagreement import resize_output
from nnunet_qa.quality.discriminator import Discriminator
from nnunet_qa.quality.discriminator_file import FILE_NAME

from .injection import Injection
from .qa_discriminator import fit_discriminator, load_fitting, wanted_file
from .semi_trainer import SemiTrainer

USELESS = 0.9
"""Validation RMSE over that of the mean code from which on a discriminator says next to nothing."""


class QAsemiTrainer(SemiTrainer):
    """SemiTrainer with the QA loss; see the module.

    Attributes:
        discriminator: the frozen discriminator, from `on_train_start` on.
        renderer: draws what it sees.
        stopped: why the guard has stopped the QA loss; None while it goes on.
    """

    loss_key: ClassVar[str] = "qa_loss"
    one_case_batches: ClassVar[bool] = True
    discriminator: Discriminator | None = None
    renderer: Renderer | None = None
    stopped: str | None = None
    _qa: QALoss | None = None
    _injection: Injection | None = None

    @property
    def injects(self) -> bool:
        """Whether pool cases are to join the training with their predictions as labels."""
        return self.config.injection.enabled and bool(self.pool_images)

    @property
    def injection(self) -> Injection:
        """The rounds of pseudo-labels."""
        if self._injection is None:
            self._injection = Injection(self)
        return self._injection

    @property
    def unlabelled(self) -> QALossConfig:
        """Settings of the QA loss."""
        return self.config.qa_loss

    @property
    def learns_from_pool(self) -> bool:
        """Whether the QA loss is on and there is a pool."""
        return self.unlabelled.enabled and super().learns_from_pool

    def foreground(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities of the foreground classes or regions `(batch, classes, *spatial)`."""
        return foreground_probabilities(logits, regions=self.label_manager.has_regions)

    def on_train_start(self) -> None:
        """As SemiTrainer's; loads the discriminator, or fits one where there is none."""
        named = wanted_file(self) if self.learns_from_pool else None
        if named is not None:
            load_fitting(self, named, None)  # refuses a wrong one before hours go into the pool
        if self.injects:
            self.injection.begin()
        super().on_train_start()
        if self.learns_from_pool:
            slices = self._pool_batch_size if self._stacked else None
            self.renderer = renderer_of(
                self.plans_manager, self.configuration_manager, self.dataset_json, self.unlabelled, slices=slices
            )
            self._use(self._find_discriminator(self.renderer))
            guard, every = self.unlabelled.guard, self.unlabelled.refit_every
            if guard.enabled and 0 < every < (needed := guard.smoothing + guard.patience):
                self.print_to_log_file(
                    f"QA loss: WARNING: the guard needs {needed} epochs with one discriminator (guard.smoothing + "
                    f"guard.patience), but a new one is fitted every {every}; it will never stop the QA loss"
                )
        if self.injects:
            self.injection.check_images()

    def _find_discriminator(self, renderer: Renderer) -> Discriminator:
        own = Path(self.output_folder) / FILE_NAME
        path = wanted_file(self)
        refitted = 0 < self.unlabelled.refit_every < self.current_epoch
        if (path is None or refitted) and self.current_epoch > 0 and own.is_file():
            path = own  # a resumed training goes on with the one it had
        if path is None:
            return self._fit(renderer, own, on_predictions=False)
        self.print_to_log_file(f"QA discriminator: {path}")
        found = load_fitting(self, path, renderer)
        _, validation = self.do_split()
        seen = sorted(set(validation) & set(found.parts_["case_id"]))
        if seen:
            self.print_to_log_file(
                f"QA discriminator: it was fitted on {len(seen)} validation cases of this fold ({seen[0]}, …), so the "
                "Dice of this fold is not that of unseen cases"
            )
        return found

    def _fit(self, renderer: Renderer, path: Path, *, on_predictions: bool) -> Discriminator:
        """Fit a discriminator; under DDP rank 0 does, and the others read it."""
        if self.local_rank == 0:
            self.print_to_log_file("QA discriminator: fitted on simulated errors of the annotated training cases …")
            found = fit_discriminator(self, renderer, path, on_predictions=on_predictions)
            self._say_how_good(found, path)
        if self.is_ddp:
            dist.barrier()
        return load_fitting(self, path, renderer)

    def _say_how_good(self, fitted: Discriminator, path: Path) -> None:
        metrics = fitted.metrics_["validation"]
        codes = np.repeat(np.arange(3), np.sum(metrics["confusion"], axis=1))
        self.print_to_log_file(
            f"QA discriminator: validation RMSE {metrics['rmse']:.3f} (always the mean code: {codes.std():.3f}), "
            f"accuracy {metrics['accuracy']:.3f} on {metrics['n']} montages of other subjects; written to {path}"
        )
        if metrics["rmse"] > USELESS * codes.std():
            self.print_to_log_file(
                "QA discriminator: WARNING: hardly better than guessing; annotate more subjects, or give it more "
                "patches and epochs (qa_loss.simulation in qa.yaml)"
            )

    def _use(self, discriminator: Discriminator) -> None:
        assert self.renderer is not None
        self.discriminator = discriminator
        settings = self.unlabelled
        self._qa = QALoss(
            discriminator.codes_of,
            self.renderer,
            regions=self.label_manager.has_regions,
            hard=settings.hard,
            noise=settings.noise,
            entropy_weight=settings.entropy_weight,
        )

    def _write_scores(self, table: pd.DataFrame) -> None:
        """As PoolTrainer's; marks the pool cases that were trained on, whose scores are those of training cases."""
        if self.injects:
            injected = set(self.injection.bank.cases(self.injection.rounds)) if self.injection.rounds else set()
            table = table.assign(injected=table["case_id"].isin(injected))
        super()._write_scores(table)

    def _logged_keys(self) -> tuple[str, ...]:
        return (*super()._logged_keys(), "injected_cases") if self.injects else super()._logged_keys()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As SemiTrainer's; logs how many pool cases were trained on."""
        super().on_train_epoch_end(train_outputs)
        if self.injects:
            self.logger.log("injected_cases", self.injection.number_of_cases(), self.current_epoch)

    def _wants_pool(self) -> bool:
        return self.stopped is None and super()._wants_pool()

    def _unlabelled_loss(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        images, qa = self._pool_images, self._qa
        assert images is not None
        assert qa is not None
        if self.unlabelled.outputs is QAOutputs.FINEST:
            outputs = outputs[:1]
        return qa([resize_output(logits, tuple(images.shape[2:])) for logits in outputs], images)

    def _extra_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {} if self.stopped is None else {"stopped": self.stopped}
        return {**state, "injection": self.injection.state()} if self.injects else state

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        self.stopped = state.get("stopped")
        if "injection" in state and self.injects:
            self.injection.load_state(state["injection"])

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """As nnU-Net's; the training cases with the pseudo-labelled ones of the last round."""
        training, validation = super().get_tr_and_val_datasets()
        return (self.injection.joined(training) if self.injects else training), validation

    def annotated_training_cases(self) -> Any:
        """The training cases that people have annotated, as nnU-Net's dataset."""
        dataset = super().get_tr_and_val_datasets()[0]
        pseudo = self._pseudo_labelled()
        dataset.identifiers = [case for case in dataset.identifiers if case not in pseudo]
        return dataset

    def on_train_epoch_start(self) -> None:
        """As SemiTrainer's; injects when it is time, asks the guard, and fits the discriminator anew."""
        if self.injects and self.injection.due():
            self.injection.take_place()
        super().on_train_epoch_start()
        if not self.learns_from_pool or self.renderer is None:
            return
        every = self.unlabelled.refit_every
        if every and self.stopped is None and self.current_epoch > 0 and self.current_epoch % every == 0:
            path = Path(self.output_folder) / FILE_NAME
            self._use(self._fit(self.renderer, path, on_predictions=True))
        guard = self.unlabelled.guard
        if guard.enabled and self.stopped is None:
            logged = self.logger.local_logger.my_fantastic_logging
            epochs = self.current_epoch
            fitted = epochs - epochs % every if every else 0  # losses of an earlier discriminator do not compare
            self.stopped = reason_to_stop(
                qa=[math.nan] * fitted + logged[self.loss_key][fitted:epochs],
                dice=logged["ema_fg_dice"][:epochs],
                disagreement=logged["disagreement_pool"][:epochs] if "disagreement_pool" in logged else None,
                patience=guard.patience,
                tolerance=guard.tolerance,
                smoothing=guard.smoothing,
            )
            if self.stopped is not None:
                self.print_to_log_file(f"QA loss: stopped by its guard: {self.stopped}")

"""SemiTrainer: the base of the trainers that also learn from the images of the pool.

A step takes pool images beside the annotated ones, in one pass of the network; the loss takes them apart again
(`SplitLoss`). What is done with the pool images is up to the subclass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable
from nnunet_qa.config import LabelledLoss, UnlabelledLossConfig
from nnunet_qa.data.partial_labels import check_declared, labelled_classes
from nnunet_qa.data.paths import read_json
from nnunet_qa.data.pool import PoolLoader
from nnunet_qa.inference.predictor import class_names
from nnunet_qa.losses.multi_source_dice import PartialLabelLoss
from nnunet_qa.losses.ramp_up import sigmoid_ramp_up

from .pool_trainer import PoolTrainer, gathered
from .split_loss import SplitLoss

EXTRA = "nnunet_qa"
"""Key of the extra state in a checkpoint."""


class SemiTrainer(PoolTrainer):
    """PoolTrainer that adds a loss of pool images; without a pool it trains as nnUNetTrainer does.

    Attributes:
        loss_key: name of that loss in the log.
        one_case_batches: in a 2D configuration of volumes, all pool images of a step are slices of one case.
    """

    loss_key: ClassVar[str]
    one_case_batches: ClassVar[bool] = False
    _pool_batches: PoolLoader | None = None
    _pool_images: torch.Tensor | None = None
    _step = 0
    _stacked = False

    @property
    def unlabelled(self) -> UnlabelledLossConfig:
        """Settings of the loss of pool images."""
        raise NotImplementedError

    @property
    def learns_from_pool(self) -> bool:
        """Whether pool images take part in the training."""
        return bool(self.pool_images) and self.unlabelled.weight > 0

    def _unlabelled_loss(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Loss of the pool images of this step, `self._pool_images`.

        Args:
            outputs: the network's outputs for them, finest first.
        """
        raise NotImplementedError

    def _logged_keys(self) -> tuple[str, ...]:
        keys = super()._logged_keys()
        return (*keys, self.loss_key) if self.learns_from_pool else keys

    def _build_loss(self) -> Any:
        loss = super()._build_loss()
        if self._labelled_classes() is not None:
            partial = PartialLabelLoss(
                regions=self.label_manager.has_regions,
                ignore_label=self.label_manager.ignore_label,
                cross_entropy=self.config.labelled_loss.cross_entropy,
            )
            self._partial = partial
            if isinstance(loss, DeepSupervisionWrapper):
                loss = DeepSupervisionWrapper(partial, loss.weight_factors)
            else:
                loss = partial
            self.print_to_log_file("loss of annotated cases: multi-sourced Dice, each case by the classes it labels")
        return SplitLoss(loss, self._unlabelled_loss) if self.learns_from_pool else loss

    def _labelled_classes(self) -> dict[str, tuple[bool, ...]] | None:
        """Which classes each case labels; None for nnU-Net's own loss."""
        kind = self.config.labelled_loss.kind
        if kind is LabelledLoss.NNUNET:
            return None
        if not hasattr(self, "_labelled"):
            found = self._declared_classes()
            if kind is LabelledLoss.AUTO and found is not None and all(all(one) for one in found.values()):
                found = None
            self._labelled = {} if found is None and kind is LabelledLoss.MSDL else found
        return self._labelled

    def _declared_classes(self) -> dict[str, tuple[bool, ...]] | None:
        """Which classes the cases say that they label, whatever the loss; None where none says anything."""
        names = class_names(self.dataset_json, self.label_manager)
        folder = self.raw_dataset_folder
        if folder is None or not (folder / "dataset.json").is_file():
            return labelled_classes(self.dataset_json, None, names)
        # the raw file, for nnU-Net hands over the one that was there when the dataset was planned
        content = read_json(folder / "dataset.json")
        table = CaseTable.read(folder / CASES) if (folder / CASES).is_file() else None
        found = labelled_classes(content, table, names)
        if found is not None:
            check_declared(folder, content, found, names)
        return found

    def _tell_labelled(self, batch: dict) -> None:
        """Tell the loss which classes the cases of this batch label."""
        known = self._labelled_classes()
        if known is not None:
            every = (True,) * len(class_names(self.dataset_json, self.label_manager))
            rows = [known.get(str(case), every) for case in batch["keys"]]
            self._partial.labelled = torch.tensor(rows, device=self.device)

    def on_train_start(self) -> None:
        """As PoolTrainer's; opens the pool for the training steps."""
        super().on_train_start()
        if self.learns_from_pool:
            assert self.pool is not None
            self._stacked = self.one_case_batches and self._has_slices()
            self._pool_batches = self._open_pool_loader(self._pool_batch_size, stacked=self._stacked)

    @property
    def _pool_batch_size(self) -> int:
        # under DDP the batches of the ranks may differ by one, their montages must not
        return self.unlabelled.batch_size or max(1, self.configuration_manager.batch_size // self.world_size)

    def _has_slices(self) -> bool:
        """Whether the cases of a 2D configuration are volumes."""
        if len(self.configuration_manager.patch_size) == 3:
            return False
        assert self.pool is not None
        return bool(self.pool.dataset().load_case(self.pool.case_ids[0])[0].shape[1] > 1)

    def on_train_end(self) -> None:
        """As PoolTrainer's; closes the pool of the training steps too."""
        if self._pool_batches is not None:
            self._pool_batches.close()
            self._pool_batches = None
        super().on_train_end()

    def on_train_epoch_start(self) -> None:
        """As nnU-Net's; sets the weight of the loss of pool images."""
        super().on_train_epoch_start()
        if isinstance(self.loss, SplitLoss):
            epochs = self.unlabelled.ramp_up * self.num_epochs
            done = self.current_epoch + 1 - self._first_epoch
            self.loss.weight = self.unlabelled.weight * sigmoid_ramp_up(done / epochs if epochs else 1.0)

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net's, with pool images behind the annotated ones; the loss returned is that of the latter."""
        self._tell_labelled(batch)
        self._step += 1
        if not self._wants_pool() or self._step % self.unlabelled.every:
            self._pool_images = None
            return self._train_on(batch)
        assert isinstance(self.loss, SplitLoss)
        assert self._pool_batches is not None
        self._pool_images = next(self._pool_batches)["data"].to(self.device, non_blocking=True)
        data = batch["data"].to(self.device, non_blocking=True)
        self._train_on({**batch, "data": torch.cat((data, self._seen_by_network(self._pool_images)))})
        return {"loss": self.loss.last_supervised.cpu().numpy()}

    def _train_on(self, batch: dict) -> dict:
        """nnU-Net's step on a batch to which the pool images of this step, if any, have been added."""
        return super().train_step(batch)

    @property
    def _first_epoch(self) -> int:
        """The epoch from which on pool images take part."""
        return int(self.unlabelled.start * self.num_epochs)

    def _wants_pool(self) -> bool:
        """Whether this step may take pool images."""
        return self._pool_batches is not None and self.current_epoch >= self._first_epoch

    def _seen_by_network(self, images: torch.Tensor) -> torch.Tensor:
        """Pool images as the network gets them."""
        return images

    def validation_step(self, batch: dict) -> dict:
        """As nnU-Net's."""
        self._tell_labelled(batch)
        return super().validation_step(batch)

    def _extra_state(self) -> dict[str, Any]:
        """What a resumed training needs beside nnU-Net's checkpoint: state dicts and numbers."""
        return {}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        """Take what `_extra_state` gave."""

    def _complete_checkpoint(self, path: Path) -> None:
        state = self._extra_state()
        if state:
            torch.save({**_read(path), EXTRA: state}, path)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net's, with the extra state of the trainer."""
        super().load_checkpoint(filename_or_checkpoint)
        content = filename_or_checkpoint
        if not isinstance(content, dict):
            content = _read(Path(content))
        if EXTRA in content:
            self._load_extra_state(content[EXTRA])

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As nnU-Net's; logs the mean loss of pool images."""
        super().on_train_epoch_end(train_outputs)
        if isinstance(self.loss, SplitLoss):
            value = self.loss.collect()
            if self.is_ddp:
                value = float(np.nanmean(gathered([value], self.world_size)))
            self.logger.log(self.loss_key, value, self.current_epoch)


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint that nnU-Net has just written or loaded, in the way in which it loads one."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return content

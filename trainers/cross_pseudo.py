"""CrossPseudoTrainer: cross pseudo supervision (Chen et al. 2021), a peer of the QA loss on the same network and data.

Two networks with different beginnings learn from the same annotated images; on pool images each takes the hardened
prediction of the other as its label.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.helpers import dummy_context
from torch import autocast
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from nnunet_qa.config import CrossPseudoConfig
from nnunet_qa.inference.predictor import unwrapped

from .semi_trainer import SemiTrainer
from .split_loss import SplitLoss


class CrossPseudoTrainer(SemiTrainer):
    """SemiTrainer with two networks; settings: `cross_pseudo` in `qa.yaml`.

    The first network is the one that is validated, saved and used for prediction; the second lies in the checkpoint
    beside it, for a training that is resumed. A step costs twice that of one network and one more prediction.
    """

    loss_key: ClassVar[str] = "cross_pseudo_loss"
    network: Any
    optimizer: Any
    second_network: Any
    second_optimizer: Any
    _labels: torch.Tensor | None = None
    _own_labels: torch.Tensor | None = None

    @property
    def unlabelled(self) -> CrossPseudoConfig:
        """Settings of the cross pseudo supervision."""
        return self.config.cross_pseudo

    def initialize(self) -> None:
        """As nnU-Net's; builds the second network with its optimiser."""
        super().initialize()
        if not self.learns_from_pool:
            return
        network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        ).to(self.device)
        if self._do_i_compile():
            network = torch.compile(network)
        if self.is_ddp:
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
            network = DistributedDataParallel(network, device_ids=[self.local_rank])
        self.second_network, self.second_optimizer = network, None
        with self._second():
            self.second_optimizer, _ = self.configure_optimizers()

    @contextmanager
    def _second(self) -> Iterator[None]:
        """Let the second network and its optimiser stand where nnU-Net's methods look for the first."""
        first = self.network, self.optimizer
        self.network, self.optimizer = self.second_network, self.second_optimizer
        try:
            yield
        finally:
            self.network, self.optimizer = first

    def on_train_epoch_start(self) -> None:
        """As SemiTrainer's; the second optimiser takes the learning rate of the first."""
        super().on_train_epoch_start()
        if self.learns_from_pool:
            self.second_network.train()
            for ours, first in zip(self.second_optimizer.param_groups, self.optimizer.param_groups, strict=True):
                ours["lr"] = first["lr"]

    def _train_on(self, batch: dict) -> dict:
        if not self.learns_from_pool:
            return super()._train_on(batch)
        if self._pool_images is not None:
            self._labels = self._labels_of_second(self._pool_images)
        result = super()._train_on(batch)
        assert isinstance(self.loss, SplitLoss)
        supervised, self._labels = self.loss.last_supervised, self._own_labels
        with self._second():
            super()._train_on(batch)
        self.loss.last_supervised = supervised
        return result

    @torch.no_grad()
    def _labels_of_second(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
            return self._hardened(self.second_network(images)[0])

    def _unlabelled_loss(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        logits, labels = outputs[0].float(), self._labels
        assert labels is not None
        self._own_labels = self._hardened(logits.detach())
        if self.label_manager.has_regions:
            return functional.binary_cross_entropy_with_logits(logits, labels.float())
        return functional.cross_entropy(logits, labels)

    def _hardened(self, logits: torch.Tensor) -> torch.Tensor:
        return logits > 0 if self.label_manager.has_regions else logits.argmax(1)

    def _extra_state(self) -> dict[str, Any]:
        if not self.learns_from_pool:
            return {}
        second = unwrapped(self.second_network).state_dict()
        return {"second_network": second, "second_optimizer": self.second_optimizer.state_dict()}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        if self.learns_from_pool:
            unwrapped(self.second_network).load_state_dict(state["second_network"])
            self.second_optimizer.load_state_dict(state["second_optimizer"])

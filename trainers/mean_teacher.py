"""MeanTeacherTrainer: consistency with a moving average of the network (Tarvainen and Valpola 2017).

A peer of the QA loss on the same network and data.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import nn

from nnunet_qa.config import MeanTeacherConfig
from nnunet_qa.inference.predictor import unwrapped

from .semi_trainer import SemiTrainer


class MeanTeacherTrainer(SemiTrainer):
    """SemiTrainer whose network agrees with its teacher on pool images; settings: `mean_teacher` in `qa.yaml`.

    The network that is validated, saved and used for prediction is the student.
    """

    loss_key: ClassVar[str] = "consistency_loss"
    teacher: nn.Module
    _teacher_steps = 0

    @property
    def unlabelled(self) -> MeanTeacherConfig:
        """Settings of the consistency loss."""
        return self.config.mean_teacher

    def initialize(self) -> None:
        """As nnU-Net's; the teacher begins with the weights of the network."""
        super().initialize()
        if self.learns_from_pool:
            self._new_teacher()

    def _new_teacher(self) -> None:
        self.teacher = copy.deepcopy(unwrapped(self.network)).eval().requires_grad_(False)

    def on_train_start(self) -> None:
        """As SemiTrainer's; pretrained weights that were loaded after `initialize` reach the teacher too."""
        super().on_train_start()
        if self.learns_from_pool and self._teacher_steps == 0:
            self._new_teacher()

    def _seen_by_network(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.unlabelled.noise * torch.randn_like(images)

    def _unlabelled_loss(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        assert self._pool_images is not None
        with torch.no_grad():
            target = self._probabilities(self.teacher(self._pool_images)[0])
        return (self._probabilities(outputs[0]) - target).square().mean()

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.float().sigmoid() if self.label_manager.has_regions else logits.float().softmax(1)

    def _train_on(self, batch: dict) -> dict:
        result = super()._train_on(batch)
        if self.learns_from_pool:
            self._move_teacher()
        return result

    @torch.no_grad()
    def _move_teacher(self) -> None:
        self._teacher_steps += 1
        # a young teacher forgets its random beginning faster
        decay = min(self.unlabelled.decay, 1 - 1 / (self._teacher_steps + 1))
        student = unwrapped(self.network)
        # not by the state dict, in which nnU-Net's networks name most of their weights several times
        pairs = [
            *zip(self.teacher.parameters(), student.parameters(), strict=True),
            *zip(self.teacher.buffers(), student.buffers(), strict=True),
        ]
        for ours, theirs in pairs:
            if ours.is_floating_point():
                ours.lerp_(theirs.to(ours.dtype), 1 - decay)
            else:
                ours.copy_(theirs)

    def _extra_state(self) -> dict[str, Any]:
        if not self.learns_from_pool:
            return {}
        return {"teacher": self.teacher.state_dict(), "teacher_steps": self._teacher_steps}

    def _load_extra_state(self, state: dict[str, Any]) -> None:
        if self.learns_from_pool:
            self.teacher.load_state_dict(state["teacher"])
            self._teacher_steps = state["teacher_steps"]

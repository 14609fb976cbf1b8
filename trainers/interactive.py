"""InteractiveTrainer: a network that is corrected by clicks, trained with a simulated user (paper 004).

Plans, augmentation, loss and optimiser are nnU-Net's; docs/interactive.md says more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import autocast, nn

from nnunet_qa.errors import DatasetError, ModelError
from nnunet_qa.inference.predictor import unwrapped
from nnunet_qa.interaction.click_maps import CHECKPOINT_KEY, ClickChannels, click_channels, different
from nnunet_qa.interaction.clicks import BACKGROUND
from nnunet_qa.interaction.dialogue import Dialogue, Draw, draw
from nnunet_qa.interaction.zoom import draw_zooms, zoomed
from nnunet_qa.networks.click_input import with_click_input

from .click_loss import ClickLoss
from .pool_trainer import PoolTrainer


class InteractiveTrainer(PoolTrainer):
    """PoolTrainer whose network also sees clicks; settings: `interaction` in `qa.yaml`.

    Attributes:
        dialogue: the simulated user.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.label_manager.has_regions:
            raise DatasetError(
                f"{self.plans_manager.dataset_name}: its regions overlap, so a click would have no one class; "
                "InteractiveTrainer needs labels that are single numbers in dataset.json"
            )
        settings = self.config.interaction
        channels = ClickChannels(
            labels=self.label_manager.num_segmentation_heads - 1,
            sigma=settings.sigma,
            spacing=tuple(float(size) for size in self.configuration_manager.spacing),
            previous=settings.previous,
        )
        self.dialogue = Dialogue(
            channels=channels,
            least_error=settings.least_error,
            mode=settings.mode,
            ignore=self.label_manager.ignore_label,
        )
        # from numpy's global state, so that a seed set before makes clicks repeatable too
        self._rng = np.random.default_rng(np.random.randint(2**31))

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The plans' network; its first convolution also takes click channels, for which there is no input yet.

        The channels of the previous prediction are always among them, for `qa.yaml` is not known here.
        """
        network = PoolTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return with_click_input(network, num_input_channels, click_channels(num_output_channels - 1))

    def _build_loss(self) -> ClickLoss:
        return ClickLoss(super()._build_loss(), self.config.interaction.click_weight)

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net's, after a dialogue about each patch of the augmented batch; some also as they were before it."""
        data, targets = self._on_device(batch)
        settings = self.config.interaction
        drawn = draw(len(data), settings, self._rng)
        shown, asked = zoomed(data, targets, draw_zooms(len(data), settings, self._rng))
        channels = self._talk(shown, asked[0], drawn, self._rng)
        if any(drawn.negative):
            asked = [self._emptied(target, drawn.negative) for target in asked]
        # as many in each step: to torch.compile another size is another network
        before = torch.from_numpy(self._rng.permutation(len(data))[: math.ceil(settings.unclicked * len(data))])
        data = torch.cat((shown, data[before]))
        channels = torch.cat((channels, torch.zeros_like(channels[before])))
        targets = [torch.cat((wanted, target[before])) for wanted, target in zip(asked, targets, strict=True)]
        self.loss.maps = channels[:, : self.dialogue.channels.labels + 1]
        try:
            return super().train_step(self._with_clicks(batch, data, targets, channels))
        finally:
            self.loss.maps = None  # the validation loss is nnU-Net's

    def validation_step(self, batch: dict) -> dict:
        """As nnU-Net's, after the same number of clicks in each patch."""
        data, targets = self._on_device(batch)
        numbers = (self.config.interaction.validation_clicks,) * len(data)
        channels = self._talk(data, targets[0], Draw(numbers, (False,) * len(data)), None)
        return super().validation_step(self._with_clicks(batch, data, targets, channels))

    def _on_device(self, batch: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
        targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
        data = batch["data"].to(self.device, non_blocking=True)
        return data, [target.to(self.device, non_blocking=True) for target in targets]

    def _talk(
        self, data: torch.Tensor, target: torch.Tensor, drawn: Draw, rng: np.random.Generator | None
    ) -> torch.Tensor:
        truths = target[:, 0].cpu().numpy().astype(np.int16)
        return torch.from_numpy(self.dialogue(truths, drawn, self._predictor(data), rng)).to(data)

    def _predictor(self, data: torch.Tensor) -> Callable[[list[int], np.ndarray], np.ndarray]:
        # neither DDP, whose ranks may need different numbers of passes, nor torch.compile, to which every other number
        # of patches is new
        network = unwrapped(self.network)

        @torch.no_grad()
        def predict(samples: list[int], channels: np.ndarray) -> np.ndarray:
            inputs = torch.cat((data[samples], torch.from_numpy(channels).to(data)), dim=1)
            training = network.training
            network.eval()
            with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
                # not by calling it: the hook that measures disagreement is for nnU-Net's own pass
                output = network.forward(inputs)
            network.train(training)
            finest = output[0] if isinstance(output, (list, tuple)) else output
            return finest.argmax(dim=1).cpu().numpy()

        return predict

    def _emptied(self, target: torch.Tensor, negative: Sequence[bool]) -> torch.Tensor:
        """The targets of one scale, all background in negative samples but where they are to be ignored."""
        emptied = torch.tensor(negative, device=target.device).view(-1, *[1] * (target.ndim - 1))
        ignore = self.label_manager.ignore_label
        return target.masked_fill(emptied if ignore is None else emptied & (target != ignore), BACKGROUND)

    @staticmethod
    def _with_clicks(batch: dict, data: torch.Tensor, targets: list[torch.Tensor], channels: torch.Tensor) -> dict:
        target = targets if isinstance(batch["target"], list) else targets[0]
        return {**batch, "data": torch.cat((data, channels), dim=1), "target": target}

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net's.

        Raises:
            ModelError: the checkpoint was trained with clicks that look otherwise than `qa.yaml` says.
        """
        content = filename_or_checkpoint
        if not isinstance(content, dict):
            content = torch.load(content, map_location="cpu", weights_only=False, mmap=True)
        ours = asdict(self.dialogue.channels)
        found = different(content.get(CHECKPOINT_KEY, ours), ours)
        if found is not None:
            raise ModelError(
                f"{self.output_folder}: trained with clicks of {found} in qa.yaml; set it back, or train from the start"
            )
        super().load_checkpoint(filename_or_checkpoint)

    def _complete_checkpoint(self, path: Path) -> None:
        """What an interactive prediction must know about the clicks of the training."""
        content = torch.load(path, map_location="cpu", weights_only=False)
        torch.save({**content, CHECKPOINT_KEY: asdict(self.dialogue.channels)}, path)

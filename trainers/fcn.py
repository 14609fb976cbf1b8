"""FCNTrainer: nnU-Net's training of the fully convolutional network of semiQCSeg (paper 003, section 3.1).

Only the network is another one: plans, augmentation, loss and optimiser are nnU-Net's. docs/trainers.md says more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_qa.networks.fcn import FCN, FILTERS

from .pool_trainer import PoolTrainer


class FCNTrainer(PoolTrainer):
    """PoolTrainer with the FCN; it has one output, so no Q, no scoring and no pool."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The FCN; in 3D it halves the axes that the plans halve, which spares those with thick slices."""
        dimensions = len(configuration_manager.patch_size)
        planned = configuration_manager.network_arch_init_kwargs["strides"] if dimensions == 3 else None
        return FCN(
            input_channels=num_input_channels,
            num_classes=num_output_channels,
            dimensions=dimensions,
            strides=level_strides(planned) if planned is not None else None,
        )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing: there is one output and no switch."""

    def _apply_training_settings(self) -> None:
        super()._apply_training_settings()
        self.print_to_log_file(
            "the FCN has one output and no second to compare it with: no scoring, the pool is left out, whatever "
            "qa.yaml says"
        )
        self.config = self.config.model_copy(
            update={
                "scoring": self.config.scoring.model_copy(update={"every_epoch": False, "final": False}),
                "pool": self.config.pool.model_copy(update={"enabled": False}),
            }
        )


def level_strides(planned: Sequence[Sequence[int]]) -> list[list[int]]:
    """Strides of the FCN's levels 1 to 4 from those of the planned stages; 1 where the plans have no further stage.

    >>> level_strides([[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    [[1, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1]]
    """
    strides = [list(stride) for stride in planned[1 : len(FILTERS)]]
    return strides + [[1] * len(planned[0])] * (len(FILTERS) - 1 - len(strides))

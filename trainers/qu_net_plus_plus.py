"""QUNetPlusPlusTrainer: QAsemiTrainer with the nested network of QU-Net++ (paper 001, sections II and III).

The network is U-Net++ in the shape that nnU-Net planned; all its outputs have the image's resolution and each is
trained alike, so Q compares two outputs that were given the same chance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_qa.config import HeadWeights
from nnunet_qa.errors import ModelError
from nnunet_qa.networks.nested_unet import NestedUNet

from .level_losses import FILE_NAME as LEVEL_LOSSES
from .level_losses import LevelLosses, add_epoch
from .qa_semi_trainer import QAsemiTrainer

PLANNED = ("PlainConvUNet", "ResidualEncoderUNet")
"""Networks in the plans whose arguments NestedUNet takes."""


class QUNetPlusPlusTrainer(QAsemiTrainer):
    """QAsemiTrainer whose network is U-Net++; `head_weights: auto` weights all its outputs equally."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """U-Net++ with the plans' stages, features, kernels, strides and blocks.

        Raises:
            ModelError: the plans name a network that is no U-Net of nnU-Net's with its simple decoder.
        """
        name = configuration_manager.network_arch_class_name
        if name.rsplit(".", 1)[-1] not in PLANNED:
            raise ModelError(
                f'plans "{plans_manager.plans_name}": U-Net++ cannot be built from {name}; use plans for '
                f"{' or '.join(PLANNED)}"
            )
        return get_network_from_plans(
            f"{NestedUNet.__module__}.{NestedUNet.__name__}",
            configuration_manager.network_arch_init_kwargs,
            configuration_manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        if not self.enable_deep_supervision:
            return None
        strides = self.configuration_manager.pool_op_kernel_sizes
        return [[1.0] * len(strides[0]) for _ in strides[1:]]

    def _build_loss(self) -> Any:
        loss = super()._build_loss()
        if self.config.head_weights is HeadWeights.AUTO and isinstance(loss, DeepSupervisionWrapper):
            # the paper sums the losses of all heads; a sum of weights of 1 keeps nnU-Net's learning rate right
            outputs = len(loss.weight_factors)
            loss = DeepSupervisionWrapper(loss.loss, [1 / outputs] * outputs)
            self.print_to_log_file(f"U-Net++ instead: each of its {outputs} outputs has the weight {1 / outputs:.4f}")
        return LevelLosses(loss.loss, loss.weight_factors) if isinstance(loss, DeepSupervisionWrapper) else loss

    def _write_level_losses(self, part: str) -> None:
        if isinstance(self.loss, LevelLosses) and (losses := self.loss.collect()) and self.local_rank == 0:
            add_epoch(Path(self.output_folder) / LEVEL_LOSSES, self.current_epoch, part, losses)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As nnU-Net's; adds the loss of each level to `level_losses.csv` (under DDP: of rank 0's batches)."""
        super().on_train_epoch_end(train_outputs)
        self._write_level_losses("train")

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As QAsemiTrainer's; adds the loss of each level to `level_losses.csv`."""
        super().on_validation_epoch_end(val_outputs)
        self._write_level_losses("validation")

"""QUNetPlusPlusTrainer: QAsemiTrainer with the nested network of QU-Net++ (paper 001, sections II and III).

The network is U-Net++ in the shape that nnU-Net planned; all its outputs have the image's resolution and each is
trained alike, so Q compares two outputs that were given the same chance.
"""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_qa.config import HeadWeights
from nnunet_qa.errors import ModelError
from nnunet_qa.inference.predictor import unwrapped
from nnunet_qa.networks.nested_unet import NestedUNet

from .level_losses import LevelLosses, LevelLossesTrainer

PLANNED = ("PlainConvUNet", "ResidualEncoderUNet")
"""Networks in the plans whose arguments NestedUNet takes."""


class QUNetPlusPlusTrainer(LevelLossesTrainer):
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

    def initialize(self) -> None:
        """As nnU-Net's; logs how much larger the feature maps are than those the plans were made for."""
        super().initialize()
        try:
            factor = self._memory_factor()
        except Exception as error:  # a hint is never worth a training
            self.print_to_log_file(f"U-Net++: its memory cannot be compared with the planned network's ({error})")
            return
        self.print_to_log_file(
            f"U-Net++: its feature maps take about {factor:.1f} times the memory that the plans were made for; if it "
            "runs out, make smaller plans with `nnunet-qa plans --batch-size` or `--patch-size`"
        )

    def _memory_factor(self) -> float:
        """Values in all feature maps of this network over those of the planned one."""
        patch = self.configuration_manager.patch_size
        with torch.device("meta"):  # no memory, no time, and no random numbers
            planned = super().build_network_architecture(
                self.plans_manager,
                self.configuration_manager,
                self.num_input_channels,
                self.label_manager.num_segmentation_heads,
                self.enable_deep_supervision,
            )
        network: Any = unwrapped(self.network)
        return float(network.compute_conv_feature_map_size(patch) / planned.compute_conv_feature_map_size(patch))

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

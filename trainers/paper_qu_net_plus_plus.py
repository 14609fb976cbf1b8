"""Trainers that follow the QU-Net++ paper (001, sections II-C and III-B) rather than nnU-Net's plans.

Network, input size, loss, optimiser, length and augmentation are the paper's; preprocessing, folds, prediction, pool
and scoring stay nnU-Net's and QAsemiTrainer's. docs/paper-qu-net-plus-plus.md says what the paper leaves open.
"""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_qa.errors import ModelError
from nnunet_qa.inference.predictor import unwrapped
from nnunet_qa.losses.soft_dice import SoftDiceLoss
from nnunet_qa.networks.unet_plus_plus import FEATURES, PaperUNet, PaperUNetPlusPlus

from .affine import RandomAffine
from .level_losses import LevelLosses, LevelLossesTrainer

RANGE = 0.2
"""The paper's "rotation, width, height and shear in range 0.2", read as radians and shares of the image's length.

Keras, whose names these are, takes rotation and shear in degrees; 0.2 degrees would be no augmentation.
"""


class PaperQUNetPlusPlusTrainer(LevelLossesTrainer):
    """The paper's U-Net++ and recipe, for 2d configurations.

    Attributes:
        network_class: the network, from `nnunet_qa.networks.unet_plus_plus`.
        features: its filters, finest resolution first.
        image_size: patch size `(y, x)`; a multiple of 2^(number of features − 1).
        images_a_batch: batch size.
    """

    network_class: ClassVar[type[PaperUNet] | type[PaperUNetPlusPlus]] = PaperUNetPlusPlus
    features: ClassVar[tuple[int, ...]] = FEATURES
    image_size: ClassVar[tuple[int, int]] = (256, 256)
    images_a_batch: ClassVar[int] = 20

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        # nnU-Net saves the plans that it is given here with the model and predicts by them
        super().__init__(
            self._paper_plans(plans, configuration, dataset_json), configuration, fold, dataset_json, device
        )
        # the paper draws whole images; under DDP nnU-Net shares out this number, so it is 0 on each rank
        self.oversample_foreground_percent = 0.0

    @classmethod
    def _paper_plans(cls, plans: dict, configuration: str, dataset_json: dict) -> dict:
        """The plans with the paper's network, patch and batch in one configuration.

        Raises:
            ModelError: the configuration is not a 2d one.
        """
        manager = PlansManager(copy.deepcopy(plans))
        planned = manager.get_configuration(configuration)
        if len(planned.patch_size) != 2:
            raise ModelError(
                f"{cls.__name__}: the paper's network is for 2d, the configuration {configuration} is not; train 2d, "
                "or QUNetPlusPlusTrainer, which takes the plans' network"
            )
        labels = manager.get_label_manager(dataset_json)
        one_class = not labels.has_regions and labels.num_segmentation_heads == 2
        result = copy.deepcopy(plans)
        result["configurations"][configuration] |= {
            "patch_size": list(cls.image_size),
            "batch_size": cls.images_a_batch,
            "architecture": {
                "network_class_name": f"{cls.network_class.__module__}.{cls.network_class.__name__}",
                "arch_kwargs": {
                    "num_outputs": 1 if one_class else labels.num_segmentation_heads,
                    "features": list(cls.features),
                    "implicit_background": one_class,
                },
                "_kw_requires_import": [],
            },
        }
        return result

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network as the plans of a training describe it, see `_paper_plans`."""
        return cls.network_class(
            input_channels=num_input_channels,
            deep_supervision=enable_deep_supervision,
            **configuration_manager.network_arch_init_kwargs,
        )

    def _apply_training_settings(self) -> None:
        self.num_epochs, self.initial_lr = 60, 1e-4
        super()._apply_training_settings()

    def initialize(self) -> None:
        """As nnU-Net's; one epoch sees as many images as there are, unless `qa.yaml` says otherwise."""
        training, validation = (self._images(dataset) for dataset in self.get_tr_and_val_datasets())
        if self.config.training.iterations_per_epoch is None:
            self.num_iterations_per_epoch = math.ceil(training / self.images_a_batch)
        if self.config.training.val_iterations_per_epoch is None:
            self.num_val_iterations_per_epoch = math.ceil(validation / self.images_a_batch)
        median = self.configuration_manager.configuration.get("median_image_size_in_voxels")
        if median != list(self.image_size):
            shown = ",".join(map(str, self.image_size))
            self.print_to_log_file(
                f"the median image has {median} pixels, the paper's {list(self.image_size)}: patches are cut out or "
                f"padded; for whole images make plans with `nnunet-qa plans --image-size {shown}`"
            )
        super().initialize()

    @staticmethod
    def _images(dataset: Any) -> int:
        """Number of slices; a 2d configuration trains on each slice of a volume."""
        return sum(dataset.load_case(case)[0].shape[1] for case in dataset.identifiers)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Adam with a constant rate."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.initial_lr)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent=0)

    def _get_deep_supervision_scales(self) -> list[list[float]]:
        decoder: Any = unwrapped(self.network).decoder
        return [[1.0, 1.0] for _ in decoder.seg_layers]

    def _build_loss(self) -> nn.Module:
        labels = self.label_manager
        loss = SoftDiceLoss(regions=labels.has_regions, ignore_label=labels.ignore_label)
        return LevelLosses(loss, [1.0] * len(self._get_deep_supervision_scales()))

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """No mirroring, in training and in prediction; patches as large as the network's input."""
        self.inference_allowed_mirroring_axes = None
        return (-RANGE, RANGE), False, self.configuration_manager.patch_size, None

    @staticmethod
    def get_training_transforms(
        patch_size: Any,
        rotation_for_DA: Any,
        deep_supervision_scales: Any,
        mirror_axes: Any,
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: Any = None,
        is_cascaded: bool = False,
        foreground_labels: Any = None,
        regions: Any = None,
        ignore_label: int | None = None,
    ) -> BasicTransform:
        """Rotation, shift and shear; then what nnU-Net does to every target."""
        target = nnUNetTrainer.get_validation_transforms(
            deep_supervision_scales, is_cascaded, foreground_labels, regions, ignore_label
        )
        return ComposeTransforms([RandomAffine(rotation=RANGE, shift=RANGE, shear=RANGE), target])


class PaperQUNetTrainer(PaperQUNetPlusPlusTrainer):
    """The paper's U-Net by the same recipe, its baseline; it has one output, so no Q, no scoring and no pool."""

    network_class = PaperUNet

    def _apply_training_settings(self) -> None:
        super()._apply_training_settings()
        self.print_to_log_file(
            "U-Net has one output and no second to compare it with: no scoring, the pool is left out"
        )
        self.config = self.config.model_copy(
            update={
                "scoring": self.config.scoring.model_copy(update={"every_epoch": False, "final": False}),
                "pool": self.config.pool.model_copy(update={"enabled": False}),
            }
        )

"""PaperUNetTrainer: the baseline of the paper on limited training sets (004, section 2.1) as it was trained there.

Network, patches, batches, loss, optimiser, length and the choice of the checkpoint are the paper's; preprocessing,
folds and prediction stay nnU-Net's. docs/paper-limited-data.md says what the paper leaves open.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import autocast, nn
from torch import distributed as dist
from torch.nn import functional

from nnunet_qa.config import PoolConfig, ScoringConfig
from nnunet_qa.data.slice_loader import SliceLoader, slices_of
from nnunet_qa.errors import DatasetError, ModelError
from nnunet_qa.inference.predictor import unwrapped
from nnunet_qa.networks.paper_unet import FEATURES, OriginalUNet

from .pool_trainer import PoolTrainer


class PaperUNetTrainer(PoolTrainer):
    """The paper's U-Net and recipe, for 2d configurations; it has one output, so no Q, no scoring and no pool.

    Attributes:
        features: filters of the network, finest level first.
        patch: patch size `(y, x)`; multiples of 2^(number of features − 1).
        images_a_batch: batch size.
    """

    features: ClassVar[tuple[int, ...]] = FEATURES
    patch: ClassVar[tuple[int, int]] = (96, 96)
    images_a_batch: ClassVar[int] = 32

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        # nnU-Net saves the plans that it is given here with the model and predicts by them
        super().__init__(self._paper_plans(plans, configuration), configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        self.oversample_foreground_percent = 0.0

    @classmethod
    def _paper_plans(cls, plans: dict, configuration: str) -> dict:
        """The plans with the paper's network, patch and batch in one configuration.

        Raises:
            ModelError: the configuration is not a 2d one.
        """
        if len(PlansManager(copy.deepcopy(plans)).get_configuration(configuration).patch_size) != 2:
            raise ModelError(
                f"{cls.__name__}: the paper's network is for 2d, the configuration {configuration} is not; train 2d, "
                "or QAsemiTrainer, which takes the plans' network"
            )
        result = copy.deepcopy(plans)
        result["configurations"][configuration] |= {
            "patch_size": list(cls.patch),
            "batch_size": cls.images_a_batch,
            "architecture": {
                "network_class_name": f"{OriginalUNet.__module__}.{OriginalUNet.__name__}",
                "arch_kwargs": {"features": list(cls.features)},
                "_kw_requires_import": [],
            },
        }
        return result

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network as the plans of a training describe it, see `_paper_plans`."""
        return OriginalUNet(
            input_channels=num_input_channels,
            num_classes=num_output_channels,
            **configuration_manager.network_arch_init_kwargs,
        )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing: there is one output and no switch."""

    def _apply_training_settings(self) -> None:
        self.num_epochs, self.initial_lr = 260, 1e-5  # 65,000 iterations, for nnU-Net's epoch has 250
        super()._apply_training_settings()
        self.print_to_log_file("the paper's U-Net has one output: no scoring, the pool is left out")
        off = {"scoring": ScoringConfig(every_epoch=False, final=False), "pool": PoolConfig(enabled=False)}
        self.config = self.config.model_copy(update=off)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Adam with a constant rate."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.initial_lr)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent=0)

    def _build_loss(self) -> nn.Module:
        """Cross entropy of classes or regions, without what has the ignore label."""
        ignored = self.label_manager.ignore_label
        if self.label_manager.has_regions:
            return DC_and_BCE_loss({}, {}, weight_dice=0, use_ignore_label=ignored is not None)
        return CrossEntropyOfKnown(ignored)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Random patches without augmentation; those of the validation are the same after each epoch.

        Raises:
            DatasetError: the fold has nothing to train on, or nothing to choose the checkpoint by.
        """
        training, validation = self.get_tr_and_val_datasets()
        slices = {"training": slices_of(training), "validation": slices_of(validation)}
        for part, found in slices.items():
            if len(found) < self.world_size:
                raise DatasetError(f"fold {self.fold}: {len(found)} {part} slices; {type(self).__name__} needs some")
        if self.config.training.val_iterations_per_epoch is None:
            self.num_val_iterations_per_epoch = math.ceil(len(slices["validation"]) / self.images_a_batch)
        return (
            self._loader(training, slices["training"], seed=int(np.random.randint(2**31))),
            self._loader(validation, slices["validation"], seed=0, batches_a_round=self.num_val_iterations_per_epoch),
        )

    def _loader(self, dataset: Any, slices: list[tuple[str, int]], **order: Any) -> Any:
        labels = self.label_manager
        loader = SliceLoader(
            dataset,
            self.batch_size,
            self.configuration_manager.patch_size,
            labels,
            slices=slices[self.local_rank :: self.world_size],
            transforms=self.get_validation_transforms(
                None,
                foreground_labels=labels.foreground_labels,
                regions=labels.foreground_regions if labels.has_regions else None,
                ignore_label=labels.ignore_label,
            ),
            **order,
        )
        if get_allowed_n_proc_DA() == 0:
            return SingleThreadedAugmenter(loader, None)
        pin_memory = self.device.type == "cuda"
        return NonDetMultiThreadedAugmenter(loader, None, 1, num_cached=6, pin_memory=pin_memory, wait_time=0.002)

    def validation_step(self, batch: dict) -> dict:
        """As nnU-Net's, with what makes its pseudo Dice the paper's: 2 Σ p·y / (Σ p² + Σ y²), p not rounded."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, target)
        probabilities, truth = self._foreground(output.float(), target)
        overlap, squares, voxels = (
            part.sum((0, 2, 3)).double().cpu().numpy() for part in (probabilities * truth, probabilities**2, truth)
        )
        # nnU-Net sums each over the epoch and then takes 2 tp / (2 tp + fp + fn)
        parts = {"tp_hard": overlap, "fp_hard": squares - overlap, "fn_hard": voxels - overlap}
        return {"loss": loss.detach().cpu().numpy(), **parts}

    def _foreground(self, logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities and truth `(batch, foreground, y, x)` of classes or regions, 0 where the label is ignored."""
        labels = self.label_manager
        if labels.has_regions:
            known = ~target[:, -1:].bool() if labels.has_ignore_label else torch.ones_like(target[:, :1]).bool()
            return logits.sigmoid() * known, target[:, : logits.shape[1]] * known
        classes = torch.arange(1, logits.shape[1], device=target.device).view(1, -1, 1, 1)
        known = target != labels.ignore_label if labels.has_ignore_label else torch.ones_like(target).bool()
        return logits.softmax(1)[:, 1:] * known, (target == classes).float()

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As nnU-Net's; the best Dice so far takes the place of the moving average that chooses checkpoint_best."""
        super().on_validation_epoch_end(val_outputs)
        logged = self.logger.local_logger.my_fantastic_logging
        # 0 where all are NaN, for nnU-Net would find nothing better than a NaN
        logged["ema_fg_dice"][-1] = max((dice for dice in logged["mean_fg_dice"] if not math.isnan(dice)), default=0.0)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net's; the best checkpoint on disk, the final model perhaps, stays until there is a better one."""
        super().load_checkpoint(filename_or_checkpoint)
        self._keep_best_on_disk()

    def on_train_end(self) -> None:
        """As nnU-Net's, with the weights of the best validation Dice, which are the paper's final model."""
        if self.is_ddp:
            dist.barrier()  # rank 0 may still be writing it
        path = Path(self.output_folder) / "checkpoint_best.pth"
        if not self.disable_checkpointing and path.is_file():
            best = torch.load(path, map_location=self.device, weights_only=False)
            unwrapped(self.network).load_state_dict(best["network_weights"])
            self.print_to_log_file(f"the final model is that of epoch {best['current_epoch'] - 1}, of the best Dice")
        else:
            self.print_to_log_file(f"{path}: not there, so the final model is that of the last epoch")
        super().on_train_end()


class CrossEntropyOfKnown(nn.Module):
    """Mean cross entropy of the pixels whose class is known; 0, with a gradient of 0, where there is none.

    nnU-Net's is then a number without a gradient, which stops the training.

    Args:
        ignored: label of pixels of unknown class; None where there are none.
    """

    def __init__(self, ignored: int | None) -> None:
        super().__init__()
        self.ignored = -100 if ignored is None else ignored

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of `logits`, `(batch, classes, y, x)`, against labels `(batch, 1, y, x)`."""
        truth = target[:, 0].long()
        loss = functional.cross_entropy(logits, truth, ignore_index=self.ignored, reduction="sum")
        return loss / (truth != self.ignored).sum().clamp(min=1)

"""RestorationTrainer: pretraining without labels, by undoing distortions of pool and annotated images (paper 004).

The network is the plans' own with one output a channel, so its checkpoints load with `-pretrained_weights` into every
trainer of the same plans; nnU-Net starts the output layers afresh. docs/restoration.md says more.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Any

import nnunetv2
import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import autocast, nn

from nnunet_qa import __version__
from nnunet_qa.config_limited_data import RestorationLoss
from nnunet_qa.data.checkpoint import read_content
from nnunet_qa.data.splits import FILE_NAME as SPLITS
from nnunet_qa.errors import DatasetError, ModelError
from nnunet_qa.files import write_json
from nnunet_qa.inference.predictor import unwrapped
from nnunet_qa.pretext.measures import restoration_measures
from nnunet_qa.pretext.picture import restoration_picture
from nnunet_qa.pretext.transform import RestorationTransform, distorted_pair, unit_scale

from .pool_trainer import PoolTrainer, gathered
from .pretrained import DESCRIPTION, PREPROCESSING, preprocessing

HALF = "checkpoint_half.pth"
_MEASURED = 32
_SHOWN = 3


class RestorationTrainer(PoolTrainer):
    """Trains the plans' network to restore distorted images.

    Attributes:
        annotated: preprocessed annotated cases, whose labels are not read; from `initialize` on.
    """

    preprocessed_dataset_folder: str
    current_epoch: int

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_cascaded:
            raise ModelError(
                f"RestorationTrainer: {configuration} of {self.plans_manager.plans_name} is fed segmentations of "
                f"{self.configuration_manager.previous_stage_name}, which images without labels have not; pretrain "
                f"{self.configuration_manager.previous_stage_name} or a configuration that stands alone"
            )
        self.enable_deep_supervision = False
        self.oversample_foreground_percent = 0.0
        # nnU-Net's loader would look for annotated voxels where the dataset has an ignore label
        self.label_manager = LabelManager({"background": 0, "image": 1}, None)
        self.annotated: list[str] = []

    def _apply_training_settings(self) -> None:
        super()._apply_training_settings()
        scoring = self.config.scoring.model_copy(update={"every_epoch": False, "final": False})
        self.config = self.config.model_copy(update={"scoring": scoring})  # there is no segmentation to score

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The plans' network with one output a channel, however many classes there are."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_input_channels, enable_deep_supervision
        )
        if not enable_deep_supervision:
            # the heads of coarse levels are there and unused, and DDP waits for each gradient that is asked for
            for head in getattr(getattr(network, "decoder", None), "seg_layers", [])[:-1]:
                head.requires_grad_(False)
        return network

    def initialize(self) -> None:
        """As nnU-Net's, also for a dataset without any annotated case.

        Raises:
            DatasetError: there is no image.
        """
        folder = Path(self.preprocessed_dataset_folder)
        self.annotated = sorted(path.stem for path in folder.glob("*.pkl"))
        if not self.annotated:
            if not self.pool_images:
                raise DatasetError(
                    f"{folder}: no preprocessed case there and no pool, so there is no image to restore; put images "
                    "into imagesUn of the raw dataset, or preprocess the annotated ones"
                )
            self._prepare_pool()
            assert self.pool is not None
            self.preprocessed_dataset_folder = os.fspath(self.pool.folder)  # nnU-Net looks at the files' format there
        super().initialize()

    def _build_loss(self) -> nn.Module:
        return nn.L1Loss() if self.config.restoration.loss is RestorationLoss.L1 else nn.MSELoss()

    def do_split(self) -> tuple[list[str], list[str]]:
        """Cases, pool and annotated, to train on and to measure the validation loss on; no subject is in both.

        Held out are the subjects that the fold validates, so that folds stay what they are in the training that
        follows; where there are none (fold `all`, or too few annotated subjects for folds), some drawn by chance.
        Annotated cases that the fold leaves out are left out here too, a test set say, and with them pool images of
        subjects of whom the fold has no case.

        Raises:
            DatasetError: there are images of one subject only.
        """
        table = self._case_table()
        known = table.subjects() if table is not None else {}
        subjects = {case: known.get(case, case) for case in (*self.annotated, *self.pool_images)}
        splits = Path(self.preprocessed_dataset_folder_base) / SPLITS
        enough = len({subjects[case] for case in self.annotated}) >= (5 if table is None else 2)
        left_out: set[str] = set()
        if self.fold != "all" and self.annotated and (enough or splits.is_file()):
            trained, validated = super().do_split()
            held_out = {subjects[case] for case in validated}
            left_out = set(self.annotated) - {*trained, *validated}
            unknown = {subjects[case] for case in left_out} - {subjects[case] for case in trained} - held_out
            left_out |= {case for case in self.pool_images if subjects[case] in unknown}
        else:
            names = sorted(set(subjects.values()))
            number = max(1, round(self.config.restoration.held_out * len(names)))
            seed = 0 if self.fold == "all" else self.fold + 1
            held_out = set(np.random.default_rng(seed).permutation(names)[:number].tolist())
        parts: tuple[list[str], list[str]] = ([], [])
        for case in sorted(set(subjects) - left_out):
            parts[subjects[case] in held_out].append(case)
        if not parts[0]:
            raise DatasetError(
                f"{self.plans_manager.dataset_name}: restoration holds out the images of one subject to measure the "
                "loss and needs images of another one to train on; put more into imagesUn"
            )
        return parts

    def get_tr_and_val_datasets(self) -> tuple[JointDataset, JointDataset]:
        """Pool and annotated images together, in the parts of `do_split`."""
        train, held_out = self.do_split()
        left_out = len({*self.annotated, *self.pool_images} - {*train, *held_out})
        if left_out:
            self.print_to_log_file(f"{left_out} images left out: by {SPLITS} they are not of fold {self.fold}")
        return self._images(train), self._images(held_out)

    def _images(self, cases: Sequence[str]) -> JointDataset:
        if self.pool_images and self.pool is None:
            self._prepare_pool()
        pool = sorted(set(cases) & set(self.pool_images))
        others = sorted(set(cases) - set(pool))
        parts = [self.dataset_class(self.preprocessed_dataset_folder, others)] if others else []
        if pool:
            assert self.pool is not None
            parts.append(self.dataset_class(os.fspath(self.pool.folder), pool))
        return JointDataset(parts)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """No rotation and no mirroring: the distortions are all that happens to a patch."""
        self.inference_allowed_mirroring_axes = None
        return (0.0, 0.0), False, self.configuration_manager.patch_size, None

    def get_training_transforms(  # static in nnU-Net; here the settings are those of the trainer
        self,
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
    ) -> RestorationTransform:
        """The distortions, whatever nnU-Net asks for; the clean image takes the place of the segmentation."""
        return RestorationTransform(self.config.restoration)

    def get_validation_transforms(
        self,
        deep_supervision_scales: Any,
        is_cascaded: bool = False,
        foreground_labels: Any = None,
        regions: Any = None,
        ignore_label: int | None = None,
    ) -> RestorationTransform:
        """As for training."""
        return RestorationTransform(self.config.restoration)

    def validation_step(self, batch: dict) -> dict:
        """The loss of a batch."""
        data, target = (batch[key].to(self.device, non_blocking=True) for key in ("data", "target"))
        with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
            loss = self.loss(self.network(data), target)
        return {"loss": loss.detach().cpu().numpy()}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the mean loss; nnU-Net's plot wants a Dice too, and there is none."""
        losses = [float(output["loss"]) for output in val_outputs]
        if self.is_ddp:
            losses = gathered(losses, self.world_size)
        self.logger.log("val_losses", float(np.mean(losses)), self.current_epoch)
        self.logger.log("mean_fg_dice", float("nan"), self.current_epoch)
        self.logger.log("dice_per_class_or_region", [], self.current_epoch)

    def on_epoch_end(self) -> None:
        """In place of nnU-Net's: the best checkpoint has the least validation loss; one is kept after half of them."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        started, ended, trained, loss = (
            self.logger.get_value(key, step=-1)
            for key in ("epoch_start_timestamps", "epoch_end_timestamps", "train_losses", "val_losses")
        )
        self.print_to_log_file(f"train_loss {trained:.4f}, val_loss {loss:.4f}, epoch time {ended - started:.2f} s")
        folder, done = Path(self.output_folder), self.current_epoch + 1
        if done % self.save_every == 0 and done < self.num_epochs:
            self.save_checkpoint(os.fspath(folder / "checkpoint_latest.pth"))
        if done == self._half:
            self.save_checkpoint(os.fspath(folder / HALF))
        # under this name nnU-Net keeps it in checkpoints; nothing would ever be better than a NaN
        if not math.isnan(loss) and (self._best_ema is None or -loss > self._best_ema):
            self._best_ema = -loss
            self.save_checkpoint(os.fspath(folder / "checkpoint_best.pth"))
        if self.local_rank == 0:
            self.logger.plot_progress_png(self.output_folder)
        self.current_epoch = done

    @property
    def _half(self) -> int:
        return (self.num_epochs + 1) // 2

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net's; the best checkpoint on disk stays until there is a better one."""
        super().load_checkpoint(filename_or_checkpoint)
        self._keep_best_on_disk()

    def _complete_checkpoint(self, path: Path) -> None:
        content = torch.load(path, map_location="cpu", weights_only=False)
        torch.save({**content, DESCRIPTION: self.description()}, path)

    def description(self) -> dict[str, Any]:
        """What is trained on what, in plain Python, for the checkpoints and `restoration.json`."""
        train, held_out = self.do_split()
        used = {*train, *held_out}
        return {
            "dataset": self.plans_manager.dataset_name,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "images": {
                "annotated": len(used & set(self.annotated)),
                "pool": len(used & set(self.pool_images)),
                "held_out": len(held_out),
            },
            "held_out_cases": held_out,
            "patch_size": [int(side) for side in self.configuration_manager.patch_size],
            "batch_size": self.configuration_manager.batch_size,
            "epochs": self.num_epochs,
            "iterations": self.num_epochs * self.num_iterations_per_epoch,
            "settings": self.config.restoration.model_dump(mode="json"),
            PREPROCESSING: preprocessing(self.plans_manager.plans, self.configuration_manager.configuration),
            "versions": {
                "nnunet_qa": __version__,
                "nnunetv2": getattr(nnunetv2, "__version__", ""),
                "torch": str(torch.__version__),
                "numpy": np.__version__,
            },
        }

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """In place of nnU-Net's, for there are no segmentations: writes `restoration.json` and `restored.png`."""
        if self.pool_images and self.pool is None:
            self._prepare_pool()  # all ranks together, as rank 0 waits for the others in it
        if self.local_rank != 0:
            return
        folder = Path(self.output_folder)
        pairs = self._held_out_patches()
        final = unwrapped(self.network).eval()
        networks = {self.num_epochs: final}
        if (folder / HALF).is_file() and self._half < self.num_epochs:
            earlier = copy.deepcopy(final)
            earlier.load_state_dict(read_content(folder / HALF)["network_weights"])
            networks = {self._half: earlier, **networks}
        rows = [self._row(distorted, clean, list(networks.values())) for distorted, clean in pairs]
        measured = [
            {"restored": restoration_measures(row[1], row[-1]), "distorted": restoration_measures(row[1], row[0])}
            for row in rows
        ]
        mean = {
            side: {key: float(np.mean([one[side][key] for one in measured])) for key in measured[0][side]}
            for side in ("restored", "distorted")
        }
        validation = {"patches": len(rows), **mean}
        write_json(folder / f"{DESCRIPTION}.json", {**self.description(), "validation": validation})
        titles = ["distorted", "original"]
        titles += [f"after {epochs * self.num_iterations_per_epoch} iterations" for epochs in networks]
        restoration_picture(folder / "restored.png", rows[:_SHOWN], titles)
        self.print_to_log_file(
            f"{len(rows)} held-out patches: L1 {mean['restored']['l1']:.4f} (distorted {mean['distorted']['l1']:.4f}), "
            f"PSNR {mean['restored']['psnr']:.2f} dB ({mean['distorted']['psnr']:.2f}), "
            f"SSIM {mean['restored']['ssim']:.3f} ({mean['distorted']['ssim']:.3f}); {folder / 'restored.png'}"
        )

    def _held_out_patches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The middle patch of held-out images, distorted and clean; the same ones each time."""
        rng = np.random.default_rng(0)
        size = [int(side) for side in self.configuration_manager.patch_size]
        volume = [1, *size] if len(size) == 2 else size
        images = self._images(self.do_split()[1])
        pairs = []
        for case in images.identifiers[:_MEASURED]:
            data = images.load_case(case)[0]
            starts = [(have - want) // 2 for have, want in zip(data.shape[1:], volume, strict=True)]
            box = [[start, start + want] for start, want in zip(starts, volume, strict=True)]
            patch = np.asarray(crop_and_pad_nd(data, box, 0), np.float32).reshape(data.shape[0], *size)
            pairs.append(distorted_pair(patch, rng, self.config.restoration))
        return pairs

    def _row(self, distorted: np.ndarray, clean: np.ndarray, networks: list[nn.Module]) -> list[np.ndarray]:
        """Distorted, clean and restored patches on the scale on which the clean one is in [0, 1]."""
        data = torch.from_numpy(distorted)[None].to(self.device)
        with torch.no_grad():
            restored = [network(data)[0].float().cpu().numpy() for network in networks]
        low, width = unit_scale(clean, self.config.restoration.percentiles)
        return [(image - low) / width for image in (distorted, clean, *restored)]


class JointDataset:
    """Preprocessed cases of several folders as one dataset for nnU-Net's data loader.

    Args:
        parts: nnU-Net's datasets, without a common case.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self._home = {case: part for part in parts for case in part.identifiers}
        self.identifiers = sorted(self._home)

    def load_case(self, case: str) -> tuple:
        """Image, segmentation, segmentation of the previous stage (None) and properties, as nnU-Net's datasets give."""
        content: tuple = self._home[case].load_case(case)
        return content

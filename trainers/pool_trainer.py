"""PoolTrainer: nnUNetTrainer that knows an unlabelled pool and measures the quality of what it predicts.

Settings come from `qa.yaml` (`nnunet_qa.config`). Without a pool the loss, the batches and the optimiser are nnU-Net's
own; the disagreement of the two finest outputs is measured beside them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import dummy_context
from torch import autocast
from torch import distributed as dist

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.config import QAConfig
from nnunet_qa.data.journal import refuse_unsettled
from nnunet_qa.data.one_case_loader import OneCaseLoader
from nnunet_qa.data.paths import raw_dataset_folder_if_known
from nnunet_qa.data.pool import PoolLoader, PreprocessedPool, pool_images, prepare_pool, refuse_overlap
from nnunet_qa.data.splits import FILE_NAME as SPLITS
from nnunet_qa.data.splits import grouped_splits, pseudo_labelled, read_splits, with_pseudo_labels, write_splits
from nnunet_qa.errors import CaseTableError, DatasetError, SelectionError
from nnunet_qa.files import replacing
from nnunet_qa.inference.predictor import class_names, unwrapped
from nnunet_qa.quality.disagreement import agreement_of_outputs
from nnunet_qa.quality.table import FILE_NAME as QUALITY
from nnunet_qa.quality.table import read_quality, write_quality
from nnunet_qa.selection.queue import FILE_NAME as QUEUE
from nnunet_qa.selection.queue import annotation_queue, write_queue

from .final_scoring import score_cases, with_true_dice
from .heads import check_two_trained, head_weights
from .pretrained import preprocessing, refuse_other_preprocessing
from .progress import QUANTITIES, QALocalLogger


class PoolTrainer(nnUNetTrainer):
    """The base of all our trainers; see the module.

    Attributes:
        config: settings from `qa.yaml`.
        pool_images: channel files of the pool cases; empty where there is no pool or `pool.enabled` is false.
        pool: the preprocessed pool, from `on_train_start` on.
        next_stage_pools: the pool preprocessed for the next stages of the cascade.
    """

    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    initial_lr: float
    _best_ema: float | None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.raw_dataset_folder = raw_dataset_folder_if_known(self.plans_manager.dataset_name)
        self.config, source = QAConfig.find(self.raw_dataset_folder)
        self.print_to_log_file(f"QA settings: {source or 'defaults (no qa.yaml)'}")
        self.world_size = dist.get_world_size() if self.is_ddp else 1
        self._apply_training_settings()
        self.pool: PreprocessedPool | None = None
        self.next_stage_pools: dict[str, PreprocessedPool] = {}
        self.pool_images: dict[str, list[Path]] = {}
        if self.config.pool.enabled and self.raw_dataset_folder is not None:
            self.pool_images = pool_images(self.raw_dataset_folder, dataset_json)
            refuse_overlap(self.raw_dataset_folder, self.pool_images, dataset_json["file_ending"])
        self._pool_loader: PoolLoader | None = None
        self._measured: list[float] = []
        self.logger.local_logger = QALocalLogger(self._logged_keys(), self.logger.local_logger.verbose)
        if self.config.injection.enabled and not self.injects:
            why = "there is no pool" if not self.pool_images else f"{type(self).__name__} does not inject"
            self.print_to_log_file(f"injection: enabled in qa.yaml and left out: {why}")

    def initialize(self) -> None:
        """As nnU-Net's; the network then refuses pretrained weights of images that were preprocessed otherwise."""
        super().initialize()
        ours = preprocessing(self.plans_manager.plans, self.configuration_manager.configuration)
        refuse_other_preprocessing(unwrapped(self.network), ours)

    @property
    def injects(self) -> bool:
        """Whether pool cases are to join the training with their predictions as labels."""
        return False

    def _logged_keys(self) -> tuple[str, ...]:
        """What is logged once an epoch beside nnU-Net's quantities."""
        if not self.config.scoring.every_epoch:
            return ()
        return ("disagreement_val", "disagreement_pool") if self._pool_is_measured else ("disagreement_val",)

    @property
    def _pool_is_measured(self) -> bool:
        return bool(self.pool_images) and self.config.pool.batches_per_epoch > 0

    def _apply_training_settings(self) -> None:
        training = self.config.training
        self.num_epochs = training.epochs or self.num_epochs
        self.num_iterations_per_epoch = training.iterations_per_epoch or self.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = training.val_iterations_per_epoch or self.num_val_iterations_per_epoch
        self.initial_lr = training.initial_lr or self.initial_lr

    def _build_loss(self) -> Any:
        outputs = len(self._get_deep_supervision_scales() or [])
        if self.config.scoring.every_epoch or self.config.scoring.final:
            check_two_trained(self.config.head_weights, outputs, self.plans_manager.plans_name, self.configuration_name)
        loss = super()._build_loss()
        weights = head_weights(self.config.head_weights, outputs, with_pool=bool(self.pool_images))
        if weights is not None and isinstance(loss, DeepSupervisionWrapper):
            loss = DeepSupervisionWrapper(loss.loss, weights)
            self.print_to_log_file(f"loss weights of the outputs, finest first: {[round(w, 4) for w in weights]}")
        return loss

    def do_split(self) -> tuple[list[str], list[str]]:
        """As nnU-Net's, but folds made here keep the slices of a subject together, and no pseudo-label is validated."""
        path = Path(self.preprocessed_dataset_folder_base) / SPLITS
        table = self._case_table()
        pseudo = self._pseudo_labelled()
        if self.fold != "all" and not path.is_file() and table is not None:
            known = table.subjects()
            dataset_class = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)
            cases = dataset_class.get_identifiers(self.preprocessed_dataset_folder)
            subjects = {case: known.get(case, case) for case in cases}
            splits = grouped_splits({case: subjects[case] for case in cases if case not in pseudo})
            write_splits(path.parent, with_pseudo_labels(splits, pseudo & set(cases), subjects))
            self.print_to_log_file(f"folds grouped by subject written to {path}")
        if self.fold != "all" and path.is_file() and self.fold >= len(folds := read_splits(path)):
            raise DatasetError(
                f"{path}: has {len(folds)} folds, counted from 0, and no fold {self.fold}; nnU-Net would draw one that "
                "parts subjects. Choose another fold, or all"
            )
        train, validation = super().do_split()
        if self.fold == "all":
            return train, [case for case in validation if case not in pseudo]
        if wrong := sorted(pseudo & set(validation)):
            raise DatasetError(
                f'{path}: fold {self.fold} validates the case "{wrong[0]}", whose label is a pseudo-label by {CASES}; '
                "delete the file to have folds written anew"
            )
        return train, validation

    def _case_table(self) -> CaseTable | None:
        """The case table of the raw dataset, where there is one."""
        path = self.raw_dataset_folder / CASES if self.raw_dataset_folder is not None else None
        return CaseTable.read(path) if path is not None and path.is_file() else None

    def _pseudo_labelled(self) -> set[str]:
        """Training cases whose labels are predictions, by `nnunet-qa inject`."""
        table = self._case_table()
        return pseudo_labelled(table) if table is not None else set()

    def on_train_start(self) -> None:
        """Preprocess the pool once, then start as nnU-Net does."""
        if self.raw_dataset_folder is not None:
            refuse_unsettled(self.raw_dataset_folder)
        if not self.was_initialized:
            self.initialize()  # refuses unsuitable plans before hours go into the pool
        if self.pool_images:
            self._prepare_pool()
        super().on_train_start()
        if self.config.scoring.every_epoch and self._pool_is_measured:
            self._pool_loader = self._open_pool_loader(self.batch_size)

    def _prepare_pool(self) -> None:
        self.print_to_log_file(f"unlabelled pool: {len(self.pool_images)} cases")
        self.pool = self._preprocessed_pool(self.configuration_name)
        previous = self.folder_with_segs_from_previous_stage
        if previous is not None:
            missing = [
                case for case in self.pool.case_ids if not os.path.isfile(os.path.join(previous, f"{case}.b2nd"))
            ]
            if missing:
                raise DatasetError(
                    f"{previous}: {len(missing)} pool cases lack the previous stage's segmentation ({missing[0]}, …); "
                    f"train {self.configuration_manager.previous_stage_name} with {type(self).__name__} first"
                )

    def _preprocessed_pool(self, configuration: str) -> PreprocessedPool:
        """The pool of a configuration; under DDP rank 0 makes it and the others then find everything done."""
        if self.local_rank != 0:
            dist.barrier()
        pool = prepare_pool(
            self.pool_images,
            Path(self.preprocessed_dataset_folder_base),
            self.plans_manager.plans,
            configuration,
            self.dataset_json,
            jobs=self.config.pool.jobs,
        )
        if self.is_ddp and self.local_rank == 0:
            dist.barrier()
        return pool

    def _open_pool_loader(self, batch_size: int, *, stacked: bool = False) -> PoolLoader:
        """Batches of pool patches; where `stacked`, each batch holds slices of one case."""

        def make() -> nnUNetDataLoader:
            assert self.pool is not None
            return self._plain_loader(
                self.pool.dataset(self.folder_with_segs_from_previous_stage), batch_size, stacked=stacked
            )

        processes = 0 if get_allowed_n_proc_DA() == 0 else 1
        return PoolLoader(make, processes=processes, pin_memory=self.device.type == "cuda")

    def _plain_loader(
        self,
        dataset: Any,
        batch_size: int,
        *,
        stacked: bool = False,
        foreground: float = 0.0,
        augmented: bool = False,
    ) -> nnUNetDataLoader:
        """nnU-Net's loader with label maps as they are, whatever the training makes of them.

        Args:
            dataset: preprocessed cases.
            batch_size: patches of a batch.
            stacked: each batch holds slices of one case.
            foreground: part of the patches that must hold some.
            augmented: with nnU-Net's augmentation for training.
        """
        size = initial = self.configuration_manager.patch_size
        cascade: dict[str, Any] = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": None,
            "ignore_label": None,
        }
        if augmented:
            rotation, dummy_2d, initial, axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            masks = self.configuration_manager.use_mask_for_norm
            transforms = self.get_training_transforms(
                size, rotation, None, axes, dummy_2d, use_mask_for_norm=masks, **cascade
            )
        else:
            transforms = self.get_validation_transforms(None, **cascade)
        kind = OneCaseLoader if stacked else nnUNetDataLoader
        loader = kind(
            dataset,
            batch_size,
            initial,
            size,
            self.label_manager,
            oversample_foreground_percent=foreground,
            probabilistic_oversampling=stacked,  # else never for the first image, by which a stack is placed
            transforms=transforms,
        )
        loader.has_ignore = False  # a pool case has no annotated area to keep patches within
        return loader

    def on_train_end(self) -> None:
        """As nnU-Net's; ends the pool loader too."""
        self._close_pool_loader()
        super().on_train_end()

    def _close_pool_loader(self) -> None:
        if self._pool_loader is not None:
            self._pool_loader.close()
            self._pool_loader = None

    def on_validation_epoch_start(self) -> None:
        """As nnU-Net's; from here on the outputs of the network are compared as they come."""
        super().on_validation_epoch_start()
        self._measured = []
        if self.config.scoring.every_epoch:
            # a hook sees what nnU-Net's own validation_step computes, so the network runs only once
            self._hook = self.network.register_forward_hook(self._measure)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As nnU-Net's; logs the mean disagreement of validation patches and of pool patches."""
        super().on_validation_epoch_end(val_outputs)
        if not self.config.scoring.every_epoch:
            return
        self.logger.log("disagreement_val", self._mean_disagreement(), self.current_epoch)
        if self._pool_loader is not None:
            self._measured = []
            for _ in range(self.config.pool.batches_per_epoch):
                data = next(self._pool_loader)["data"].to(self.device, non_blocking=True)
                with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
                    self.network(data)
            self.logger.log("disagreement_pool", self._mean_disagreement(), self.current_epoch)
        self._hook.remove()

    def _measure(self, _module: Any, _args: Any, outputs: Any) -> None:
        q = agreement_of_outputs(outputs[0].detach(), outputs[1].detach(), regions=self.label_manager.has_regions).mean
        self._measured += q.tolist()

    def _mean_disagreement(self) -> float:
        measured = self._measured
        if self.is_ddp:
            measured = gathered(measured, self.world_size)
        return 1.0 - float(np.mean(measured))

    def on_epoch_end(self) -> None:
        """As nnU-Net's; prints what we log below nnU-Net's figures."""
        for key in QUANTITIES:
            if key in self.logger.local_logger.my_fantastic_logging:
                self.print_to_log_file(key, np.round(self.logger.get_value(key, step=-1), decimals=4))
        super().on_epoch_end()

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net's, in one step: a training killed while it saves can still go on from the checkpoint before."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with replacing(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))
            self._complete_checkpoint(temporary)

    def _keep_best_on_disk(self) -> None:
        """After a checkpoint was loaded: let a better `checkpoint_best.pth` of a later epoch stay till it is beaten."""
        path = Path(self.output_folder) / "checkpoint_best.pth"
        if not path.is_file():
            return
        best = torch.load(path, map_location="cpu", weights_only=False, mmap=True)["_best_ema"]
        if best is not None and (self._best_ema is None or best > self._best_ema):
            self._best_ema = best

    def _complete_checkpoint(self, path: Path) -> None:
        """Add to a checkpoint, before it takes the place of the last one, what a resumed training needs beside it."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net's; then scores validation cases and pool and writes `quality.csv` and the annotation queue."""
        super().perform_actual_validation(save_probabilities)
        if self.config.scoring.final:
            self._final_scoring()

    def _final_scoring(self) -> None:
        _, validation_cases = self.do_split()
        validation = self.dataset_class(
            self.preprocessed_dataset_folder,
            list(validation_cases),
            folder_with_segs_from_previous_stage=self.folder_with_segs_from_previous_stage,
        )
        rows = score_cases(self, validation, Role.LABELLED)
        if self.pool_images:
            if self.pool is None:
                self._prepare_pool()
            assert self.pool is not None
            for stage in self.configuration_manager.next_stage_names or []:
                self.next_stage_pools[stage] = self._preprocessed_pool(stage)
            rows += score_cases(self, self.pool.dataset(self.folder_with_segs_from_previous_stage), Role.UNLABELLED)
        if self.is_ddp:
            rows = gathered(rows, self.world_size)
        if self.local_rank == 0:
            summary = Path(self.output_folder) / "validation" / "summary.json"
            labels = self.label_manager
            values = labels.foreground_regions if labels.has_regions else labels.foreground_labels
            names = class_names(self.dataset_json, labels)
            self._write_scores(with_true_dice(rows, summary, dict(zip(map(str, values), names, strict=True))))

    def _write_scores(self, table: pd.DataFrame) -> None:
        folder = Path(self.output_folder)
        write_quality(folder / QUALITY, table)
        self.print_to_log_file(f"quality of validation cases and pool written to {folder / QUALITY}")
        if not self.pool_images:
            return
        table_file = self.raw_dataset_folder / CASES if self.raw_dataset_folder is not None else None
        try:
            cases = CaseTable.read(table_file) if table_file is not None and table_file.is_file() else None
            queue = annotation_queue(read_quality(folder / QUALITY), cases=cases, **self.config.queue.limits())
        except (CaseTableError, SelectionError) as error:  # the training itself is done and good
            self.print_to_log_file(f"no annotation queue: {error}")
            return
        write_queue(folder / QUEUE, queue)
        self.print_to_log_file(f"annotation queue of {len(queue)} cases written to {folder / QUEUE}")


def gathered(values: Iterable[Any], world_size: int) -> list[Any]:
    """All ranks' values in one list, in the order of ranks."""
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, list(values))
    return [value for part in parts for value in part]

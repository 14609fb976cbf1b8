"""What a QA trainer writes at its end: `quality.csv` for validation cases and pool, and the annotation queue."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from batchgenerators.utilities.file_and_folder_operations import maybe_mkdir_p
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from nnunet_qa.cases import Role
from nnunet_qa.inference.predictor import QAPredictor, unwrapped

if TYPE_CHECKING:
    from .pool_trainer import PoolTrainer


def score_cases(trainer: PoolTrainer, dataset: Any, role: Role) -> list[dict[str, Any]]:
    """Score preprocessed cases with the trained network.

    Under DDP each rank scores its share.

    Args:
        trainer: a trainer whose network is trained.
        dataset: nnU-Net's dataset over preprocessed cases.
        role: role of these cases in the table.

    Returns:
        Rows for `quality.csv`.
    """
    predictor = scoring_predictor(trainer)
    rows: list[dict[str, Any]] = []
    cases = list(dataset.identifiers)[trainer.local_rank :: trainer.world_size]
    for number, case in enumerate(cases):
        image, _, properties = preprocessed_image(trainer, dataset, case)
        quality, logits = predictor.quality_of_preprocessed(torch.from_numpy(image), properties, case)
        rows += quality.rows(role.value)
        if role is Role.UNLABELLED:
            _save_for_next_stages(trainer, case, logits, properties)
        if (number + 1) % 50 == 0 or number + 1 == len(cases):
            trainer.print_to_log_file(f"scored {number + 1} of {len(cases)} {role.value} cases")
    return rows


def scoring_predictor(trainer: PoolTrainer) -> QAPredictor:
    """A predictor with the network of a training as it is."""
    predictor = QAPredictor(
        use_mirroring=trainer.config.scoring.mirroring,
        perform_everything_on_device=trainer.device.type == "cuda",
        device=trainer.device,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        unwrapped(trainer.network),
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    return predictor


def preprocessed_image(trainer: PoolTrainer, dataset: Any, case: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A preprocessed case as the network takes it.

    Args:
        trainer: whose configuration it was preprocessed for.
        dataset: nnU-Net's dataset over preprocessed cases.
        case: identifier.

    Returns:
        The image `(channels, *spatial)`, with the previous stage's segmentation in the cascade; where it lies outside
        of nnU-Net's nonzero mask `(1, *spatial)`; its properties.
    """
    data, labels, previous, properties = dataset.load_case(case)
    image = np.asarray(data[:])
    if trainer.is_cascaded:
        one_hot = convert_labelmap_to_one_hot(
            np.asarray(previous[:]), trainer.label_manager.foreground_labels, output_dtype=image.dtype
        )
        image = np.vstack((image, one_hot))
    return image, np.asarray(labels[:]) < 0, properties


def with_true_dice(rows: Iterable[dict[str, Any]], summary_file: Path, classes: dict[str, str]) -> pd.DataFrame:
    """Table of rows in which validation cases have their true Dice.

    Args:
        rows: rows of `score_cases`.
        summary_file: nnU-Net's `validation/summary.json`.
        classes: name of each class by its key in the summary; the file sorts its keys as texts.

    Returns:
        The rows with `dice` (mean over classes) and `dice_<label>`; a class that is rightly left empty counts 1.
    """
    table = pd.DataFrame(list(rows))
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    truth: dict[str, list[float]] = {}
    for entry in summary["metric_per_case"]:
        case = os.path.basename(entry["prediction_file"]).removesuffix(_ending(entry["prediction_file"]))
        values = [entry["metrics"][key]["Dice"] for key in classes]
        truth[case] = [1.0 if value is None or np.isnan(value) else float(value) for value in values]
    is_case = (table["level"] == "case") & table["case_id"].isin(list(truth)) & (table["role"] == Role.LABELLED.value)
    for number, name in enumerate(("", *classes.values())):
        column = f"dice_{name}" if name else "dice"
        table[column] = np.nan
        for index in table.index[is_case]:
            values = truth[table.loc[index, "case_id"]]
            table.loc[index, column] = values[number - 1] if name else float(np.mean(values))
    return table


def _ending(path: str) -> str:
    name = os.path.basename(path)
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]


def _save_for_next_stages(trainer: PoolTrainer, case: str, logits: torch.Tensor, properties: dict[str, Any]) -> None:
    """Hand a pool case's segmentation to the next stages of the cascade, as nnU-Net does for validation cases."""
    for stage in trainer.configuration_manager.next_stage_names or []:
        dataset = trainer.next_stage_pools[stage].dataset()
        folder = os.path.join(trainer.output_folder_base, "predicted_next_stage", stage)
        maybe_mkdir_p(folder)
        resample_and_save(
            logits,
            dataset.load_case(case)[0].shape[1:],
            os.path.join(folder, case),
            trainer.plans_manager,
            trainer.configuration_manager,
            properties,
            trainer.dataset_json,
            default_num_processes,
            type(dataset),
        )

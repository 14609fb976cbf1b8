"""A trained source and a planned target, as folders of nnU-Net."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from tests.architecture import PLAIN, architecture

HALVE = {2: [[1, 1], [2, 2], [2, 2], [2, 2]], 3: [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
NAMES = {2: "2d", 3: "3d_fullres"}


def configuration(dim: int, patch: list[int], features: list[int], *, network: str = PLAIN) -> dict[str, Any]:
    stages = len(features)
    strides = [*HALVE[dim], *[[2] * dim] * 3][:stages]
    return {
        "data_identifier": f"nnUNetPlans_{NAMES[dim]}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 7,
        "patch_size": patch,
        "spacing": [1.0] * dim,
        "architecture": architecture(features, strides, network=network, decoder=[1] * (stages - 1)),
        "batch_dice": True,
    }


def plans_of(dataset: str, **configurations: dict[str, Any]) -> dict[str, Any]:
    return {
        "dataset_name": dataset,
        "plans_name": "nnUNetPlans",
        "configurations": configurations,
        "label_manager": "LabelManager",
    }


def dataset_json(channels: int, classes: int) -> dict[str, Any]:
    return {
        "channel_names": {str(number): f"c{number}" for number in range(channels)},
        "labels": {"background": 0, **{f"class{value}": value for value in range(1, classes)}},
        "file_ending": ".nii.gz",
    }


def network_of(plans: dict[str, Any], name: str, channels: int, heads: int) -> nn.Module:
    manager = PlansManager(copy.deepcopy(plans)).get_configuration(name)
    return get_network_from_plans(
        manager.network_arch_class_name,
        manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import,
        channels,
        heads,
        deep_supervision=False,
    )


def write_source(
    base: Path,
    plans: dict[str, Any],
    name: str,
    *,
    channels: int = 1,
    classes: int = 3,
    extra: int = 0,
    network: nn.Module | None = None,
    trainer: str = "nnUNetTrainer",
) -> tuple[Path, nn.Module]:
    """A results folder as a training leaves it, and its network."""
    torch.manual_seed(channels)
    network = network or network_of(plans, name, channels + extra, classes)
    folder = base / "nnUNet_results" / plans["dataset_name"] / f"{trainer}__nnUNetPlans__{name}"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(channels, classes)))
    checkpoint = {
        "network_weights": network.state_dict(),
        "logging": {"mean_fg_dice": [np.float32(0.5)]},
        "init_args": {"configuration": name, "fold": 0},
        "trainer_name": trainer,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder, network


def write_target(base: Path, plans: dict[str, Any], *, channels: int = 1, classes: int = 3) -> Path:
    folder = base / "nnUNet_preprocessed" / plans["dataset_name"]
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(dataset_json(channels, classes)))
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    return folder


SOURCE = plans_of(
    "Dataset105_CT",
    **{"2d": configuration(2, [64, 64], [4, 6, 8, 8]), "3d_fullres": configuration(3, [8, 16, 16], [3, 4, 6])},
)

TARGET = plans_of(
    "Dataset101_OCT",
    **{
        "2d": configuration(2, [44, 70], [8, 16, 32]),
        "3d_fullres": configuration(3, [5, 18, 23], [8, 16, 32]),
        "3d_lowres": configuration(3, [8, 16, 16], [8, 16]),
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    },
)


def written(plans: Path) -> dict[str, Any]:
    return json.loads(plans.read_text())

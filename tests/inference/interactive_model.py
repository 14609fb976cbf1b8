"""Interactive models without a training: plans by hand, and networks with random weights or with none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_qa.files import write_json
from nnunet_qa.inference.interactive import InteractivePredictor
from nnunet_qa.interaction.click_maps import CHECKPOINT_KEY, ClickChannels
from nnunet_qa.trainers.interactive import InteractiveTrainer
from tests.architecture import architecture

CPU = torch.device("cpu")


def plans_of(
    patch: Sequence[int],
    *,
    spacing: Sequence[float] | None = None,
    order: Sequence[int] = (0, 1, 2),
    features: Sequence[int] = (4, 8, 8),
    reader: str = "SimpleITKIO",
) -> dict[str, Any]:
    """Plans with one configuration, "2d" or "3d_fullres"; `order` is nnU-Net's transpose_forward."""
    axes, stages = len(patch), len(features)
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    strides = [[1] * axes] + [[2] * axes] * (stages - 1)
    configuration = {
        "data_identifier": "none",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": list(spacing or [1.0] * axes),
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": architecture(features, strides),
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset601_Clicks",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": list(order),
        "transpose_backward": [list(order).index(axis) for axis in range(3)],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"2d" if axes == 2 else "3d_fullres": configuration},
    }


def dataset_of(classes: int = 1, ending: str = ".nii.gz") -> dict[str, Any]:
    """A dataset.json of one channel with the classes `class1`, `class2`, …"""
    labels = {"background": 0, **{f"class{number}": number for number in range(1, classes + 1)}}
    return {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ending}


def write_interactive_model(
    folder: Path,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    *,
    folds: int = 1,
    previous: bool = False,
    trainer: str = "InteractiveTrainer",
) -> Path:
    """A model folder as nnUNetv2_train leaves it, with random weights and mirroring along all axes."""
    ((name, configuration),) = plans["configurations"].items()
    model = folder / f"{trainer}__nnUNetPlans__{name}"
    manager = PlansManager(plans)
    heads = len(dataset["labels"])
    channels = ClickChannels(labels=heads - 1, spacing=tuple(configuration["spacing"]), previous=previous)
    for fold in range(folds):
        torch.manual_seed(fold)
        network = InteractiveTrainer.build_network_architecture(
            manager, manager.get_configuration(name), 1, heads, enable_deep_supervision=False
        )
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": trainer,
            "init_args": {"configuration": name},
            "inference_allowed_mirroring_axes": tuple(range(len(configuration["patch_size"]))),
            CHECKPOINT_KEY: asdict(channels),
        }
        (model / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
    write_json(model / "plans.json", plans)
    write_json(model / "dataset.json", dataset)
    return model


class Painter(nn.Module):
    """A network that can be foreseen: foreground is where the image is bright, unless a click nearby says otherwise.

    Args:
        labels: number of classes; all of them but the first come from clicks alone.
        images: channels before those of clicks; the first counts.

    Attributes:
        seen: inputs so far.
    """

    def __init__(self, labels: int = 1, images: int = 1) -> None:
        super().__init__()
        self.labels, self.images = labels, images
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        maps = x[:, self.images : self.images + self.labels + 1]
        logits = 20 * maps if maps.shape[1] else x.new_zeros(len(x), self.labels + 1, *x.shape[2:])
        logits[:, 1:2] += x[:, :1]
        return logits


class OtherFold(nn.Module):
    """What a second fold might say."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((3 - x[:, :1], x[:, :1]), dim=1)


def with_network(
    network: nn.Module,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    *,
    previous: bool = False,
) -> InteractivePredictor:
    """A predictor whose network is this one."""
    ((name, configuration),) = plans["configurations"].items()
    stock = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=CPU, allow_tqdm=False)
    manager = PlansManager(plans)
    settings = manager.get_configuration(name)
    stock.manual_initialization(network, manager, settings, [network.state_dict()], dataset, "InteractiveTrainer", None)
    labels = len(dataset["labels"]) - 1
    channels = ClickChannels(labels=labels, sigma=1.0, spacing=tuple(configuration["spacing"]), previous=previous)
    return InteractivePredictor(stock, channels)

"""Whether pretrained weights have seen images that were preprocessed as those of this training.

Weights of other plans fit wherever the architecture is the same; on another scale of voxels or intensities they are
worth little, and nothing says so. What RestorationTrainer notes in its checkpoints is compared.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import numpy as np
from torch import nn

from nnunet_qa.errors import ModelError

DESCRIPTION = "restoration"
"""Key of checkpoints, and name of the JSON file, that say what was trained on what."""
PREPROCESSING = "preprocessing"
"""Key of that description under which the preprocessing of the images stands."""
_SPACING = 0.01
_INTENSITY = 0.25
_CT = "CTNormalization"
_STATISTICS = ("percentile_00_5", "percentile_99_5", "mean", "std")


def preprocessing(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What plans do to an image before a network sees it, in plain Python."""
    return {
        "transpose_forward": list(plans["transpose_forward"]),
        "spacing": [float(size) for size in configuration["spacing"]],
        "normalization_schemes": list(configuration["normalization_schemes"]),
        "foreground_intensity_properties_per_channel": plans["foreground_intensity_properties_per_channel"],
    }


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """The first difference between two of `preprocessing` that matters to weights; None where there is none.

    Spacings may differ by 1 %, and the statistics by which CT is normalised by a quarter of its standard deviation, for
    two datasets never have the same.
    """
    for key in ("transpose_forward", "normalization_schemes"):
        if list(theirs[key]) != list(ours[key]):
            return f"{key} {list(theirs[key])}, here {list(ours[key])}"
    one, other = np.array(theirs["spacing"]), np.array(ours["spacing"])
    if one.shape != other.shape or (np.abs(one - other) > _SPACING * np.maximum(one, other)).any():
        return f"spacing {theirs['spacing']} mm, here {ours['spacing']} mm"
    for channel, scheme in enumerate(ours["normalization_schemes"]):
        if scheme != _CT:
            continue
        before, now = (side["foreground_intensity_properties_per_channel"][str(channel)] for side in (theirs, ours))
        for name in _STATISTICS:
            if abs(before[name] - now[name]) > _INTENSITY * now["std"]:
                return f"{_CT} of channel {channel} by {name} {before[name]:g}, here {now[name]:g}"
    return None


def refuse_other_preprocessing(network: nn.Module, ours: Mapping[str, Any]) -> None:
    """From now on `network` takes no weights from nnU-Net's `-pretrained_weights` that were trained on other images.

    Args:
        network: as nnU-Net gives it to `load_pretrained_weights`, without wrappers.
        ours: see `preprocessing`.

    When such weights are loaded it raises a ModelError.
    """

    def hook(*_: Any) -> None:
        frame = _loading()
        if frame is None:
            return
        theirs = frame.f_locals.get("saved_model", {}).get(DESCRIPTION, {}).get(PREPROCESSING)
        found = difference(theirs, ours) if theirs is not None else None
        if found is not None:
            raise ModelError(
                f"{frame.f_locals.get('fname')}: weights of images that were preprocessed otherwise: {found}. Pretrain "
                "with the plans of this training; `nnunet-qa move-plans` takes them to another dataset"
            )

    network.register_load_state_dict_pre_hook(hook)


def _loading() -> FrameType | None:
    """The frame of nnU-Net's `load_pretrained_weights`, from which nothing but the network knows the trainer."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "load_pretrained_weights":
        frame = frame.f_back
    return frame

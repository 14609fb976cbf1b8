"""Smaller plans for a CPU or a small GPU: fewer stages and features, another batch, patch and image size.

CT can be clipped to a window of HU too.

nnU-Net finds preprocessed data by the `data_identifier` of a configuration, not by the name of the plans. Plans that
keep it train on what is already preprocessed; another image size or window needs data of its own.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_qa.data.paths import preprocessed_dataset_folder, read_json, read_plans
from nnunet_qa.errors import NnunetQAError, nearest
from nnunet_qa.files import write_json

logger = logging.getLogger(__name__)

MIN_STAGES = 3
"""A network of n stages has n - 1 outputs of deep supervision, and the disagreement needs two."""
_PER_STAGE = ("kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage", "bottleneck_channels")
# Two underscores part trainer, plans and configuration in the name of a results folder.
_IDENTIFIER = re.compile(r"(?!.*__)[A-Za-z0-9][A-Za-z0-9_.-]*")


class PlansError(NnunetQAError):
    """Plans cannot be made smaller in the way that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Smaller:
    """What is to change in a configuration; None leaves it as planned.

    Attributes:
        features: feature channels of each stage, finest first; their number is the new number of stages. The coarsest
            stages are dropped.
        batch_size: patches a batch. With 1, nnU-Net does not oversample foreground.
        patch_size: voxels along each axis, `(y, x)` or `(z, y, x)` as in the plans; divisible by the product of the
            strides along each axis.
        image_size: voxels along each axis to which the median image is resampled; the others by the same factors. Where
            no patch size is given, it is the patch size too.
        hu_window: CT channels are clipped to this range of HU, which becomes 0 to 1, in every configuration.
    """

    features: tuple[int, ...] | None = None
    batch_size: int | None = None
    patch_size: tuple[int, ...] | None = None
    image_size: tuple[int, ...] | None = None
    hu_window: tuple[float, float] | None = None

    @property
    def needs_preprocessing(self) -> bool:
        """Whether the data that the source plans were preprocessed to will not do."""
        return self.image_size is not None or self.hu_window is not None


def write_smaller_plans(
    dataset: str,
    configuration: str,
    *,
    smaller: Smaller,
    source: str = "nnUNetPlans",
    identifier: str = "nnUNetPlansSmall",
    overwrite: bool = False,
) -> Path:
    """Write smaller plans beside the existing ones in nnUNet_preprocessed.

    Args:
        dataset: number or name.
        configuration: the one that is made smaller; the others stay as they are.
        smaller: what is to change.
        source: name of the plans to start from.
        identifier: name of the new plans.
        overwrite: replace other plans of this name.

    Returns:
        The file. Where it already holds the same plans, it is left alone.

    Raises:
        EnvironmentVariableError: nnUNet_preprocessed is not set.
        DatasetError: the dataset has not been planned, or not under this name.
        PlansError: see `smaller_plans`; also a name that cannot be used, or other plans that have it already.
    """
    plans = read_plans(dataset, source)
    path = preprocessed_dataset_folder(dataset) / f"{identifier}.json"
    if not _IDENTIFIER.fullmatch(identifier):
        raise PlansError(f'"{identifier}" cannot name plans: use letters, digits, "-", "." and single "_"')
    if identifier == source:
        raise PlansError(f"{path}: the new plans need another name than those they come from; choose one with -o")
    new = smaller_plans(plans, configuration, smaller=smaller, identifier=identifier)
    if path.is_file():
        old = read_json(path)
        if "configurations" not in old:
            raise PlansError(f"{path}: exists and holds no plans; choose another name with -o")
        if old == new:
            return path
        if not overwrite:
            raise PlansError(f"{path}: other plans of this name exist; replace them with --overwrite or choose -o")
    data = path.parent / _resolved(new, configuration)["data_identifier"]
    if not data.is_dir():
        name = identifier if smaller.needs_preprocessing else source
        logger.warning("%s: not there yet; run `nnUNetv2_preprocess` with the plans %s first", data, name)
    write_json(path, new)
    return path


def smaller_plans(plans: dict[str, Any], configuration: str, *, smaller: Smaller, identifier: str) -> dict[str, Any]:
    """Plans in which one configuration is smaller; the given ones are not changed.

    Args:
        plans: content of a plans file. The architecture must be one that nnU-Net plans by stages: `PlainConvUNet`,
            `ResidualEncoderUNet` or a class with the same arguments, in 2D or 3D.
        configuration: the one that is made smaller. Those that inherit from it keep what they had.
        smaller: what is to change.
        identifier: the `plans_name` of the result.

    Raises:
        PlansError: nothing is to change; there is no such configuration; the architecture has no stages; too few or
            too many stages; a number below 1; a patch that the network cannot halve as often as it has to; an image
            size where the plans do not tell the median; a window of HU that is empty, or where no channel is CT.
    """
    if smaller == Smaller():
        raise PlansError("nothing to change: give --features, --batch-size, --patch-size, --image-size or --hu-window")
    known = list(plans.get("configurations", {}))
    if configuration not in known:
        raise PlansError(
            f'the plans have no configuration "{configuration}"{nearest(configuration, known)}; '
            f"they have {', '.join(known) or 'none'}"
        )
    before = _resolved(plans, configuration)
    arguments = before["architecture"]["arch_kwargs"]
    if not {"n_stages", "features_per_stage", "strides", "kernel_sizes"} <= set(arguments):
        name = before["architecture"]["network_class_name"].split(".")[-1]
        raise PlansError(f'"{configuration}": the network {name} is not planned by stages, it cannot be made smaller')
    architecture = copy.deepcopy(before["architecture"])
    architecture["arch_kwargs"] = _cut(arguments, smaller.features)
    batch_size = before["batch_size"] if smaller.batch_size is None else smaller.batch_size
    if batch_size < 1:
        raise PlansError(f"batch size {batch_size}: must be at least 1")
    if batch_size == 1 and smaller.batch_size is not None:
        logger.warning("with batch size 1 nnU-Net does not oversample patches with foreground; 2 is better")
    patch_size = list(smaller.patch_size or smaller.image_size or before["patch_size"])
    named = "image size" if smaller.image_size and not smaller.patch_size else "patch size"
    _check_patch(patch_size, before["patch_size"], architecture["arch_kwargs"]["strides"], named)

    changed = {"batch_size": batch_size, "patch_size": patch_size, "architecture": architecture}
    if smaller.image_size is not None:
        changed |= _resized(before, smaller.image_size, f"{identifier}_{configuration}")
    result = copy.deepcopy(plans)
    result["plans_name"] = identifier
    _keep_heirs(result, plans, configuration, tuple(changed))
    result["configurations"][configuration].update(changed)
    if smaller.hu_window is not None:
        _set_window(result, before["normalization_schemes"], smaller.hu_window)
    return result


def _resolved(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration with what it inherits, as nnU-Net itself reads it (plans of older versions included)."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(copy.deepcopy(plans)).get_configuration(configuration).configuration


def _cut(arguments: dict[str, Any], features: Sequence[int] | None) -> dict[str, Any]:
    """Arguments of the network with the given features, the coarsest stages dropped."""
    planned = arguments["n_stages"]
    stages = planned if features is None else len(features)
    if stages < MIN_STAGES:
        raise PlansError(
            f"{stages} stages give {max(0, stages - 1)} output(s) of deep supervision, and the disagreement needs two "
            f"that are trained; give features for at least {MIN_STAGES} stages"
        )
    if stages > planned:
        raise PlansError(f"{stages} features, but the network is planned with {planned} stages; give at most {planned}")
    result = copy.deepcopy(arguments)
    if features is None:
        return result
    if min(features) < 1:
        raise PlansError(f"features {','.join(map(str, features))}: each must be at least 1")
    result["n_stages"] = stages
    result["features_per_stage"] = list(features)
    for key in _PER_STAGE:
        if isinstance(result.get(key), (list, tuple)):
            result[key] = list(result[key][:stages])
    decoder = result.get("n_conv_per_stage_decoder")
    if isinstance(decoder, (list, tuple)):
        # The decoder counts from the coarsest stage up, so what is dropped stands first.
        result["n_conv_per_stage_decoder"] = list(decoder[len(decoder) - (stages - 1) :])
    return result


def _resized(before: dict[str, Any], image_size: Sequence[int], prefix: str) -> dict[str, Any]:
    """What makes the preprocessor resample the median image to a size, into a folder of its own."""
    shown = ",".join(map(str, image_size))
    median = before.get("median_image_size_in_voxels")
    if median is None:
        raise PlansError(f"image size {shown}: the plans do not tell the median image size; plan again")
    if len(image_size) != len(median) or min(image_size) < 1:
        raise PlansError(f"image size {shown}: give {len(median)} numbers from 1 up, one for each axis")
    return {
        "spacing": [
            float(space * old / new) for space, old, new in zip(before["spacing"], median, image_size, strict=True)
        ],
        "median_image_size_in_voxels": list(image_size),
        # The size is in the name, so that plans which are replaced never find data of another size.
        "data_identifier": f"{prefix}_{'x'.join(map(str, image_size))}",
    }


def _set_window(plans: dict[str, Any], schemes: Sequence[str], window: tuple[float, float]) -> None:
    """Make nnU-Net's normalisation of CT clip to the window and scale it to [0, 1].

    It clips to two percentiles, then subtracts a mean and divides by a standard deviation. Plans hold these numbers
    once for all configurations, so the data of each is another.
    """
    low, high = window
    shown = f"{low:g} {high:g}"
    if not low < high < math.inf or low == -math.inf:
        raise PlansError(f"HU window {shown}: give two numbers, the lower first")
    channels = [str(channel) for channel, scheme in enumerate(schemes) if scheme == "CTNormalization"]
    if not channels:
        raise PlansError(
            f'HU window {shown}: no channel is normalised as CT; the name of a CT channel in dataset.json must be "CT" '
            "when the dataset is planned"
        )
    for channel in channels:
        plans["foreground_intensity_properties_per_channel"][channel] |= {
            "percentile_00_5": low,
            "percentile_99_5": high,
            "mean": low,
            "std": high - low,
        }
    for content in plans["configurations"].values():
        if "data_identifier" in content:
            content["data_identifier"] += f"_hu{low:g}to{high:g}"


def _check_patch(
    patch: Sequence[int], planned: Sequence[int], strides: Sequence[int | Sequence[int]], named: str
) -> None:
    shown = ",".join(map(str, patch))
    if len(patch) != len(planned):
        raise PlansError(
            f"{named} {shown}: has {len(patch)} axes, the configuration {len(planned)} (planned: "
            f"{','.join(map(str, planned))})"
        )
    steps = [math.prod(step if isinstance(step, int) else step[axis] for step in strides) for axis in range(len(patch))]
    fits = [max(1, size // step) * step for size, step in zip(patch, steps, strict=True)]
    # A single voxel at the coarsest stage cannot be normalised over space: torch refuses it in training.
    if math.prod(size // step for size, step in zip(fits, steps, strict=True)) < 2:
        fits = [2 * step for step in steps]
    if list(patch) != fits:
        raise PlansError(
            f"{named} {shown}: each axis must be a multiple of {','.join(map(str, steps))} (the strides multiplied) "
            f"with more than one voxel left at the coarsest stage; {','.join(map(str, fits))} would fit"
        )


def _keep_heirs(result: dict[str, Any], plans: dict[str, Any], configuration: str, keys: Sequence[str]) -> None:
    """Write into each configuration that inherits from `configuration` the values that it inherited so far."""
    for name, content in plans["configurations"].items():
        if content.get("inherits_from") == configuration:
            before = _resolved(plans, name)
            for key in keys:
                result["configurations"][name][key] = copy.deepcopy(before[key])

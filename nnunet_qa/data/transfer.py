"""Weights trained on one dataset as the start of a training on another, such as OCT from CT (paper 001, introduction).

The target keeps its spacing, normalisation and preprocessed data and gets the source's network. What follows from that
is done here: a patch that the network's strides divide, a first convolution for the target's channels, and a file that
nnU-Net's `-pretrained_weights` takes.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_qa.data.checkpoint import read_checkpoint
from nnunet_qa.data.paths import preprocessed_dataset_folder, read_json, read_plans
from nnunet_qa.data.plans import PlansError, Smaller, smaller_plans
from nnunet_qa.errors import ModelError, NnunetQAError, nearest
from nnunet_qa.files import replacing, write_json

logger = logging.getLogger(__name__)

OUTPUT_LAYERS = ".seg_layers."
"""Part of the names of the weights that nnU-Net never takes over from pretrained weights."""
_NAME = re.compile(r"(?!.*__)[A-Za-z0-9][A-Za-z0-9_.-]*")


class TransferError(NnunetQAError):
    """Weights cannot start the training that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What a transfer wrote.

    Attributes:
        plans: the plans for the target.
        weights: the file for `-pretrained_weights`.
        trainer: the trainer's class that was trained and that the weights fit.
        changes: what differs from the source's network or from the target's own plans, one line each.
    """

    plans: Path
    weights: Path
    trainer: str
    changes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Side:
    """Source or target: a configuration in its plans, and what its dataset feeds in and wants out."""

    plans: PlansManager
    name: str
    configuration: ConfigurationManager
    images: int
    previous: int
    heads: int

    @classmethod
    def read(cls, folder: Path, plans: str, name: str) -> _Side:
        path = folder / f"{plans}.json"
        return cls.of(read_json(path), name, read_json(folder / "dataset.json"), where=path)

    @classmethod
    def of(cls, plans: dict[str, Any], name: str, dataset_json: dict[str, Any], *, where: Path) -> _Side:
        known = list(plans.get("configurations", {}))
        if name not in known:
            raise PlansError(
                f'{where}: no configuration "{name}"{nearest(name, known)}; there is {", ".join(known) or "none"}'
            )
        manager = PlansManager(copy.deepcopy(plans))
        configuration = manager.get_configuration(name)
        labels = manager.get_label_manager(dataset_json)
        return cls(
            plans=manager,
            name=name,
            configuration=configuration,
            images=len(dataset_json.get("channel_names", dataset_json.get("modality", ()))),
            previous=0 if configuration.previous_stage_name is None else len(labels.foreground_labels),
            heads=labels.num_segmentation_heads,
        )

    @property
    def channels(self) -> int:
        return self.images + self.previous

    @property
    def patch_size(self) -> list[int]:
        return [int(size) for size in self.configuration.patch_size]

    @property
    def network(self) -> str:
        """The network that the plans name, with its features."""
        features = self.configuration.network_arch_init_kwargs.get("features_per_stage", "?")
        return f"{self.configuration.network_arch_class_name.rsplit('.', 1)[-1]} with features {_listed(features)}"


def transfer(
    model_folder: Path,
    dataset: str,
    *,
    fold: int | str,
    configuration: str,
    identifier: str,
    checkpoint: str = "checkpoint_final.pth",
    plans: str = "nnUNetPlans",
    patch_size: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> Transfer:
    """Write plans and weights with which a dataset's training starts from another dataset's.

    Both go to `nnUNet_preprocessed/DatasetXXX` of the target. The same call again leaves the same files. nnU-Net must
    find the source's trainer (`nnunet_qa.environment.set_up`).

    Args:
        model_folder: `nnUNet_results/DatasetXXX/<trainer>__<plans>__<configuration>` of the source.
        dataset: number or name of the target, which has been planned.
        fold: of the source; a number or `all`.
        configuration: of the target; 2D where the source is 2D, 3D where it is 3D.
        identifier: name of the new plans.
        checkpoint: file in the folder of the fold.
        plans: the target's plans to start from.
        patch_size: voxels along each axis; None takes the target's, rounded by `fitted_patch`.
        batch_size: patches a batch; None takes the target's.
        overwrite: replace other plans of this name.

    Raises:
        EnvironmentVariableError: nnUNet_preprocessed is not set.
        DatasetError: the target has not been planned, or not under this name.
        ModelError: no such model, fold or checkpoint; it is damaged; its weights are not those of its plans' network.
        PlansError: no such configuration; the name cannot be used or is taken; the patch does not fit.
        TransferError: 2D to 3D or back; stages of a cascade that feed in different things; other outputs in a network
            whose output layers nnU-Net does not know.
        DependencyError: torch is too old to read a checkpoint safely.
    """
    file = _checkpoint_file(model_folder, fold, checkpoint)
    stored = read_checkpoint(file)
    source = _Side.read(model_folder, "plans", stored.configuration)
    folder = preprocessed_dataset_folder(dataset)
    planned = read_plans(dataset, plans)
    before = _Side.read(folder, plans, configuration)
    _check_alike(source, before, file)
    path = folder / f"{identifier}.json"
    new = transferred_plans(
        planned,
        configuration,
        architecture=source.configuration.configuration["architecture"],
        patch_size=patch_size,
        batch_size=batch_size,
        identifier=identifier,
    )
    _check_name(path, new, source=plans, overwrite=overwrite)
    target = _Side.of(new, configuration, read_json(folder / "dataset.json"), where=path)
    weights = _fitted_weights(stored.weights, _trainer_class(stored.trainer, file), source, target, file)
    origin = f"{source.plans.dataset_name}_{model_folder.resolve().name}_fold_{fold}_{file.stem}"
    result = folder / f"{identifier}_from_{origin}.pth"
    _save(result, weights, stored.trainer)
    write_json(path, new)
    data = folder / target.configuration.data_identifier
    if not data.is_dir():
        logger.warning("%s: not there yet; run `nnUNetv2_preprocess` with the plans %s first", data, plans)
    return Transfer(plans=path, weights=result, trainer=stored.trainer, changes=_changes(source, before, target))


def _save(path: Path, weights: dict[str, torch.Tensor], trainer: str) -> None:
    """Write a file for nnU-Net's `-pretrained_weights`."""
    # a file object, because torch names the system's error (a full disk) only then
    with replacing(path) as temporary, temporary.open("wb") as opened:
        torch.save({"network_weights": weights, "trainer_name": trainer}, opened)


def transferred_plans(
    plans: dict[str, Any],
    configuration: str,
    *,
    architecture: dict[str, Any],
    patch_size: tuple[int, ...] | None,
    batch_size: int | None,
    identifier: str,
) -> dict[str, Any]:
    """Plans in which one configuration has another network; the given ones are not changed.

    Args:
        plans: content of the target's plans file.
        configuration: the one that gets the network. Those that inherit from it keep what they had.
        architecture: the network as a configuration of the source names it, for as many axes.
        patch_size: voxels along each axis; None takes the planned one, rounded by `fitted_patch`.
        batch_size: patches a batch; None leaves it as planned.
        identifier: the `plans_name` of the result.

    Raises:
        PlansError: the network is not planned by stages, has fewer than three of them, or the patch does not fit.
    """
    manager = PlansManager(copy.deepcopy(plans))
    strides = architecture["arch_kwargs"].get("strides")
    if strides is None:
        name = architecture["network_class_name"].rsplit(".", 1)[-1]
        raise PlansError(f"the network {name} is not planned by stages, so no patch size can be fitted to it")
    if patch_size is None:
        patch_size = fitted_patch(manager.get_configuration(configuration).patch_size, strides)
    changed = copy.deepcopy(plans)
    for name, content in changed["configurations"].items():
        if content.get("inherits_from") == configuration:
            own = manager.get_configuration(name).configuration
            content["architecture"] = copy.deepcopy(own["architecture"])
    changed["configurations"][configuration]["architecture"] = copy.deepcopy(architecture)
    smaller = Smaller(patch_size=patch_size, batch_size=batch_size)
    return smaller_plans(changed, configuration, smaller=smaller, identifier=identifier)


def fitted_patch(patch_size: Sequence[int], strides: Sequence[int | Sequence[int]]) -> tuple[int, ...]:
    """The nearest patch that a network can halve as often as it has to.

    Each axis becomes the nearest multiple of its strides' product, the smaller one where two are as near. Where that
    leaves one voxel at the coarsest stage, which torch refuses to normalise, one axis gets one multiple more: the one
    on which that goes the least beyond `patch_size`.

    >>> fitted_patch((48, 70), [1, 2, 2, [2, 4]])
    (48, 64)
    """
    axes = range(len(patch_size))
    steps = [math.prod(step if isinstance(step, int) else step[axis] for step in strides) for axis in axes]
    multiples = [max(1, (2 * size + step - 1) // (2 * step)) for size, step in zip(patch_size, steps, strict=True)]
    if math.prod(multiples) == 1:
        axis = min(axes, key=lambda axis: 2 * steps[axis] - patch_size[axis])
        multiples[axis] = 2
    return tuple(multiple * step for multiple, step in zip(multiples, steps, strict=True))


def adapted_input(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A first convolution's weights for another number of input channels.

    The new channels share the mean of the old ones, times the old number over the new. An image of equal channels thus
    gives what it gave before, whatever their number, and other images keep the scale of the activations.

    Args:
        weight: `(features, old channels, *kernel)`.
        channels: the new number.

    Returns:
        `(features, channels, *kernel)`.
    """
    shared = weight.sum(1, keepdim=True) / channels
    return shared.repeat_interleave(channels, dim=1)


def unfit(weights: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Why a state dict is not that of a network with these shapes, at the first difference; None where it is."""
    for key, shape in shapes.items():
        if key not in weights:
            return f"{key} is missing"
        if tuple(weights[key].shape) != tuple(shape):
            return f"{key} is {_listed(weights[key].shape, 'x')} and should be {_listed(shape, 'x')}"
    more = next((key for key in weights if key not in shapes), None)
    return None if more is None else f"the network has no {more}"


def _checkpoint_file(model_folder: Path, fold: int | str, checkpoint: str) -> Path:
    if not (model_folder / "dataset.json").is_file() or not (model_folder / "plans.json").is_file():
        raise ModelError(
            f"{model_folder}: no trained model there; give a folder nnUNet_results/DatasetXXX/TRAINER__PLANS__CONFIG"
        )
    path = model_folder / f"fold_{fold}" / checkpoint
    if not path.is_file():
        found = sorted(file.parent.name.removeprefix("fold_") for file in model_folder.glob(f"fold_*/{checkpoint}"))
        raise ModelError(f"{path}: not found; folds that have it: {', '.join(found) or 'none'}. Choose with -f or -chk")
    return path


def _check_alike(source: _Side, target: _Side, file: Path) -> None:
    axes = [len(side.patch_size) for side in (source, target)]
    if axes[0] != axes[1]:
        raise TransferError(
            f"{file}: these are weights of a {axes[0]}D network ({source.name}), and {target.name} is {axes[1]}D; "
            f"choose a {axes[0]}D configuration with -c"
        )
    fed = [(side.previous, side.images if side.previous else None) for side in (source, target)]
    if fed[0] != fed[1]:
        shown = [f"{side.images} image and {side.previous} segmentation channels" for side in (source, target)]
        raise TransferError(
            f"{file}: {source.name} was fed {shown[0]}, {target.name} is fed {shown[1]}; later stages of a cascade "
            "must be fed alike, so transfer the first stage"
        )


def _check_name(path: Path, new: dict[str, Any], *, source: str, overwrite: bool) -> None:
    if not _NAME.fullmatch(path.stem):
        raise PlansError(f'"{path.stem}" cannot name plans: use letters, digits, "-", "." and single "_"')
    if path.stem == source:
        raise PlansError(f"{path}: the new plans need another name than those they come from; choose one with -o")
    if not path.is_file():
        return
    old = read_json(path)
    if "configurations" not in old:
        raise PlansError(f"{path}: exists and holds no plans; choose another name with -o")
    if old != new and not overwrite:
        raise PlansError(f"{path}: other plans of this name exist; replace them with --overwrite or choose -o")


def _trainer_class(name: str, file: Path) -> Any:
    try:
        with redirect_stdout(io.StringIO()):  # nnU-Net prints each folder that it looks into
            return recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"{file}: nnU-Net does not find its trainer {name}; name its folder in nnUNet_extTrainer"
        ) from error


def _shapes(trainer: Any, side: _Side) -> dict[str, torch.Size]:
    """Shapes of the state dict of the network that the trainer builds from the plans; nothing is allocated."""
    try:
        with redirect_stdout(io.StringIO()), torch.device("meta"):
            network = trainer.build_network_architecture(
                side.plans, side.configuration, side.channels, side.heads, enable_deep_supervision=False
            )
    except NnunetQAError:
        raise
    except Exception as error:  # whatever a network's class does with arguments that are not its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"{trainer.__name__} cannot build the network of {side.name} in {side.plans.plans_name}: {lines[0]}"
        ) from error
    return {key: value.shape for key, value in network.state_dict().items()}


def _fitted_weights(
    weights: Mapping[str, torch.Tensor], trainer: Any, source: _Side, target: _Side, file: Path
) -> dict[str, torch.Tensor]:
    """The weights that the target's network takes over; nnU-Net starts the output layers afresh itself."""
    before, after = _shapes(trainer, source), _shapes(trainer, target)
    reason = unfit(weights, before)
    if reason is not None:
        raise ModelError(
            f"{file}: weights of another architecture than {trainer.__name__} builds from the model's plans.json "
            f"({source.network}): {reason}"
        )
    result = {}
    for key, shape in after.items():
        if OUTPUT_LAYERS in key:
            continue
        value = weights[key]
        # the first convolution stands in the state dict under several names; only its shape tells it from the rest
        if value.shape != shape and value.shape[1:2] == (source.channels,) and shape[1:2] == (target.channels,):
            value = adapted_input(value, target.channels)
        if value.shape != shape:
            raise TransferError(
                f"{file}: {key} is {_listed(value.shape, 'x')} and the target needs {_listed(shape, 'x')}; "
                f"{trainer.__name__} can only be transferred between datasets with as many classes"
            )
        result[key] = value
    return result


def _changes(source: _Side, before: _Side, after: _Side) -> tuple[str, ...]:
    lines = [f"network: {before.network} -> {after.network}"]
    if source.channels == after.channels:
        lines.append(f"input channels: {after.channels}, as before")
    else:
        lines.append(
            f"input channels: {source.channels} -> {after.channels}; the new ones share the first convolution's weights"
        )
    lines.append(f"outputs: {source.heads} -> {after.heads}; nnU-Net starts the output layers afresh")
    lines.append(f"patch size: {_listed(before.patch_size)} -> {_listed(after.patch_size)}")
    lines.append(f"batch size: {before.configuration.batch_size} -> {after.configuration.batch_size}")
    return tuple(lines)


def _listed(values: Any, separator: str = ",") -> str:
    return separator.join(map(str, values)) if isinstance(values, Sequence) else str(values)

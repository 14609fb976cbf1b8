"""The discriminator on disk: weights and description in one file, and the description beside it for people.

The file holds tensors and one JSON text, so that it is read without running any code, and says for which dataset,
classes and montages it was made: with others its codes mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

import nnunet_qa
from nnunet_qa.data.checkpoint import read_tensors
from nnunet_qa.errors import ModelError
from nnunet_qa.files import replacing, write_json
from nnunet_qa.networks.discriminator import resnet18_regressor
from nnunet_qa.quality.discriminator import Discriminator, frozen
from nnunet_qa.quality.montage import MontageSpec

FILE_NAME = "discriminator.pt"
_SETTINGS = ("learning_rate", "batch_size", "epochs", "patience", "steps_per_epoch", "noise", "seed")


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid")

    nnunet_qa: str
    dataset: str
    classes: list[str]
    spec: dict[str, Any]
    best_epoch: int
    metrics: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    about: dict[str, Any]
    parts: list[dict[str, str]]
    history: list[dict[Literal["epoch", "train_rmse", "validation_rmse"], float]]


def save(discriminator: Discriminator, path: Path, *, dataset: str, about: Mapping[str, Any]) -> Path:
    """Write a fitted discriminator to `path`, and its description beside it with the ending `.json`.

    Args:
        discriminator: fitted.
        path: where to, `discriminator.pt` as a rule.
        dataset: full name of the nnU-Net dataset, `DatasetXXX_Name`.
        about: whatever else is worth knowing, such as where the codes come from; must fit into JSON.

    Returns:
        `path`.

    Raises:
        ModelError: the discriminator has not been fitted.
        StorageError: a file could not be written.
    """
    if not hasattr(discriminator, "network_"):
        raise ModelError(f"{path}: a discriminator that has not been fitted is not saved; call fit first")
    description = {
        "nnunet_qa": nnunet_qa.__version__,
        "dataset": dataset,
        "classes": list(discriminator.classes),
        "spec": discriminator.spec.to_json(),
        "best_epoch": discriminator.best_epoch_,
        "metrics": discriminator.metrics_,
        "settings": {name: getattr(discriminator, name) for name in _SETTINGS},
        "about": dict(about),
        "parts": discriminator.parts_.to_dict("records"),
        "history": discriminator.history_.to_dict("records"),
    }
    weights = {key: value.cpu() for key, value in discriminator.network_.state_dict().items()}
    with replacing(path) as temporary:
        torch.save({"weights": weights, "description": json.dumps(description)}, temporary)
    write_json(path.with_suffix(".json"), description)
    return path


def load(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dataset: str | None = None,
    classes: Sequence[str] | None = None,
    spec: MontageSpec | None = None,
) -> Discriminator:
    """Read a discriminator, and refuse one that was made for something else.

    Args:
        path: written by `save`.
        device: where its network goes.
        dataset: the dataset it is wanted for; None for any.
        classes: the foreground classes it is wanted for; None for any.
        spec: the montages it is wanted for; None for any.

    Raises:
        ModelError: the file is missing, damaged, holds code, or does not fit; every difference is named.
    """
    content, place = read_tensors(path), torch.device(device)
    damaged = ModelError(f"{path}: is no discriminator that nnunet-qa wrote, or is damaged; fit it again")
    if not isinstance(content, dict) or not isinstance(content.get("description"), str):
        raise damaged
    try:
        description = _Description.model_validate_json(content["description"])
        own_spec = MontageSpec.from_json(description.spec)
        discriminator = Discriminator(own_spec, description.classes, **description.settings, device=place)
        network = _any_network()
        network.load_state_dict(content["weights"])
    except (ValidationError, ModelError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise damaged from error
    made = {"dataset": description.dataset, "classes": description.classes, **_montage_entries(own_spec)}
    wanted = {} if spec is None else _montage_entries(spec)
    if dataset is not None:
        wanted["dataset"] = dataset
    if classes is not None:
        wanted["classes"] = list(classes)
    differences = [
        f"{key} {value}, not {wanted[key]}" for key, value in made.items() if wanted.get(key, value) != value
    ]
    if differences:
        raise ModelError(f"{path}: was made for {'; '.join(differences)}. Name another file or fit a new one")
    discriminator.network_ = frozen(network.to(place))
    discriminator.history_ = pd.DataFrame(description.history).astype({"epoch": int})
    discriminator.parts_ = pd.DataFrame(description.parts)
    discriminator.best_epoch_, discriminator.metrics_ = description.best_epoch, description.metrics
    return discriminator


def _any_network() -> torch.nn.Module:
    """The network with weights that mean nothing, while torch's global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        return resnet18_regressor()


def _montage_entries(spec: MontageSpec) -> dict[str, Any]:
    return {f"montage {key}": value for key, value in spec.to_json().items()}

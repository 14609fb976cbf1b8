"""The body-part regressor on disk: weights and description in one file, and the description beside it for people.

The file holds tensors and one JSON text, so that it is read without running any code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

import nnunet_qa
from nnunet_qa.data.checkpoint import read_tensors
from nnunet_qa.data.slice_stack import SliceSpec
from nnunet_qa.errors import ModelError
from nnunet_qa.files import replacing, write_text
from nnunet_qa.quality.body_part import BodyPartRegressor
from nnunet_qa.quality.body_part_scale import Scale


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid")

    nnunet_qa: str
    body_part: SliceSpec
    scale: Scale
    settings: dict[str, Any]
    cases: list[str]


def save(regressor: BodyPartRegressor, path: Path) -> None:
    """Write a fitted regressor to `path`, and its description beside it with the ending `.json`.

    Raises:
        StorageError: a file could not be written.
    """
    description = _Description(
        nnunet_qa=nnunet_qa.__version__,
        body_part=regressor.spec,
        scale=regressor.scale_,
        settings=regressor.settings(),
        cases=regressor.cases_,
    ).model_dump_json(indent=4)
    weights = {key: value.cpu() for key, value in regressor.network_.state_dict().items()}
    with replacing(path) as temporary:
        torch.save({"weights": weights, "description": description}, temporary)
    write_text(path.with_suffix(".json"), description + "\n")


def load(path: Path, *, device: torch.device | str = "cpu") -> BodyPartRegressor:
    """Read what `save` wrote; `history_` is not kept.

    Raises:
        ModelError: the file is missing, damaged, holds code, or is no body-part regressor.
    """
    content = read_tensors(path)
    try:
        description = _Description.model_validate(json.loads(content["description"]))
        regressor = BodyPartRegressor(description.body_part, **description.settings, device=device)
        network = regressor.new_network()
        network.load_state_dict(content["weights"])
    except (ValidationError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ModelError(
            f"{path}: is no body-part model that `nnunet-qa body-part fit` wrote, or is damaged; fit one"
        ) from error
    regressor.network_ = network.eval()
    regressor.scale_, regressor.cases_ = description.scale, description.cases
    return regressor

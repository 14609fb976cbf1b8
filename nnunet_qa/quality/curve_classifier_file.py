"""A curve classifier on disk: weights and description in one file, and the description beside it for people.

The file holds tensors and one JSON text, so that it is read without running any code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import nnunet_qa
from nnunet_qa.data.checkpoint import read_tensors
from nnunet_qa.errors import ModelError
from nnunet_qa.files import replacing, write_json
from nnunet_qa.quality.curve_classifier import CurveLSTM
from nnunet_qa.quality.curve_estimator import CurveEstimator
from nnunet_qa.quality.curve_logistic import CurveLogistic
from nnunet_qa.quality.curve_rules import CurveRules
from nnunet_qa.quality.curves import Acquisition, Kind, LabelScheme

FILE_NAME = "curve_classifier.pt"
KINDS: dict[str, type[CurveEstimator]] = {one.kind: one for one in (CurveLSTM, CurveRules, CurveLogistic)}
"""The classifiers by their name in files and on the command line."""


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid")

    nnunet_qa: str
    kind: str
    structures: list[str] = Field(min_length=1)
    measured: Kind
    threshold: float = Field(allow_inf_nan=False)
    settings: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    about: dict[str, Any]


def save(classifier: CurveEstimator, path: Path, *, about: Mapping[str, Any]) -> Path:
    """Write a fitted classifier to `path`, and its description beside it with the ending `.json`.

    Args:
        classifier: fitted.
        path: where to, `curve_classifier.pt` as a rule.
        about: whatever else is worth knowing, such as where the labels come from; must fit into JSON.

    Returns:
        `path`.

    Raises:
        ModelError: the classifier has not been fitted.
        StorageError: a file could not be written.
    """
    if not hasattr(classifier, "model_"):
        raise ModelError(f"{path}: a curve classifier that has not been fitted is not saved; call fit first")
    description = _Description(
        nnunet_qa=nnunet_qa.__version__,
        kind=classifier.kind,
        structures=list(classifier.structures_),
        measured=classifier.measured_,
        threshold=classifier.threshold_,
        settings=classifier.settings(),
        metrics=classifier.metrics_,
        about=dict(about),
    ).model_dump()
    with replacing(path) as temporary:
        torch.save({"weights": classifier.model_, "description": json.dumps(description)}, temporary)
    write_json(path.with_suffix(".json"), description)
    return path


def load(path: Path, *, structures: Sequence[str] | None = None, measured: Kind | None = None) -> CurveEstimator:
    """Read a classifier, and refuse one that was made for other curves.

    Args:
        path: written by `save`.
        structures: those that there are curves of; the classifier may read fewer. None for any.
        measured: what the curves are, "volume" or "area"; None for any.

    Raises:
        ModelError: the file is missing, damaged, holds code, or does not fit; every difference is named.
    """
    content = read_tensors(path)
    damaged = ModelError(f"{path}: is no curve classifier that nnunet-qa wrote, or is damaged; fit it again")
    if not isinstance(content, dict) or not isinstance(content.get("description"), str):
        raise damaged
    try:
        description = _Description.model_validate_json(content["description"])
        classifier = KINDS[description.kind](structures=description.structures, **description.settings)
        classifier.structures_, classifier.measured_ = tuple(description.structures), description.measured
        classifier.model_ = dict(content["weights"])
        classifier.threshold_, classifier.metrics_ = description.threshold, description.metrics
        classifier.predict_proba([_any_acquisition(description)])  # fails where the weights do not fit
    except (ValidationError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise damaged from error
    differences = []
    missing = [name for name in description.structures if structures is not None and name not in structures]
    if missing:
        differences.append(f"curves of {', '.join(description.structures)}, but there is none of {', '.join(missing)}")
    if measured not in (None, description.measured):
        differences.append(f"curves of {description.measured}, not of {measured}")
    if differences:
        raise ModelError(f"{path}: was made for {'; '.join(differences)}. Name another file or fit a new one")
    return classifier


def _any_acquisition(description: _Description) -> Acquisition:
    values = {name: number for number, name in enumerate(description.structures, 1)}
    return Acquisition(
        acquisition_id="any",
        subject_id="any",
        pixels={name: np.ones((2, 1), dtype=np.int64) for name in values},
        spacing=(1.0, 1.0, 1.0),
        scheme=LabelScheme(name="any", values=values, kind=description.measured, end_diastole="first"),
    )

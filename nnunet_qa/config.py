"""`qa.yaml`, the settings of the QA trainers.

nnU-Net gives a trainer no channel for arguments but `(plans, configuration, fold, dataset_json, device)`, so settings
lie beside the data: in `nnUNet_raw/DatasetXXX/qa.yaml`, or in the file that the environment variable `nnUNet_qa_config`
names (for a second training of the same dataset with other settings). Every key has a default; an unknown key is an
error.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nnunet_qa.errors import ConfigError, nearest

FILE_NAME = "qa.yaml"
ENVIRONMENT_VARIABLE = "nnUNet_qa_config"
DEFAULT_NUMBER = 20


class HeadWeights(str, Enum):
    """How the outputs of deep supervision are weighted in the loss, finest first, normalised to a sum of 1.

    `nnunet` halves the weight from head to head and gives the coarsest head 0. `all` halves it too but leaves
    no head out. `auto` is `nnunet` where there is no unlabelled pool and that trains the two finest heads, else `all`:
    the disagreement of two outputs says nothing where one of them was never trained.
    """

    AUTO = "auto"
    NNUNET = "nnunet"
    ALL = "all"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingConfig(_Section):
    """Length of the training; what is not set stays as nnU-Net has it (1000 epochs of 250 and 50 iterations)."""

    epochs: int | None = Field(None, ge=1)
    iterations_per_epoch: int | None = Field(None, ge=1)
    val_iterations_per_epoch: int | None = Field(None, ge=1)
    initial_lr: float | None = Field(None, gt=0)


class PoolConfig(_Section):
    """The unlabelled pool `imagesUn/`."""

    enabled: bool = True
    jobs: int = Field(2, ge=1)
    """Processes for preprocessing the pool."""
    batches_per_epoch: int = Field(5, ge=0)
    """Pool batches whose disagreement is measured and logged after each epoch; 0 for none."""


class ScoringConfig(_Section):
    """The disagreement that is measured during training and written at its end."""

    every_epoch: bool = True
    """Log the mean disagreement of the validation batches (and of pool batches) after each epoch."""
    final: bool = True
    """Write `quality.csv` for validation cases and pool, and the annotation queue, after nnU-Net's own validation."""
    mirroring: bool = True
    """Test-time mirroring in the final scoring, as in `nnUNetv2_predict`."""


class QueueConfig(_Section):
    """The annotation queue `queue.csv`: the options of `nnunet-qa select`."""

    threshold: float | None = Field(None, ge=0, le=1)
    """Take every case with Q below this (q0 of QU-Net++)."""
    number: int | None = Field(None, ge=1)
    """Take at most so many cases, lowest Q first; 20 where neither this nor a threshold is set."""
    per_subject: int | None = Field(None, ge=1)
    """Take at most so many cases of one subject."""

    def limits(self) -> dict[str, Any]:
        """Keyword arguments for `nnunet_qa.selection.queue.annotation_queue`."""
        return limits(self.threshold, self.number, self.per_subject)


def limits(threshold: float | None, number: int | None, per_subject: int | None) -> dict[str, Any]:
    """The limits of a queue, with the default number of cases where neither number nor threshold is given."""
    if threshold is None and number is None:
        number = DEFAULT_NUMBER
    return {"threshold": threshold, "number": number, "per_subject": per_subject}


class LaterConfig(_Section):
    """A feature whose place in the file is settled and that this version does not have yet."""

    enabled: bool = False

    @field_validator("enabled")
    @classmethod
    def _not_yet(cls, value: bool) -> bool:
        if value:
            raise ValueError("is not available in this version; leave it false")
        return value


class QAConfig(_Section):
    """All settings of the QA trainers, by section."""

    training: TrainingConfig = TrainingConfig()
    head_weights: HeadWeights = HeadWeights.AUTO
    pool: PoolConfig = PoolConfig()
    scoring: ScoringConfig = ScoringConfig()
    queue: QueueConfig = QueueConfig()
    qa_loss: LaterConfig = LaterConfig()
    injection: LaterConfig = LaterConfig()

    @classmethod
    def off(cls) -> QAConfig:
        """Every feature off: a QA trainer with it trains as nnUNetTrainer does."""
        return cls(
            head_weights=HeadWeights.NNUNET,
            pool=PoolConfig(enabled=False),
            scoring=ScoringConfig(every_epoch=False, final=False),
        )

    @classmethod
    def read(cls, path: Path) -> QAConfig:
        """Read a `qa.yaml`.

        Raises:
            ConfigError: the file cannot be read, a key is unknown (the nearest known one is named) or a value is wrong.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: is not valid YAML: {error}") from error
        if content is None:
            return cls()
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: must hold keys and values, found a {type(content).__name__}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ConfigError(f"{path}: {_first_problem(error)}") from error

    @classmethod
    def find(cls, raw_dataset_folder: Path | None) -> tuple[QAConfig, Path | None]:
        """Settings for a dataset and the file they came from (none where the defaults are used).

        Args:
            raw_dataset_folder: `nnUNet_raw/DatasetXXX`; None where nnUNet_raw is not set.

        Raises:
            ConfigError: see `read`; also where `nnUNet_qa_config` names a file that does not exist.
        """
        named = os.environ.get(ENVIRONMENT_VARIABLE)
        if named:
            return cls.read(Path(named)), Path(named)
        path = raw_dataset_folder / FILE_NAME if raw_dataset_folder is not None else None
        if path is not None and path.is_file():
            return cls.read(path), path
        return cls(), None


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    keys = [str(key) for key in first["loc"]]
    name = ".".join(keys)
    if first["type"] == "extra_forbidden":
        return f'unknown key "{name}"{nearest(keys[-1], _keys_of(keys[:-1]))}'
    message = first["msg"].removeprefix("Value error, ")
    return f'"{name}": {message} (found: {first["input"]!r})'


def _keys_of(path: list[str]) -> list[str]:
    model: Any = QAConfig
    for key in path:
        annotation = model.model_fields[key].annotation
        model = next((part for part in (annotation, *get_args(annotation)) if hasattr(part, "model_fields")), None)
    return list(model.model_fields)

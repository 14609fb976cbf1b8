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
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from nnunet_qa.config_limited_data import InteractionConfig, RestorationConfig
from nnunet_qa.config_section import Section
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


class TrainingConfig(Section):
    """Length of the training; what is not set stays as nnU-Net has it (1000 epochs of 250 and 50 iterations)."""

    epochs: int | None = Field(None, ge=1)
    iterations_per_epoch: int | None = Field(None, ge=1)
    val_iterations_per_epoch: int | None = Field(None, ge=1)
    initial_lr: float | None = Field(None, gt=0)


class PoolConfig(Section):
    """The unlabelled pool `imagesUn/`."""

    enabled: bool = True
    jobs: int = Field(2, ge=1)
    """Processes for preprocessing the pool."""
    batches_per_epoch: int = Field(5, ge=0)
    """Pool batches whose disagreement is measured and logged after each epoch; 0 for none."""


class ScoringConfig(Section):
    """The disagreement that is measured during training and written at its end."""

    every_epoch: bool = True
    """Log the mean disagreement of the validation batches (and of pool batches) after each epoch."""
    final: bool = True
    """Write `quality.csv` for validation cases and pool, and the annotation queue, after nnU-Net's own validation."""
    mirroring: bool = True
    """Test-time mirroring in the final scoring, as in `nnUNetv2_predict`."""


class QueueConfig(Section):
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


class LabelledLoss(str, Enum):
    """The loss of annotated cases: nnU-Net's own, or the multi-sourced Dice loss (paper 002, section 2.4).

    `auto` is `msdl` where a case declares that it labels only some of the classes, else `nnunet`.
    """

    AUTO = "auto"
    NNUNET = "nnunet"
    MSDL = "msdl"


class LabelledLossConfig(Section):
    """The loss of annotated cases, see docs/partial-labels.md."""

    kind: LabelledLoss = LabelledLoss.AUTO
    cross_entropy: bool = True
    """With `msdl`: add cross entropy in which the classes that a case does not label count as background."""


class UnlabelledLossConfig(Section):
    """A loss of pool images that is added to the loss of annotated ones."""

    weight: float = Field(0.1, ge=0)
    """Weight at the end of the ramp-up."""
    start: float = Field(0.1, ge=0, lt=1)
    """Part of the epochs before pool images take part: what an untrained network makes of them teaches nothing."""
    ramp_up: float = Field(0.4, ge=0, le=1)
    """Part of the epochs over which the weight then grows, as exp(−5 (1 − t)²)."""
    every: int = Field(1, ge=1)
    """Add the loss only in one of so many steps."""
    batch_size: int | None = Field(None, ge=1)
    """Pool images (patches) of a step; null for as many as annotated ones."""


class GuardConfig(Section):
    """Stops the QA loss when the network learns to please the discriminator instead of to segment."""

    enabled: bool = True
    patience: int = Field(5, ge=1)
    """Epochs in a row that must look bad."""
    smoothing: int = Field(5, ge=1)
    """An epoch's QA loss and disagreement are means of so many epochs up to it."""
    tolerance: float = Field(0.05, ge=0, le=1)
    """How far the labelled pseudo Dice may fall, or the disagreement on the pool rise, from its best."""


class SimulationConfig(Section):
    """The discriminator that a training fits for itself, from simulated errors of its annotated cases."""

    patches: int = Field(300, ge=2)
    """Patches of annotated training cases, half of them augmented."""
    per_code: int = Field(1, ge=1)
    """Corruptions of each patch and code."""
    epochs: int = Field(40, ge=1)
    patience: int = Field(10, ge=1)
    """Epochs without a better validation RMSE after which the fit ends."""
    learning_rate: float = Field(1e-4, gt=0)
    weights: Path | None = None
    """State dict of torchvision's ResNet-18 to start from."""


class CodeConfig(Section):
    """Dice at which a segmentation gets which code: from `success` on 0, below `failure` 2, else 1."""

    success: float = Field(0.8, gt=0, le=1)
    failure: float = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> CodeConfig:
        if self.failure >= self.success:
            raise ValueError("failure must be below success, or no segmentation has code 1")
        return self


class QAOutputs(str, Enum):
    """Which outputs of deep supervision the discriminator sees."""

    FINEST = "finest"
    ALL = "all"


class QALossConfig(UnlabelledLossConfig):
    """The QA loss of paper 002: a frozen discriminator codes the predictions of pool images, 0 is the aim."""

    enabled: bool = True
    """Where there is a pool."""
    discriminator: Path | None = None
    """File of `nnunet-qa discriminator fit`; null for `nnUNet_results/DatasetXXX/qa/discriminator.pt`, and where that
    is absent one is fitted at the start of the training."""
    entropy_weight: float = Field(0.0, ge=0)
    """Weight of the entropy of the predicted probabilities beside the squared code."""
    hard: bool = False
    """Show the discriminator hardened overlays; gradients pass as if they were soft."""
    noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on the montage, whose values are in [0, 1]."""
    outputs: QAOutputs = QAOutputs.FINEST
    views: tuple[int, ...] | None = Field(None, min_length=1)
    """Axes (0 = z) along which a volume is cut into slices; null for the coarsest."""
    slices: int | None = Field(None, ge=1)
    """Most slices of a volume in a montage; null for 64. A 2D configuration of volumes shows `batch_size` of them."""
    window: tuple[float, float] | None = (-175.0, 275.0)
    """Intensities shown from black to white where the plans normalise CT; else robust percentiles are."""
    codes: CodeConfig = CodeConfig()
    simulation: SimulationConfig = SimulationConfig()
    refit_every: int = Field(0, ge=0)
    """Fit the discriminator anew every so many epochs, also on current predictions of annotated cases; 0 for never."""
    guard: GuardConfig = GuardConfig()


class MeanTeacherConfig(UnlabelledLossConfig):
    """MeanTeacherTrainer: the network agrees on pool images with the moving average of its own weights."""

    decay: float = Field(0.99, ge=0, lt=1)
    """Of the moving average, per step; fewer at the start of a training."""
    noise: float = Field(0.1, ge=0)
    """Standard deviation of the Gaussian noise on what the network, but not its teacher, sees."""


class CrossPseudoConfig(UnlabelledLossConfig):
    """CrossPseudoTrainer: two networks take each other's hardened predictions of pool images as labels."""


class Unit(str, Enum):
    """What is ranked and chosen: single cases, or all frames of an acquisition together (`stack_id` in cases.csv)."""

    CASE = "case"
    ACQUISITION = "acquisition"


class InjectionConfig(Section):
    """Training on the best of the network's own predictions of pool images (paper 003), see docs/injection.md."""

    enabled: bool = False
    at: tuple[float, ...] = Field((0.5, 0.75), min_length=1)
    """Parts of the epochs after which a round takes place: predict the pool, rank it, train on the best as well."""
    number: int | None = Field(None, ge=1)
    """Cases, or acquisitions, of a round; null for 30, or half of the pool where that is less."""
    per_subject: int | None = Field(None, ge=1)
    """At most so many of one subject."""
    floor: float | None = None
    """None below this, in units of the first estimator of `weights`: Q, minus the code, or the probability of being
    good."""
    unit: Unit = Unit.CASE
    weights: dict[Literal["q", "code", "curves"], float] = Field({"q": 1.0}, min_length=1)
    """Estimators and their weights: agreement Q, code of the discriminator, curve classifier."""
    classifier: Path | None = None
    """For `curves`: file of `nnunet-qa curve-classifier fit`."""
    scheme: str = "ukbb"
    """For `curves`: what the labels stand for, as in `nnunet-qa curves`."""
    kind: Literal["volume", "area"] | None = None
    """Of a `scheme` of your own: what its curves are; null for volume."""
    end_diastole: Literal["first", "largest"] | None = None
    """Of a `scheme` of your own: the frame at end-diastole; null for largest."""
    stop_when_worse: bool = True
    """No further round once the loss of annotated validation cases is higher than before the last round."""

    @field_validator("at")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < part < 1 for part in value) or list(value) != sorted(set(value)):
            raise ValueError("must be parts of the epochs between 0 and 1, ascending")
        return value

    @field_validator("weights")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(weight > 0 for weight in value.values()):
            raise ValueError("every weight must be above 0; leave out an estimator that is not to count")
        return value

    @model_validator(mode="after")
    def _complete(self) -> InjectionConfig:
        if "curves" in self.weights and self.classifier is None:
            raise ValueError('the estimator "curves" needs "classifier", a file of `nnunet-qa curve-classifier fit`')
        if "curves" in self.weights and self.unit is not Unit.ACQUISITION:
            raise ValueError('the estimator "curves" judges acquisitions; set "unit" to "acquisition"')
        return self


class QAConfig(Section):
    """All settings of the QA trainers, by section."""

    training: TrainingConfig = TrainingConfig()
    head_weights: HeadWeights = HeadWeights.AUTO
    pool: PoolConfig = PoolConfig()
    scoring: ScoringConfig = ScoringConfig()
    queue: QueueConfig = QueueConfig()
    labelled_loss: LabelledLossConfig = LabelledLossConfig()
    qa_loss: QALossConfig = QALossConfig()
    mean_teacher: MeanTeacherConfig = MeanTeacherConfig()
    cross_pseudo: CrossPseudoConfig = CrossPseudoConfig()
    injection: InjectionConfig = InjectionConfig()
    restoration: RestorationConfig = RestorationConfig()
    interaction: InteractionConfig = InteractionConfig()

    @classmethod
    def off(cls) -> QAConfig:
        """Every feature off: a QA trainer with it trains as nnUNetTrainer does."""
        return cls(
            head_weights=HeadWeights.NNUNET,
            pool=PoolConfig(enabled=False),
            labelled_loss=LabelledLossConfig(kind=LabelledLoss.NNUNET),
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

"""Settings of restoration pretraining and of interactive training (paper 004)."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from nnunet_qa.config_section import Section


class ClickMode(str, Enum):
    """How a user begins: with a point in the object, or with a line through it in one lateral view."""

    POINTS = "points"
    LINE = "line"


class InteractionConfig(Section):
    """The simulated user of InteractiveTrainer (paper 004), see docs/interactive.md."""

    least: int = Field(1, ge=0)
    """Fewest clicks of a patch."""
    most: int = Field(5, ge=0)
    """Most clicks of a patch."""
    unclicked: float = Field(1.0, ge=0, le=1)
    """Part of the patches, rounded up, that each step takes again without clicks: these are not to be the only cue."""
    negative: float = Field(0.1, ge=0, le=1)
    """Part of the patches of which the user wants nothing: all is background, and only that is clicked."""
    zoomed: float = Field(0.6, ge=0, le=1)
    """Part of the clicked patches that are enlarged or shrunk: a click is not to stand for an object of one size."""
    zoom: float = Field(1.8, ge=1, le=10)
    """How many times at most, log-uniform."""
    least_error: int = Field(5, ge=0)
    """Errors of fewer voxels get no click."""
    click_weight: float = Field(0.3, ge=0)
    """Weight of the soft Dice loss of each clicked patch by itself, beside nnU-Net's loss."""
    sigma: float = Field(2.0, gt=0)
    """Standard deviation of the Gaussian at a click, in voxels along the axis of the smallest ones."""
    previous: bool = False
    """Show the network what it predicted before the last click."""
    mode: ClickMode = ClickMode.POINTS
    """With `line`, the first round is a line; later ones are points."""
    validation_clicks: int = Field(1, ge=0)
    """Clicks of a validation patch."""

    @model_validator(mode="after")
    def _in_order(self) -> InteractionConfig:
        if self.least > self.most:
            raise ValueError("least must not be above most")
        return self


class RestorationLoss(str, Enum):
    """What RestorationTrainer minimises: mean absolute or mean squared error."""

    L1 = "l1"
    MSE = "mse"


_Probability = Annotated[float, Field(ge=0, le=1)]
_Percentile = Annotated[float, Field(ge=0, le=100)]


class DistortionConfig(Section):
    """What is done to a patch before a network restores it (paper 004); the first four are probabilities."""

    flip: _Probability = 0.4
    shuffle: _Probability = 0.5
    intensity: _Probability = 0.9
    painting: _Probability = 0.9
    in_painting: _Probability = 0.2
    """Part of the painted patches in which blocks are painted; in the others everything but windows is."""
    blocks: int = Field(10_000, ge=0)
    """Blocks whose voxels are shuffled."""
    decreasing: _Probability = 0.5
    """Part of the intensity maps that turn bright into dark."""
    windows: int = Field(5, ge=1)
    """Painted blocks, or windows that are kept, at most."""
    further: _Probability = 0.95
    """Probability of each after the first."""


class RestorationConfig(Section):
    """RestorationTrainer, see docs/restoration.md."""

    loss: RestorationLoss = RestorationLoss.L1
    held_out: float = Field(0.1, gt=0, lt=1)
    """Part of the subjects whose images measure the validation loss, where no fold says which."""
    percentiles: tuple[_Percentile, _Percentile] = (0.5, 99.5)
    """Intensities of a patch that become 0 and 1 while it is distorted."""
    distortions: DistortionConfig = DistortionConfig()

    @field_validator("percentiles")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("the first must be below the second")
        return value

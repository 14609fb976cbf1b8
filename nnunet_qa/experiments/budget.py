"""How large the trainings of an experiment are: presets from a laptop to the size of the papers."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nnunet_qa.errors import ConfigError, nearest


class Budget(BaseModel):
    """The size of every training of an experiment; all arms of a comparison share it.

    One `stage` is the training on the first annotated set, or the fine-tuning that follows; an arm that trains once
    from scratch gets the iterations of both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    iterations: int = Field(ge=1)
    """Optimiser steps of one stage."""
    iterations_per_epoch: int = Field(ge=1)
    val_iterations_per_epoch: int = Field(ge=1)
    initial_lr: float | None = Field(None, gt=0)
    """Learning rate at the start; None keeps the trainer's own."""
    features: tuple[int, ...] | None = None
    """Feature channels of each stage of the network, finest first; None keeps the plans as nnU-Net made them."""
    batch_size: int | None = Field(None, ge=1)
    patch_size: tuple[int, ...] | None = None
    image_size: tuple[int, ...] | None = None
    """Voxels to which the median image is resampled, in the order of the plans; None keeps the planned spacing."""
    mirroring: bool = True
    """Test-time mirroring."""
    unet: str = "QAsemiTrainer"
    """Trainer of the U-Net arm."""
    unet_plus_plus: str = "QUNetPlusPlusTrainer"
    """Trainer of the U-Net++ arms."""

    @model_validator(mode="after")
    def _whole_epochs(self) -> Budget:
        if self.iterations % self.iterations_per_epoch:
            raise ValueError("iterations must be a multiple of iterations_per_epoch")
        return self

    def epochs(self, stages: int = 1) -> int:
        """Epochs of a training of so many stages."""
        return stages * self.iterations // self.iterations_per_epoch

    @classmethod
    def named(cls, name: str) -> Budget:
        """A preset of `BUDGETS`, or the YAML file of that name.

        Raises:
            ConfigError: neither a preset nor a file that holds a budget.
        """
        if name in BUDGETS:
            return BUDGETS[name]
        path = Path(name)
        if not path.is_file():
            raise ConfigError(
                f'"{name}" is no budget{nearest(name, BUDGETS)}; budgets are {", ".join(BUDGETS)}, or a YAML file'
            )
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "budget"
            hint = nearest(key, cls.model_fields) if first["type"] == "extra_forbidden" else ""
            raise ConfigError(f'{path}: "{key}": {first["msg"].removeprefix("Value error, ")}{hint}') from error


BUDGETS = {
    "cpu": Budget(
        iterations=400,
        iterations_per_epoch=25,
        val_iterations_per_epoch=2,
        initial_lr=0.1,
        features=(8, 16, 32, 64),
        batch_size=8,
        mirroring=False,
    ),
    "gpu": Budget(iterations=25_000, iterations_per_epoch=250, val_iterations_per_epoch=50),
    "paper": Budget(
        iterations=3_000,
        iterations_per_epoch=50,
        val_iterations_per_epoch=5,
        image_size=(256, 256),
        mirroring=False,
        unet="PaperQUNetTrainer",
        unet_plus_plus="PaperQUNetPlusPlusTrainer",
    ),
}
"""`cpu`: for small images on two cores; docs/results/qu-net-plus-plus says how long it takes. `gpu`: the networks that
nnU-Net plans. `paper`: paper 001's own networks, loss, optimiser and augmentation, 60 epochs a stage."""

"""Fully connected conditional random field on an image and its class probabilities (paper 003, section 3.2, arm 4).

The model is that of Krähenbühl and Koltun (NIPS 2011), on a grid in mm. The energy of labels x is
Σ −ln p(x_i) + Σ_{i,j} μ(x_i, x_j) (w_g k_g(i, j) + w_b k_b(i, j)), with μ = 1 for different labels and two kernels:
k_g = exp(−d² / 2 sd_g²) of the distance d, and k_b = exp(−d² / 2 sd_b² − (I_i − I_j)² / 2 sd_I²), which sees the
intensities I too. Each kernel is normalised symmetrically, k(i, j) / √(Σ_l k(i, l) Σ_l k(j, l)), so that weights mean
the same at every voxel size. pydensecrf2 runs the mean field inference on a permutohedral lattice.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nnunet_qa.errors import CRFError, DependencyError, nearest

TUNED = "tuned"
"""Key under which a file of settings says where they come from; it is not one of them."""
_LEAST = 1e-5  # probability; the unary energy of 0 would be infinite
_BLACK, _WHITE = 1.0, 99.0  # percentiles


class Mode(str, Enum):
    """What is refined at once: each slice alone (`2d`, along the first axis), or the volume of one frame (`3d`)."""

    SLICES = "2d"
    VOLUME = "3d"


class CRFSettings(BaseModel):
    """Settings of the CRF; distances in mm (in pixels for pictures, which have no spacing)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mode: Mode = Mode.VOLUME
    iterations: int = Field(5, ge=1)
    """Of the mean field."""
    gaussian_sd: float = Field(3.0, gt=0)
    """Distance over which neighbours should have one label."""
    gaussian_weight: float = Field(1.0, ge=0)
    bilateral_sd: float = Field(20.0, gt=0)
    """Distance over which voxels of like intensity should have one label."""
    intensity_sd: float = Field(0.1, gt=0)
    """Difference that still is like intensity, as part of the range between percentiles 1 and 99 of the image."""
    bilateral_weight: float = Field(3.0, ge=0)
    compatibility: tuple[tuple[float, ...], ...] | None = None
    """Penalty μ of each pair of labels, a symmetric matrix; null for 1 between different ones (Potts)."""

    @field_validator("compatibility")
    @classmethod
    def _symmetric(cls, value: tuple[tuple[float, ...], ...] | None) -> tuple[tuple[float, ...], ...] | None:
        if value is not None:
            if any(len(row) != len(value) for row in value):
                raise ValueError("must have as many columns as rows, one for each label")
            if [list(column) for column in zip(*value, strict=True)] != [list(row) for row in value]:
                raise ValueError("must be symmetric")
        return value

    @property
    def does_nothing(self) -> bool:
        """Whether both weights are 0, so that the probabilities stay as they are."""
        return self.gaussian_weight == self.bilateral_weight == 0

    @classmethod
    def read(cls, path: Path) -> CRFSettings:
        """Read a JSON or YAML file, such as `nnunet-qa crf tune` writes.

        Raises:
            CRFError: it cannot be read, a key is unknown (the nearest known one is named) or a value is wrong.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CRFError(f"{path}: not found; `nnunet-qa crf tune` writes settings of the CRF") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise CRFError(f"{path}: cannot be read as JSON or YAML: {error}") from error
        if not isinstance(content, dict):
            raise CRFError(f"{path}: must hold keys and values, found a {type(content).__name__}")
        try:
            return cls.model_validate({key: value for key, value in content.items() if key != TUNED})
        except ValidationError as error:
            raise CRFError(f"{path}: {_first_problem(error)}") from error


def refine(
    probabilities: np.ndarray, image: np.ndarray, *, spacing: Sequence[float], settings: CRFSettings
) -> np.ndarray:
    """Probabilities after the mean field inference.

    Args:
        probabilities: `(classes, *spatial)`, or `(classes, frames, *spatial)` of a series, whose frames are refined one
            by one; in [0, 1] with a sum of 1 over the classes.
        image: `(channels, *spatial)` or `(channels, frames, *spatial)`; each channel is divided by the range between
            its percentiles 1 and 99 in that frame.
        spacing: mm between neighbours along the spatial axes, `(y, x)` or `(z, y, x)`.
        settings: see there.

    Returns:
        Probabilities of the same shape, float32.

    Raises:
        ValueError: the shapes do not fit each other.
        CRFError: the matrix of compatibilities has not one row for each class.
        DependencyError: pydensecrf2 is not installed.
    """
    dimensions, classes = len(spacing), probabilities.shape[0]
    if image.shape[1:] != probabilities.shape[1:]:
        raise ValueError(f"image and probabilities must have one shape, found {image.shape} and {probabilities.shape}")
    if dimensions not in (2, 3) or probabilities.ndim - 1 not in (dimensions, dimensions + 1):
        raise ValueError(f"a spacing of {dimensions} axes does not fit probabilities of shape {probabilities.shape}")
    if settings.compatibility is not None and len(settings.compatibility) != classes:
        raise CRFError(
            f'"compatibility" is made for {len(settings.compatibility)} labels, there are {classes} with the '
            "background; give one row and one column for each"
        )
    if settings.does_nothing:
        return probabilities.astype(np.float32)
    spatial = probabilities.shape[-dimensions:]
    before = probabilities.reshape(classes, -1, *spatial)
    channels = image.reshape(image.shape[0], -1, *spatial)
    result = np.empty(before.shape, np.float32)
    for frame in range(before.shape[1]):
        grey = np.stack([_scaled(channel) for channel in channels[:, frame]])
        for part, steps in _parts(spatial, spacing, settings.mode):
            index = (slice(None), *part)
            result[:, frame][index] = _mean_field(before[:, frame][index], grey[index], steps, settings)
    return result.reshape(probabilities.shape)


def labels_of(probabilities: np.ndarray) -> np.ndarray:
    """The most probable class of each voxel, the first of several, `(*spatial)`."""
    return probabilities.argmax(axis=0).astype(np.uint8 if len(probabilities) <= 256 else np.uint16)


def _parts(
    spatial: tuple[int, ...], spacing: Sequence[float], mode: Mode
) -> Iterator[tuple[tuple[Any, ...], Sequence[float]]]:
    """Indices of what is refined at once, with its spacing; a volume of one slice is a slice."""
    if len(spatial) == 3 and (mode is Mode.SLICES or spatial[0] == 1):
        for number in range(spatial[0]):
            yield (number,), spacing[1:]
    else:
        yield (), spacing


def _scaled(channel: np.ndarray) -> np.ndarray:
    low, high = np.percentile(channel, [_BLACK, _WHITE])
    if high <= low:  # next to nothing but background, as in a mask
        low, high = channel.min(), channel.max()
    return (channel - low) / (high - low) if high > low else np.zeros(channel.shape)


def _mean_field(
    probabilities: np.ndarray, grey: np.ndarray, spacing: Sequence[float], settings: CRFSettings
) -> np.ndarray:
    classes = probabilities.shape[0]
    flat = probabilities.reshape(classes, -1)
    crf = library().DenseCRF(flat.shape[1], classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(np.clip(flat, _LEAST, 1.0)), dtype=np.float32))
    place = np.indices(probabilities.shape[1:]).reshape(len(spacing), -1) * np.array(spacing)[:, None]
    intensity = grey.reshape(len(grey), -1) / settings.intensity_sd
    for weight, features in (
        (settings.gaussian_weight, place / settings.gaussian_sd),
        (settings.bilateral_weight, np.concatenate([place / settings.bilateral_sd, intensity])),
    ):
        if weight > 0:
            crf.addPairwiseEnergy(
                np.ascontiguousarray(features, dtype=np.float32), compat=_penalty(weight, settings.compatibility)
            )
    return np.asarray(crf.inference(settings.iterations)).reshape(probabilities.shape)


def _penalty(weight: float, compatibility: tuple[tuple[float, ...], ...] | None) -> float | np.ndarray:
    return weight if compatibility is None else weight * np.array(compatibility, dtype=np.float32)


def library() -> Any:
    """The module of pydensecrf2; called early, it says before hours of work that there is none.

    Raises:
        DependencyError: pydensecrf2 is not installed.
    """
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        raise DependencyError(
            "the CRF needs pydensecrf2, which is not installed; run `pip install nnunet-qa[crf]` (or pydensecrf2 alone)"
        ) from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f'unknown key "{name}"{nearest(name, CRFSettings.model_fields)}'
    return f'"{name}": {first["msg"].removeprefix("Value error, ")} (found: {first["input"]!r})'

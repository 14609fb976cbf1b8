"""Logistic regression on a few numbers of each curve: the simplest classifier that learns, beside that of paper 003."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from nnunet_qa.quality.curve_classifier import log_size, relative_curves, resampled
from nnunet_qa.quality.curve_estimator import CurveEstimator
from nnunet_qa.quality.curve_rules import slice_gaps, stroke_difference
from nnunet_qa.quality.curves import Acquisition
from nnunet_qa.quality.slice_irregularity import irregularity_in_space, irregularity_in_time, without_harmonics

_FRAMES = 50
_MAX_DEVIATIONS = 5.0


class CurveLogistic(CurveEstimator):
    """Logistic regression on `curve_features`, standardised; both classes weigh the same."""

    kind = "logistic"

    def _inputs(self, acquisitions: Sequence[Acquisition]) -> np.ndarray:
        """Float64 `(acquisitions, features)`."""
        return np.array([list(curve_features(one, self.structures_).values()) for one in acquisitions])

    def _learn(self, inputs: np.ndarray, erroneous: np.ndarray) -> dict[str, torch.Tensor]:
        spread = inputs.std(axis=0)
        model = {
            "mean": torch.from_numpy(inputs.mean(axis=0)),
            "scale": torch.from_numpy(np.where(spread > 1e-9, spread, 1.0)),
        }
        fitted = LogisticRegression(class_weight="balanced", max_iter=1000).fit(_standardised(model, inputs), erroneous)
        return model | {
            "coefficients": torch.from_numpy(fitted.coef_[0]),
            "intercept": torch.from_numpy(fitted.intercept_),
        }

    def _judge(self, model: Mapping[str, torch.Tensor], inputs: np.ndarray) -> np.ndarray:
        return expit(_standardised(model, inputs) @ model["coefficients"].numpy() + model["intercept"].numpy()[0])


def curve_features(acquisition: Acquisition, structures: Sequence[str]) -> dict[str, float]:
    """A few numbers that say whether curves look like those of a heart.

    Args:
        acquisition: the series.
        structures: whose curves.

    Returns:
        Of each structure `<structure>_size`, see `log_size`; from the curve divided by its maximum and resampled to 50
        frames
        `…_lowest`, its minimum, and `…_when`, where in the cycle that lies, in [0, 1);
        `…_step`, the largest difference of two neighbouring frames;
        `…_residual`, the root mean square of what four harmonics leave;
        and, mean over frames, `…_gaps`, empty slices between labelled ones, `…_in_time` and `…_in_space`, see
        `irregularity_in_time` and `irregularity_in_space`.
        Of lv and rv also `stroke_difference`.
    """
    relative = resampled(relative_curves(acquisition, structures), _FRAMES)
    features: dict[str, float] = {}
    for structure, curve in zip(structures, relative.T, strict=True):
        pixels = acquisition.pixels[structure]
        features |= {
            f"{structure}_size": log_size(acquisition, structure),
            f"{structure}_lowest": float(curve.min()),
            f"{structure}_when": float(curve.argmin() / _FRAMES),
            f"{structure}_step": float(np.abs(curve - np.roll(curve, -1)).max()),
            f"{structure}_residual": float(np.sqrt(np.mean(without_harmonics(curve) ** 2))),
            f"{structure}_gaps": float(slice_gaps(pixels).mean()),
            f"{structure}_in_time": float(irregularity_in_time(pixels).mean()),
            f"{structure}_in_space": float(irregularity_in_space(pixels).mean()),
        }
    if {"lv", "rv"} <= set(structures):
        features["stroke_difference"] = stroke_difference(acquisition)
    return features


def _standardised(model: Mapping[str, torch.Tensor], inputs: np.ndarray) -> np.ndarray:
    # one wild curve must not decide alone, neither in the fit nor on the day
    scaled = (inputs - model["mean"].numpy()) / model["scale"].numpy()
    return np.clip(scaled, -_MAX_DEVIATIONS, _MAX_DEVIATIONS)

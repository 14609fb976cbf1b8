"""Checks of curves that need no learning, to compare the classifier with (those common in cardiac MR, see paper 003).

A cycle of a heart is smooth, closed and whole: areas neither vanish nor jump, slices have no gaps, and both ventricles
pump the same blood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from nnunet_qa.evaluation.clinical import phases
from nnunet_qa.quality.curve_estimator import CurveEstimator
from nnunet_qa.quality.curves import Acquisition

if TYPE_CHECKING:
    from typing_extensions import Self

FEWEST_VOXELS, FEWEST_SLICES = 10, 6
LARGEST_STEP, LARGEST_AORTIC_RATIO, LARGEST_STROKE_DIFFERENCE = 2.0, 2.0, 0.1


class CurveRules(CurveEstimator):
    """The share of checks that are broken, see `broken_checks`; only the threshold is learnt."""

    kind = "rules"

    @classmethod
    def without_labels(cls, acquisitions: Sequence[Acquisition], *, structures: Sequence[str] | None = None) -> Self:
        """One that needs no judged acquisitions: erroneous is where any check is broken.

        Args:
            acquisitions: those that are to be judged.
            structures: whose curves are checked; None for all.

        Raises:
            SelectionError: an acquisition lacks a structure.
        """
        rules = cls(structures=structures)
        rules._choose_structures(acquisitions)
        rules.model_, rules.metrics_ = {}, {}
        rules.threshold_ = 0.5 / len(broken_checks(acquisitions[0], rules.structures_))
        return rules

    def _inputs(self, acquisitions: Sequence[Acquisition]) -> np.ndarray:
        """Bool `(acquisitions, checks)`."""
        return np.array([list(broken_checks(one, self.structures_).values()) for one in acquisitions])

    def _learn(self, inputs: np.ndarray, erroneous: np.ndarray) -> dict[str, torch.Tensor]:
        return {}

    def _judge(self, model: Mapping[str, torch.Tensor], inputs: np.ndarray) -> np.ndarray:
        return inputs.mean(axis=1)


def broken_checks(acquisition: Acquisition, structures: Sequence[str]) -> dict[str, bool]:
    """Which of the checks that apply to these structures an acquisition breaks.

    Args:
        acquisition: the series.
        structures: whose curves are checked.

    Returns:
        True where broken, for:
        `empty_frame`: a structure is absent from a frame;
        `few_voxels`: a structure has fewer than 10 voxels in a frame;
        `jump`: from a frame to the next, or from the last to the first, a curve falls to half or less, or doubles;
        `slice_gap`: a slice without the structure lies between two that have it;
        of areas `wide_range`: the largest is at least twice the smallest;
        of lv and myocardium `few_slices`: at end-diastole fewer than 6 slices have both;
        of lv and rv `stroke_volumes`: they differ by more than a tenth of the larger one.
    """
    pixels = {structure: acquisition.pixels[structure] for structure in structures}
    curves = np.stack([pixels[structure].sum(axis=1) for structure in structures])
    found: dict[str, bool] = {
        "empty_frame": bool((curves == 0).any()),
        "few_voxels": bool((curves < FEWEST_VOXELS).any()),
        "jump": any(_jumps(curve) for curve in curves),
        "slice_gap": any(slice_gaps(counts).any() for counts in pixels.values()),
    }
    if acquisition.scheme.kind == "area":
        found["wide_range"] = any(bool(curve.max() >= LARGEST_AORTIC_RATIO * curve.min()) for curve in curves)
    if {"lv", "myocardium"} <= set(structures):
        found["few_slices"] = _slices_at_end_diastole(acquisition) < FEWEST_SLICES
    if {"lv", "rv"} <= set(structures):
        found["stroke_volumes"] = stroke_difference(acquisition) > LARGEST_STROKE_DIFFERENCE
    return found


def slice_gaps(pixels: np.ndarray) -> np.ndarray:
    """Empty slices between labelled ones, for each frame of `(frames, slices)`."""
    there = pixels > 0
    after_first = np.maximum.accumulate(there, axis=1)
    before_last = np.maximum.accumulate(there[:, ::-1], axis=1)[:, ::-1]
    return (after_first & before_last & ~there).sum(axis=1)


def stroke_difference(acquisition: Acquisition) -> float:
    """How much the stroke volumes of the ventricles differ, as a share of the larger one.

    From 0 up; 1 where neither ventricle ejects anything.
    """
    end_diastole, end_systole = phases(acquisition)
    curves = (acquisition.curve("lv"), acquisition.curve("rv"))
    left, right = (float(curve[end_diastole] - curve[end_systole]) for curve in curves)
    larger = max(left, right)
    return abs(left - right) / larger if larger > 0 else 1.0


def _jumps(curve: np.ndarray) -> bool:
    following = np.roll(curve, -1)
    low, high = np.minimum(curve, following), np.maximum(curve, following)
    return bool((high >= LARGEST_STEP * low).any())


def _slices_at_end_diastole(acquisition: Acquisition) -> int:
    """How many have both the left ventricle and its wall."""
    end_diastole, _ = phases(acquisition)
    both = (acquisition.pixels["lv"][end_diastole] > 0) & (acquisition.pixels["myocardium"][end_diastole] > 0)
    return int(both.sum())

"""What all classifiers of curves share: scikit-learn's verbs, subjects kept apart, and the threshold (paper 003).

The paper chooses the threshold on the ROC curve after training. Here every subject is judged once by a classifier that
was fitted without it, and the threshold is chosen on these scores; the classifier that is kept is fitted to all. With
few erroneous series this leaves many more of them for the choice than a single validation part would.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold

from nnunet_qa.errors import ModelError, SelectionError
from nnunet_qa.progress import track
from nnunet_qa.quality.curves import Acquisition, Kind
from nnunet_qa.quality.operating_point import auroc, rates, weighted_youden

if TYPE_CHECKING:
    from typing_extensions import Self

VALIDATION, TEST = "validation", "test"


class CurveEstimator(ABC):
    """A classifier of acquisitions into good and erroneous by their curves.

    Args:
        structures: whose curves it reads; None for all that the acquisitions have.
        weight: of the sensitivity in the choice of the threshold, see `weighted_youden`.
        least_sensitivity: that the threshold must have on the scores that it is chosen on.
        folds: parts that the subjects are split into for that choice; fewer where fewer subjects have an error.
        seed: of the split, and of whatever chance the classifier needs.

    Attributes:
        kind: what it is called in files and on the command line.
        structures_: whose curves it reads.
        measured_: "volume" or "area".
        model_: what it has learnt.
        validation_scores_: of each acquisition by a classifier that was fitted without its subject; not kept in files.
        threshold_: acquisitions with this probability or more are erroneous.
        metrics_: `rates` by part; `validation` are the scores on which the threshold was chosen.

    Raises:
        ValueError: a number is out of its range.
    """

    kind: ClassVar[str]
    structures_: tuple[str, ...]
    measured_: Kind
    model_: dict[str, torch.Tensor]
    validation_scores_: np.ndarray
    threshold_: float
    metrics_: dict[str, dict[str, Any]]

    def __init__(
        self,
        *,
        structures: Sequence[str] | None = None,
        weight: float = 0.7,
        least_sensitivity: float = 0.0,
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        for name, number in {"weight": weight, "least_sensitivity": least_sensitivity}.items():
            if not 0 <= number <= 1:
                raise ValueError(f"{name} must be in [0, 1], found {number}")
        if folds < 2:
            raise ValueError(f"folds must be at least 2, found {folds}")
        self.structures = None if structures is None else tuple(structures)
        self.weight, self.least_sensitivity, self.folds, self.seed = weight, least_sensitivity, folds, seed

    def settings(self) -> dict[str, Any]:
        """The arguments that it was made with, but for `structures`."""
        return {name: getattr(self, name) for name in ("weight", "least_sensitivity", "folds", "seed")}

    def fit(self, acquisitions: Sequence[Acquisition], erroneous: Sequence[bool] | np.ndarray) -> Self:
        """Learn from acquisitions that people (or a known Dice) have judged.

        Args:
            acquisitions: all with the same structures; those of one subject stay on one side of every split.
            erroneous: one flag an acquisition.

        Raises:
            SelectionError: fewer than two subjects with an erroneous acquisition or with a good one, or an acquisition
                lacks a structure.
            ModelError: nothing was learnt.
            ValueError: not as many flags as acquisitions.
        """
        flags = _flags(acquisitions, erroneous)
        folds = subject_folds([one.subject_id for one in acquisitions], flags, folds=self.folds, seed=self.seed)
        self._choose_structures(acquisitions)
        inputs = self._inputs(acquisitions)
        scores = np.empty(len(flags))
        for rest, fold in track(folds, f"Fitting the curve classifier ({self.kind})", len(folds)):
            scores[fold] = self._judge(self._learn(inputs[rest], flags[rest]), inputs[fold])
        if not np.isfinite(scores).all():
            raise ModelError(f"the curve classifier ({self.kind}) did not converge; lower its learning rate")
        self.model_, self.validation_scores_ = self._learn(inputs, flags), scores
        self.threshold_ = weighted_youden(
            scores, flags, weight=self.weight, least_sensitivity=self.least_sensitivity
        ).threshold
        self.metrics_ = {VALIDATION: rates(scores, flags, threshold=self.threshold_)}
        return self

    def predict_proba(self, acquisitions: Sequence[Acquisition]) -> np.ndarray:
        """Probability of being erroneous, float64 `(acquisitions)` in [0, 1].

        Raises:
            ModelError: not fitted, or an acquisition lacks a structure or is of the other kind (volumes, areas).
        """
        if not hasattr(self, "model_"):
            raise ModelError("the curve classifier has not been fitted; call fit, or load one")
        for one in acquisitions:
            differences = _differences(one, self.structures_, self.measured_)
            if differences:
                raise ModelError(
                    f"{one.acquisition_id}: {'; '.join(differences)}; take another classifier or fit one for these"
                )
        if not acquisitions:
            return np.empty(0)
        return self._judge(self.model_, self._inputs(acquisitions))

    def predict(self, acquisitions: Sequence[Acquisition]) -> np.ndarray:
        """Which acquisitions are called erroneous, bool `(acquisitions)`."""
        return self.predict_proba(acquisitions) >= self.threshold_

    def score(self, acquisitions: Sequence[Acquisition], erroneous: Sequence[bool] | np.ndarray) -> float:
        """AUROC of the probabilities; NaN where all are good or all erroneous."""
        return auroc(self.predict_proba(acquisitions), _flags(acquisitions, erroneous))

    def judge(self, acquisitions: Sequence[Acquisition], erroneous: Sequence[bool] | np.ndarray) -> dict[str, Any]:
        """`rates` of these acquisitions at the threshold."""
        flags = _flags(acquisitions, erroneous)
        return rates(self.predict_proba(acquisitions), flags, threshold=self.threshold_)

    def _choose_structures(self, acquisitions: Sequence[Acquisition]) -> None:
        first = acquisitions[0]
        structures = self.structures or tuple(sorted(first.pixels))
        for one in acquisitions:
            differences = _differences(one, structures, first.scheme.kind)
            if self.structures is None and not differences and len(one.pixels) != len(structures):
                differences = [f"has {', '.join(sorted(one.pixels))}, others {', '.join(structures)}"]
            if differences:
                raise SelectionError(
                    f"{one.acquisition_id}: {'; '.join(differences)}; leave it out, or name structures that all have"
                )
        self.structures_, self.measured_ = structures, first.scheme.kind

    @abstractmethod
    def _inputs(self, acquisitions: Sequence[Acquisition]) -> np.ndarray:
        """What the model sees of each acquisition, `(acquisitions, …)`."""

    @abstractmethod
    def _learn(self, inputs: np.ndarray, erroneous: np.ndarray) -> dict[str, torch.Tensor]:
        """A model of these inputs, as named tensors."""

    @abstractmethod
    def _judge(self, model: Mapping[str, torch.Tensor], inputs: np.ndarray) -> np.ndarray:
        """Probabilities `(acquisitions)` of being erroneous."""


def subject_folds(
    subjects: Sequence[str], erroneous: np.ndarray, *, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split acquisitions so that subjects stay whole and errors are spread evenly.

    Args:
        subjects: subject of each acquisition.
        erroneous: `(acquisitions)`, true or false.
        folds: how many parts; fewer where fewer subjects have an erroneous, or a good, acquisition.
        seed: of the split.

    Returns:
        For each part the numbers of the other acquisitions and its own.

    Raises:
        SelectionError: too few subjects for a split in which good and erroneous ones are left to learn from.
    """
    names = np.asarray(subjects)
    having = {what: len(set(names[here])) for what, here in (("erroneous", erroneous), ("good", ~erroneous))}
    lack = SelectionError(
        f"{having['erroneous']} subject(s) with an erroneous acquisition and {having['good']} with a good one are too "
        "few to keep subjects apart; label more of both"
    )
    count = min(folds, *having.values())
    if count < 2:
        raise lack
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    parts = list(splitter.split(names, erroneous, groups=names))
    if any(erroneous[rest].all() or not erroneous[rest].any() for rest, _ in parts):
        raise lack
    return parts


def _flags(acquisitions: Sequence[Acquisition], erroneous: Sequence[bool] | np.ndarray) -> np.ndarray:
    flags = np.asarray(erroneous, dtype=bool)
    if flags.shape != (len(acquisitions),):
        raise ValueError(f"{len(acquisitions)} acquisitions need as many flags, found {flags.shape}")
    return flags


def _differences(acquisition: Acquisition, structures: Sequence[str], measured: str) -> list[str]:
    """What keeps an acquisition from being judged by these curves."""
    found = []
    if acquisition.scheme.kind != measured:
        found.append(f"has curves of {acquisition.scheme.kind}, not of {measured}")
    missing = [structure for structure in structures if structure not in acquisition.pixels]
    if missing:
        found.append(f"has no curve of {', '.join(missing)}, only of {', '.join(acquisition.pixels)}")
    return found

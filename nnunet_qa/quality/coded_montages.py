"""Pictures with quality codes, what the discriminator learns from (paper 002, section on the QA discriminator).

In the paper people gave the codes. Where nobody has, annotated cases give pictures whose code is known: their labels
are corrupted until the Dice falls into the range of a code (`nnunet_qa.quality.simulated_errors`). Human and simulated
codes stay apart by their source. Montages are split by subject and drawn equally over codes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.codes import Code, CodeSource, CodeThresholds
from nnunet_qa.quality.montage import MontageSpec, montage
from nnunet_qa.quality.simulated_errors import corrupted

logger = logging.getLogger(__name__)

SOFTENED = 0.5
"""Share of the simulated pictures whose outlines are blurred, so that soft predictions do not look like errors."""
_SIGMA = (0.3, 1.5)  # pixels
TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SHARE = 0.1  # of the subjects, for validation and for test
_SPLITS = 200  # random splits, of which the best is taken


@dataclass(frozen=True, kw_only=True)
class CodedMontages:
    """Montages and what is known of each.

    Attributes:
        pictures: uint8 `(montages, 3, rows, columns)`, on the CPU.
        codes: int64 `(montages)`: 0 success, 1 errors consistent with published performance, 2 gross failure.
        dice: float64 `(montages)` in [0, 1]; NaN where it is unknown.
        subjects: subject of each; montages of one subject stay on one side of every split.
        case_ids: case of each; several montages may show one case.
        sources: where each code comes from, a value of `CodeSource`.
    """

    pictures: torch.Tensor
    codes: np.ndarray
    dice: np.ndarray
    subjects: tuple[str, ...]
    case_ids: tuple[str, ...]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        columns = (self.pictures, self.codes, self.dice, self.subjects, self.case_ids, self.sources)
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f"as many of each are needed, found {[len(column) for column in columns]}")
        if self.pictures.dtype != torch.uint8 or self.pictures.ndim != 4 or self.pictures.shape[1] != 3:
            found = f"{self.pictures.dtype} {tuple(self.pictures.shape)}"
            raise ValueError(f"pictures must be uint8 (montages, 3, rows, columns), found {found}")
        wrong = np.flatnonzero(~np.isin(self.codes, list(Code)))
        if wrong.size:
            case, code = self.case_ids[wrong[0]], self.codes[wrong[0]]
            raise SelectionError(f'case "{case}": {code} is no quality code; give 0, 1 or 2')

    def __len__(self) -> int:
        return len(self.codes)

    def subset(self, index: Sequence[int] | np.ndarray) -> CodedMontages:
        """The montages with these numbers, in this order."""
        chosen = np.asarray(index, dtype=np.int64)
        return CodedMontages(
            pictures=self.pictures[torch.from_numpy(chosen)],
            codes=self.codes[chosen],
            dice=self.dice[chosen],
            subjects=tuple(self.subjects[number] for number in chosen),
            case_ids=tuple(self.case_ids[number] for number in chosen),
            sources=tuple(self.sources[number] for number in chosen),
        )

    @classmethod
    def joined(cls, parts: Iterable[CodedMontages]) -> CodedMontages:
        """All montages of several sets, in their order.

        Raises:
            SelectionError: there is none, or the pictures differ in size.
        """
        given = list(parts)
        sizes = sorted({tuple(part.pictures.shape[2:]) for part in given})
        if len(sizes) != 1:
            found = f"of the sizes {', '.join(map(str, sizes))}" if sizes else "of no size (there are none)"
            raise SelectionError(f"montages {found} cannot be joined; render them all with one montage spec")
        return cls(
            pictures=torch.cat([part.pictures for part in given]),
            codes=np.concatenate([part.codes for part in given]),
            dice=np.concatenate([part.dice for part in given]),
            subjects=tuple(name for part in given for name in part.subjects),
            case_ids=tuple(name for part in given for name in part.case_ids),
            sources=tuple(name for part in given for name in part.sources),
        )


@dataclass(frozen=True, kw_only=True)
class CodedPatch:
    """An annotated image (or part of one) from which pictures with known codes are made.

    Attributes:
        case_id: the case.
        subject: its subject.
        image: gray values in [0, 1], `(*spatial)`, two or three axes.
        labels: integers of the same shape.
    """

    case_id: str
    subject: str
    image: np.ndarray
    labels: np.ndarray


def simulated_montages(
    patches: Iterable[CodedPatch],
    *,
    spec: MontageSpec,
    classes: Mapping[str, tuple[int, ...]],
    thresholds: CodeThresholds,
    rng: np.random.Generator,
    per_code: int,
) -> CodedMontages:
    """Corrupt the labels of each patch to every code and render the results.

    Patches that cannot be corrupted to a code (nothing in them, say) give fewer pictures, which is logged.

    Args:
        patches: annotated images.
        spec: what the pictures look like.
        classes: label values of each foreground class or region.
        thresholds: Dice of each code.
        rng: source of chance.
        per_code: pictures of each code from each patch.

    Returns:
        Up to `3 * per_code` montages a patch, source `simulated`. The Dice is that of the hard labels; half of the
        pictures show them with blurred outlines.

    Raises:
        SelectionError: there is no patch in which errors can be simulated, or `spec` does not fit the patches.
        ValueError: `per_code` is below 1.
    """
    if per_code < 1:
        raise ValueError(f"{per_code} pictures of each code; it must be at least 1")
    pictures, codes, dice, names, missing = [], [], [], [], 0
    for patch in patches:
        for code in Code:
            for _ in range(per_code):
                made = corrupted(patch.labels, classes=classes, code=code, thresholds=thresholds, rng=rng)
                if made is None:
                    missing += 1
                    continue
                masks = class_probabilities(made.labels, classes, sigma=_drawn_sigma(rng), axis=spec.axis)
                pictures.append(render(patch.image, masks, spec))
                codes.append(int(code))
                dice.append(made.dice)
                names.append((patch.subject, patch.case_id))
    if not pictures:
        raise SelectionError("there is no annotated case to simulate errors in; annotate some first")
    if missing:
        logger.warning("%d of %d simulated errors could not be made", missing, missing + len(pictures))
    return CodedMontages(
        pictures=torch.stack(pictures),
        codes=np.array(codes, dtype=np.int64),
        dice=np.array(dice, dtype=np.float64),
        subjects=tuple(subject for subject, _ in names),
        case_ids=tuple(case for _, case in names),
        sources=(CodeSource.SIMULATED.value,) * len(names),
    )


def class_probabilities(
    labels: np.ndarray, classes: Mapping[str, tuple[int, ...]], *, sigma: float, axis: int
) -> np.ndarray:
    """Masks of the foreground classes, with blurred outlines where sigma is above 0.

    Args:
        labels: integers `(*spatial)`.
        classes: label values of each class or region.
        sigma: standard deviation of the Gaussian, pixels; 0 for none.
        axis: of a volume, along which slices are taken and nothing is blurred.

    Returns:
        Float32 `(classes, *spatial)` in [0, 1]; classes that do not overlap sum to at most 1.
    """
    masks = np.stack([np.isin(labels, values) for values in classes.values()]).astype(np.float32)
    if sigma == 0:
        return masks
    widths = [sigma] * labels.ndim
    if labels.ndim == 3:
        widths[axis] = 0
    return ndimage.gaussian_filter(masks, [0, *widths])


def render(image: np.ndarray, probabilities: np.ndarray, spec: MontageSpec) -> torch.Tensor:
    """The montage of one image as bytes.

    Args:
        image: gray values in [0, 1], `(*spatial)`.
        probabilities: of the foreground classes, `(classes, *spatial)` in [0, 1].
        spec: what the picture looks like.

    Returns:
        uint8 `(3, rows, columns)`.
    """
    gray, overlay = (torch.as_tensor(array, dtype=torch.float32)[None] for array in (image, probabilities))
    with torch.no_grad():
        return (montage(gray, overlay, spec)[0] * 255).round().clamp(0, 255).to(torch.uint8)


def subject_parts(
    subjects: Sequence[str], codes: np.ndarray, rng: np.random.Generator, *, test: bool = True
) -> np.ndarray:
    """Split montages by subject: about 80 % to fit, 10 % to validate and 10 % to test, at least one subject each.

    Of many random splits the first is taken in which every code is fitted and validated, else the one with most.
    Two subjects leave none for the test.

    Args:
        subjects: of each montage.
        codes: of each montage.
        rng: source of chance.
        test: without a test part its share is fitted too.

    Returns:
        `train`, `validation` or `test` for each montage.

    Raises:
        SelectionError: a code is missing, there is one subject only, or no split can fit every code.
    """
    names, member = np.unique(np.asarray(subjects), return_inverse=True)
    _check_enough(names, codes)
    has_code = np.zeros((len(names), len(Code)), dtype=bool)
    has_code[member, codes] = True
    held = max(1, round(_SHARE * len(names)))
    tested = held if test and len(names) > 2 else 0
    one_split = np.array([VALIDATION] * held + [TEST] * tested + [TRAIN] * (len(names) - held - tested))
    most, best = (-1, -1), one_split
    for _ in range(_SPLITS):
        parts = rng.permutation(one_split)
        fitted, validated = (int(has_code[parts == part].any(axis=0).sum()) for part in (TRAIN, VALIDATION))
        if (fitted, validated) > most:
            most, best = (fitted, validated), parts
        if most == (len(Code), len(Code)):
            break
    if most[0] < len(Code):
        raise SelectionError(
            "no split by subject leaves every code among those that are fitted; code cases of more subjects, or add "
            "simulated errors"
        )
    return best[member]


def _check_enough(subjects: np.ndarray, codes: np.ndarray) -> None:
    counts = {code: int((codes == code).sum()) for code in Code}
    for code, count in counts.items():
        if not count:
            found = ", ".join(f"{number} of code {int(other)}" for other, number in counts.items() if number)
            raise SelectionError(
                f"no case has code {int(code)}; the discriminator needs all three (found {found or 'none'}): code more "
                "cases, or add simulated errors"
            )
    if len(subjects) < 2:
        raise SelectionError(
            f'all montages are of the subject "{subjects[0]}"; the discriminator needs another subject to validate on'
        )


def equal_draw(codes: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Draw montages such that each code is drawn equally often.

    Args:
        codes: of each montage.
        number: how many to draw.
        rng: source of chance.

    Returns:
        Indices, int64 `(number)`, in random order. Numbers of the codes differ by at most one; within a code every
        montage is drawn once before any is drawn again.
    """
    present = rng.permutation(np.unique(codes))
    drawn = []
    for place, code in enumerate(present):
        wanted = len(range(place, number, len(present)))
        having = np.flatnonzero(codes == code)
        rounds = math.ceil(wanted / len(having))
        drawn.append(np.concatenate([rng.permutation(having) for _ in range(rounds)] or [having[:0]])[:wanted])
    return rng.permutation(np.concatenate(drawn))


def _drawn_sigma(rng: np.random.Generator) -> float:
    return float(rng.uniform(*_SIGMA)) if rng.random() < SOFTENED else 0.0

"""Errors of a segmentation network put into true labels, so that a discriminator learns from annotated cases alone.

Stands in for the coded network outputs of paper 002 (QA discriminator). Sizes are relative to the objects, so that one
severity means the same for a large and for a small organ; borders follow smooth noise, as those of networks do.
Voxels that are neither background (0) nor of a class (nnU-Net's ignore label, -1 outside the image) are never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy import ndimage

from nnunet_qa.quality.codes import Code, CodeThresholds, mean_dice

Box = tuple[slice, ...]

_MOST_KINDS = 3
_TRIES_A_DRAW = 5  # severities to try before other kinds are drawn
_KNOTS = 5  # of the smooth noise, along the longest axis of an object
_UNTOUCHED = 0.1  # of the successes
_MILD = 0.3  # severity to start from for a success; for the other codes it is 1


class ErrorKind(str, Enum):
    """What goes wrong: see `simulate_error`."""

    MISSING_ORGAN = "missing_organ"
    SHIFT = "shift"
    LEAK = "leak"
    MERGE = "merge"
    EROSION = "erosion"
    DILATION = "dilation"
    LABEL_SWAP = "label_swap"
    NOISE_BLOBS = "noise_blobs"
    SLICES_LOST = "slices_lost"


@dataclass(frozen=True)
class Corrupted:
    """Labels with errors.

    Attributes:
        labels: array of the shape and type of the true ones.
        dice: mean over classes, with the true labels.
        code: of this Dice.
        kinds: the errors, in the order in which they were made; none where the labels were left as they are.
    """

    labels: np.ndarray
    dice: float
    code: Code
    kinds: tuple[ErrorKind, ...]


def simulate_error(
    labels: np.ndarray, kind: ErrorKind, *, severity: float, classes: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """Put one error into true labels.

    - `missing_organ`: whole objects become background, then whole components, and of one last a part at one end;
    - `shift`: all objects move together in a random direction, by `severity` of the diameter of a typical one;
    - `leak`: bulges of an object flow from points of its border into what is beside it;
    - `merge`: the part of a class that is next to another class takes its label (needs two classes in the labels);
    - `erosion`, `dilation`: borders move inwards or outwards by a depth that varies smoothly;
    - `label_swap`: in a part of the image, classes take each other's labels (needs two classes);
    - `noise_blobs`: blobs of a class in the background;
    - `slices_lost`: slices of axis 0 (in 2D, rows or columns) become background, at an end or in the middle.

    Args:
        labels: label map of two or three axes, whole numbers.
        kind: of the error.
        severity: in (0, 1]; from a change that hardly shows to one that leaves little right.
        classes: label values that are classes.
        rng: for all that is random.

    Returns:
        A new array of the same shape and type; equal to `labels` where there is nothing for the error to act on.

    Raises:
        ValueError: not two or three axes, no class, or a severity outside (0, 1].
    """
    if labels.ndim not in (2, 3) or not classes or not 0 < severity <= 1:
        raise ValueError(
            f"labels of shape {labels.shape}, {len(classes)} classes, severity {severity}: needs 2 or 3 axes, at least "
            "one class and a severity in (0, 1]"
        )
    fixed = ~np.isin(labels, [0, *classes])
    changed = np.where(fixed, 0, labels).astype(labels.dtype, copy=False)
    _MAKERS[kind](changed, list(classes), severity, rng)
    return np.where(fixed, labels, changed)


def corrupted(
    labels: np.ndarray,
    *,
    classes: Mapping[str, tuple[int, ...]],
    code: Code,
    thresholds: CodeThresholds,
    rng: np.random.Generator,
    tries: int = 30,
) -> Corrupted | None:
    """Draw one to three kinds of errors and a severity until the Dice has the wanted code.

    A success in ten is the true labels themselves, and so is each where the labels hold no class.

    Args:
        labels: label map of two or three axes.
        classes: label values of each class; several for a region, in which case errors are made in the labels.
        code: the wanted one.
        thresholds: which Dice has which code.
        rng: for all that is random.
        tries: corruptions to look at before giving up.

    Returns:
        The corrupted labels, or None where none of the tries has the code (labels of one class that are empty can be
        right or wrong, nothing between).
    """
    groups = list(classes.values())
    values = sorted({value for group in groups for value in group})
    possible = _possible(labels, values)
    if code is Code.SUCCESS and (possible == [ErrorKind.NOISE_BLOBS] or rng.random() < _UNTOUCHED):
        return Corrupted(labels.copy(), 1.0, code, ())
    for attempt in range(tries):
        if attempt % _TRIES_A_DRAW == 0:
            number = min(int(rng.integers(1, _MOST_KINDS + 1)), len(possible))
            # blobs come late: objects that they spread over the image would make the other kinds slow
            kinds = tuple(possible[index] for index in sorted(rng.choice(len(possible), number, replace=False)))
            low, high = 0.0, _MILD if code is Code.SUCCESS else 1.0
        severity = high - rng.random() * (high - low)  # never 0
        changed = labels
        for kind in kinds:
            changed = simulate_error(changed, kind, severity=severity, classes=values, rng=rng)
        dice = mean_dice(changed, labels, groups)
        found = thresholds.code(dice)
        if found is code:
            return Corrupted(changed, dice, code, kinds)
        low, high = (severity, high) if found < code else (low, severity)
    return None


def _possible(labels: np.ndarray, values: Sequence[int]) -> list[ErrorKind]:
    """Kinds of errors that can change these labels."""
    present = len(_present(labels, values))
    if not present:
        return [ErrorKind.NOISE_BLOBS]
    without = {ErrorKind.MERGE: present < 2, ErrorKind.LABEL_SWAP: len(values) < 2}
    return [kind for kind in ErrorKind if not without.get(kind, False)]


def _missing_organ(labels: np.ndarray, classes: list[int], severity: float, rng: np.random.Generator) -> None:
    present = _present(labels, classes)
    budget = severity * len(present)  # in objects
    for value in rng.permutation(present):
        share = min(1.0, budget)
        budget -= share
        if share > 0:
            view = labels[_box(labels == value)]
            mask = view == value
            components, count = ndimage.label(mask)
            # components in random order, each from one end to the other
            order = np.concatenate([[0], rng.permutation(count)])[components] * 2 + _from_one_end(view.shape, rng)
            view[_first(mask, share, order)] = 0


def _shift(labels: np.ndarray, classes: list[int], severity: float, rng: np.random.Generator) -> None:
    present = _present(labels, classes)
    if not present:
        return
    foreground = np.isin(labels, present)
    _, count = ndimage.label(foreground)
    direction = rng.standard_normal(labels.ndim)
    direction /= np.linalg.norm(direction)
    way = 2 * severity * _radius_of(np.count_nonzero(foreground) / count, labels.ndim) * direction
    steps = np.rint(way).astype(int)
    if not steps.any():
        axis = int(np.argmax(np.abs(way)))
        steps[axis] = np.sign(way[axis])
    moved = np.where(foreground, labels, 0)
    target, origin = zip(
        *(_overlapping(step, size) for step, size in zip(steps, labels.shape, strict=True)), strict=True
    )
    labels[...] = 0
    labels[target] = moved[origin]


def _leak(labels: np.ndarray, classes: list[int], severity: float, rng: np.random.Generator) -> None:
    for value, mask in _objects(labels, classes, severity, rng):
        radius = _radius(mask)
        reach = max(1.5, 2.5 * severity * radius)
        view = labels[_box(mask, int(np.ceil(1.5 * reach)))]
        distance = ndimage.distance_transform_edt(view != value)
        border = np.argwhere(distance == 1)
        if not len(border):  # the object fills the image
            continue
        bulge = np.zeros(view.shape)
        for centre in border[rng.integers(len(border), size=int(rng.integers(1, 4)))]:
            width = (0.5 + severity) * radius * rng.uniform(0.5, 1)
            bulge = np.maximum(bulge, np.exp(-(_away(view.shape, centre) ** 2) / (2 * (1 + width) ** 2)))
        view[distance <= reach * bulge * (1 + 0.4 * _noise(view.shape, rng))] = value


def _merge(labels: np.ndarray, classes: list[int], severity: float, rng: np.random.Generator) -> None:
    present = _present(labels, classes)
    taken = _some(present, severity, rng)[: max(0, len(present) - 1)]
    kept = [value for value in present if value not in taken]
    for value in taken:
        view = labels[_box(np.isin(labels, [value, *kept]))]
        distance, nearest = ndimage.distance_transform_edt(~np.isin(view, kept), return_indices=True)
        depth = distance + 0.2 * distance.max() * _noise(view.shape, rng)
        place = _first(view == value, severity, depth)
        view[place] = view[tuple(axis[place] for axis in nearest)]


def _erosion(labels: np.ndarray, classes: list[int], severity: float, rng: np.random.Generator) -> None:
    for value, whole in _objects(labels, classes, severity, rng):
        view = labels[_box(whole, 1)]
        mask = view == value
        if mask.all():  # the object fills the image: there is no border
            continue
        depth, outside = ndimage.distance_transform_edt(mask, return_indices=True)
        lost = mask & (depth <= _uneven(severity * depth.max(), view.shape, rng))
        # what is beside an object moves in, so that no gap opens between two of them
        view[lost] = view[tuple(axis[lost] for axis in outside)]


def _dilation(labels: np.ndarray, classes: list[int], severity: float, rng: np.random.Generator) -> None:
    for value, mask in _objects(labels, classes, severity, rng):
        reach = severity * _radius(mask)
        view = labels[_box(mask, int(np.ceil(1.5 * reach)) + 1)]
        distance = ndimage.distance_transform_edt(view != value)
        view[distance <= _uneven(reach, view.shape, rng)] = value


def _label_swap(labels: np.ndarray, classes: list[int], severity: float, rng: np.random.Generator) -> None:
    if len(classes) < 2:
        return
    present = _present(labels, classes)
    swapped = _some(present, severity, rng)
    if len(swapped) == 1:
        swapped.append(int(rng.choice([value for value in classes if value not in swapped])))
    mask = np.isin(labels, swapped)
    if not mask.any():
        return
    view, mask = labels[_box(mask)], mask[_box(mask)]
    before, place = view.copy(), _first(mask, severity, _from_one_end(view.shape, rng))
    for value, other in zip(swapped, np.roll(swapped, 1), strict=True):
        view[place & (before == value)] = other


def _noise_blobs(labels: np.ndarray, classes: list[int], severity: float, rng: np.random.Generator) -> None:
    background = np.argwhere(labels == 0)
    present = _present(labels, classes)
    chosen = _some(present, severity, rng) or [int(rng.choice(classes))]
    for value in chosen if len(background) else []:
        size = np.count_nonzero(labels == value) or 0.05 * labels.size
        wanted = max(1.0, 4 * severity * size)  # voxels
        shares = rng.dirichlet(np.full(int(rng.integers(1, 7)), 2.0))
        for share in shares:
            radius = _radius_of(max(1.0, share * wanted), labels.ndim)
            centre = background[rng.integers(len(background))]
            reach = int(np.ceil(1.5 * radius))
            box = tuple(
                slice(max(0, place - reach), min(length, place + reach + 1))
                for place, length in zip(centre, labels.shape, strict=True)
            )
            view = labels[box]
            away = _away(view.shape, [place - part.start for place, part in zip(centre, box, strict=True)])
            view[(view == 0) & (away < radius * (1 + 0.4 * _noise(view.shape, rng)))] = value


def _slices_lost(labels: np.ndarray, classes: list[int], severity: float, rng: np.random.Generator) -> None:
    foreground = np.isin(labels, classes)
    if not foreground.any():
        return
    axis = 0 if labels.ndim == 3 else int(rng.integers(2))
    place = _box(foreground)[axis]
    length = place.stop - place.start
    lost = max(1, round(severity * length))
    # at the first end, at the last, or between
    start = place.start + int(rng.choice([0, length - lost, rng.integers(length - lost + 1)]))
    np.moveaxis(labels, axis, 0)[start : start + lost] = 0


_MAKERS: dict[ErrorKind, Callable[[np.ndarray, list[int], float, np.random.Generator], None]] = {
    ErrorKind.MISSING_ORGAN: _missing_organ,
    ErrorKind.SHIFT: _shift,
    ErrorKind.LEAK: _leak,
    ErrorKind.MERGE: _merge,
    ErrorKind.EROSION: _erosion,
    ErrorKind.DILATION: _dilation,
    ErrorKind.LABEL_SWAP: _label_swap,
    ErrorKind.NOISE_BLOBS: _noise_blobs,
    ErrorKind.SLICES_LOST: _slices_lost,
}


def _present(labels: np.ndarray, classes: Sequence[int]) -> list[int]:
    """Classes that are in the labels."""
    return [value for value in classes if (labels == value).any()]


def _some(present: Sequence[int], severity: float, rng: np.random.Generator) -> list[int]:
    """Some of the classes, in random order: at least one and a part of `severity`, at most all."""
    number = round(len(present) * rng.uniform(severity, 1))
    return [int(value) for value in rng.permutation(present)[: max(1, number)]]


def _objects(
    labels: np.ndarray, classes: Sequence[int], severity: float, rng: np.random.Generator
) -> Iterator[tuple[int, np.ndarray]]:
    """`_some` of the classes and where they are; one that an error of another has covered by then is left out."""
    for value in _some(_present(labels, classes), severity, rng):
        mask = labels == value
        if mask.any():
            yield value, mask


def _box(mask: np.ndarray, margin: int = 0) -> Box:
    """The smallest box around a mask that holds something, and `margin` voxels on each side within the array."""
    box = []
    for axis, size in enumerate(mask.shape):
        (found,) = np.nonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(0, int(found[0]) - margin), min(size, int(found[-1]) + 1 + margin)))
    return tuple(box)


def _overlapping(step: int, size: int) -> tuple[slice, slice]:
    """Where a line of voxels lands after a step, and where what lands there was before."""
    return slice(max(0, step), max(0, size + min(0, step))), slice(max(0, -step), max(0, size - max(0, step)))


def _radius(mask: np.ndarray) -> float:
    """Radius in voxels of the disk or ball that is as large as the mask."""
    return _radius_of(int(np.count_nonzero(mask)), mask.ndim)


def _radius_of(voxels: float, dimensions: int) -> float:
    return float(np.sqrt(voxels / np.pi) if dimensions == 2 else np.cbrt(voxels * 3 / (4 * np.pi)))


def _away(shape: tuple[int, ...], centre: Sequence[int]) -> np.ndarray:
    """Distance of each voxel from one."""
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    return np.sqrt(sum((axis - place) ** 2.0 for axis, place in zip(axes, centre, strict=True)))


def _from_one_end(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Place of each voxel along a random direction, 0 to 1, on smoothly bent planes."""
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    direction = rng.standard_normal(len(shape))
    place = sum(part * axis / max(1, size - 1) for part, axis, size in zip(direction, axes, shape, strict=True))
    place = place + 0.15 * np.linalg.norm(direction) * _noise(shape, rng)
    return (place - place.min()) / max(float(np.ptp(place)), 1e-9)


def _first(mask: np.ndarray, share: float, order: np.ndarray) -> np.ndarray:
    """The part of a mask, at least one voxel, that comes first in an order."""
    values = order[mask]
    number = max(1, round(share * len(values)))
    return mask & (order <= np.partition(values, number - 1)[number - 1])


def _uneven(depth: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A depth that varies smoothly, from half to one and a half; where it is a part of a voxel, 0 to 1 around it."""
    return depth + 0.5 + (0.5 * depth + 0.5) * _noise(shape, rng)


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in [-1, 1]: random values at a few knots, blended between them."""
    spacing = max(1.0, (max(shape) - 1) / (_KNOTS - 1))
    noise = rng.uniform(-1, 1, [1 + round((size - 1) / spacing) for size in shape])
    for axis, size in enumerate(shape):
        knots = noise.shape[axis]
        near = np.clip(1 - np.abs(np.linspace(0, knots - 1, size)[:, None] - np.arange(knots)), 0, 1)
        noise = np.moveaxis(np.tensordot(near**2 * (3 - 2 * near), noise, axes=(1, axis)), 0, axis)
    return noise

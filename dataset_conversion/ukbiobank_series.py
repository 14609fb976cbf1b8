"""From the DICOM images of a UK Biobank view to a stack of slices over time.

Series are told apart by their names (a slice each) or, where all slices share one name, by position; frames by
TriggerTime.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nnunet_qa.data.images import Geometry
from nnunet_qa.dataset_conversion.ukbiobank_zip import Image
from nnunet_qa.errors import ImageError

_NUMBER = re.compile(r"_b(\d+)$", re.IGNORECASE)
_DIGITS = 3  # of the number of a slice; a heart has about twelve
_PARALLEL = 1e-3  # of direction cosines, which files round
_UNEVEN = 0.25  # of the distance of slices; a slice that is missing makes 1.0
_FAR = 1.5  # times the stated distance of slices
_ASIDE = 1.0  # mm
_PLACE = 0.05  # mm


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices over one heartbeat.

    Attributes:
        image: `(frames, slices, rows, columns)`.
        geometry: of each frame.
        frame_time: seconds from one frame to the next.
        filled: of each frame, how many slices were missing and are copies of the frame before.
        places: frame and slice by SOPInstanceUID; empty for NIfTI.
        notes: what is odd about its series and does no harm.
    """

    image: np.ndarray
    geometry: Geometry
    frame_time: float
    filled: tuple[int, ...]
    places: dict[str, tuple[int, int]]
    notes: tuple[str, ...] = ()


def build_stack(images: Sequence[Image], *, where: str, annotated: Collection[str] = ()) -> Stack:
    """Sort images into slices and frames.

    Of several series of one slice, the one with annotated images is taken, or else the last.

    Args:
        images: of one view of one subject.
        where: the zip, for errors.
        annotated: SOPInstanceUIDs of images with contours.

    Raises:
        ImageError: slices are missing, not parallel or of different sizes, or two images are of the same time.
    """
    slices = _in_order([_one_series(group, annotated) for group in _groups(images)], where)
    first = slices[0][0]
    for image in (image for found in slices for image in found):
        if image.pixels.shape != first.pixels.shape or not np.allclose(image.spacing[1:], first.spacing[1:], rtol=1e-3):
            raise ImageError(f"{image.name}: has another size or spacing than {first.name}; mixed series?")
    count = _frames(slices)
    starts = [found[0].time / _step(found) for found in slices if len(found) == count > 1]
    start = float(np.median(starts)) if starts else 0.0
    columns = [_at_frames(found, count, start) for found in slices]
    volume = np.empty((count, len(slices), *first.pixels.shape), dtype=_data_type(images))
    places: dict[str, tuple[int, int]] = {}
    for index, column in enumerate(columns):
        for frame, image in enumerate(_filled(column)):
            volume[frame, index] = image.pixels
        places |= {image.uid: (frame, index) for frame, image in enumerate(column) if image is not None}
    return Stack(
        image=whole_numbers(volume),
        geometry=_geometry(slices),
        frame_time=_step(max(slices, key=len)) / 1000,
        filled=tuple(sum(column[frame] is None for column in columns) for frame in range(count)),
        places=places,
        notes=(*_not_read(images), *_missing(slices, where), *_shifted(slices)),
    )


def whole_numbers(array: np.ndarray) -> np.ndarray:
    """The same values as int16 where that loses nothing, for NIfTI files of converters are often float."""
    if not np.issubdtype(array.dtype, np.floating):
        fits = array.min() >= -32768 and array.max() <= 32767
        return array.astype(np.int16) if fits else array
    with np.errstate(invalid="ignore"):
        small = array.astype(np.int16)
    return small if np.array_equal(small, array) else array


def _groups(images: Sequence[Image]) -> list[list[Image]]:
    """Images of each slice: by the number in the name, or else by position."""
    groups: dict[object, list[Image]] = defaultdict(list)
    numbered = [image for image in images if _NUMBER.search(image.series)]
    for image in numbered:
        groups[_slice_number(image)].append(image)
    if not numbered:
        for image in images:
            groups[tuple(np.rint(image.position / _PLACE).astype(int).tolist())].append(image)
    return list(groups.values())


def _not_read(images: Sequence[Image]) -> list[str]:
    """A note where series without a number lie beside numbered ones, which `_groups` prefers."""
    plain = [image for image in images if not _NUMBER.search(image.series)]
    if not plain or len(plain) == len(images):
        return []
    return [f"{len(plain)} images of {plain[0].series}, beside series with the numbers of slices, were not read"]


def _one_series(images: Sequence[Image], annotated: Collection[str]) -> list[Image]:
    """One series of a slice, in the order of time, each image once."""
    series: dict[str, dict[str, Image]] = defaultdict(dict)
    for image in images:
        series[image.series_uid].setdefault(image.uid, image)  # the same file may lie there twice
    with_contours = [uid for uid, found in series.items() if not set(found).isdisjoint(annotated)]
    last = max(with_contours or series, key=_natural)
    found = sorted(series[last].values(), key=lambda image: image.time)
    for one, other in pairwise(found):
        if one.time == other.time:
            raise ImageError(f"{other.name}: is of the same time ({one.time:g} ms) as {one.name}; remove one of them")
        if not np.allclose(one.position, other.position, atol=2 * _PLACE):
            raise ImageError(f"{other.name}: lies elsewhere than {one.name} of the same slice; mixed series?")
    return found


def _natural(uid: str) -> list[tuple[int, str]]:
    """Order of identifiers in which 1.10 comes after 1.9."""
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in uid.split(".")]


def _in_order(slices: list[list[Image]], where: str) -> list[list[Image]]:
    """Slices along their normal, in the direction of their numbers (from base to apex); refuses uneven stacks."""
    first = slices[0][0]
    for found in slices:
        if not np.allclose(found[0].orientation, first.orientation, atol=_PARALLEL):
            raise ImageError(f"{found[0].name}: is not parallel to {first.name}; mixed series?")
    normal = np.cross(*first.orientation)
    slices = sorted(slices, key=lambda found: float(found[0].position @ normal))
    if _order(slices[0]) > _order(slices[-1]):
        slices.reverse()
    if len(slices) > 1:
        corners = np.array([found[0].position for found in slices])
        apart = np.abs(np.diff(corners @ normal))
        usual = float(np.median(apart))
        aside = np.linalg.norm(np.diff(corners - np.outer(corners @ normal, normal), axis=0), axis=1)
        wrong = (np.abs(apart - usual) > _UNEVEN * usual) | (aside > usual / 2)
        if usual < _PLACE or wrong.any():
            index = int(np.argmax(wrong))
            raise ImageError(
                f"{where}: {slices[index][0].series} and {slices[index + 1][0].series} are {apart[index]:.1f} mm "
                f"apart and {aside[index]:.1f} mm aside, others {usual:.1f} mm; is a slice missing?"
            )
    return slices


def _missing(slices: Sequence[Sequence[Image]], where: str) -> list[str]:
    """Refuse a stack that lacks every other slice, which is even again; note numbers that no series has."""
    numbers = sorted(_order(found)[0] for found in slices)
    lacking = sorted({*range(1, numbers[-1] + 1)} - {*numbers})
    if numbers[0] == 0 or not lacking:
        return []
    names = ", ".join(f"_b{number}" for number in lacking[:5])
    first, last = slices[0][0], slices[-1][0]
    apart = float(np.linalg.norm(last.position - first.position)) / max(1, len(slices) - 1)
    if lacking[-1] > numbers[0] and apart > _FAR * first.spacing[0]:
        raise ImageError(
            f"{where}: has no series {names}, and its slices are {apart:.1f} mm apart where the files state "
            f"{first.spacing[0]:.1f} mm; a slice is missing, download the zip again"
        )
    return [f"has no series {names}; the slices that are there are evenly apart"]


def _shifted(slices: Sequence[Sequence[Image]]) -> list[str]:
    """A note where slices are shifted sideways against the first, which a volume cannot hold."""
    corners = np.array([found[0].position for found in slices]) - slices[0][0].position
    normal = np.cross(*slices[0][0].orientation)
    aside = float(np.linalg.norm(corners - np.outer(corners @ normal, normal), axis=1).max())
    if aside <= _ASIDE:
        return []
    return [f"its slices are shifted sideways by up to {aside:.1f} mm; they were stacked as if they were not"]


def _order(found: Sequence[Image]) -> tuple[int, int, int]:
    return (_slice_number(found[0]), *min(image.order for image in found))


def _slice_number(image: Image) -> int:
    """The number that the name of a series ends in, 0 where it has none."""
    match = _NUMBER.search(image.series)
    if match is not None and len(match.group(1)) > _DIGITS:
        raise ImageError(f"{image.name}: is of series {image.series[:60]}, and no heart has so many slices; not read")
    return int(match.group(1)) if match is not None else 0


def _frames(slices: Sequence[Sequence[Image]]) -> int:
    stated = Counter(image.frames for found in slices for image in found if image.frames > 1)
    return stated.most_common(1)[0][0] if stated else max(map(len, slices))


def _step(found: Sequence[Image]) -> float:
    """Milliseconds from one frame to the next; 0 where there is one frame only."""
    return float(np.median(np.diff([image.time for image in found]))) if len(found) > 1 else 0.0


def _at_frames(found: Sequence[Image], count: int, start: float) -> list[Image | None]:
    """Images by frame; a gap in time is a missing frame. `start` is the time of frame 0 in frames."""
    if len(found) > count or 2 * len(found) < count:
        raise ImageError(
            f"{found[0].name}: its slice has {len(found)} images, a heartbeat {count}; download the zip again"
        )
    numbers = list(range(count))
    if len(found) < count:
        step = _step(found) or 1.0
        numbers = [round((image.time - found[0].time) / step) for image in found]
        if len(set(numbers)) < len(numbers) or numbers[-1] >= count:
            numbers = list(range(len(found)))  # times tell nothing, so what is missing counts as the end
        before = min(max(0, round(found[0].time / step - start)), count - 1 - numbers[-1])
        numbers = [before + number for number in numbers]
    column: list[Image | None] = [None] * count
    for number, image in zip(numbers, found, strict=True):
        column[number] = image
    return column


def _filled(column: Sequence[Image | None]) -> list[Image]:
    """Missing frames as the one before; at the start, as the first that is there."""
    last = next(image for image in column if image is not None)
    whole = []
    for image in column:
        last = image if image is not None else last
        whole.append(last)
    return whole


def _data_type(images: Sequence[Image]) -> np.dtype:
    return np.result_type(*{image.pixels.dtype for image in images})


def _geometry(slices: Sequence[Sequence[Image]]) -> Geometry:
    """Position in the patient, the slices in a right angle to each other's plane."""
    first, last = slices[0][0], slices[-1][0]
    row = first.orientation[0] / np.linalg.norm(first.orientation[0])
    down = first.orientation[1] - first.orientation[1] @ row * row
    down /= np.linalg.norm(down)
    normal = np.cross(row, down)
    apart, rows_apart, columns_apart = first.spacing
    way = float((last.position - first.position) @ normal)
    if len(slices) > 1:
        apart = abs(way) / (len(slices) - 1)
    direction = np.stack([row, down, -normal if way < 0 else normal], axis=1)
    return Geometry(
        (columns_apart, rows_apart, apart), tuple(first.position.tolist()), tuple(direction.ravel().tolist())
    )

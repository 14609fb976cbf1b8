"""What a body-part score means: the line from the network's output to a stated scale.

The order loss fixes the network's output up to a constant. Paper 002 (section 2.1) has −12 near the heart and +12
around the duodenum, and takes the slab from −6 to 6. So the ends of the scale are −12 and 12 here too: landmarks say
what they stand for, and without landmarks they are where a typical training scan begins and ends. Then −6 to 6 is the
middle half of that scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from nnunet_qa.data.slice_stack import SliceStack
from nnunet_qa.errors import ModelError, SelectionError, nearest
from nnunet_qa.quality.slice_scores import increasing_fit

ENDS = (-12.0, 12.0)
COLUMNS = ("case_id", "slice_index", "score")
_Outputs: TypeAlias = Sequence[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Score = slope · output + offset, and what that means in words."""

    slope: float
    offset: float
    meaning: str


@dataclass(frozen=True)
class Landmark:
    """A slice of a training scan that is to have a score; `slice_index` counts from 0 as in the file."""

    case_id: str
    slice_index: int
    score: float


def read_landmarks(path: Path) -> list[Landmark]:
    """Read landmarks from a CSV file with the columns `COLUMNS`.

    Raises:
        SelectionError: the file is missing or no CSV, lacks a column, or holds something that is no number.
    """
    try:
        table = pd.read_csv(path, dtype={"case_id": str})
    except FileNotFoundError as error:
        raise SelectionError(f"{path}: not found; it is to hold {', '.join(COLUMNS)}, one row a landmark") from error
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SelectionError(f"{path}: is not a CSV file that can be read: {error}") from error
    for column in COLUMNS:
        if column not in table.columns:
            raise SelectionError(f'{path}: the column "{column}" is missing{nearest(column, table.columns)}')
    for column in COLUMNS[1:]:
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = ~np.isfinite(numbers) | ((numbers % 1 != 0) if column == "slice_index" else False)
        if wrong.any():
            row = table[wrong].iloc[0]
            raise SelectionError(f'{path}: the case "{row["case_id"]}" has {column} {row[column]}, which is no number')
        table[column] = numbers
    return [Landmark(row.case_id, int(row.slice_index), float(row.score)) for row in table.itertuples(index=False)]


def standard_scale(outputs: _Outputs) -> Scale:
    """−12 where a typical training scan begins, 12 where it ends.

    Args:
        outputs: the network's output for the slices of each training scan, NaN for none.

    Raises:
        ModelError: the outputs do not grow.
    """
    fits = [increasing_fit(_known(output)) for output in outputs]
    first, last = (float(np.median([fit[end] for fit in fits])) for end in (0, -1))
    if last <= first:
        raise ModelError("the scores do not grow along the training scans; fit more steps, or check the scans")
    slope = (ENDS[1] - ENDS[0]) / (last - first)
    return Scale(
        slope=slope,
        offset=ENDS[0] - slope * first,
        meaning=f"{ENDS[0]:g} and {ENDS[1]:g} are the medians of the first and the last slice over "
        f"{len(fits)} training scans",
    )


def find_landmarks(landmarks: Sequence[Landmark], volumes: Sequence[SliceStack]) -> list[tuple[int, int]]:
    """Which volume and which of its seen slices each landmark is.

    Raises:
        SelectionError: a landmark is in no seen slice of these scans, or all have the same score.
    """
    if len({landmark.score for landmark in landmarks}) < 2:
        raise SelectionError("landmarks must have at least two different scores")
    names = [volume.case_id for volume in volumes]
    found = []
    for landmark in landmarks:
        if landmark.case_id not in names:
            raise SelectionError(
                f'the landmark\'s case "{landmark.case_id}" is no training scan{nearest(landmark.case_id, names)}'
            )
        number = names.index(landmark.case_id)
        seen = volumes[number].indices[volumes[number].seen]
        (here,) = np.nonzero(seen == landmark.slice_index)
        if not len(here):
            raise SelectionError(
                f'the landmark\'s slice {landmark.slice_index} of the case "{landmark.case_id}" is empty or not there; '
                f"slices {seen.min()} to {seen.max()} are not empty"
            )
        found.append((number, int(here[0])))
    return found


def landmark_scale(landmarks: Sequence[Landmark], places: Sequence[tuple[int, int]], outputs: _Outputs) -> Scale:
    """The line that is closest to the landmarks' scores, by least squares.

    Args:
        landmarks: at least two different scores, growing in the order of the slices.
        places: of each of them, see `find_landmarks`.
        outputs: see `standard_scale`.

    Raises:
        SelectionError: the landmarks run against the order, or the network does not tell their slices apart.
    """
    # Single slices are noisy, so the output at a landmark is that of the increasing fit.
    found = np.array([increasing_fit(_known(outputs[volume]))[here] for volume, here in places])
    wanted = np.array([landmark.score for landmark in landmarks])
    if np.ptp(found) == 0:
        raise SelectionError("the network does not tell the landmarks' slices apart; fit more steps")
    slope, offset = (float(number) for number in np.polyfit(found, wanted, 1))
    if slope <= 0:
        raise SelectionError("the landmarks' scores fall along the axis where they should grow; change signs")
    scores = ", ".join(f"{score:g}" for score in np.unique(wanted))
    meaning = f"least squares line through {len(landmarks)} landmarks with the scores {scores}"
    return Scale(slope=slope, offset=offset, meaning=meaning)


def _known(output: np.ndarray) -> np.ndarray:
    return output[np.isfinite(output)]

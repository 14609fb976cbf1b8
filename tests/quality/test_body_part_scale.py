from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_qa.errors import ModelError, SelectionError
from nnunet_qa.quality.body_part_scale import (
    Landmark,
    find_landmarks,
    landmark_scale,
    read_landmarks,
    standard_scale,
)
from tests.body import stacks


def test_the_standard_scale_is_a_typical_scan() -> None:
    ends = [(1.0, 5.0), (0.0, 7.0), (-4.0, 6.0)]
    outputs = [np.array([np.nan, first, first, first, last, last, last]) for first, last in ends]
    scale = standard_scale(outputs)
    # medians of the ends: of 1, 0, −4 and of 5, 7, 6
    assert scale.slope * 0 + scale.offset == pytest.approx(-12)
    assert scale.slope * 6 + scale.offset == pytest.approx(12)
    assert "3 training scans" in scale.meaning


def test_outputs_that_do_not_grow_are_no_model() -> None:
    with pytest.raises(ModelError, match="do not grow"):
        standard_scale([np.linspace(3, 1, 20), np.linspace(5, 4, 9)])


def test_landmarks_say_what_scores_mean() -> None:
    volumes = stacks(2)
    outputs = [np.repeat([0.0, 2.0, 4.0], [10, 20, 10]), np.repeat([1.0, 3.0, 5.0], [10, 20, 10])]
    landmarks = [Landmark("c0", 0, -12), Landmark("c1", 39, 13), Landmark("c0", 39, 12)]
    scale = landmark_scale(landmarks, find_landmarks(landmarks, volumes), outputs)
    design = np.array([[0, 1], [5, 1], [4, 1]])
    expected = np.linalg.lstsq(design, np.array([-12, 13, 12]), rcond=None)[0]
    assert (scale.slope, scale.offset) == pytest.approx(tuple(expected))
    assert "3 landmarks with the scores -12, 12, 13" in scale.meaning


def test_landmarks_that_do_not_fit() -> None:
    volumes = stacks(2)
    volumes[1].pictures[7] = 0
    for landmarks, said in (
        ([Landmark("c0", 1, 5.0), Landmark("c1", 2, 5.0)], "two different scores"),
        ([Landmark("c0", 1, 5.0), Landmark("d1", 2, 6.0)], 'the landmark\'s case "d1" is no training scan'),
        (
            [Landmark("c0", 1, 5.0), Landmark("c1", 40, 6.0)],
            'slice 40 of the case "c1" is empty or not there; slices 0',
        ),
        ([Landmark("c0", 1, 5.0), Landmark("c1", 7, 6.0)], 'slice 7 of the case "c1" is empty'),
    ):
        with pytest.raises(SelectionError, match=said):
            find_landmarks(landmarks, volumes)
    backwards = [Landmark("c0", 1, 5.0), Landmark("c0", 30, -5.0)]
    with pytest.raises(SelectionError, match="fall along the axis"):
        landmark_scale(backwards, find_landmarks(backwards, volumes), [np.linspace(0, 1, 40)])
    with pytest.raises(SelectionError, match="does not tell"):
        landmark_scale(backwards, find_landmarks(backwards, volumes), [np.ones(40)])


def test_reading_landmarks(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.csv"
    path.write_text("case_id,slice_index,score\n007,3,-12\n008,30,12.5\n")
    assert read_landmarks(path) == [Landmark("007", 3, -12.0), Landmark("008", 30, 12.5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "not found"),
        ("", "not a CSV"),
        ("case_id,slice,score\na,1,2\n", 'the column "slice_index" is missing'),
        ("case_id,slice_index,score\na,1.5,2\n", "slice_index 1.5"),
        ("case_id,slice_index,score\na,1,heart\n", "score heart"),
        ("case_id,slice_index,score\na,1,inf\n", "score inf"),
    ],
)
def test_landmarks_that_cannot_be_read(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "landmarks.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SelectionError, match=f"landmarks.csv: .*{said}"):
        read_landmarks(path)

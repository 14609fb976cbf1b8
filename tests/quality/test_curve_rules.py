from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.curve_rules import CurveRules, broken_checks, slice_gaps, stroke_difference
from nnunet_qa.quality.curves import Acquisition
from tests.quality.easy_curves import acquisition, heart, hearts

SHORT_AXIS = ("lv", "myocardium", "rv")
Change = Callable[[dict[str, np.ndarray]], object]


def good() -> dict[str, np.ndarray]:
    """Counts in which LV and RV lose 30 pixels in each of 8 slices, and the wall keeps its size; 10 frames."""
    frames = np.concatenate([np.linspace(100, 70, 6), np.linspace(76, 94, 4)]).astype(np.int64)
    slices = np.array([0, *[1] * 8, 0])
    pixels = {"lv": np.outer(frames, slices), "rv": np.outer(frames + 10, slices)}
    return pixels | {"myocardium": np.outer(np.full(10, 60), slices)}


def broken(change: Change, *, structures: tuple[str, ...] = SHORT_AXIS) -> set[str]:
    pixels = good()
    change(pixels)
    return {name for name, wrong in broken_checks(acquisition(pixels), structures).items() if wrong}


def put(structure: str, frame: object, slices: object, value: object) -> Change:
    return lambda pixels: pixels[structure].__setitem__((frame, slices), value)


def fewer_slices(pixels: dict[str, np.ndarray]) -> None:
    pixels["lv"][:, 6:] = 0  # 5 are left


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda pixels: None, set()),
        (put("myocardium", 3, slice(None), 0), {"empty_frame", "few_voxels", "jump"}),
        (put("myocardium", slice(None), slice(None), [0, 1, 1, 1, 1, 1, 1, 2, 1, 0]), {"few_voxels"}),
        (put("myocardium", slice(None), slice(None), [0, 1, 1, 1, 1, 1, 2, 2, 1, 0]), set()),  # 10 are enough
        (put("myocardium", 4, slice(None), [0, *[30] * 8, 0]), {"jump"}),  # half is a jump
        (put("myocardium", 4, slice(None), [0, *[31] * 8, 0]), set()),
        (put("myocardium", 9, slice(None), [0, *[120] * 8, 0]), {"jump"}),
        (put("rv", 2, 4, 0), {"slice_gap"}),
        (put("rv", 2, 1, 0), set()),  # at the end of the stack
        (fewer_slices, {"few_slices", "stroke_volumes"}),
        (put("rv", 0, slice(None), [0, *[106] * 8, 0]), {"stroke_volumes"}),  # 26 against 30
        (put("rv", 0, slice(None), [0, *[108] * 8, 0]), set()),  # 28 against 30
    ],
)
def test_each_check_of_the_short_axis(change: Change, expected: set[str]) -> None:
    assert broken(change) == expected


def test_the_last_frame_is_followed_by_the_first() -> None:
    pixels = {"lv": np.array([[100], [90], [80], [70], [60], [50]])}
    assert broken_checks(acquisition(pixels), ("lv",))["jump"]
    pixels["lv"][-1] = 51
    assert not broken_checks(acquisition(pixels), ("lv",))["jump"]


def test_what_applies_follows_from_structures_and_kind() -> None:
    always = {"empty_frame", "few_voxels", "jump", "slice_gap"}
    one = acquisition(good())
    assert set(broken_checks(one, ("lv",))) == always
    assert set(broken_checks(one, ("lv", "rv"))) == always | {"stroke_volumes"}
    assert set(broken_checks(one, SHORT_AXIS)) == always | {"stroke_volumes", "few_slices"}
    assert set(broken_checks(aorta([50, 60]), ("ascending_aorta",))) == always | {"wide_range"}


def aorta(areas: list[int]) -> Acquisition:
    return acquisition({"ascending_aorta": np.array(areas)[:, None]}, scheme="ukbb_ao")


def test_the_range_of_the_aorta() -> None:
    for highest, expected in ((99, False), (100, True)):
        one = aorta([50, 70, highest, 70])
        assert broken_checks(one, ("ascending_aorta",))["wide_range"] == expected


def test_gaps_are_counted_frame_by_frame() -> None:
    pixels = np.array([[0, 1, 1, 1, 0], [1, 0, 0, 2, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 5, 0, 0]])
    assert slice_gaps(pixels).tolist() == [0, 2, 2, 0, 0]


def test_strokes() -> None:
    def strokes(left: list[int], right: list[int]) -> float:
        return stroke_difference(acquisition({"lv": np.array(left)[:, None], "rv": np.array(right)[:, None]}))

    assert strokes([100, 50, 80], [120, 80, 100]) == pytest.approx(0.2)
    assert strokes([100, 50, 80], [120, 130, 100]) == pytest.approx(1.2)  # the right one grows
    assert strokes([100, 100, 100], [90, 90, 90]) == 1
    assert strokes([0, 0, 0], [0, 0, 0]) == 1


def test_curves_of_zeros_break_what_they_can() -> None:
    nothing = acquisition({name: np.zeros((5, 4), dtype=np.int64) for name in SHORT_AXIS})
    found = broken_checks(nothing, SHORT_AXIS)
    assert {name for name, wrong in found.items() if not wrong} == {"slice_gap"}


def test_the_score_is_the_share_of_broken_checks() -> None:
    pixels = good()
    fewer_slices(pixels)
    acquisitions = [acquisition(good(), name="good"), acquisition(pixels, name="bad")]
    rules = CurveRules.without_labels(acquisitions)
    np.testing.assert_allclose(rules.predict_proba(acquisitions), [0, 2 / 6])
    assert rules.predict(acquisitions).tolist() == [False, True]
    assert rules.structures_ == SHORT_AXIS
    with pytest.raises(SelectionError, match="good: has no curve of wall"):
        CurveRules.without_labels(acquisitions, structures=("wall",))


def test_the_threshold_is_learnt_from_labels() -> None:
    acquisitions, erroneous = hearts(40)
    rules = CurveRules(structures=("lv", "rv")).fit(acquisitions, erroneous)
    assert rules.score(acquisitions, erroneous) > 0.8
    assert 0 < rules.threshold_ <= 0.2
    assert not rules.predict([heart("x", np.random.default_rng(0))])[0]

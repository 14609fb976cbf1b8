from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nnunet_qa.config_limited_data import ClickMode, InteractionConfig
from nnunet_qa.interaction.click_maps import ClickChannels, click_maps
from nnunet_qa.interaction.clicks import Click, next_click
from nnunet_qa.interaction.dialogue import Dialogue, Draw, draw, simulate
from nnunet_qa.interaction.lines import line_clicks


def truths() -> np.ndarray:
    found = np.zeros((3, 16, 16), int)
    found[0, 2:9, 2:9] = 1
    found[1, 5:12, 6:13] = 2
    return found


class Predictor:
    """Says class 1 in a square of its own, whatever is clicked; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], np.ndarray]] = []

    def __call__(self, samples: list[int], channels: np.ndarray) -> np.ndarray:
        self.asked.append((samples, channels))
        found = np.zeros((len(samples), 16, 16), int)
        found[:, 0:5, 10:15] = 1
        return found


def test_each_sample_gets_its_clicks_and_no_more_passes_than_they_need() -> None:
    predict = Predictor()
    dialogue = Dialogue(channels=ClickChannels(labels=2))
    found = dialogue(truths(), Draw((0, 2, 1), (False,) * 3), predict)
    assert [samples for samples, _ in predict.asked] == [
        [2],
        [1],
    ]  # without an object a user looks for what is too much
    first = Click((8, 9), 2)
    seen = predict([1], np.zeros(0))[0]
    seen[first.position] = 2
    expected: Any = [[], [first, next_click(truths()[1], seen)], [Click((2, 12), 0)]]
    for channels, clicks in zip(found, expected, strict=True):
        np.testing.assert_array_equal(channels, [*click_maps(clicks, (16, 16), 2), *np.zeros((2, 16, 16))])


def test_the_network_sees_all_earlier_clicks_and_none_is_made_twice() -> None:
    predict = Predictor()
    found = Dialogue(channels=ClickChannels(labels=2))(truths()[:1], Draw((3,), (False,)), predict)
    clicks, seen = [Click((5, 5), 1)], predict([0], np.zeros(0))[0]
    for _ in range(2):  # the object is missed as before, and larger than what is too much; its clicked voxels are not
        seen[clicks[-1].position] = 1
        clicks.append(next_click(truths()[0], seen) or clicks[0])
    assert len(set(clicks)) == 3
    assert len(predict.asked) == 3
    for number, (_, channels) in enumerate(predict.asked[:2], start=1):
        np.testing.assert_array_equal(channels[0, :3], click_maps(clicks[:number], (16, 16), 2))
    np.testing.assert_array_equal(found[0, :3], click_maps(clicks, (16, 16), 2))


def test_negative_samples_get_background_clicks_only() -> None:
    dialogue = Dialogue(channels=ClickChannels(labels=2))
    found = dialogue(truths(), Draw((1, 2, 2), (True,) * 3), Predictor())
    clicks: Any = [[Click((5, 5), 0)], [Click((8, 9), 0), Click((2, 12), 0)], [Click((2, 12), 0), Click((1, 11), 0)]]
    for channels, expected in zip(found, clicks, strict=True):
        np.testing.assert_array_equal(channels[:3], click_maps(expected, (16, 16), 2))


def test_the_previous_prediction_is_from_before_the_last_click() -> None:
    predict = Predictor()
    dialogue = Dialogue(channels=ClickChannels(labels=2, previous=True))
    found = dialogue(truths(), Draw((0, 1, 2), (False,) * 3), predict)
    assert [samples for samples, _ in predict.asked] == [[1, 2], [2]]
    assert not predict.asked[0][1].any()
    mask = predict([0], np.zeros(0))[0]
    np.testing.assert_array_equal(predict.asked[1][1][0, 3], mask)  # the second pass sees the first
    assert not found[0].any()
    for channels in found[1:]:
        np.testing.assert_array_equal(channels[3:], [mask == 1, mask == 2])


def test_an_answer_that_needs_no_click_is_not_the_previous_one() -> None:
    truth = truths()[:1]

    def predict(samples: list[int], channels: np.ndarray) -> np.ndarray:
        """Nothing before the first click, everything right after it."""
        return truth if channels.any() else np.zeros_like(truth)

    found = Dialogue(channels=ClickChannels(labels=2, previous=True))(truth, Draw((3,), (False,)), predict)
    np.testing.assert_array_equal(found[0, :3], click_maps([Click((5, 5), 1)], (16, 16), 2))
    assert not found[0, 3:].any()  # as it was when the click was made


def test_small_errors_end_the_dialogue_and_ignored_voxels_get_no_click() -> None:
    predict = Predictor()
    found = Dialogue(channels=ClickChannels(labels=2), least_error=26)(truths()[2:], Draw((5,), (False,)), predict)
    assert len(predict.asked) == 1
    assert not found.any()
    found = Dialogue(channels=ClickChannels(labels=1), ignore=2)(truths()[1:2], Draw((1,), (False,)), predict)
    np.testing.assert_array_equal(found[0, :2], click_maps([Click((2, 12), 0)], (16, 16), 1))
    ignored = np.full((1, 16, 16), 2)
    found = Dialogue(channels=ClickChannels(labels=1), ignore=2)(ignored, Draw((2,), (True,)), predict)
    assert not found.any()


def test_lines_in_a_batch() -> None:
    dialogue = Dialogue(channels=ClickChannels(labels=1), mode=ClickMode.LINE)
    volume = np.zeros((1, 3, 8, 8), int)
    volume[0, :2, 2:5, 3:6] = 1
    found = dialogue(volume, Draw((1,), (False,)), Predictor())
    np.testing.assert_array_equal(found[0, :2], click_maps(line_clicks(volume[0], axis=2), (3, 8, 8), 1))
    drawn = dialogue(volume, Draw((1,), (False,)), Predictor(), np.random.default_rng(0))
    assert ((drawn[0, 1] == 1).any(axis=(1, 2)) == [True, True, False]).all()


def test_numbers_and_negatives_are_drawn_as_set() -> None:
    drawn = draw(4000, InteractionConfig(least=0, most=3, negative=0.25), np.random.default_rng(1))
    numbers, negative = np.array(drawn.numbers), np.array(drawn.negative)
    assert negative.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_allclose(np.bincount(numbers[~negative]) / (~negative).sum(), [0.25] * 4, atol=0.03)
    assert set(numbers[negative]) == {1, 2, 3}
    nothing = draw(50, InteractionConfig(least=0, most=0, negative=1), np.random.default_rng(1))
    assert not any(nothing.numbers)
    assert not any(nothing.negative)


def obedient(shape: tuple[int, ...]) -> Callable[[list[Click]], np.ndarray]:
    """Marks a box of three voxels around each object click, and nothing else."""

    def predict(clicks: list[Click]) -> np.ndarray:
        found = np.zeros(shape, int)
        for click in clicks:
            box = tuple(slice(max(at - 1, 0), at + 2) for at in click.position[-2:])
            found[(*click.position[:-2], *box)] = click.label
        return found

    return predict


def test_simulated_until_nothing_is_wrong() -> None:
    truth = np.zeros((12, 12), int)
    truth[1:4, 1:4] = truth[7:10, 6:9] = 1
    talk = list(simulate(truth, obedient(truth.shape), number=5))
    assert [clicks for clicks, _ in talk] == [[], [Click((2, 2), 1)], [Click((2, 2), 1), Click((8, 7), 1)]]
    assert not talk[0][1].any()
    np.testing.assert_array_equal(talk[-1][1], truth)
    assert len(list(simulate(truth, obedient(truth.shape), number=5, least_error=10))) == 2
    truth[7:10, 6:9] = 2
    ignored = list(simulate(truth, obedient(truth.shape), number=5, ignore=2))
    assert [clicks for clicks, _ in ignored] == [[], [Click((2, 2), 1)]]


def test_simulated_with_a_click_a_slice_or_a_line() -> None:
    truth = np.zeros((4, 12, 12), int)
    truth[0, 1:4, 1:4] = truth[2, 5:8, 1:4] = 1
    expected = [Click((0, 2, 2), 1), Click((2, 6, 2), 1)]
    talk = list(simulate(truth, obedient(truth.shape), number=3, slices=True, spacing=(5.0, 1.0, 1.0)))
    assert [clicks for clicks, _ in talk] == [[], expected]
    (_, (line, _)) = simulate(truth, obedient(truth.shape), number=1, mode="line")
    assert [click.position for click in line] == [(0, 2, 1), (2, 6, 1)]


def test_simulated_without_an_object() -> None:
    for mode in ClickMode:
        wrong = np.pad(np.ones((3, 3), int), 3)
        (_, (clicks, _)) = simulate(np.zeros((9, 9), int), lambda _, wrong=wrong: wrong, number=1, mode=mode)
        assert clicks == [Click((4, 4), 0)]
    volume = np.pad(np.ones((1, 3, 3), int), ((1, 0), (3, 3), (3, 3)))
    (_, (clicks, _)) = simulate(np.zeros((2, 9, 9), int), lambda _: volume, number=1, mode="line", slices=True)
    assert clicks == [Click((1, 4, 4), 0)]

from __future__ import annotations

import numpy as np
import pytest

from nnunet_qa.selection.diversity import THUMBNAIL, diverse_order, thumbnail


@pytest.mark.parametrize("shape", [(64, 48), (9, 40, 20)])
def test_a_thumbnail_knows_neither_brightness_nor_contrast(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 200, shape).astype(np.uint8)
    look = thumbnail(image)
    assert look.shape == (THUMBNAIL ** len(shape),)
    assert look.mean() == pytest.approx(0, abs=1e-12)
    assert look.std() == pytest.approx(1)
    np.testing.assert_allclose(thumbnail(image * 0.3 + 40), look, atol=1e-9)


def test_a_thumbnail_keeps_what_lies_where() -> None:
    image = np.zeros((64, 32))
    image[32:, :16] = 1
    look = thumbnail(image).reshape(THUMBNAIL, THUMBNAIL)
    half = THUMBNAIL // 2
    means = look[:half, :half].mean(), look[:half, half:].mean(), look[half:, :half].mean(), look[half:, half:].mean()
    assert np.argmax(means) == 2
    assert look[half + 2 :, : half - 2].min() > look[: half - 2].max()


def test_a_constant_image_looks_like_nothing() -> None:
    assert not thumbnail(np.full((20, 30), 7)).any()


def by_hand(utility: np.ndarray, features: np.ndarray, annotated: list[np.ndarray], number: int) -> list[int]:
    """Greedy choice, written out with every distance anew."""
    chosen: list[int] = []
    while len(chosen) < number:
        known = [*annotated, *(features[index] for index in chosen)]
        worth = {}
        for index in range(len(utility)):
            if index not in chosen:
                apart = min((float(np.sqrt(((features[index] - other) ** 2).sum())) for other in known), default=1.0)
                worth[index] = utility[index] * apart
        chosen.append(max(worth, key=lambda index: (worth[index], -index)))
    return chosen


@pytest.mark.parametrize("others", [0, 3])
def test_the_order_is_the_greedy_one(others: int) -> None:
    rng = np.random.default_rng(others)
    utility, features = rng.uniform(0.1, 1, 12), rng.normal(size=(12, 4))
    annotated = rng.normal(size=(others, 4))
    expected = by_hand(utility, features, list(annotated), 12)
    assert diverse_order(utility, features, annotated if others else None, number=12) == expected
    assert diverse_order(utility, features, annotated, number=5) == expected[:5]


def test_a_subject_that_is_full_makes_no_other_look_chosen() -> None:
    utility, subjects = np.array([1.0, 0.9, 0.8, 0.5]), ["x", "x", "y", "z"]
    features = np.array([[0.0], [10.0], [10.5], [4.0]])
    # without the limit 1 is second; 2 looks like 1, but 1 is not chosen once x is full
    assert diverse_order(utility, features, number=3) == [0, 1, 3]
    assert diverse_order(utility, features, number=3, subjects=subjects, per_subject=1) == [0, 2, 3]
    assert diverse_order(utility, features, number=9, subjects=subjects, per_subject=2) == [0, 1, 3, 2]


def test_duplicates_come_last_and_none_twice() -> None:
    features = np.array([[0.0], [0.0], [0.0], [1.0], [4.0]])
    order = diverse_order(np.array([1.0, 0.9, 0.8, 0.1, 0.1]), features, number=9)
    assert order[0] == 0
    assert set(order[1:3]) == {3, 4}
    assert sorted(order) == [0, 1, 2, 3, 4]


def test_what_is_annotated_is_not_chosen_before_what_is_new() -> None:
    features = np.array([[0.0], [2.0]])
    assert diverse_order(np.array([1.0, 0.2]), features, np.array([[0.0]]), number=1) == [1]

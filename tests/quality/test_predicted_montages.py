from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.coded_montages import CodedMontages, CodedPatch, render
from nnunet_qa.quality.codes import CodeSource, CodeThresholds
from nnunet_qa.quality.montage import MontageSpec
from nnunet_qa.quality.predicted_montages import predicted_montages

CLASSES = {"a": (1,), "b": (2,)}
REGIONS = {"both": (1, 2), "b": (2,)}
SPEC = MontageSpec.for_patch((32, 32), (1.0, 1.0), classes=2)


def patch(case_id: str = "c1", *, labels: np.ndarray | None = None) -> CodedPatch:
    if labels is None:
        labels = np.zeros((32, 32), np.int16)
        labels[:16, :20], labels[20:30] = 1, 2
    image = np.random.default_rng(0).random(labels.shape).astype(np.float32)
    return CodedPatch(case_id=case_id, subject=f"of {case_id}", image=image, labels=labels)


def sure(labels: np.ndarray, classes: dict[str, tuple[int, ...]] = CLASSES, *, p: float = 0.9) -> np.ndarray:
    """Probabilities that decide for these labels."""
    return np.stack([np.isin(labels, values) for values in classes.values()]) * np.float32(p)


def predicted(
    *predictions: tuple[CodedPatch, np.ndarray],
    classes: dict[str, tuple[int, ...]] = CLASSES,
    regions: bool = False,
    **options: Any,
) -> CodedMontages:
    how: dict[str, Any] = {"spec": SPEC, "thresholds": CodeThresholds(0.8, 0.5), "source": CodeSource.DICE, **options}
    return predicted_montages(predictions, classes=classes, regions=regions, **how)


def shifted(labels: np.ndarray, rows: int) -> np.ndarray:
    return np.roll(labels, rows, axis=0)


@pytest.mark.parametrize(
    ("rows", "dice", "code"),
    # a: 16 rows, of which 16 − n stay; b: 10 rows, of which 10 − n stay (n below 10)
    [(0, 1.0, 0), (2, (14 / 16 + 8 / 10) / 2, 0), (5, (11 / 16 + 5 / 10) / 2, 1), (9, (7 / 16 + 1 / 10) / 2, 2)],
)
def test_the_code_follows_from_the_dice(rows: int, dice: float, code: int) -> None:
    truth = np.zeros((48, 32), np.int16)
    truth[:16], truth[20:30] = 1, 2
    spec = MontageSpec.for_patch(truth.shape, (1.0, 1.0), classes=2)
    made = predicted((patch(labels=truth), sure(shifted(truth, rows))), spec=spec)
    assert made.dice[0] == pytest.approx(dice)
    assert made.codes.tolist() == [code]


def test_thresholds_and_source_are_settings() -> None:
    truth = patch().labels
    guess = sure(np.where(np.arange(32) < 20, truth, 0))  # all of a, 20 of 32 columns of b
    dice = (1 + 2 * 20 / 52) / 2
    for thresholds, code in ((CodeThresholds(0.8, 0.5), 0), (CodeThresholds(0.9, 0.5), 1), (CodeThresholds(1, 0.9), 2)):
        made = predicted((patch(), guess), thresholds=thresholds, source=CodeSource.CROSS_VALIDATION)
        assert made.dice[0] == pytest.approx(dice)
        assert made.codes.tolist() == [code]
        assert made.sources == ("cross_validation",)


def test_the_most_probable_class_wins_the_background_included() -> None:
    truth = np.zeros((32, 32), np.int16)
    truth[:8] = 1
    probabilities = np.zeros((2, 32, 32), np.float32)
    probabilities[:, :4] = np.array([0.4, 0.3])[:, None, None]  # a, before background with 0.3
    probabilities[:, 4:8] = np.array([0.3, 0.3])[:, None, None]  # background with 0.4
    made = predicted((patch(labels=truth), probabilities))
    assert made.dice[0] == pytest.approx(2 * 4 / (4 + 8))  # b is in neither and does not count


def test_what_is_rightly_left_empty_is_a_success() -> None:
    empty = np.zeros((32, 32), np.int16)
    made = predicted((patch(labels=empty), sure(empty)), (patch(labels=empty), sure(patch().labels)))
    assert made.dice.tolist() == [1.0, 0.0]
    assert made.codes.tolist() == [0, 2]


def test_each_region_is_decided_alone() -> None:
    truth = patch().labels
    probabilities = sure(truth, REGIONS, p=0.6)
    made = predicted((patch(), probabilities), classes=REGIONS, regions=True)
    assert made.dice[0] == 1
    probabilities[0] *= 0.8  # below 0.5: the region is not there
    made = predicted((patch(), probabilities), classes=REGIONS, regions=True)
    assert made.dice[0] == pytest.approx(0.5)


def test_pictures_show_the_probabilities() -> None:
    first, second = patch("c1"), patch("c2")
    soft = sure(first.labels, p=0.4)
    made = predicted((first, soft), (second, sure(second.labels)))
    assert made.pictures.shape == (2, 3, *SPEC.size)
    assert torch.equal(made.pictures[0], render(first.image, soft, SPEC))
    assert not torch.equal(made.pictures[0], made.pictures[1])
    assert (made.case_ids, made.subjects, made.sources) == (("c1", "c2"), ("of c1", "of c2"), ("dice", "dice"))


def test_volumes() -> None:
    labels = np.zeros((4, 32, 32), np.int16)
    labels[1:3, 4:20, 4:20] = 1
    spec = MontageSpec.for_patch(labels.shape, (4.0, 1.0, 1.0), classes=2)
    made = predicted((patch(labels=labels), sure(np.where(np.arange(4)[:, None, None] == 1, labels, 0))), spec=spec)
    assert made.dice[0] == pytest.approx(2 / 3)
    assert made.pictures.shape == (1, 3, *spec.size)


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(SelectionError, match="there is no prediction"):
        predicted()

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.coded_montages import (
    CodedMontages,
    CodedPatch,
    class_probabilities,
    equal_draw,
    render,
    simulated_montages,
    subject_parts,
)
from nnunet_qa.quality.codes import CodeThresholds
from nnunet_qa.quality.montage import MontageSpec
from tests.quality.easy_montages import easy_montages

CLASSES = {"a": (1,), "b": (2,)}
THRESHOLDS = CodeThresholds(success=0.85, failure=0.5)


def patch(case_id: str = "c1", *, dimensions: int = 2, empty: bool = False) -> CodedPatch:
    shape = (4, 32, 32)[-dimensions:]
    labels = np.zeros(shape, np.int16)
    if not empty:
        labels[..., 4:16, 4:28] = 1
        labels[..., 18:28, 8:20] = 2
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    return CodedPatch(case_id=case_id, subject=f"subject of {case_id}", image=image, labels=labels)


def spec_for(dimensions: int) -> MontageSpec:
    size, spacing = ((4, 32, 32), (5.0, 1.0, 1.0))
    return MontageSpec.for_patch(size[-dimensions:], spacing[-dimensions:], classes=2)


def simulated(*patches: CodedPatch, dimensions: int = 2, per_code: int = 2, seed: int = 0) -> CodedMontages:
    return simulated_montages(
        patches,
        spec=spec_for(dimensions),
        classes=CLASSES,
        thresholds=THRESHOLDS,
        rng=np.random.default_rng(seed),
        per_code=per_code,
    )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_simulated_montages_have_the_code_of_their_dice(dimensions: int) -> None:
    made = simulated(patch("c1", dimensions=dimensions), patch("c2", dimensions=dimensions), dimensions=dimensions)
    assert made.pictures.shape == (len(made), 3, *spec_for(dimensions).size)
    assert made.pictures.dtype == torch.uint8
    assert Counter(made.codes.tolist()) == {0: 4, 1: 4, 2: 4}
    by_dice = np.where(made.dice >= 0.85, 0, np.where(made.dice < 0.5, 2, 1))
    np.testing.assert_array_equal(made.codes, by_dice)
    assert Counter(zip(made.case_ids, made.subjects, strict=True)) == {
        ("c1", "subject of c1"): 6,
        ("c2", "subject of c2"): 6,
    }
    assert set(made.sources) == {"simulated"}


def test_the_same_seed_gives_the_same_montages_and_another_seed_others() -> None:
    first, again, other = (simulated(patch(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.pictures, again.pictures)
    assert not torch.equal(first.pictures, other.pictures)


def test_about_half_of_the_overlays_are_soft() -> None:
    black = CodedPatch(case_id="c", subject="s", image=np.zeros((32, 32), np.float32), labels=patch().labels)
    made = simulated(black, per_code=8)
    # without blending at the borders, a picture of hard labels has as many colours as labels
    soft = sum(len(torch.unique(picture.flatten(1), dim=1).T) > 3 for picture in made.pictures)
    assert 0.25 * len(made) < soft < 0.75 * len(made)


def test_what_cannot_be_corrupted_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = simulated(patch("full"), patch("empty", empty=True))
    found = Counter(zip(made.case_ids, made.codes.tolist(), strict=True))
    assert {found["full", code] for code in range(3)} == {2}
    missing = 12 - len(made)
    assert (f"{missing} of 12 simulated errors could not be made" in caplog.text) == (missing > 0)


def test_no_patch_is_refused() -> None:
    with pytest.raises(SelectionError, match="no annotated case"):
        simulated()
    with pytest.raises(ValueError, match="0 pictures of each code"):
        simulated(patch(), per_code=0)


def test_probabilities_are_the_masks_blurred_within_slices() -> None:
    labels = patch(dimensions=3).labels
    labels[1:] = 0
    hard = class_probabilities(labels, CLASSES, sigma=0, axis=0)
    np.testing.assert_array_equal(hard, np.stack([labels == 1, labels == 2]))
    soft = class_probabilities(labels, CLASSES, sigma=1.0, axis=0)
    for channel in range(2):
        np.testing.assert_allclose(soft[channel, 0], ndimage.gaussian_filter(hard[channel, 0], 1.0), atol=1e-6)
    assert not soft[:, 1:].any()
    assert soft.sum(axis=0).max() <= 1 + 1e-6


def test_regions_overlap() -> None:
    masks = class_probabilities(patch().labels, {"both": (1, 2), "b": (2,)}, sigma=0, axis=0)
    assert masks[0].sum() == (patch().labels > 0).sum()
    assert masks[1].sum() == (patch().labels == 2).sum()


def test_rendering_equals_the_formula() -> None:
    one, spec = patch(), spec_for(2)
    masks = class_probabilities(one.labels, CLASSES, sigma=0, axis=0)
    palette = np.array(spec.palette[:2])
    colour = np.einsum("cyx,ck->kyx", masks, palette)
    expected = 255 * ((1 - spec.blend) * one.image[None] + spec.blend * colour)
    np.testing.assert_allclose(render(one.image, masks, spec).numpy(), expected, atol=0.51)


def test_subset_and_joined_keep_rows_together() -> None:
    first, second = easy_montages(6, subjects=2), easy_montages(9, subjects=3, seed=1, source="simulated")
    both = CodedMontages.joined([first, second])
    assert len(both) == 15
    chosen = both.subset([14, 0])
    assert torch.equal(chosen.pictures, torch.stack([second.pictures[8], first.pictures[0]]))
    assert chosen.codes.tolist() == [2, 0]
    assert (chosen.case_ids, chosen.subjects) == (("case008", "case000"), ("S02", "S00"))
    assert chosen.sources == ("simulated", "human")
    assert len(both.subset([])) == 0


def test_wrong_montages_are_refused() -> None:
    good = easy_montages(3, subjects=1)
    fields = {name: getattr(good, name) for name in ("pictures", "codes", "dice", "subjects", "case_ids", "sources")}
    with pytest.raises(SelectionError, match='case "case001": 3 is no quality code; give 0, 1 or 2'):
        CodedMontages(**{**fields, "codes": np.array([0, 3, 1])})
    with pytest.raises(ValueError, match="as many of each"):
        CodedMontages(**{**fields, "subjects": ("S00",)})
    with pytest.raises(ValueError, match="pictures must be uint8"):
        CodedMontages(**{**fields, "pictures": good.pictures.float()})
    small = CodedMontages(**{**fields, "pictures": good.pictures[..., ::2, ::2]})
    with pytest.raises(SelectionError, match=r"sizes \(16, 16\), \(32, 32\) cannot be joined"):
        CodedMontages.joined([good, small])
    with pytest.raises(SelectionError, match="there are none"):
        CodedMontages.joined([])


@pytest.mark.parametrize(("subjects", "expected"), [(2, (1, 1, 0)), (3, (1, 1, 1)), (10, (8, 1, 1)), (40, (32, 4, 4))])
def test_subjects_are_kept_apart(subjects: int, expected: tuple[int, int, int]) -> None:
    montages = easy_montages(subjects * 6, subjects=subjects)
    parts = subject_parts(montages.subjects, montages.codes, np.random.default_rng(0))
    of = {part: set(np.array(montages.subjects)[parts == part]) for part in ("train", "validation", "test")}
    assert tuple(len(names) for names in of.values()) == expected
    assert len(set.union(*of.values())) == subjects


def test_without_a_test_part_its_share_is_fitted() -> None:
    montages = easy_montages(60)
    parts = subject_parts(montages.subjects, montages.codes, np.random.default_rng(0), test=False)
    assert Counter(parts.tolist()) == {"train": 54, "validation": 6}


def test_the_split_follows_the_seed() -> None:
    montages = easy_montages(60, subjects=20)
    one, same, other = (
        subject_parts(montages.subjects, montages.codes, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)
    )
    assert one == same != other


def test_every_code_is_fitted_and_validated_where_that_can_be() -> None:
    # only two of twenty subjects have code 2: one of them has to validate, and one to be fitted
    subjects = [f"S{k:02d}" for k in range(20) for _ in range(2)]
    codes = np.array([0, 1] * 18 + [2, 1] * 2)
    for seed in range(10):
        parts = subject_parts(subjects, codes, np.random.default_rng(seed))
        assert set(codes[parts == "train"]) == set(codes[parts == "validation"]) == {0, 1, 2}
    whole = np.array([0, 1, 2] * 6)
    parts = subject_parts([f"S{k // 3}" for k in range(18)], whole, np.random.default_rng(0))
    assert set(whole[parts == "validation"]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("subjects", "codes", "said"),
    [
        (["a", "b", "c"], [0, 2, 2], r"^no case has code 1; .* \(found 1 of code 0, 2 of code 2\)"),
        ([], [], "no case has code 0"),
        (["a", "a", "a"], [0, 1, 2], 'all montages are of the subject "a"'),
        (["a", "a", "b"], [0, 1, 2], "no split by subject"),
    ],
)
def test_too_few_subjects_or_codes_are_refused(subjects: list[str], codes: list[int], said: str) -> None:
    with pytest.raises(SelectionError, match=said):
        subject_parts(subjects, np.array(codes, dtype=np.int64), np.random.default_rng(0))


@pytest.mark.parametrize("number", [1, 2, 30, 100, 101])
def test_codes_are_drawn_equally_often(number: int) -> None:
    codes = np.array([0] * 50 + [1] * 5 + [2] * 2)
    drawn = equal_draw(codes, number, np.random.default_rng(0))
    assert len(drawn) == number
    counts = np.bincount(codes[drawn], minlength=3)
    assert counts.max() - counts.min() <= 1
    for code in range(3):
        times = Counter(drawn[codes[drawn] == code].tolist())
        every = [times[index] for index in np.flatnonzero(codes == code)]
        assert max(every) - min(every) <= 1


def test_the_draw_is_in_random_order() -> None:
    codes = np.array([0] * 20 + [1] * 20 + [2] * 20)
    drawn = codes[equal_draw(codes, 60, np.random.default_rng(0))]
    assert not (np.diff(drawn) >= 0).all()
    assert 20 < np.count_nonzero(np.diff(drawn)) < 59

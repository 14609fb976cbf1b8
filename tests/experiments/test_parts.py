"""Who is in which part: subjects, not cases, and as many of them as possible."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_qa.errors import DatasetError
from nnunet_qa.experiments.holdout import part_subjects

SUBJECTS = {f"S{subject}_c{case}": f"S{subject}" for subject in range(7) for case in range(3)}


def subjects_of(cases: tuple[str, ...], subjects: dict[str, str] = SUBJECTS) -> set[str]:
    return {subjects[case] for case in cases}


@pytest.mark.parametrize(("folds", "validation"), [(2, 1), (3, 2), (7, 5)])
def test_no_subject_is_in_two_parts_and_every_one_is_tested_once(folds: int, validation: int) -> None:
    tested: list[str] = []
    for seed in range(folds):
        parts = part_subjects(SUBJECTS, seed=seed, test_folds=folds, validation_subjects=validation)
        sets = [subjects_of(cases) for cases in (parts.pool, parts.validation, parts.test)]
        assert all(sets)
        assert sum(map(len, sets)) == len(set.union(*sets)) == 7
        assert len(sets[1]) == validation
        assert sorted([*parts.pool, *parts.validation, *parts.test]) == sorted(SUBJECTS)
        tested += sets[2]
    assert sorted(tested) == sorted(set(SUBJECTS.values()))


def test_the_validation_subjects_are_drawn_by_the_seed() -> None:
    drawn = []
    for seed in range(0, 60, 3):  # all of these test fold 0 of three
        parts = part_subjects(SUBJECTS, seed=seed)
        assert parts.test == part_subjects(SUBJECTS, seed=0).test
        assert parts == part_subjects(dict(reversed(SUBJECTS.items())), seed=seed)
        drawn.append(subjects_of(parts.validation))
    rest = set(SUBJECTS.values()) - subjects_of(part_subjects(SUBJECTS, seed=0).test)
    assert set.union(*drawn) == rest


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"test_folds": 8}, "7 subjects cannot be parted into 8 test folds; use 2 to 7"),
        ({"test_folds": 1}, "into 1 test folds"),
        ({"test_folds": 7, "validation_subjects": 6}, "6 subjects are left beside the test subjects; 6 for validation"),
        ({"validation_subjects": 0}, "0 for validation"),
    ],
)
def test_too_few_subjects(options: dict[str, int], text: str) -> None:
    with pytest.raises(DatasetError, match=text):
        part_subjects(SUBJECTS, seed=0, **options)


@pytest.mark.parametrize("number", [1, 3, 5, 8])
def test_labelled_cases_come_from_as_many_subjects_as_possible(number: int) -> None:
    whole = part_subjects(SUBJECTS, seed=0)  # nine cases of three subjects in the pool
    parts = whole.with_labelled(number, SUBJECTS, np.random.default_rng(5))
    assert (parts.validation, parts.test) == (whole.validation, whole.test)
    assert sorted([*parts.pool, *parts.unlabelled]) == sorted(whole.pool)
    assert len(parts.pool) == number
    counts = [sum(SUBJECTS[case] == subject for case in parts.pool) for subject in subjects_of(whole.pool)]
    assert max(counts) - min(counts) <= 1
    assert list(parts.pool) == sorted(parts.pool)
    assert list(parts.unlabelled) == sorted(parts.unlabelled)


def test_labelled_cases_are_drawn_by_the_generator() -> None:
    whole = part_subjects(SUBJECTS, seed=0)
    drawn = [whole.with_labelled(4, SUBJECTS, np.random.default_rng(seed)).pool for seed in (1, 1, 2, 3, 4, 5, 6, 7)]
    assert drawn[0] == drawn[1]
    assert {case for pool in drawn for case in pool} == set(whole.pool)  # no case is preferred


@pytest.mark.parametrize("number", [0, 9, 10])
def test_labels_for_none_or_all_are_refused(number: int) -> None:
    whole = part_subjects(SUBJECTS, seed=0)
    said = f"9 cases are neither for validation nor for test; {number} labelled ones leave none unlabelled"
    with pytest.raises(DatasetError, match=said):
        whole.with_labelled(number, SUBJECTS, np.random.default_rng(0))

from __future__ import annotations

import pytest

from nnunet_qa.dataset_conversion.subjects import chosen_subjects
from nnunet_qa.errors import DatasetError


def test_test_subjects() -> None:
    known = ["S01", "S02", "S03"]
    assert chosen_subjects(["s01,S02"], known) == chosen_subjects(["S01", "S02"], known) == {"S01", "S02"}
    assert chosen_subjects([], known) == set()
    with pytest.raises(DatasetError, match='no subject "S04"'):
        chosen_subjects(["S04"], known)
    with pytest.raises(DatasetError, match="names every subject"):
        chosen_subjects(["S01,S02,S03"], known)


def test_of_many_subjects_a_few_are_named() -> None:
    with pytest.raises(DatasetError, match=r'"S0x".*did you mean.*found: S000, S001, .*S019, … \(900 in all\)$'):
        chosen_subjects(["S0x"], [f"S{number:03d}" for number in range(900)])

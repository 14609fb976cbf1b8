from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_qa.data.bank import LOCATIONS, Bank, JoinedDataset, foreground_locations
from nnunet_qa.errors import DatasetError

GROUPS = (2, (1, 2), 3)


def label_map(value: int) -> np.ndarray:
    labels = np.zeros((1, 2, 3, 4), np.int16)
    labels[0, 1, 1:, 2] = value
    labels[0, 0, 0, 0] = -1
    return labels


def filled(folder: Path, rounds: int = 1) -> Bank:
    """Round n holds P1 with label n; P2 was ranked and not chosen."""
    bank = Bank(folder / "bank")
    for number in range(1, rounds + 1):
        bank.begin(number)
        bank.add(number, "P1", label_map(number))
        bank.add(number, "P2", label_map(1))
        bank.finish(
            number, pd.DataFrame({"case_id": ["P1", "P2"], "q": [0.9, 0.2], "chosen": [True, False]}), groups=GROUPS
        )
    return bank


def preprocessed(folder: Path, cases: dict[str, int]) -> nnUNetDatasetBlosc2:
    """nnU-Net's own dataset whose cases are filled with a value."""
    folder.mkdir()
    for case, value in cases.items():
        image = np.full((1, 2, 3, 4), value, np.float32)
        properties = {"class_locations": {1: [[0, 0, 0, value]]}, "spacing": [1, 1, 1]}
        seg = np.full((1, 2, 3, 4), value, np.int8)
        nnUNetDatasetBlosc2.save_case(image, seg, properties, str(folder / case))
    return nnUNetDatasetBlosc2(str(folder), list(cases))


def test_a_round_keeps_the_chosen_label_maps_and_the_whole_ranking(tmp_path: Path) -> None:
    bank = filled(tmp_path)
    assert bank.cases(1) == ["P1"]
    assert bank.ranking(1)["case_id"].tolist() == ["P1", "P2"]
    assert np.array_equal(bank.labels(1, "P1")[:], label_map(1))
    assert sorted(path.name for path in bank.round(1).iterdir()) == ["P1.b2nd", "P1.npz", "ranking.csv"]


def test_values_beyond_a_byte_are_kept(tmp_path: Path) -> None:
    assert np.array_equal(filled(tmp_path, 200).labels(200, "P1")[:], label_map(200))


def test_a_round_that_broke_off_is_not_there_and_can_be_done_again(tmp_path: Path) -> None:
    bank = filled(tmp_path)
    bank.begin(2)
    bank.add(2, "P9", label_map(1))
    assert not bank.round(2).exists()
    bank.begin(2)
    bank.finish(2, pd.DataFrame({"case_id": ["P2"], "chosen": [False]}), groups=GROUPS)
    assert [path.name for path in bank.round(2).iterdir()] == ["ranking.csv"]


def test_a_resume_misses_earlier_rounds_and_the_next_round_forgets_later_ones(tmp_path: Path) -> None:
    bank = filled(tmp_path, 3)
    bank.begin(4)
    bank.check(3)  # leaves everything where it is: the training may be started by mistake
    assert len(list(bank.folder.iterdir())) == 4
    bank.forget(1)
    assert [path.name for path in bank.folder.iterdir()] == ["round_001"]
    bank.check(1)
    with pytest.raises(DatasetError, match=r"round_002: the pseudo-labels of round 2 are missing"):
        bank.check(2)
    assert bank.cases(1) == ["P1"]
    bank.forget(0)
    assert not list(bank.folder.iterdir())


def test_the_joined_dataset_gives_each_case_from_where_it_lies(tmp_path: Path) -> None:
    annotated = preprocessed(tmp_path / "annotated", {"A": 5, "B": 6})
    pool = preprocessed(tmp_path / "pool", {"P1": 7, "P2": 8})
    joined = JoinedDataset(annotated, pool, filled(tmp_path, 2), 2, groups=GROUPS)
    assert list(joined.identifiers) == ["A", "B", "P1"]
    image, labels, previous, properties = joined.load_case("B")
    assert (image[:] == 6).all()
    assert (labels[:] == 6).all()
    assert properties["class_locations"] == {1: [[0, 0, 0, 6]]}
    image, labels, previous, properties = joined.load_case("P1")
    assert (image[:] == 7).all()
    assert np.array_equal(labels[:], label_map(2))
    assert previous is None
    assert properties["spacing"] == [1, 1, 1]
    for group in (2, (1, 2)):
        assert properties["class_locations"][group].tolist() == [[0, 1, 1, 2], [0, 1, 2, 2]]
    assert len(properties["class_locations"][3]) == 0


def test_locations_of_large_structures_are_a_spread_sample() -> None:
    labels = np.zeros((1, 40, 40, 40), np.int8)
    labels[0, :, 5:] = 1
    places = foreground_locations(labels, [1])[1]
    assert LOCATIONS / 2 < len(places) <= LOCATIONS
    assert (labels[tuple(places.T)] == 1).all()
    assert set(places[:, 1]) == set(range(40))
    assert foreground_locations(labels, [1])[1].tolist() == places.tolist()

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnunet_qa.data.one_case_loader import OneCaseLoader


class Volumes:
    """Cases whose voxels say where they lie: 10 000 · slice + 100 · row + column, plus a million a case."""

    def __init__(self, *slices: int, rows: int = 30, columns: int = 40) -> None:
        self.identifiers = [f"c{number}" for number in range(len(slices))]
        self.volumes = {}
        for number, (case, depth) in enumerate(zip(self.identifiers, slices, strict=True)):
            z, y, x = np.meshgrid(*map(np.arange, (depth, rows, columns)), indexing="ij")
            self.volumes[case] = (1_000_000 * number + 10_000 * z + 100 * y + x)[None].astype(np.float32)

    def load_case(self, case: str) -> tuple[np.ndarray, np.ndarray, None, dict[str, Any]]:
        volume = self.volumes[case]
        label = (volume % 100 >= 36).astype(np.int16)  # at the right edge
        places = np.argwhere(label)
        return volume, label, None, {"class_locations": {1: places}}


def loader(volumes: Volumes, batch_size: int, patch: tuple[int, int] = (8, 16), **options: Any) -> OneCaseLoader:
    labels = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    return OneCaseLoader(volumes, batch_size, patch, patch, labels, **options)


def places(batch: dict[str, Any]) -> tuple[list[int], list[int], set[tuple[int, int]]]:
    """Case and slice of each image, and the upper left corners."""
    corners = batch["data"][:, 0, 0, 0].long()
    cases, rest = (corners // 1_000_000).tolist(), corners % 1_000_000
    return cases, (rest // 10_000).tolist(), {(int(r) // 100 % 100, int(r) % 100) for r in rest}


@pytest.mark.parametrize(
    ("slices", "batch_size", "expected"),
    [
        (12, 4, [1, 4, 7, 10]),
        (10, 3, [1, 5, 8]),
        (4, 4, [0, 1, 2, 3]),
        (9, 1, [4]),
        (2, 4, [0, 0, 1, 1]),  # fewer slices than places
        (1, 3, [0, 0, 0]),
    ],
)
def test_slices_are_evenly_spaced_and_at_one_place(slices: int, batch_size: int, expected: list[int]) -> None:
    batches = loader(Volumes(slices), batch_size)
    for _ in range(4):  # each batch begins anew
        batch = batches.generate_train_batch()
        assert batch["data"].shape == (batch_size, 1, 8, 16)
        _, found, corners = places(batch)
        assert found == expected
        assert len(corners) == 1


def test_a_batch_is_of_one_case_and_the_next_may_be_of_another() -> None:
    np.random.seed(0)
    batches = loader(Volumes(5, 6, 7), 3)
    drawn, corners = [], set()
    for _ in range(30):
        batch = batches.generate_train_batch()
        cases, _, corner = places(batch)
        assert len(set(cases)) == 1
        assert batch["keys"] == [f"c{cases[0]}"] * 3
        drawn.append(cases[0])
        corners |= corner
    assert set(drawn) == {0, 1, 2}
    assert len(corners) > 10


def test_labels_belong_to_their_slices() -> None:
    batch = loader(Volumes(6), 3, patch=(30, 40)).generate_train_batch()
    columns = batch["data"].long() % 100
    assert np.array_equal(batch["target"].numpy(), (columns >= 36).numpy())


def test_the_place_holds_foreground_where_that_is_wanted() -> None:
    """nnU-Net asks for it image by image; here the first one decides for all."""
    np.random.seed(0)
    for share, low in ((1.0, 40), (0.0, 0), (0.5, 5)):
        batches = loader(Volumes(6), 4, oversample_foreground_percent=share, probabilistic_oversampling=True)
        held = [bool(batches.generate_train_batch()["target"].any()) for _ in range(40)]
        assert low <= sum(held)
        if share < 1:
            assert not all(held)


def test_a_patch_larger_than_the_slice_is_padded() -> None:
    batch = loader(Volumes(3, rows=6, columns=10), 3).generate_train_batch()
    assert batch["data"].shape == (3, 1, 8, 16)
    inside = batch["data"][:, 0, 1:7, 3:13].long()
    assert (inside[:, 0, 0] // 10_000 % 100).tolist() == [0, 1, 2]
    assert (batch["target"][:, :, 0] == -1).all()

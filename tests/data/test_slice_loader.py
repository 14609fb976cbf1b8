from __future__ import annotations

from typing import Any

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_qa.data.slice_loader import SliceLoader, slices_of

LABELS = LabelManager({"background": 0, "bone": 1}, None)
SIZES = {"a": (3, 12, 20), "b": (2, 12, 20), "c": (1, 5, 6)}


class Volumes:
    """Preprocessed cases whose voxels tell where they lie; `c` is smaller than a patch."""

    identifiers = tuple(SIZES)

    def load_case(self, case: str) -> tuple[np.ndarray, np.ndarray, None, dict[str, Any]]:
        z, y, x = np.indices(SIZES[case])
        told = 1 + x + 100 * y + 10_000 * z + 100_000 * self.identifiers.index(case)
        return told[None].astype(np.float32), np.ones((1, *SIZES[case]), np.int8), None, {"class_locations": {}}


def loader(**changed: Any) -> SliceLoader:
    dataset = Volumes()
    return SliceLoader(dataset, 4, (8, 8), LABELS, **{"slices": slices_of(dataset), "seed": 3, **changed})


def drawn(patches: np.ndarray) -> list[tuple[str, int]]:
    """Case and slice of each patch, read from its voxels."""
    first = [int(patch[patch > 0][0]) for patch in patches]
    return [("abc"[value // 100_000], value % 100_000 // 10_000) for value in first]


def test_no_slice_comes_again_before_all_were_drawn() -> None:
    assert slices_of(Volumes()) == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("c", 0)]
    batches = loader()
    found = [one for _ in range(6) for one in drawn(next(batches)["data"].numpy())]  # four times through six slices
    rounds = [found[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(one) == slices_of(Volumes()) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_patches_lie_anywhere_within_the_slice_and_pad_a_smaller_one() -> None:
    batches = loader()
    corners = set()
    for _ in range(60):
        batch = next(batches)
        for patch, target in zip(batch["data"].numpy()[:, 0], batch["target"].numpy()[:, 0], strict=True):
            inside = patch > 0
            assert (target == np.where(inside, 1, -1)).all()
            if inside.all():
                corner = int(patch[0, 0] - 1) % 10_000
                corners.add((corner // 100, corner % 100))
                assert (patch - patch[0, 0] == np.add.outer(100 * np.arange(8), np.arange(8))).all()
            else:
                assert np.argwhere(inside).min(0).tolist() == [2, 1]
                assert np.argwhere(inside).max(0).tolist() == [6, 6]
    assert {y for y, _ in corners} == set(range(5))
    assert {x for _, x in corners} == set(range(13))


def test_a_round_repeats_itself() -> None:
    batches = loader(batches_a_round=2)
    first, second, third, fourth, other = (next(batches)["data"].numpy() for _ in range(5))
    assert (first == third).all()
    assert (second == fourth).all()
    assert (first == other).all()
    assert not (first == second).all()
    assert not (first == next(loader(seed=4))["data"].numpy()).all()

"""Batches of slices without repetition until all were used (paper 004, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader


def slices_of(dataset: Any) -> list[tuple[str, int]]:
    """Every slice of a preprocessed dataset as `(case, number)`; a 2D image has one."""
    return [(case, number) for case in dataset.identifiers for number in range(dataset.load_case(case)[0].shape[1])]


class SliceLoader(nnUNetDataLoader):
    """nnU-Net's loader for a 2D configuration that draws slices, not cases, and none again before all were drawn.

    A patch is cut out of its slice at random, wherever the foreground is; a smaller slice is padded on both sides.
    Run it in one process: two would each go through all slices in an order of their own.

    Args:
        dataset: preprocessed cases.
        batch_size: patches a batch.
        patch_size: `(y, x)`.
        label_manager: nnU-Net's.
        slices: what is drawn, `(case, number)`; at least one.
        seed: of order and places.
        batches_a_round: after so many batches the same ones come again; None for never.
        transforms: applied to each patch.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        patch_size: Sequence[int],
        label_manager: Any,
        *,
        slices: Sequence[tuple[str, int]],
        seed: int,
        batches_a_round: int | None = None,
        transforms: Any = None,
    ) -> None:
        super().__init__(dataset, batch_size, patch_size, patch_size, label_manager, transforms=transforms)
        self.slices, self.seed, self.batches_a_round = list(slices), seed, batches_a_round
        self._begin()

    def _begin(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._left: list[int] = []
        self._drawn_batches = 0

    def get_indices(self) -> list[str]:
        """The cases of the next batch's slices."""
        if self._drawn_batches == self.batches_a_round:
            self._begin()
        self._drawn_batches += 1
        drawn = [self._next_slice() for _ in range(self.batch_size)]
        self._numbers = [number for _, number in drawn]
        return [case for case, _ in drawn]

    def _next_slice(self) -> tuple[str, int]:
        if not self._left:
            self._left = self._rng.permutation(len(self.slices)).tolist()
        return self.slices[self._left.pop()]

    def get_bbox(
        self,
        data_shape: np.ndarray,
        force_fg: bool,
        class_locations: dict | None,
        overwrite_class: int | tuple[int, ...] | None = None,
        verbose: bool = False,
    ) -> tuple[list[int], list[int]]:
        """A random place in the slice whose turn it is."""
        low = [self._numbers.pop(0)]
        for size, patch in zip(data_shape[1:], self.patch_size[1:], strict=True):
            spare = int(size) - int(patch)
            low.append(int(self._rng.integers(spare + 1)) if spare > 0 else spare // 2)
        return low, [start + int(patch) for start, patch in zip(low, self.patch_size, strict=True)]

"""Batches of slices of one case: what a montage shows where a 2D configuration is trained on volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader


class OneCaseLoader(nnUNetDataLoader):
    """nnU-Net's loader for a 2D configuration; each batch holds evenly spaced slices of one case, at the same place.

    A case with fewer slices than the batch has places is shown with repetitions.
    """

    _drawn = 0
    _place: tuple[list[int], list[int]] | None = None

    def get_indices(self) -> Any:
        """One case, for every place in the batch."""
        self._drawn, self._place = 0, None
        return [self.indices[np.random.randint(len(self.indices))]] * self.batch_size

    def get_bbox(
        self,
        data_shape: np.ndarray,
        force_fg: bool,
        class_locations: dict | None,
        overwrite_class: int | tuple[int, ...] | None = None,
        verbose: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Rows and columns as nnU-Net draws them for the first slice; the slice from the number of the call."""
        if self._place is None:
            self._place = super().get_bbox(data_shape, force_fg, class_locations, overwrite_class, verbose)
        low, high = (list(bounds) for bounds in self._place)
        middle = (2 * self._drawn + 1) * int(data_shape[0]) // (2 * self.batch_size)
        self._drawn += 1
        return [middle, *low[1:]], [middle + 1, *high[1:]]

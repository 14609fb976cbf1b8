"""Figure 5 of paper 004: patches as the network got them, as they were, and as it restored them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nnunet_qa.files import replacing

_INCHES = 2.4


def restoration_picture(path: Path, rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Path:
    """Write patches as PNG in one step, one row a patch.

    Args:
        path: where to.
        rows: for each patch one array `(channels, *spatial)` a title, 0 is shown black and 1 white; the first channel
            is shown, and of a volume the middle slice along its first axis.
        titles: text above the columns.

    Returns:
        `path`.

    Raises:
        StorageError: the file could not be written.
    """
    figure = Figure(figsize=(_INCHES * len(titles), _INCHES * len(rows) + 0.3), dpi=130, layout="constrained")
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    for places, row in zip(grid, rows, strict=True):
        for place, image in zip(places, row, strict=True):
            shown = image[0] if image.ndim == 3 else image[0, image.shape[1] // 2]
            place.imshow(shown, cmap="gray", vmin=0, vmax=1)
            place.set_axis_off()
    for place, title in zip(grid[0], titles, strict=True):
        place.set_title(title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return path

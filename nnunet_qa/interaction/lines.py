"""A line of clicks in one lateral view instead of a click a slice (paper 004, future work).

The user looks at a volume from the side, at a plane across a lateral axis, and draws a line through the object; where
it crosses a slice it clicks.
"""

from __future__ import annotations

import numpy as np

from nnunet_qa.interaction.clicks import BACKGROUND, Click


def line_clicks(
    truth: np.ndarray, *, axis: int, rng: np.random.Generator | None = None, ignore: int | None = None
) -> list[Click]:
    """The clicks of a line through each class: the middle of its longest run in each slice of one plane.

    Args:
        truth: label map `(z, y, x)`, or `(y, x)`, which is one slice and gets one click a class.
        axis: the axis that the plane is across; not the axis of the slices.
        rng: draws a class's plane in proportion to what each holds of the class; None for the one that holds most.
        ignore: label of `truth` that is no class.

    Returns:
        In the order of classes and slices; empty where there is no object.

    Raises:
        ValueError: `axis` is no lateral axis.

    >>> truth = np.zeros((3, 4, 5), int)
    >>> truth[:2, 1:4, 3] = 1
    >>> line_clicks(truth, axis=2)
    [Click(position=(0, 2, 3), label=1), Click(position=(1, 2, 3), label=1)]
    """
    flat = truth.ndim == 2
    volume = truth[None] if flat else truth
    across = axis + 1 if flat else axis
    if across not in (1, 2):
        raise ValueError(f"axis {axis} of {truth.ndim} is not lateral")
    clicks = []
    for label in np.unique(truth):
        if label in (BACKGROUND, ignore):
            continue
        held = (volume == label).sum(axis=(0, 3 - across))
        plane = int(held.argmax() if rng is None else rng.choice(len(held), p=held / held.sum()))
        section = volume.take(plane, axis=across) == label
        for z in np.flatnonzero(section.any(axis=1)):
            along = _middle_of_longest_run(section[z])
            lateral = (plane, along) if across == 1 else (along, plane)
            clicks.append(Click(lateral if flat else (int(z), *lateral), int(label)))
    return clicks


def _middle_of_longest_run(row: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.pad(row.astype(np.int8), 1)))
    starts, ends = edges[::2], edges[1::2]
    longest = int((ends - starts).argmax())
    return int(starts[longest] + ends[longest] - 1) // 2

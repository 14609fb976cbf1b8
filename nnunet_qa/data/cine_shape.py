"""Regions of an exact number of pixels, the way in which cine phantoms keep to their curves."""

from __future__ import annotations

import numpy as np


def smallest_pixels(level: np.ndarray, counts: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Of each frame the pixels of smallest level, as many as asked for.

    Args:
        level: `(frames, rows, columns)`, small inside a structure and growing outwards.
        counts: `(frames,)` pixels wanted.
        allowed: where they may lie, same shape as `level`; everywhere where None.

    Returns:
        `(frames, rows, columns)` bool with exactly `counts` pixels a frame.

    Raises:
        ValueError: fewer pixels are allowed than wanted.

    >>> smallest_pixels(np.array([[[3.0, 1.0, 2.0, 0.5]]]), np.array([2])).astype(int)
    array([[[0, 1, 0, 1]]])
    """
    chosen = np.zeros(level.shape, dtype=bool)
    for frame, count in enumerate(counts):
        if count == 0:
            continue
        free = np.flatnonzero(allowed[frame]) if allowed is not None else np.arange(level[frame].size)
        if count > len(free):
            raise ValueError(f"a structure of {count} pixels does not fit in {len(free)}; use a larger field of view")
        order = np.argpartition(level[frame].ravel()[free], count - 1)
        chosen[frame].ravel()[free[order[:count]]] = True
    return chosen


def border_level(level: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The level at the border of each frame's region, `(frames, 1, 1)`; −infinity where the region is empty."""
    inside = np.where(chosen, level, -np.inf)
    return np.asarray(inside.max(axis=(1, 2), keepdims=True))


def soft(level: np.ndarray, border: np.ndarray | float, width: float) -> np.ndarray:
    """How much of each pixel lies inside: 1 well below the border, 0 well above it, a ramp of `width` between."""
    return np.clip((border - level) / width + 0.5, 0, 1)

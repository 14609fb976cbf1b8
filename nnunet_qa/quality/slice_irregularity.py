"""How unlike a heart the labelled area is from slice to slice and from frame to frame, for every frame of a stack.

The curve of a whole ventricle can be smooth while a network loses a slice here and adds one there. The area of each
slice, which `Acquisition.pixels` has anyway, shows that.
"""

from __future__ import annotations

import numpy as np

HARMONICS = 4
"""What a heartbeat has; the rest of a curve is noise and jumps."""


def without_harmonics(curves: np.ndarray) -> np.ndarray:
    """What four harmonics leave of curves `(frames, …)` over one cycle.

    >>> bool(np.abs(without_harmonics(np.cos(np.arange(20) * np.pi / 5))).max() < 1e-12)
    True
    """
    spectrum = np.fft.rfft(curves, axis=0)
    spectrum[: HARMONICS + 1] = 0
    return np.fft.irfft(spectrum, len(curves), axis=0)


def irregularity_in_time(pixels: np.ndarray) -> np.ndarray:
    """What four harmonics leave of the area of each slice, absolute, over all slices: `(frames)`, 0 for a smooth cycle.

    Args:
        pixels: labelled pixels `(frames, slices)`.

    Returns:
        In units of the mean of a whole frame; zeros where there is no pixel.
    """
    mean = pixels.sum(axis=1).mean()
    return np.abs(without_harmonics(pixels)).sum(axis=1) / max(mean, 1)


def irregularity_in_space(pixels: np.ndarray) -> np.ndarray:
    """Second differences of the area from slice to slice, absolute, over all slices: `(frames)`, 0 where it is empty.

    Beyond both ends lies an empty slice. Of one slice the number is always 4.

    Args:
        pixels: labelled pixels `(frames, slices)`.

    Returns:
        In units of the frame's own pixels, in [0, 4].

    >>> irregularity_in_space(np.array([[1, 2, 3, 2, 1], [3, 0, 3, 0, 3], [0, 0, 0, 0, 0]])).round(2).tolist()
    [0.44, 4.0, 0.0]
    """
    bends = np.diff(np.pad(pixels, ((0, 0), (2, 2))), n=2, axis=1)
    return np.abs(bends).sum(axis=1) / np.maximum(pixels.sum(axis=1), 1)

"""How well an image was restored: mean absolute error, PSNR and SSIM, on intensities in [0, 1]."""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity

_WINDOW = 7


def restoration_measures(clean: np.ndarray, restored: np.ndarray) -> dict[str, float]:
    """Compare a restored image with the clean one.

    Args:
        clean: `(channels, *spatial)`, in [0, 1].
        restored: of the same shape.

    Returns:
        `l1`; `psnr` in dB, −10 log10 of the mean squared error, at most 100; and `ssim`, the mean over channels and
        slices (along the first axis of a volume), not a number where a slice is a single row.
    """
    error = clean.astype(np.float64) - restored
    squared = float(np.square(error).mean())
    size = clean.shape[-2:]
    # windows are odd; slices too small for the usual one get the largest that fits, single rows none
    window = min(_WINDOW, *(side - 1 + side % 2 for side in size))
    pairs = zip(clean.reshape(-1, *size), restored.reshape(-1, *size), strict=True)
    similar = [structural_similarity(*pair, data_range=1.0, win_size=window) for pair in pairs] if window > 1 else []
    return {
        "l1": float(np.abs(error).mean()),
        "psnr": -10 * float(np.log10(max(squared, 1e-10))),
        "ssim": float(np.mean(similar)) if similar else float("nan"),
    }

"""Diversity within a selection: of two images that look alike, annotating one is enough.

Neighbouring slices of a subject differ little, so the images that a network finds hardest are often one image several
times over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from skimage.transform import resize

THUMBNAIL = 16
"""Voxels of a thumbnail along each axis."""


def thumbnail(image: np.ndarray) -> np.ndarray:
    """What an image looks like from afar, as a vector of mean 0 and standard deviation 1.

    Args:
        image: `(*spatial)`, 2D or 3D.

    Returns:
        `(16 ** dimensions,)`; all zeros for a constant image.
    """
    small = resize(image.astype(np.float64), (THUMBNAIL,) * image.ndim, order=1, anti_aliasing=True).ravel()
    spread = small.std()
    return (small - small.mean()) / spread if spread > 0 else np.zeros_like(small)


def diverse_order(
    utility: np.ndarray,
    features: np.ndarray,
    annotated: np.ndarray | None = None,
    *,
    number: int,
    subjects: Sequence[str] | None = None,
    per_subject: int | None = None,
) -> list[int]:
    """Choose greedily: each time the image with the largest utility × distance to the nearest one that is chosen.

    Args:
        utility: worth of annotating each image `(images,)`, at least 0.
        features: a vector for each image `(images, features)`; their Euclidean distance says how alike they are.
        annotated: vectors of images that have been annotated already `(others, features)`.
        number: how many to choose at most.
        subjects: subject of each image, for `per_subject`.
        per_subject: how many of one subject to choose at most; None for no limit.

    Returns:
        Indices in the order of choice. With nothing annotated, the first is the one with the largest utility.
    """
    known: Sequence[np.ndarray] = [] if annotated is None else list(annotated)
    nearest = np.full(len(utility), np.inf)
    for other in known:
        nearest = np.minimum(nearest, np.linalg.norm(features - other, axis=1))
    chosen: list[int] = []
    free = np.ones(len(utility), dtype=bool)
    groups = np.arange(len(utility)) if subjects is None else np.asarray(subjects)
    while len(chosen) < number and free.any():
        worth = utility * np.where(np.isinf(nearest), 1.0, nearest)
        best = int(np.argmax(np.where(free, worth, -1.0)))
        chosen.append(best)
        free[best] = False
        if per_subject is not None and np.count_nonzero(groups[chosen] == groups[best]) >= per_subject:
            free &= groups != groups[best]
        nearest = np.minimum(nearest, np.linalg.norm(features - features[best], axis=1))
    return chosen

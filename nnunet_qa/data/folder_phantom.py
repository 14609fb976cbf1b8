"""Drawn images with masks in two plain folders, for `convert folder`: for tests, demos and dry runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from nnunet_qa.data.images import Geometry, write_image
from nnunet_qa.files import make_folder

_TURNED = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def write_folder(
    folder: Path,
    rng: np.random.Generator,
    *,
    cases: int = 6,
    annotated: int = 4,
    shape: tuple[int, ...] = (12, 24, 32),
    ending: str = ".nii.gz",
) -> list[Path]:
    """Write `images/case_01…` and `masks/case_01_seg…`: noise with brighter blobs, masks 0 and 1.

    Args:
        folder: where the two folders are made.
        rng: source of all chance.
        cases: how many images.
        annotated: how many of these have a mask.
        shape: `(slices, rows, columns)` for volumes, `(rows, columns)` for pictures.
        ending: of the files; the format follows it.

    Returns:
        The images.
    """
    geometry = Geometry((0.8, 0.9, 2.5), (-30.0, 12.0, 5.0), _TURNED)
    paths = []
    for folder_name in ("images", "masks"):
        make_folder(folder / folder_name)
    for number in range(1, cases + 1):
        field = ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
        mask = field > np.quantile(field, 0.85)
        image = np.rint(90 + 60 * mask + rng.normal(0, 8, size=shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / "images" / f"case_{number:02d}{ending}")
        place = geometry if len(shape) == 3 else None
        write_image(paths[-1], image, place)
        if number <= annotated:
            write_image(folder / "masks" / f"case_{number:02d}_seg{ending}", mask.astype(np.uint8), place)
    return paths

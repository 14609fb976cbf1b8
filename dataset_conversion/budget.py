"""How much an image may unpack to: a compressed file of a few kilobytes can claim to hold all the memory there is.

The sizes in a header are multiplied before a pixel is decoded.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_qa.data.images import Geometry, read_volume
from nnunet_qa.errors import ImageError

BUDGET = 4 << 30
"""Bytes that any file may unpack to; a CT of 2,000 slices of 512×512 has a quarter of that."""
RATIO = 20
"""Beyond the budget, times the size of the file; images do not shrink to less, masks of that size are not drawn."""


def check_unpacked(wanted: int, weight: int, name: str) -> None:
    """Refuse an image that unpacks to more than `BUDGET` and to far more than it weighs.

    Args:
        wanted: bytes of its pixels, as the header states them.
        weight: bytes of the files that hold them.
        name: for the error text.

    Raises:
        ImageError: names both figures.
    """
    if wanted > max(BUDGET, RATIO * weight):
        raise ImageError(
            f"{name}: unpacks to {wanted} bytes by its header, but weighs {weight} (damaged, or made to fill the "
            "memory?); not read"
        )


def check_volume(path: Path, data: Path | None = None) -> None:
    """Apply `check_unpacked` to a file that SimpleITK reads.

    Args:
        path: the file; what is wrong with its header is left to its reader to say.
        data: the file that holds the voxels, where that is another one.

    Raises:
        ImageError: see `check_unpacked`.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    try:
        reader.ReadImageInformation()
        sample = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    except RuntimeError:
        return
    wanted = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * sample
    check_unpacked(wanted, (data or path).stat().st_size, str(path))


def read_bounded(path: Path, data: Path | None = None) -> tuple[np.ndarray, Geometry]:
    """As `read_volume`, within the budget; arguments as for `check_volume`.

    Raises:
        ImageError: see `check_unpacked` and `read_volume`.
    """
    check_volume(path, data)
    return read_volume(path)

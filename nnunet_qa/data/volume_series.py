"""Label files of the formats that SimpleITK reads, with spacing and frame time only where the header states them.

SimpleITK takes 1 for a spacing or a time between frames that is not there, so that nobody behind it can notice.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from nnunet_qa.data.images import read_volume
from nnunet_qa.data.nifti_series import LabelSeries
from nnunet_qa.errors import ImageError

_ENTRY = re.compile(r"([\w ]+?)\s*[:=](?!=)\s*(.*)")  # not `key:=value`, which are anybody's notes in a NRRD
_LAST = "ElementDataFile"


def read_volume_series(path: Path) -> LabelSeries:
    """Read a `.nrrd` or `.mha` of up to four axes (x, y, z, time).

    Raises:
        ImageError: the file is missing or damaged, or has more axes or several numbers a voxel.
    """
    labels, geometry = read_volume(path)
    axes = len(geometry.spacing)
    if axes > 4 or labels.ndim != axes:
        raise ImageError(
            f"{path}: a series has the axes x, y, z and time and one number a voxel, this file {axes} axes and the "
            f"shape {labels.shape}; write frames along the fourth axis"
        )
    stated = zip(geometry.spacing, _stated(path, axes), strict=True)
    sizes = [size if known else None for size, known in stated]
    x, y, z = (*sizes, 1.0)[:3]
    return LabelSeries(
        labels=labels.reshape((1,) * (4 - axes) + labels.shape),
        spacing=None if x is None or y is None or z is None else (z, y, x),
        frame_time=sizes[3] if axes == 4 else None,
    )


def _stated(path: Path, axes: int) -> list[bool]:
    """Of which axes the header states the spacing."""
    header = _header(path)
    if path.suffix == ".mha":
        return ["ElementSpacing" in header or "ElementSize" in header] * axes
    fields = {key.lower(): value for key, value in header.items()}
    if "space directions" in fields:
        return [part != "none" for part in re.findall(r"none|\([^)]*\)", fields["space directions"])]
    return [math.isfinite(float(size)) for size in fields.get("spacings", "nan " * axes).split()]


def _header(path: Path) -> dict[str, str]:
    """The entries of the text in front of the voxels, which a blank line (NRRD) or the last entry (MetaImage) ends."""
    entries: dict[str, str] = {}
    with path.open("rb") as file:
        for line in (raw.decode("latin-1").strip() for raw in file):
            if not line or line.startswith(_LAST):
                break
            if found := _ENTRY.fullmatch(line):
                entries[found[1]] = found[2]
    return entries

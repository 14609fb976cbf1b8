"""NIfTI label files of one frame or a whole series, read in a single pass with the spacing exactly as they state it.

SimpleITK replaces a spacing or a time between frames of 0 by 1 and makes up the end of a file that is cut off, so that
nobody behind it can notice either; checking for that beforehand decompresses everything twice.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_qa.errors import ImageError

_HEADERS = {  # by length: place and form of dim, datatype, pixdim, vox_offset, (slope, intercept), units
    348: ((40, "8h"), (70, "h"), (76, "8f"), (108, "f"), (112, "2f"), (123, "B")),
    540: ((16, "8q"), (12, "h"), (104, "8d"), (168, "q"), (176, "2d"), (500, "i")),
}
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_MILLIMETRES = {1: 1e3, 3: 1e-3}  # metres and micrometres; everything else counts as mm
_SECONDS = {16: 1e-3, 24: 1e-6}


@dataclass(frozen=True, kw_only=True)
class LabelSeries:
    """The labels of one file.

    Attributes:
        labels: `(frames, slices, rows, columns)`; a volume is one frame, a picture also one slice.
        spacing: (z, y, x) in mm, or None where the file states none.
        frame_time: seconds between frames, or None where the file states none.
    """

    labels: np.ndarray
    spacing: tuple[float, float, float] | None
    frame_time: float | None


def read_nifti_series(path: Path) -> LabelSeries:
    """Read a `.nii` or `.nii.gz` of up to four axes (x, y, z, time).

    Raises:
        ImageError: the file is missing, cut off or damaged, no NIfTI file, or has more axes or no plain numbers.
    """
    try:
        content = path.read_bytes()
        return _parse(path, gzip.decompress(content) if path.name.endswith(".gz") else content)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: not found") from error
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, struct.error) as error:
        raise ImageError(f"{path}: cannot be read as an image (truncated or another format?): {error}") from error


def _parse(path: Path, content: bytes) -> LabelSeries:
    for order in "<>":
        (length,) = struct.unpack_from(order + "i", content)
        if length in _HEADERS:
            break
    else:
        raise ImageError(f"{path}: cannot be read as an image: it has no NIfTI header")
    fields = [struct.unpack_from(order + form, content, place) for place, form in _HEADERS[length]]
    (axes, *sizes), (code,), (_, *pixdim), (start,), (slope, intercept), (units,) = fields
    sizes = [sizes[axis] if axis < axes else 1 for axis in range(7)]
    if not 2 <= axes <= 7 or min(sizes) < 1 or math.prod(sizes[4:]) != 1:
        raise ImageError(f"{path}: a series has the axes x, y, z and time, this file the sizes {tuple(sizes[:axes])}")
    if code not in _TYPES:
        raise ImageError(f"{path}: its values (NIfTI data type {code}) are no plain numbers; give a label map")
    columns, rows, slices, frames = sizes[:4]
    kind = np.dtype(order + _TYPES[code])
    count, start = math.prod(sizes), int(start)
    if start + count * kind.itemsize > len(content):
        raise ImageError(
            f"{path}: is cut off: {len(content)} of {start + count * kind.itemsize} bytes are there; copy or write "
            "the file again"
        )
    labels = np.frombuffer(content, kind, count, start).reshape(frames, slices, rows, columns)
    if math.isfinite(slope) and slope != 0 and (slope, intercept) != (1, 0):
        labels = labels * slope + intercept
    x, y, z, time = (size if math.isfinite(size) and size > 0 else None for size in pixdim[:4])
    scale = _MILLIMETRES.get(units & 7, 1.0)
    seconds = None if time is None or axes < 4 else time * _SECONDS.get(units & 56, 1.0)
    spacing = None if x is None or y is None or z is None else (z * scale, y * scale, x * scale)
    return LabelSeries(labels=labels, spacing=spacing, frame_time=seconds)

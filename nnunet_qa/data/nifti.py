"""Noticing NIfTI files that end too early or hold values that are no numbers.

SimpleITK reads such a file without an error and makes up the rest, measured with 2.5 on `.nii` and `.nii.gz` cut off
anywhere behind the header; so a file that was still being copied would pass for a whole one. It also turns NaN and
infinite voxels of a NIfTI file into 0 while reading, so that nobody behind it can notice them.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nnunet_qa.errors import ImageError

_BLOCK = 1 << 20
_HEADER = 540  # bytes of a NIfTI-2 header, the longer one
_FLOATS = {16: "f4", 64: "f8"}  # codes of the data types that can hold NaN


@dataclass(frozen=True)
class _Layout:
    """Where the voxels lie in a file, in bytes, and their float type where they have one."""

    start: int
    end: int
    kind: str | None


def check_nifti(path: Path, *, finite: bool = True) -> None:
    """Refuse a `.nii` or `.nii.gz` that is cut off or damaged, or that holds NaN or infinite voxels.

    Files with other endings are not looked at: their readers notice it themselves.

    Args:
        path: the file.
        finite: refuse NaN and infinite voxels.

    Raises:
        ImageError: the file is missing, shorter than its header says, damaged in its compression, or not finite.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        return
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            header = file.read(_HEADER)
            layout = _layout(header)
            found, wrong = _read_through(file, header, layout)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: not found") from error
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, struct.error) as error:
        raise ImageError(f"{path}: cannot be read as an image (truncated or another format?): {error}") from error
    if layout is None:
        raise ImageError(f"{path}: cannot be read as an image: it has no NIfTI header")
    if found < layout.end:
        raise ImageError(f"{path}: is cut off: {found} of {layout.end} bytes are there; copy or write the file again")
    if wrong and finite:
        raise ImageError(f"{path}: {wrong} intensities are NaN or infinite; replace them first")


def _layout(header: bytes) -> _Layout | None:
    """Layout that a header states, or None where it is no NIfTI header."""
    for order in "<>":
        (size,) = struct.unpack_from(order + "i", header)
        if size == 348:
            dimensions = struct.unpack_from(order + "8h", header, 40)
            code, bits = struct.unpack_from(order + "2h", header, 70)
            offset = int(struct.unpack_from(order + "f", header, 108)[0])
        elif size == 540:
            code, bits = struct.unpack_from(order + "2h", header, 12)
            dimensions = struct.unpack_from(order + "8q", header, 16)
            (offset,) = struct.unpack_from(order + "q", header, 168)
        else:
            continue
        end = offset + math.prod(dimensions[1 : dimensions[0] + 1]) * bits // 8
        return _Layout(offset, end, order + _FLOATS[code] if code in _FLOATS else None)
    return None


def _read_through(file: BinaryIO | gzip.GzipFile, header: bytes, layout: _Layout | None) -> tuple[int, int]:
    """Bytes of the whole file, and how many voxels are not finite; reading is also what checks the compression."""
    found, wrong, rest = len(header), 0, b""
    if layout is not None and layout.kind is not None:
        rest = header[layout.start :]
        skip = max(0, layout.start - len(header))
    else:
        skip = 0
    while block := file.read(_BLOCK):
        found += len(block)
        if layout is None or layout.kind is None:
            continue
        rest += block[skip:]
        skip = max(0, skip - len(block))
        whole = len(rest) // 8 * 8
        wrong += int((~np.isfinite(np.frombuffer(rest[:whole], layout.kind))).sum())
        rest = rest[whole:]
    if layout is not None and layout.kind is not None:
        size = np.dtype(layout.kind).itemsize
        wrong += int((~np.isfinite(np.frombuffer(rest[: len(rest) // size * size], layout.kind))).sum())
    return found, wrong

"""Noticing NIfTI files that end too early.

SimpleITK reads such a file without an error and makes up the rest, measured with 2.5 on `.nii` and `.nii.gz` cut off
anywhere behind the header; so a file that was still being copied would pass for a whole one.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from nnunet_qa.errors import ImageError

_BLOCK = 1 << 20
_HEADER = 540  # bytes of a NIfTI-2 header, the longer one


def check_whole(path: Path) -> None:
    """Refuse a `.nii` or `.nii.gz` that is shorter than its header says, or whose compression is damaged.

    Files with other endings are not looked at: their readers notice it themselves.

    Raises:
        ImageError: the file is missing, cut off or damaged.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        return
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            header = file.read(_HEADER)
            expected = _expected_size(header)
            found = len(header) + _rest(file)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: not found") from error
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ImageError(f"{path}: cannot be read as an image (truncated or another format?): {error}") from error
    if expected is None:
        raise ImageError(f"{path}: cannot be read as an image: it has no NIfTI header")
    if found < expected:
        raise ImageError(f"{path}: is cut off: {found} of {expected} bytes are there; copy or write the file again")


def _expected_size(header: bytes) -> int | None:
    """Bytes that a file with this header has at least, or None where it is no NIfTI header."""
    for order in "<>":
        (size,) = struct.unpack_from(order + "i", header)
        if size == 348:
            dimensions = struct.unpack_from(order + "8h", header, 40)
            (bits,) = struct.unpack_from(order + "h", header, 72)
            offset = int(struct.unpack_from(order + "f", header, 108)[0])
        elif size == 540:
            (bits,) = struct.unpack_from(order + "h", header, 14)
            dimensions = struct.unpack_from(order + "8q", header, 16)
            (offset,) = struct.unpack_from(order + "q", header, 168)
        else:
            continue
        return offset + math.prod(dimensions[1 : dimensions[0] + 1]) * bits // 8
    return None


def _rest(file: BinaryIO | gzip.GzipFile) -> int:
    """Bytes from here to the end; reading them is what checks the compression."""
    count = 0
    while block := file.read(_BLOCK):
        count += len(block)
    return count

"""Looking at a MetaImage header (`.mhd`) before SimpleITK follows it.

The header is a text that names the file of the voxels. SimpleITK follows any path there, also one that leads out of the
folder, and asks for memory for as many voxels as the header claims before it looks at the file.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from nnunet_qa.errors import ImageError

_HEADER = 1 << 16  # bytes; real headers have a few hundred
_ENTRY = re.compile(r"^[ \t]*(\w+)[ \t]*[=:][ \t]*([^\r\n]*?)[ \t]*$", re.MULTILINE)
_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_OTHER_WAYS = ("LOCAL", "LIST")  # of storing voxels; a list, like a pattern with %, may lead to any file
_INFLATION = 1032  # deflate makes at most so many bytes of one


def metaimage_data(path: Path) -> Path:
    """The file with the voxels of a `.mhd`, if the header is one to be followed.

    Args:
        path: the header.

    Returns:
        The data file, in the same folder.

    Raises:
        ImageError: the header is missing or none, names anything but one file beside it, or claims more voxels than
            that file can hold (a download that was cut off, or a header made to fill the memory).
    """
    try:
        with path.open("rb") as file:
            text = file.read(_HEADER).decode("latin-1").replace("\r", "\n")
    except FileNotFoundError as error:
        raise ImageError(f"{path}: not found") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    entries = _ENTRY.findall(text)
    named = [value for key, value in entries if key.lower() == "elementdatafile"]
    if len(named) != 1:
        raise ImageError(f"{path}: is no MetaImage header (it must name one ElementDataFile); copy the file again")
    name = named[0]
    if not name or Path(name).name != name or "\\" in name or "%" in name or name.split()[0].upper() in _OTHER_WAYS:
        raise ImageError(f'{path}: names the data file "{name}"; it must be one file in the same folder')
    data = path.with_name(name)
    if not data.is_file():
        raise ImageError(f"{path}: its data file {name} is not there; copy it beside the header")
    _check_size(path, data, dict(entries))
    return data


def _check_size(path: Path, data: Path, header: dict[str, str]) -> None:
    """Refuse a header whose voxels cannot be in the data file."""
    try:
        voxels = math.prod(int(number) for number in header["DimSize"].split())
        kind = header["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")
        wanted = voxels * _BYTES[kind.removeprefix("U")] * int(header.get("ElementNumberOfChannels", 1))
    except (KeyError, ValueError) as error:
        raise ImageError(
            f"{path}: DimSize or ElementType is missing or wrong ({error}); copy the file again"
        ) from error
    found = data.stat().st_size
    most = found * _INFLATION if header.get("CompressedData", "").lower() == "true" else found
    if wanted < 1 or wanted > most:
        raise ImageError(
            f"{path}: asks for {wanted} bytes, {data.name} holds {found} (a download that was cut off?); copy it again"
        )

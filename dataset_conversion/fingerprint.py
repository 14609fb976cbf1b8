"""Whether the files of a unit are still those that an earlier run converted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

_VOXELS = (".raw", ".zraw")
"""Endings of the files that hold the voxels of a header of the same name."""


def fingerprint(content: Any) -> str:
    """A digest of whatever a unit holds, and of the name, size and time of every file among it.

    Args:
        content: of a unit: paths and plain values in dataclasses, mappings and sequences. A field `source`, the folder
            of all units, is left out; of other folders the files right in them count.
    """
    return hashlib.sha256("\n".join(_parts(content)).encode(errors="surrogateescape")).hexdigest()[:16]


def _parts(content: Any) -> Iterator[str]:
    if isinstance(content, Path):
        yield from _states(content)
    elif is_dataclass(content):
        for field in fields(content):
            if field.name != "source":
                yield field.name
                yield from _parts(getattr(content, field.name))
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield str(key)
            yield from _parts(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _parts(value)
    elif isinstance(content, (set, frozenset)):
        yield repr(sorted(content, key=repr))
    else:
        yield repr(content)


def _states(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = sorted(entry for entry in path.iterdir() if entry.is_file())
    else:
        files = [path, *(path.with_suffix(ending) for ending in _VOXELS if path.suffix.lower() in (".mhd", ".nhdr"))]
    yield str(path)
    for file in files:
        try:
            state = file.stat()
        except OSError:  # a link to nothing, or voxels of another name
            yield f"{file.name} is missing"
        else:
            yield f"{file.name} {state.st_size} {state.st_mtime_ns}"

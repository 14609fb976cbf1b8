"""Writing files so that a killed run leaves the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_qa.errors import StorageError

_PARTIAL = ".partial-"
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the system allows",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
}


def storage_error(path: Path | str, error: OSError) -> StorageError:
    """The one-line error for a file or folder that could not be written."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"{path}: could not be written: {reason}. Free space or choose another folder, then run again")


def make_folder(path: Path) -> Path:
    """Create a folder and its parents.

    Raises:
        StorageError: the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder; rename it to `path` when the block ends without an error.

    The temporary name keeps the ending of `path`, because image writers choose the format by it.

    Raises:
        StorageError: the disk is full or read-only, or the writer left no file behind.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{_PARTIAL}{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise storage_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed run left in `folder`."""
    for left in folder.glob(f"{_PARTIAL}*"):
        left.unlink(missing_ok=True)


def clear(folder: Path, mark: Path) -> None:
    """Delete what is in a folder, last of all the file that says whose folder it is, so that a kill leaves it known."""
    for path in folder.iterdir():
        if path != mark:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    mark.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON in one step; keys keep their order."""
    write_text(path, json.dumps(content, indent=4) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV in one step, without the index."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)

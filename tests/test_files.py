from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.errors import StorageError
from nnunet_qa.files import (
    make_folder,
    remove_leftovers,
    replacing,
    storage_error,
    write_csv,
    write_json,
    write_text,
)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let a file grow further, as a full disk does, in the middle of a write."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_text_json_and_csv(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "µ\n")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "µ\n"
    write_json(tmp_path / "a.json", {"b": [1], "a": None})
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["b", "a"]
    write_csv(tmp_path / "a.csv", pd.DataFrame({"x": [1], "y": ["b"]}))
    assert (tmp_path / "a.csv").read_text() == "x,y\n1,b\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json", "new"]


def test_the_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError("no number")])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fails() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fails()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files_of_at_most(1000), pytest.raises(StorageError, match=r"a\.txt: could not be written") as caught:
        write_text(path, "x" * 100_000)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "no permission"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_what_the_system_says_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuses)
    with pytest.raises(StorageError, match=text) as caught:
        write_text(tmp_path / "a.txt", "x")
    assert str(caught.value).startswith(str(tmp_path / "a.txt"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/folder: could not be written"):
        make_folder(tmp_path / "file" / "folder")
    with pytest.raises(StorageError):
        write_text(tmp_path / "file" / "a.txt", "x")
    assert make_folder(tmp_path / "a" / "b").is_dir()


def test_an_error_without_a_number() -> None:
    assert "could not be written: odd." in str(storage_error("x", OSError("odd")))


def test_leftovers_of_a_killed_run(tmp_path: Path) -> None:
    for name in (".partial-12-a.png", "a.png", ".hidden"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.png"]

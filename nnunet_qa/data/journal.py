"""Changing several files of a dataset all or not at all, even if the process is killed in the middle.

Before the first change a journal says what is to be moved, what is to be new and what the rewritten files held. It is
deleted after the last change, so a journal that is there belongs to a change that did not end, and is undone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such lock; there, nobody warns of two changes at once
    fcntl = None  # type: ignore[assignment]

from nnunet_qa.errors import DatasetError, NnunetQAError
from nnunet_qa.files import make_folder, replacing, storage_error, write_json

logger = logging.getLogger(__name__)

FILE_NAME = "promote.json"
_PARTIAL = ".partial-"  # then the process and the name, see nnunet_qa.files.replacing
_ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}  # whatever bytes a file holds come back unchanged


@dataclass(frozen=True)
class Change:
    """What is to happen, by paths below named roots, `root/relative/path`; a root may be mounted elsewhere next time.

    Attributes:
        moves: from where to where; the target must not exist.
        copies: file outside the roots, and where it goes; the target must not exist.
        contents: new text of files that are rewritten or created.
    """

    moves: list[tuple[str, str]] = field(default_factory=list)
    copies: list[tuple[Path, str]] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Journal:
    """A journal file and the folders that its paths begin with.

    Attributes:
        path: the journal; it exists while a change is under way.
        roots: folder by name, as used in `Change`.
    """

    path: Path
    roots: Mapping[str, Path]

    def resolve(self, name: str) -> Path:
        """The path that `root/relative/path` stands for."""
        root, _, rest = name.partition("/")
        return self.roots[root] / rest

    def is_open(self) -> bool:
        """Whether a change did not end."""
        return self.path.is_file()

    def recover(self) -> bool:
        """Undo a change that did not end.

        Returns:
            Whether there was one.

        Raises:
            DatasetError: the journal cannot be read.
            StorageError: a file cannot be put back; the journal stays, and the next call goes on.
        """
        # a process that is killed while it writes the journal leaves a temporary file but has changed nothing yet
        _remove_partial(self.path)
        if not self.is_open():
            return False
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            self._undo(record)
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{self.path}: this journal of an interrupted change cannot be read ({error!r}); put the files back by "
                "hand, then delete it"
            ) from error
        except OSError as error:
            raise storage_error(error.filename or self.path, error) from error
        return True

    def apply(self, change: Change) -> None:
        """Make a change, or leave everything as it was.

        Raises:
            StorageError: a file could not be written; everything has been put back.
        """
        record = self._record(change)
        try:
            write_json(self.path, record)
            self._perform(change)
            self.path.unlink()
        except BaseException as error:
            try:
                self.recover()
            except NnunetQAError as second:
                logger.error("%s The journal stays, and the next run puts the files back", second)
            if isinstance(error, OSError):
                raise storage_error(error.filename2 or error.filename or self.path, error) from error
            raise

    def _record(self, change: Change) -> dict[str, Any]:
        targets = [*(new for _, new in change.moves), *(new for _, new in change.copies), *change.contents]
        folders = sorted({name.rpartition("/")[0] for name in targets})
        return {
            "about": "An interrupted change of this dataset; `nnunet-qa promote` undoes it when it is run again.",
            "moves": change.moves,
            "copies": [new for _, new in change.copies],
            "contents": {name: _text(self.resolve(name)) for name in change.contents},
            "new_folders": [name for name in folders if not self.resolve(name).is_dir()],
        }

    def _perform(self, change: Change) -> None:
        # The largest files come first: a disk that is full is then found before any table changes.
        for source, name in change.copies:
            with replacing(self.resolve(name)) as temporary:
                shutil.copyfile(source, temporary)
        for old, new in change.moves:
            make_folder(self.resolve(new).parent)
            _move(self.resolve(old), self.resolve(new))
        for name, text in change.contents.items():
            _write(self.resolve(name), text)

    def _undo(self, record: dict[str, Any]) -> None:
        targets = [*record["copies"], *(new for _, new in record["moves"]), *record["contents"]]
        _remove_partial(*(self.resolve(name) for name in targets))
        for name in record["copies"]:
            self.resolve(name).unlink(missing_ok=True)
        for old_name, new_name in record["moves"]:
            old, new = self.resolve(old_name), self.resolve(new_name)
            if os.path.lexists(old):
                new.unlink(missing_ok=True)  # a copy to another disk whose source had not been deleted yet
            elif os.path.lexists(new):
                _move(new, old)
        for name, text in record["contents"].items():
            path = self.resolve(name)
            if text is None:
                path.unlink(missing_ok=True)
            elif _text(path) != text:  # a file that is as it was needs no space on a full disk
                _write(path, text)
        for name in record["new_folders"]:
            folder = self.resolve(name)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self.path.unlink()


def refuse_unsettled(dataset_folder: Path) -> None:
    """Refuse to work on a raw dataset whose promotion was interrupted.

    Raises:
        DatasetError: there is a journal.
    """
    if (dataset_folder / FILE_NAME).is_file():
        raise DatasetError(
            f"{dataset_folder / FILE_NAME}: a promotion of cases was interrupted; run `nnunet-qa promote` again, which "
            "puts the dataset in order first"
        )


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[int | None]:
    """Hold a folder against a second change at the same time; the system lets go when the process ends, however.

    Args:
        folder: the folder.
        wait: wait for another process to finish, instead of refusing.

    Yields:
        Descriptor of the lock; a child process that inherits it holds the folder too. None where locks are not known.

    Raises:
        DatasetError: another process holds it.
    """
    if fcntl is None:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise DatasetError(f"{folder}: another process is changing this dataset; wait for its end") from error
        except OSError as error:  # some network disks know no locks
            logger.info("%s: cannot be locked: %s", folder, error)
        yield descriptor
    finally:
        os.close(descriptor)


def _move(old: Path, new: Path) -> None:
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replacing(new) as temporary:
            shutil.copy2(old, temporary, follow_symlinks=False)
        old.unlink()


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(**_ENCODING)
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode(**_ENCODING))


def _remove_partial(*paths: Path) -> None:
    """Delete what killed `replacing`s of these paths left behind."""
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        for left in folder.glob(f"{_PARTIAL}*"):
            if left.name.removeprefix(_PARTIAL).partition("-")[2] in wanted:
                left.unlink(missing_ok=True)

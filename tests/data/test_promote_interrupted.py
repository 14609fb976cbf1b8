"""A promotion that is killed, fails or meets another one leaves the dataset as it was, or ends as it would have."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nnunet_qa.data import journal
from nnunet_qa.errors import DatasetError, StorageError
from tests.data.promotion import CASES, prepare, run, state
from tests.small import NAME, snapshot

# --- interrupted ------------------------------------------------------------------------------------------------------

OPERATIONS = ("replace", "rename", "unlink")


@contextlib.contextmanager
def at_operation(number: int, act: Callable[[], None], *, after: bool = False) -> Iterator[list[int]]:
    """Call `act` before (or after) the n-th file operation, counted from 0."""
    count = [0]
    originals = {name: getattr(os, name) for name in OPERATIONS}

    def wrapped(name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, **keywords: Any) -> Any:
            now = count[0]
            count[0] += 1
            if now == number and not after:
                act()
            try:
                return originals[name](*arguments, **keywords)
            finally:
                if now == number and after:
                    act()

        return operation

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, wrapped(name))
        yield count


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


def _killed_run(base: Path, number: int, after: bool) -> None:
    with at_operation(number, _die, after=after):
        run(base)


def killed_at(base: Path, number: int, *, after: bool) -> bool:
    """Run in a process that is killed at its n-th file operation; whether it was."""
    process = multiprocessing.get_context("fork").Process(target=_killed_run, args=(base, number, after))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.fixture
def undisturbed(tmp_path: Path) -> tuple[dict[str, bytes], int]:
    """The files after a run that nothing disturbs, and how many file operations it takes."""
    prepare(tmp_path / "undisturbed")
    with at_operation(-1, _die) as count:
        run(tmp_path / "undisturbed")
    return state(tmp_path / "undisturbed"), count[0]


def test_killed_at_any_operation_the_next_run_gives_the_same_files(
    tmp_path: Path, undisturbed: tuple[dict[str, bytes], int]
) -> None:
    expected, operations = undisturbed
    assert operations >= 10
    for number in range(operations):
        for after in (False, True):
            base = tmp_path / f"{number}{after}"
            prepare(base)
            assert killed_at(base, number, after=after)
            run(base)
            assert state(base) == expected, f"operation {number}"


def test_killed_again_while_it_is_undone(tmp_path: Path, undisturbed: tuple[dict[str, bytes], int]) -> None:
    expected, operations = undisturbed
    for number in range(4):
        base = tmp_path / f"again{number}"
        prepare(base)
        assert killed_at(base, operations - 1, after=False)
        assert killed_at(base, number, after=bool(number % 2))
        run(base)
        assert state(base) == expected


def test_a_killed_command_as_a_process_of_its_own(tmp_path: Path, undisturbed: tuple[dict[str, bytes], int]) -> None:
    base = tmp_path / "process"
    prepare(base)
    code = (
        f"from tests.data.test_promote_interrupted import _killed_run, Path; _killed_run(Path({str(base)!r}), 5, False)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (base / "nnUNet_raw" / NAME / "promote.json").is_file()
    assert run(base).undone
    assert state(base) == undisturbed[0]


def test_an_error_at_any_operation_leaves_everything_as_it_was(
    tmp_path: Path, undisturbed: tuple[dict[str, bytes], int]
) -> None:
    base = tmp_path / "errors"
    prepare(base)
    before = state(base)
    failed = 0
    for number in range(undisturbed[1]):
        with at_operation(number, _full), contextlib.suppress(StorageError, OSError):
            run(base)
            break
        failed += 1
        assert state(base) == before, f"operation {number}"
    assert failed >= 9


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    prepare(tmp_path)
    with at_operation(2, _full), pytest.raises(StorageError, match="the disk is full") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_disk_that_stays_full_keeps_the_journal_for_the_next_run(
    tmp_path: Path, undisturbed: tuple[dict[str, bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "full"
    folder = prepare(base)
    replace, written = os.replace, [0]

    def fails_from_the_fifth(*arguments: Any) -> None:
        written[0] += 1
        if written[0] > 4:
            _full()
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails_from_the_fifth)
        with pytest.raises(StorageError, match="the disk is full"):
            run(base)
    assert (folder / "promote.json").is_file()
    with pytest.raises(DatasetError, match="was interrupted"):
        run(base, dry_run=True)
    run(base)
    assert state(base) == undisturbed[0]


def test_an_interrupt_from_the_keyboard_is_undone_too(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    prepare(tmp_path)
    before = state(tmp_path)
    with at_operation(4, interrupt), pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert state(tmp_path) == before


def test_images_on_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)

    def refuses(old: Path, new: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(old))

    monkeypatch.setattr(os, "rename", refuses)
    before = state(tmp_path)
    with at_operation(6, _full), pytest.raises(StorageError):
        run(tmp_path)
    assert state(tmp_path) == before
    assert run(tmp_path).cases == CASES


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    (folder / "promote.json").write_text("{")
    with pytest.raises(DatasetError, match=r"promote\.json: this journal"):
        run(tmp_path)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    with journal.locked(folder), pytest.raises(DatasetError, match="another process"):
        run(tmp_path)
    assert run(tmp_path).cases == CASES


def test_bytes_that_are_no_utf8_and_line_ends_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "table").write_bytes(b"a\r\n\xff\n")
    record = journal.Journal(folder / "journal.json", {"raw": folder})
    with at_operation(2, _full), pytest.raises(StorageError):
        record.apply(journal.Change(contents={"raw/table": "new", "raw/sub/other": "new"}))
    assert snapshot(folder) == {"data/table": b"a\r\n\xff\n"}
    assert not (folder / "sub").exists()

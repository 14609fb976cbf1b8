from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.conversion import kill_half_way


def test_a_worker_counts_as_killed_only_if_it_was(tmp_path: Path) -> None:
    done, killed = tmp_path / "done.jsonl", threading.Event()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        thread = threading.Thread(target=kill_half_way, args=(process.pid, done, 2, killed))
        thread.start()
        done.write_text('\n{"unit": "a"}\n', encoding="utf-8")
        assert process.poll() is None
        assert not killed.is_set()
        done.write_text('\n{"unit": "a"}\n{"unit": "b"}\n', encoding="utf-8")
        thread.join(timeout=20)
        assert killed.is_set()
        assert process.wait(timeout=20) < 0
    again = threading.Event()
    with pytest.raises(ProcessLookupError):
        kill_half_way(process.pid, done, 2, again)
    assert not again.is_set()

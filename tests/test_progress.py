from __future__ import annotations

import time

import pytest

from nnunet_qa.progress import track


def test_the_bar_says_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(4), "Cases", 4):
        time.sleep(0.05)
    printed = capsys.readouterr().err
    assert "4/4" in printed
    assert "/s" in printed

"""nnU-Net's folders, empty, with the trainers of this package."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.phantom import EXTERNAL


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(EXTERNAL))
    return tmp_path

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def qa_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settings for the trainers of one test."""

    def write(text: str) -> None:
        path = tmp_path / "qa.yaml"
        path.write_text(text)
        monkeypatch.setenv("nnUNet_qa_config", str(path))

    return write


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder of the test's own."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_results", str(folder))
    return folder

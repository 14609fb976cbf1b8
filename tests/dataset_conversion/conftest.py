"""Folders for nnU-Net, small phantom sets, and conversions that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nnunet_qa.data.phantoms import write_chiu, write_ocsc

SMALL = {"rows": 64, "columns": 96, "severity": 1.0}


def set_folders(patch: pytest.MonkeyPatch, base: Path) -> Path:
    """Set nnU-Net's folders below `base`; gives nnUNet_raw."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        patch.setenv(name, str(base / name))
    return base / "nnUNet_raw"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nnUNet_raw of the test's own."""
    return set_folders(monkeypatch, tmp_path / "nnunet")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out nnU-Net's integrity check, which takes seconds to start its processes."""
    monkeypatch.setattr("nnunet_qa.data.raw_dataset.check_integrity", lambda folder, *, jobs: None)


@pytest.fixture(scope="session")
def chiu_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects of eight B-scans, three of these annotated."""
    folder = tmp_path_factory.mktemp("chiu")
    write_chiu(folder, np.random.default_rng(0), subjects=3, bscans=8, annotated=3, **SMALL)
    return folder / "2015_BOE_Chiu"


@pytest.fixture(scope="session")
def ocsc_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stacks of two vendors with two graders; no folder for G3."""
    folder = tmp_path_factory.mktemp("ocsc")
    stacks = ("Spectralis_1", "cirrus_2", "cirrus_03")
    write_ocsc(
        folder, np.random.default_rng(0), stacks=stacks, train=4, annotated=2, test=2, graders=("G1", "G2"), **SMALL
    )
    return folder


@pytest.fixture(scope="module")
def module_raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An nnUNet_raw that the tests of a module share."""
    with pytest.MonkeyPatch.context() as patch:
        yield set_folders(patch, tmp_path_factory.mktemp("nnunet"))


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

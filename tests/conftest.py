"""Phantom datasets, planned once a session by nnU-Net's own commands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# read when nnunetv2 is imported
os.environ["nnUNet_def_n_proc"] = "2"
os.environ["nnUNet_n_proc_DA"] = "1"
# read when torch is imported: tests run beside each other, and threads that wait for each other would take the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.phantom import EXTERNAL, plan, write_dataset

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real images are not here ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def session_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """nnU-Net's environment variables for the session's datasets."""
    base = tmp_path_factory.mktemp("nnunet")
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    for name in names:
        (base / name).mkdir()
    return {**{name: str(base / name) for name in names}, "nnUNet_extTrainer": str(EXTERNAL)}


@pytest.fixture(scope="session")
def _planned(session_folders: dict[str, str]) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in session_folders.items():
            patch.setenv(name, value)
        datasets = {
            "2d": write_dataset(701, "Phantom2D", dimensions=2, pool=4, seed=1),
            "3d": write_dataset(702, "Phantom3D", dimensions=3, pool=2, seed=2),
            "regions": write_dataset(703, "PhantomRegions", dimensions=2, pool=0, seed=3, regions=True),
        }
        plan([701, 703], ["2d"])
        plan([702], ["3d_fullres", "2d"])
    return datasets


@pytest.fixture
def planned(
    _planned: dict[str, str], session_folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Names of the planned datasets by kind; nnU-Net's variables are set, augmentation runs in the foreground."""
    for name, value in session_folders.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.delenv("nnUNet_qa_config", raising=False)
    return _planned


@pytest.fixture
def fresh_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty nnU-Net folders of one test."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(EXTERNAL))
    return tmp_path

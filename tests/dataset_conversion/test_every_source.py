"""Every conversion to its end: the phantom of each layout is converted, planned and trained on with its pool."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from nnunet_qa.cli.app import app
from nnunet_qa.cli.convert import COMMANDS
from nnunet_qa.data.raw_dataset import FOLDERS
from nnunet_qa.experiments.demo_sources import SOURCES
from tests.conftest import EXTERNAL
from tests.phantom import plan, trainer_of

TINY = {
    "training": {"epochs": 1, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1},
    "pool": {"batches_per_epoch": 1, "jobs": 1},
    "scoring": {"final": False},
    "qa_loss": {"start": 0, "simulation": {"patches": 4, "epochs": 1}},
}
NUMBERS = {name: 821 + index for index, name in enumerate(SOURCES)}
WITHOUT_POOL = ("covid-radiopaedia", "covid-zenodo")
"""Layouts in which everything is annotated."""


def test_there_is_a_phantom_of_every_layout() -> None:
    assert list(SOURCES) == list(COMMANDS)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnUNet_raw with a dataset of each layout, planned."""
    import numpy as np

    base = tmp_path_factory.mktemp("every_source")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (base / name).mkdir()
            patch.setenv(name, str(base / name))
        # once for all, by nnU-Net's own command below
        patch.setattr("nnunet_qa.data.raw_dataset.check_integrity", lambda folder, *, jobs: None)
        for name, source in SOURCES.items():
            written = source.write(base / "phantoms", np.random.default_rng(0))
            command = ["convert", name, "-i", str(written), "-d", str(NUMBERS[name]), "--name", source.name]
            result = CliRunner().invoke(app, [*command, *source.convert, "--folds", "3"])
            assert result.exit_code == 0, (name, result.exception, result.output)
        plan(list(NUMBERS.values()), ["2d"], "--verify_dataset_integrity")
    return base


@pytest.mark.e2e
@pytest.mark.parametrize("name", SOURCES)
def test_one_epoch_with_the_pool(converted: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(folder, str(converted / folder))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_extTrainer", str(EXTERNAL))
    raw = next((converted / "nnUNet_raw").glob(f"Dataset{NUMBERS[name]}_*"))
    (raw / "qa.yaml").write_text(yaml.safe_dump(TINY))
    trainer = trainer_of(str(NUMBERS[name]), "2d", 0)
    assert bool(trainer.pool_images) == (name not in WITHOUT_POOL)
    trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert ("qa_loss" in logged) == (name not in WITHOUT_POOL)
    for images, labels in FOLDERS.values():
        if labels and (raw / labels).is_dir():
            assert len(list((raw / labels).iterdir())) <= len(list((raw / images).iterdir()))
    shutil.rmtree(trainer.output_folder)

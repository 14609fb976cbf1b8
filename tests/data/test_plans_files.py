"""Smaller plans as files beside the others: their names, their data, training on them, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from nnunet_qa.cli import plans as command
from nnunet_qa.data.plans import PlansError, Smaller, write_smaller_plans
from nnunet_qa.errors import DatasetError
from tests.data.planned import ct_plans, made_plans


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    for name in ("nnUNet_raw", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "Dataset777_Test"
    (path / "nnUNetPlans_2d").mkdir(parents=True)
    (path / "dataset.json").write_text("{}")
    (path / "nnUNetPlans.json").write_text(json.dumps(made_plans()))
    return path


def test_writes_beside_the_existing_plans_and_shares_their_data(folder: Path) -> None:
    small = Smaller(features=(16, 32, 64, 128), batch_size=8, patch_size=(80, 192))
    path = write_smaller_plans("777", "2d", smaller=small)
    assert path == folder / "nnUNetPlansSmall.json"
    written = json.loads(path.read_text())
    assert written["configurations"]["2d"]["data_identifier"] == "nnUNetPlans_2d"
    assert json.loads((folder / "nnUNetPlans.json").read_text()) == made_plans()
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "dataset.json",
        "nnUNetPlans.json",
        "nnUNetPlansSmall.json",
        "nnUNetPlans_2d",
    ]


def test_other_plans_of_the_name_are_replaced_only_when_asked(folder: Path) -> None:
    path = write_smaller_plans("777", "2d", smaller=Smaller(batch_size=8))
    first, written = path.read_text(), path.stat().st_mtime_ns
    assert write_smaller_plans("777", "2d", smaller=Smaller(batch_size=8)) == path
    assert path.stat().st_mtime_ns == written
    with pytest.raises(PlansError, match="--overwrite"):
        write_smaller_plans("777", "2d", smaller=Smaller(batch_size=4))
    assert path.read_text() == first
    write_smaller_plans("777", "2d", smaller=Smaller(batch_size=4), overwrite=True)
    assert json.loads(path.read_text())["configurations"]["2d"]["batch_size"] == 4


@pytest.mark.parametrize(
    ("identifier", "said"),
    [
        ("nnUNetPlans", "need another name"),
        ("dataset", "holds no plans"),
        ("a__b", "cannot name plans"),
        ("../elsewhere", "cannot name plans"),
        ("", "cannot name plans"),
    ],
)
def test_names_that_would_do_harm_are_refused(folder: Path, identifier: str, said: str) -> None:
    with pytest.raises(PlansError, match=said):
        write_smaller_plans("777", "2d", smaller=Smaller(batch_size=4), identifier=identifier, overwrite=True)
    assert (folder / "dataset.json").read_text() == "{}"
    assert json.loads((folder / "nnUNetPlans.json").read_text()) == made_plans()


def test_a_failed_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        with open(self, "w") as file:
            file.write("{")
        raise KeyboardInterrupt

    before = sorted(folder.iterdir())
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(KeyboardInterrupt):
        write_smaller_plans("777", "2d", smaller=Smaller(batch_size=4))
    assert sorted(folder.iterdir()) == before


def test_missing_preprocessed_data_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_smaller_plans("777", "3d_fullres", smaller=Smaller(batch_size=2))
    assert "nnUNetPlans_3d_fullres: not there yet" in caplog.text


@pytest.mark.e2e
def test_nnunet_trains_with_them_on_the_data_that_is_there(planned: dict[str, str]) -> None:
    from nnunetv2.run.run_training import get_trainer_from_args

    name = "nnUNetPlansTestSmall"
    small = Smaller(features=(4, 6, 8), batch_size=2, patch_size=(16, 24, 24))
    path = write_smaller_plans(planned["3d"], "3d_fullres", smaller=small, identifier=name)
    trainer = get_trainer_from_args(planned["3d"], "3d_fullres", 0, plans_identifier=name, device=torch.device("cpu"))
    assert Path(trainer.preprocessed_dataset_folder) == path.parent / "nnUNetPlans_3d_fullres"
    trainer.num_epochs = 1
    trainer.initialize()
    trainer.on_train_start()
    try:
        batch = next(trainer.dataloader_train)
        assert tuple(batch["data"].shape[2:]) == (16, 24, 24)
        assert np.isfinite(trainer.train_step(batch)["loss"])
    finally:
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            finish = getattr(loader, "_finish", None)
            if finish is not None:
                finish()


def application() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    return app


def test_command(folder: Path) -> None:
    (folder / "other.json").write_text(json.dumps(made_plans()))
    options = ["--features", "16,32,64,128", "--batch-size", "8", "--patch-size", "80,192"]
    call = ["plans", "-d", "777", "-c", "2d", "-p", "other", "-o", "Tiny", *options]
    result = CliRunner().invoke(application(), call)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(folder / "Tiny.json")
    assert "nnUNetv2_train 777 2d 0 -p Tiny" in result.stderr
    content = json.loads((folder / "Tiny.json").read_text())
    assert content["plans_name"] == "Tiny"
    assert content["configurations"]["2d"]["batch_size"] == 8
    assert content["configurations"]["2d"]["patch_size"] == [80, 192]
    assert content["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] == [16, 32, 64, 128]

    call[call.index("8")] = "6"
    assert isinstance(CliRunner().invoke(application(), call).exception, PlansError)
    assert CliRunner().invoke(application(), [*call, "--overwrite"]).exit_code == 0
    assert json.loads((folder / "Tiny.json").read_text())["configurations"]["2d"]["batch_size"] == 6


def test_command_with_an_image_size_names_the_preprocessing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    call = ["plans", "-d", "777", "-c", "2d", "-o", "Sized", "--image-size", "256,320"]
    result = CliRunner().invoke(application(), call)
    assert result.exit_code == 0, result.output
    assert "first: nnUNetv2_preprocess -d 777 -plans_name Sized -c 2d" in result.stderr
    assert "Sized_2d_256x320: not there yet" in caplog.text
    assert json.loads((folder / "Sized.json").read_text())["configurations"]["2d"]["spacing"] == [
        0.5 * 300 / 256,
        0.25 * 250 / 320,
    ]


def test_command_with_a_window_names_the_preprocessing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "nnUNetPlans.json").write_text(json.dumps(ct_plans()))
    call = ["plans", "-d", "777", "-c", "2d", "-o", "Window", "--hu-window", "-1024", "3000"]
    result = CliRunner().invoke(application(), call)
    assert result.exit_code == 0, result.output
    assert "first: nnUNetv2_preprocess -d 777 -plans_name Window -c 2d" in result.stderr
    assert "_hu-1024to3000: not there yet; run `nnUNetv2_preprocess` with the plans Window first" in caplog.text


@pytest.mark.parametrize("option", ["--features", "--patch-size", "--image-size"])
def test_command_names_the_option_that_is_no_list_of_numbers(folder: Path, option: str) -> None:
    result = CliRunner().invoke(application(), ["plans", "-d", "777", "-c", "2d", option, "16,x"])
    assert isinstance(result.exception, PlansError)
    assert f'{option} "16,x"' in str(result.exception)


def test_command_needs_the_plans(folder: Path) -> None:
    result = CliRunner().invoke(application(), ["plans", "-d", "777", "-c", "2d", "-p", "No", "--batch-size", "2"])
    assert isinstance(result.exception, DatasetError)

"""Mistakes on the command line of an experiment; that it runs is tested in tests/experiments."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from nnunet_qa.cli.app import app
from nnunet_qa.errors import NnunetQAError
from tests.phantom import write_dataset


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("experiment_cli")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (base / name).mkdir()
            patch.setenv(name, str(base / name))
        write_dataset(741, "Cli", dimensions=2, pool=0, seed=1, subjects=5)
    return base


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds", "0,x"], '--seeds "0,x": must be whole numbers'),
        (["--seeds", "1,1"], "must be different numbers"),
        (["--budget", "cpus"], '"cpus" is no budget (did you mean "cpu"?)'),
        (["--arms", "entrop"], 'unknown arm "entrop" (did you mean "entropy"?)'),
        (["--arms", "transfer"], "need a trained model to start from"),
        (["--roi", "mask"], "--roi mask needs masks"),
        (["--overwrite", "--report-only"], "--overwrite deletes what --report-only reports"),
        (["--report-only"], "nothing is done yet"),
        (["--test-folds", "6"], "5 subjects cannot be parted into 6 test folds"),
        (["--initial-size", "4"], "S0 alone has 4; leave room for S_m"),
        (["-d", "742"], "no dataset 742"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(folders / name))
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    command = ["experiment", "qu-net-plus-plus", "-d", "741", "-o", str(tmp_path / "out"), "-device", "cpu"]
    command += ["--annotated", "0.5", "--initial-size", "1", *options]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, NnunetQAError), result.output
    assert said in str(result.exception)
    assert not (tmp_path / "out").exists()

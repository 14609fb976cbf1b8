"""Mistakes on the command line of an experiment; that it runs is tested in tests/experiments."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds", "0,-1"], "must be different numbers from 0 up"),
        (["--budget", "gpus"], '"gpus" is no budget (did you mean "gpu"?)'),
        (["--arms", "qa_los"], 'unknown arm "qa_los" (did you mean "qa_loss"?)'),
        (["--arms", "qa_views"], 'unknown arm "qa_views"'),
        (["--success", "0.4", "--failure", "0.6"], "success 0.4, failure 0.6; they must hold"),
        (["--failure", "0"], "success 0.8, failure 0; they must hold"),
        (["--labelled", "4"], "4 cases are neither for validation nor for test; 4 labelled ones leave none unlabelled"),
        (["--test-folds", "6"], "5 subjects cannot be parted into 6 test folds"),
        (["--validation-subjects", "3"], "3 subjects are left beside the test subjects; 3 for validation"),
        (["--overwrite", "--report-only"], "--overwrite deletes what --report-only reports"),
        (["--report-only"], "nothing is done yet"),
        (["-d", "742"], "no dataset 742"),
    ],
)
def test_a_mistake_with_the_qa_loss_is_one_line_and_writes_nothing(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    result = qa_loss(folders, tmp_path / "out", monkeypatch, *options)
    assert isinstance(result.exception, NnunetQAError), result.output
    assert said in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--labelled", "1"], ["--success", "1.1"], ["--weight", "-1"], ["-device", "tpu"]])
def test_a_number_out_of_its_range_names_the_option(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    result = qa_loss(folders, tmp_path / "out", monkeypatch, *option)
    assert result.exit_code == 2
    assert f"Invalid value for '{option[0]}" in result.output


def test_a_report_with_other_settings_is_refused(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_qa.experiments.runner.Runner.run", lambda self, arms, seeds: iter(()))
    begun = qa_loss(folders, tmp_path / "out", monkeypatch)
    assert "nothing is done yet" in str(begun.exception)
    assert (tmp_path / "out" / "experiment.json").is_file()
    for options, said in ([], "nothing is done yet"), (["--success", "0.9"], "begun with other settings (thresholds)"):
        result = qa_loss(folders, tmp_path / "out", monkeypatch, "--report-only", *options)
        assert said in str(result.exception)


def qa_loss(folders: Path, output: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(folders / name))
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    command = ["experiment", "qa-loss", "-d", "741", "-o", str(output), "-device", "cpu", "--labelled", "3", *options]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, command)

"""The commands of docs/discriminator.md, one after the other as they stand there, on a phantom dataset."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.cli import discriminator
from nnunet_qa.data.paths import preprocessed_dataset_folder, raw_dataset_folder
from tests.body import one_thread
from tests.small import run_command

PAGE = Path(__file__).parents[2] / "docs" / "discriminator.md"
NAME = "Dataset101_Scans"
MODEL = "nnUNetTrainer__nnUNetPlans__2d"
MORE = {
    "fit": ("--epochs", "1", "--per-code", "1", "--jobs", "1", "-device", "cpu"),
    "evaluate": ("--jobs", "1", "-device", "cpu", "--resamples", "10"),
    "predict": ("--jobs", "1", "-device", "cpu"),
}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def base(planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The phantom dataset under the name of the page, with predictions and codes for them."""
    own = {raw_dataset_folder(planned["2d"]): "nnUNet_raw", preprocessed_dataset_folder("701"): "nnUNet_preprocessed"}
    for folder, name in own.items():
        shutil.copytree(folder, tmp_path / name / NAME)
        monkeypatch.setenv(name, os.fspath(tmp_path / name))
    monkeypatch.setenv("nnUNet_results", os.fspath(tmp_path / "nnUNet_results"))
    monkeypatch.chdir(tmp_path)
    plans = tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans.write_text(json.dumps({**json.loads(plans.read_text()), "dataset_name": NAME}))
    labels = sorted((tmp_path / "nnUNet_raw" / NAME / "labelsTr").iterdir())
    for number, path in enumerate(labels):
        validation = tmp_path / "nnUNet_results" / NAME / MODEL / f"fold_{number % 2}" / "validation"
        validation.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, validation)
    shutil.copytree(tmp_path / "nnUNet_raw" / NAME / "labelsTs", tmp_path / "test_predictions")
    (tmp_path / "predictions").mkdir()
    cases = [f"P0_c{number}" for number in range(4)]
    for case in cases:
        shutil.copy(labels[0], tmp_path / "predictions" / f"{case}.png")
    rows = [f"{case},{number % 3},RK,2024-05-02" for number, case in enumerate(cases)]
    (tmp_path / "qa_codes.csv").write_text("\n".join(["case_id,code,reviewer,time", *rows, ""]))
    return tmp_path


def test_every_command_of_the_page(base: Path) -> None:
    verbs = []
    for tool, group, verb, *arguments in commands():
        assert (tool, group) == ("nnunet-qa", "discriminator")
        result = run_command(discriminator, group, verb, *arguments, *MORE[verb])
        assert result.exit_code == 0, (verb, arguments, result.exception)
        verbs.append(verb)
    assert verbs == ["fit", "fit", "evaluate", "predict"]
    made = base / "nnUNet_results" / NAME / "qa"
    about = json.loads((made / "discriminator.json").read_text())["about"]
    assert about["codes"] == {"cross_validation": 8, "human": 4, "simulated": 24}
    assert {path.name for path in made.iterdir()} >= {"discriminator.pt", "learning_curve.png", "confusion.png"}
    for name in ("qa_evaluation.csv", "qa_evaluation.json", "confusion.png"):
        assert (base / "test_predictions" / "qa_evaluation" / name).is_file()
    assert len(pd.read_csv(base / "predictions" / "qa_predicted.csv")) == 4


def test_the_options_that_the_page_names_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    options = set(re.findall(r"`(--[a-z-]+)", text))
    assert {"--slices", "--no-simulate", "--into-quality"} <= options
    shown = "".join(run_command(discriminator, "discriminator", verb, "--help").stdout for verb in MORE)
    assert {option for option in options if option not in shown} == set()

"""The commands of docs/curve-classifier.md, one after the other as they stand there, on drawn curves."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.cli import curve_classifier, evaluate
from nnunet_qa.data.images import write_image
from nnunet_qa.quality.curve_files import write_curves
from nnunet_qa.quality.curve_rules import broken_checks
from tests.body import one_thread
from tests.quality.easy_curves import heart, hearts
from tests.small import GEOMETRY, run_command

PAGE = Path(__file__).parents[2] / "docs" / "curve-classifier.md"
LSTM = ("--epochs", "1", "--hidden", "4", "--folds", "2")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("nnunet-qa")]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Curves with labels, and twelve predicted series of two frames whose Dice is known."""
    for curves, labels, seed in (("curves", "qc_labels.csv", 0), ("new_curves", "new_labels.csv", 1)):
        some, erroneous = hearts(30, seed=seed)
        write_curves(tmp_path / curves, some)
        rows = [
            f"{one.acquisition_id},{'erroneous' if bad else 'good'}" for one, bad in zip(some, erroneous, strict=True)
        ]
        (tmp_path / labels).write_text("\n".join(["case,label", *rows]))
    rng = np.random.default_rng(0)
    write_curves(tmp_path / "predicted_curves", [heart(f"p{k}", rng) for k in range(12)])
    raw = tmp_path / "nnUNet_raw" / "Dataset111_Cine"
    raw.mkdir(parents=True)
    labels = {"background": 0, "lv": 1, "myocardium": 2, "rv": 3}
    (raw / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz", "channel_names": {}}))
    rows = [
        {"case_id": f"p{k}_fr{frame:03d}", "subject_id": f"p{k}", "frame_index": frame, "role": "test"}
        for k in range(12)
        for frame in (0, 1)
    ]
    CaseTable.from_rows(rows).write(raw / "cases.csv")
    truth = np.repeat(np.arange(4, dtype=np.uint8), 4).reshape(1, 4, 4)
    for number, row in enumerate(rows):
        write_image(tmp_path / "labelsTs" / f"{row['case_id']}.nii.gz", truth, GEOMETRY)
        wrong = number < 12  # the first six series
        write_image(tmp_path / "predictions" / f"{row['case_id']}.nii.gz", truth // (1 + wrong), GEOMETRY)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page(base: Path) -> None:
    verbs = []
    for tool, group, verb, *arguments in commands():
        assert tool == "nnunet-qa"
        if group == "evaluate":
            # the only command of an app has no name there
            result = run_command(evaluate, verb, *arguments, "--resamples", "10", "--jobs", "1")
        else:
            quick = LSTM if verb == "fit" and "--kind" not in arguments else ()
            result = run_command(curve_classifier, group, verb, *arguments, *quick)
        assert result.exit_code == 0, (verb, arguments, result.exception)
        verbs.append(verb if group == "curve-classifier" else group)
    assert verbs == ["fit", "fit", "fit", "evaluate", "evaluate", "fit", "predict", "predict"]
    fitted = {f"curve_classifier{ending}" for ending in (".pt", ".json", "_roc.png")}
    for name in (*fitted, "evaluation/roc.png", "logistic.pt"):
        assert (base / name).is_file()
    found = json.loads((base / "evaluation" / "curve_evaluation.json").read_text())["classifiers"]
    assert list(found) == ["curve_classifier", "logistic", "rules"]
    by_dice = json.loads((base / "by_dice.json").read_text())
    assert by_dice["about"]["acquisitions"] == 12
    assert sum(part["erroneous"] for part in by_dice["metrics"].values()) == 6
    assert len(pd.read_csv(base / "new_curves" / "curve_quality.csv")) == 30
    assert len(pd.read_csv(base / "by_rules.csv")) == 30


def test_the_page_names_the_options_checks_and_columns_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    options = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text))
    shown = "".join(
        run_command(curve_classifier, "curve-classifier", verb, "--help").stdout
        for verb in ("fit", "evaluate", "predict")
    )
    assert {option for option in options if option not in shown} == set()
    table = text[text.index("| check | broken where |") :]
    checks = set(re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE))
    some = hearts(1)[0][0]
    assert checks == {*broken_checks(some, ("lv", "myocardium", "rv")), "wide_range"}

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from typer.testing import Result

from nnunet_qa.cli import discriminator
from nnunet_qa.config import QALossConfig
from nnunet_qa.errors import ConfigError, DatasetError, ModelError, NnunetQAError, SelectionError
from nnunet_qa.inference.coded_cases import dice_codes
from nnunet_qa.quality.codes import CodeSource, CodeThresholds
from nnunet_qa.quality.discriminator_file import load
from nnunet_qa.quality.table import read_quality, write_quality
from tests.body import one_thread
from tests.inference.easy_discriminator import write_discriminator
from tests.inference.test_case_montages import Source, source_of
from tests.inference.test_coded_cases import CASES, damaged
from tests.small import run_command

QUICK = ("--epochs", 1, "--per-code", 1, "--batch-size", 8, "--jobs", 1, "-device", "cpu")
JUDGE = ("--jobs", 1, "-device", "cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def source(planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return source_of(planned["2d"])


@pytest.fixture
def predictions(source: Source, tmp_path: Path) -> Path:
    return damaged(source, tmp_path / "predictions")


@pytest.fixture
def made(source: Source, tmp_path: Path) -> Path:
    """A discriminator that fits the dataset."""
    spec = source.renderer("2d").renderer.specs[0]
    return write_discriminator(tmp_path / "made.pt", spec, ["small", "large"], source.raw.name)


def qa_codes(folder: Path, codes: dict[str, int]) -> Path:
    path = folder / "qa_codes.csv"
    path.write_text("case_id,code\n" + "".join(f"{case},{code}\n" for case, code in codes.items()))
    return path


def fit(*arguments: object) -> Result:
    return run_command(discriminator, "discriminator", "fit", "-d", 701, "-c", "2d", *QUICK, *arguments)


def evaluate(path: Path, predictions: Path, *arguments: object) -> Result:
    given = ("-i", path, "-d", 701, "-c", "2d", "-p", predictions, *JUDGE)
    return run_command(discriminator, "discriminator", "evaluate", *given, *arguments)


def predict(path: Path, predictions: Path, *arguments: object) -> Result:
    given = ("-i", path, "-d", 701, "-c", "2d", "-p", predictions, *JUDGE)
    return run_command(discriminator, "discriminator", "predict", *given, *arguments)


def test_fit_on_people_and_simulated_errors(source: Source, predictions: Path, tmp_path: Path) -> None:
    codes = qa_codes(tmp_path, {CASES[0]: 0, CASES[3]: 1, CASES[7]: 2})
    result = fit("--predictions", predictions, "--codes", codes, "--success", 0.9, "--failure", 0.4)
    assert result.exit_code == 0, result.exception
    folder = tmp_path / "results" / source.raw.name / "qa"
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.png",
        "discriminator.json",
        "discriminator.pt",
        "learning_curve.png",
    ]
    about = json.loads((folder / "discriminator.json").read_text())["about"]
    assert about["codes"] == {"human": 3, "simulated": 24}
    assert about["thresholds"] == {"success": 0.9, "failure": 0.4}
    assert (about["configuration"], about["plans"]) == ("2d", "nnUNetPlans")
    # as QAsemiTrainer reads it
    spec = source.renderer("2d", QALossConfig()).renderer.specs[0]
    fitted = load(folder / "discriminator.pt", dataset=source.raw.name, classes=["small", "large"], spec=spec)
    assert set(fitted.parts_["subject"]) == {"S0", "S1", "S2", "S3"}
    assert "simulated" in result.stdout
    for part in ("validation", "test"):
        assert part in result.stdout
    assert "Subjects: 1 test, 2 train, 1 validation." in result.stderr
    again = fit()
    assert isinstance(again.exception, ModelError)
    assert "discriminator.pt: is there already; choose another -o, or use --overwrite" in str(again.exception)


def test_fit_on_cross_validation_alone(source: Source, predictions: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    for number, case in enumerate(CASES):
        path = model / f"fold_{number % 2}" / "validation" / f"{case}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((predictions / f"{case}.png").read_bytes())
    output = tmp_path / "own" / "d.pt"
    how = ("--cross-validation", model, "--no-simulate", "--success", 0.85, "--failure", 0.75, "-o", output)
    result = fit(*how, "--noise", 0.1, "--seed", 3, "--learning-rate", 0.01, "--patience", 2)
    assert result.exit_code == 0, result.exception
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["about"]["codes"] == {"cross_validation": 8}
    settings = {"learning_rate": 0.01, "batch_size": 8, "epochs": 1, "patience": 2, "noise": 0.1, "seed": 3}
    assert {name: content["settings"][name] for name in settings} == settings


def test_slices_of_volumes(source: Source, planned: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "d.pt"
    given = ("-d", 702, "-c", "3d_fullres", *QUICK, "--slices", 4, "-o", output)
    result = run_command(discriminator, "discriminator", "fit", *given)
    assert result.exit_code == 0, result.exception
    assert load(output).spec.grid == (2, 2)
    volumes = source_of(planned["3d"])
    judged = ("-i", output, "-d", 702, "-c", "3d_fullres", "-p", volumes.raw / "labelsTr", "-o", tmp_path / "t.csv")
    result = run_command(discriminator, "discriminator", "predict", *judged, *JUDGE)
    assert result.exit_code == 0, result.exception
    assert len(pd.read_csv(tmp_path / "t.csv")) == 8
    assert not (volumes.raw / "labelsTr" / "qa_predicted.csv").exists()


def test_evaluate_against_people_and_dice(source: Source, predictions: Path, made: Path, tmp_path: Path) -> None:
    codes = qa_codes(tmp_path, {case: number % 3 for number, case in enumerate(CASES[:6])})
    rng = np.random.default_rng(0)
    rows = [
        {"case_id": case, "role": "", "level": "case", "slice_axis": None, "slice_index": None, "q": rng.uniform()}
        for case in CASES
    ]
    write_quality(predictions / "quality.csv", pd.DataFrame(rows))
    truths = source.raw / "labelsTr"
    result = evaluate(made, predictions, "--codes", codes, "-gt", truths, "-o", tmp_path / "out", "--resamples", 20)
    assert result.exit_code == 0, result.exception
    table = pd.read_csv(tmp_path / "out" / "qa_evaluation.csv")
    assert table.groupby("source")["case_id"].apply(list).to_dict() == {"dice": CASES, "human": CASES[:6]}
    assert table["subject_id"].tolist() == [case[:2] for case in table["case_id"]]
    files = [source.files(case, predictions) for case in CASES]
    how: dict[str, Any] = {"thresholds": CodeThresholds(), "source": CodeSource.DICE}
    known = dice_codes(files, truths, source.dataset_json, **how).set_index("case_id")
    assert table["dice"].to_numpy() == pytest.approx(known.loc[table["case_id"], "dice"].to_numpy(), abs=1e-6)
    summary = json.loads((tmp_path / "out" / "qa_evaluation.json").read_text())
    assert summary["codes"]["n"] == 14
    people = table[table["source"] == "human"]
    rounded = people["predicted_code"].round().clip(0, 2)
    assert summary["codes"]["by_source"]["human"]["accuracy"] == pytest.approx((rounded == people["code"]).mean())
    cases = table[table["source"] == "dice"]
    for name, score in (("qa_code", -cases["predicted_code"]), ("q", cases["q"])):
        found = summary["against_dice"][name]
        assert found["cases"] == 8
        assert found["values"]["spearman"] == pytest.approx(spearmanr(score, cases["dice"]).statistic, abs=1e-6)
    assert (tmp_path / "out" / "confusion.png").is_file()
    assert "human" in result.stdout
    assert "Against the Dice of 8 cases" in result.stdout


def test_evaluate_against_people_alone(predictions: Path, made: Path, tmp_path: Path) -> None:
    codes = qa_codes(tmp_path, {CASES[0]: 0, CASES[1]: 2})
    result = evaluate(made, predictions, "--codes", codes)
    assert result.exit_code == 0, result.exception
    summary = json.loads((predictions / "qa_evaluation" / "qa_evaluation.json").read_text())
    assert summary["against_dice"] == {}
    assert "Against" not in result.stdout
    assert predict(made, predictions).exit_code == 0, "the picture of the confusion is no prediction"
    error = evaluate(made, predictions, "--codes", codes, "-o", predictions).exception
    assert isinstance(error, DatasetError)
    assert "confusion.png would pass for a prediction there" in str(error)


def test_predict_and_the_column_of_the_quality_table(predictions: Path, made: Path) -> None:
    missing = predict(made, predictions, "--into-quality")
    assert isinstance(missing.exception, SelectionError)
    assert "quality.csv: not found" in str(missing.exception)
    assert not (predictions / "qa_predicted.csv").exists()
    rows = [
        {"case_id": case, "role": "", "level": "case", "slice_axis": None, "slice_index": None, "q": 0.5}
        for case in CASES
    ]
    write_quality(predictions / "quality.csv", pd.DataFrame(rows))
    result = predict(made, predictions, "--into-quality")
    assert result.exit_code == 0, result.exception
    table = pd.read_csv(predictions / "qa_predicted.csv")
    assert table.columns.tolist() == ["case_id", "predicted_code", "code", "model"]
    assert table["case_id"].tolist() == CASES
    assert read_quality(predictions / "quality.csv")["qa_code"].tolist() == table["predicted_code"].tolist()
    counts = [int((table["code"] == code).sum()) for code in range(3)]
    expected = ", ".join(f"{count} with code {code}" for code, count in enumerate(counts))
    assert f"8 predictions, {expected}" in result.stderr


class _Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_discriminators_that_are_refused(
    source: Source, predictions: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open("harmful.pt", "wb") as file:
        pickle.dump(_Harmful(), file, protocol=2)  # torch warns of others
    torch.save({"weights": {}, "description": _Harmful()}, "torch_harmful.pt")
    Path("corrupt.pt").write_bytes(made.read_bytes()[:1000])
    spec = load(made).spec
    write_discriminator(tmp_path / "other.pt", spec, ["small", "large"], "Dataset009_Other")
    for name, text in (
        ("harmful.pt", "harmful.pt"),
        ("torch_harmful.pt", "torch_harmful.pt"),
        ("corrupt.pt", "corrupt.pt"),
        ("absent.pt", "absent.pt"),
        ("other.pt", "made for dataset Dataset009_Other, not Dataset701_Phantom2D"),
    ):
        for command in (predict, evaluate):
            more = ("-gt", source.raw / "labelsTr") if command is evaluate else ()
            error = command(Path(name), predictions, *more).exception
            assert isinstance(error, ModelError), name
            assert text in str(error)
            assert "\n" not in str(error)
    assert not Path("executed").exists()


def test_montages_that_the_configuration_does_not_have(planned: dict[str, str], source: Source, tmp_path: Path) -> None:
    volumes = source_of(planned["3d"])
    spec = volumes.renderer("3d_fullres", QALossConfig(views=(1,))).renderer.specs[0]
    path = write_discriminator(tmp_path / "d.pt", spec, ["small", "large"], planned["3d"])
    given = ("-i", path, "-d", 702, "-c", "3d_fullres", "-p", volumes.raw / "labelsTr", *JUDGE)
    error = run_command(discriminator, "discriminator", "predict", *given).exception
    assert isinstance(error, ModelError)
    assert "montage axis 1, not 0" in str(error)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("--codes", "qa_codes.csv"), SelectionError, "name the folder of the predictions"),
        (("--predictions", "predictions", "--codes", "none.csv"), SelectionError, "none.csv: not found"),
        (("--predictions", "predictions"), SelectionError, "give the codes of these predictions"),
        (("--no-simulate",), SelectionError, "there are no codes to learn from"),
        (("--success", "0.4"), ConfigError, "0 < failure <= success <= 1"),
        (("--window", "-100", "100"), SelectionError, "--window is for CT"),
        (("--slices", "4"), SelectionError, "pictures, not volumes; leave out --slices"),
        (("--weights", "nowhere.pth"), ModelError, "nowhere.pth"),
        (("-p", "otherPlans"), DatasetError, "otherPlans.json: no such plans"),
        (("--cross-validation", "nowhere"), ModelError, "nowhere: no fold_X/validation"),
    ],
)
def test_what_fit_refuses(
    predictions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    error: type[NnunetQAError],
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = fit(*arguments).exception
    assert isinstance(found, error), found
    assert text in str(found)
    assert not (tmp_path / "results").exists()

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

from nnunet_qa.cases import CaseTable
from nnunet_qa.cli import curve_classifier
from nnunet_qa.errors import CurveError, ModelError, NnunetQAError, SelectionError
from nnunet_qa.quality.curve_classifier import CurveLSTM
from nnunet_qa.quality.curve_classifier_file import load
from nnunet_qa.quality.curve_files import read_curves, write_curves
from nnunet_qa.quality.curve_rules import CurveRules, broken_checks
from tests.body import one_thread
from tests.quality.easy_curves import acquisition, heart, hearts
from tests.small import run_command

SMALL = ("--epochs", 3, "--hidden", 8, "--frames", 20, "--folds", 2)


def run(command: str, *arguments: object) -> Result:
    return run_command(curve_classifier, "curve-classifier", command, *arguments)


def failed(command: str, *arguments: object) -> NnunetQAError:
    error = run(command, *arguments).exception
    assert isinstance(error, NnunetQAError), error
    assert "\n" not in str(error)
    return error


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def write_labels(path: Path, names: list[str], erroneous: np.ndarray) -> Path:
    texts = [f"{name},{'erroneous' if wrong else 'good'}" for name, wrong in zip(names, erroneous, strict=True)]
    path.write_text("\n".join(["case,label", *texts, ""]))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 labelled series, 4 without a label, 30 of new subjects, and an LSTM of the first ones."""
    folder = tmp_path_factory.mktemp("hearts")
    some, wrong = hearts(44)
    some, wrong = [*some[2:], *some[:2]], np.roll(wrong, -2)  # the last four are two erroneous and two good ones
    write_curves(folder / "curves", some)
    write_labels(folder / "qc_labels.csv", [one.acquisition_id for one in some[:40]] + ["gone"], [*wrong[:40], True])
    new, new_wrong = hearts(30, seed=1, prefix="n")
    write_curves(folder / "new", new)
    write_labels(folder / "new_labels.csv", [one.acquisition_id for one in new], new_wrong)
    fit = ("fit", "-i", folder / "curves", "--labels", folder / "qc_labels.csv")
    result = run(*fit, "-o", folder / "models" / "lstm.pt", *SMALL)
    assert result.exit_code == 0, result.exception
    assert "40 of 44 acquisitions have a label: 16 erroneous, 24 good. 1 labels have no curves." in result.stderr
    assert "test" in result.stdout
    assert "validation" in result.stdout
    for kind in ("rules", "logistic"):
        assert run(*fit, "-o", folder / f"{kind}.pt", "--kind", kind, "--structures", "lv, rv").exit_code == 0
    return folder


def test_a_threshold_that_is_sensitive_enough(base: Path) -> None:
    fit = ("fit", "-i", base / "curves", "--labels", base / "qc_labels.csv", "--kind", "rules", "--test-share", 0)
    thresholds = {}
    for least in (0, 1):
        name = base / f"least_{least}.pt"
        assert run(*fit, "--weight", 0.1, "--least-sensitivity", least, "-o", name).exit_code == 0
        thresholds[least] = load(name).threshold_
    assert json.loads((base / "least_1.json").read_text())["metrics"]["validation"]["sensitivity"] == 1
    assert thresholds[1] < thresholds[0]


def test_a_fit_shows_slices_to_the_lstm(base: Path) -> None:
    fit = ("fit", "-i", base / "curves", "--labels", base / "qc_labels.csv", *SMALL, "--test-share", 0)
    assert run(*fit, "--slices", "-o", base / "slices.pt").exit_code == 0
    assert load(base / "slices.pt").settings()["slices"]


def test_a_fit_keeps_subjects_for_the_test(base: Path) -> None:
    description = json.loads((base / "models" / "lstm.json").read_text())
    metrics = description["metrics"]
    assert metrics["test"]["n"] + metrics["validation"]["n"] == 40
    assert 4 <= metrics["test"]["n"] <= 12
    assert metrics["test"]["erroneous"] + metrics["validation"]["erroneous"] == 16
    assert description["structures"] == ["lv", "myocardium", "rv"]
    assert description["about"]["labels"] == str(base / "qc_labels.csv")
    assert sorted(path.name for path in (base / "models").iterdir()) == ["lstm.json", "lstm.pt", "lstm_roc.png"]
    loaded = load(base / "models" / "lstm.pt").settings()
    assert (loaded["epochs"], loaded["hidden"], loaded["frames"], loaded["folds"]) == (3, 8, 20, 2)
    assert load(base / "rules.pt").structures_ == ("lv", "rv")


def test_a_fit_without_a_test(base: Path, tmp_path: Path) -> None:
    fit = ("fit", "-i", base / "curves", "--labels", base / "qc_labels.csv", "--kind", "rules", "--test-share", 0)
    assert run(*fit, "-o", tmp_path / "all.pt", "--weight", 1).exit_code == 0
    metrics = load(tmp_path / "all.pt").metrics_
    assert list(metrics) == ["validation"]
    assert metrics["validation"]["n"] == 40
    assert metrics["validation"]["sensitivity"] == 1  # nothing else counts
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".png"] == []


def test_the_share_that_is_kept_is_said(base: Path, tmp_path: Path) -> None:
    fit = ("fit", "-i", base / "curves", "--labels", base / "qc_labels.csv", "--kind", "rules", "--test-share", 0.4)
    said = run(*fit, "-o", tmp_path / "rules.pt").stderr
    found = re.search(r"(\d+) of (\d+) subjects \((\d+)%\) are kept for the test; --test-share asked for 40%\.", said)
    assert found is not None, said
    kept, known, share = map(int, found.groups())
    assert share == round(100 * kept / known)
    assert share > 45  # a half
    assert run(*fit, "-o", tmp_path / "others.pt").exit_code == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"rules_roc.png", "others_roc.png"}


def test_a_test_of_one_class_has_no_picture_but_the_classifier_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = {"a": (3, 0), "b": (0, 3), "d": (0, 5), "e": (4, 5), "c": (2, 0)}  # good and erroneous ones of a subject
    some, wrong = [], []
    for subject, both in counts.items():
        for number in range(sum(both)):
            wrong.append(number >= both[0])
            error = "jumps" if wrong[-1] else ""
            some.append(heart(f"{subject}{number}", rng, error=error, subject=subject))
    write_curves(tmp_path / "curves", some)
    labels = write_labels(tmp_path / "labels.csv", [one.acquisition_id for one in some], np.array(wrong))
    (tmp_path / "m_roc.png").touch()  # of an earlier fit
    result = run("fit", "-i", tmp_path / "curves", "--labels", labels, "--kind", "rules", "-o", tmp_path / "m.pt")
    assert result.exit_code == 0, result.exception
    assert "No ROC curve: of 5 acquisitions of unseen subjects, all are erroneous." in result.stderr
    metrics = load(tmp_path / "m.pt").metrics_["test"]
    assert (metrics["n"], metrics["erroneous"], metrics["auroc"], metrics["specificity"]) == (5, 5, None, None)
    assert not (tmp_path / "m_roc.png").exists()


def test_a_model_is_not_replaced_by_mistake(base: Path) -> None:
    fit = ("fit", "-i", base / "curves", "--labels", base / "qc_labels.csv", "--kind", "rules", "-o", base / "rules.pt")
    assert "is there already" in str(failed(*fit))
    assert run(*fit, "--overwrite", "--structures", "lv,rv").exit_code == 0


def test_evaluation_of_several(base: Path, tmp_path: Path) -> None:
    models = ("-m", base / "models" / "lstm.pt", "-m", base / "rules.pt", "-m", base / "logistic.pt")
    result = run("evaluate", "-i", base / "new", *models, "--labels", base / "new_labels.csv", "-o", tmp_path)
    assert result.exit_code == 0, result.exception
    table = pd.read_csv(tmp_path / "curve_evaluation.csv")
    assert list(table.columns) == [
        *("acquisition_id", "subject_id", "erroneous"),
        *(f"p_erroneous_{name}" for name in ("lstm", "rules", "logistic")),
    ]
    unseen = read_curves(base / "new")
    np.testing.assert_allclose(table["p_erroneous_rules"], load(base / "rules.pt").predict_proba(unseen), atol=1e-6)
    found = json.loads((tmp_path / "curve_evaluation.json").read_text())["classifiers"]
    wrong, called = table["erroneous"] == 1, table["p_erroneous_rules"] >= found["rules"]["threshold"]
    assert found["rules"]["caught"] == (wrong & called).sum()
    assert found["rules"]["false_alarms"] == (~wrong & called).sum()
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert "logistic" in result.stdout


def test_evaluation_of_good_ones_alone(base: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.csv", ["n20", "n21"], np.array([False, False]))
    arguments = ("-i", base / "new", "-m", base / "rules.pt", "--labels", labels, "-o", tmp_path / "out")
    assert run("evaluate", *arguments).exit_code == 0
    found = json.loads((tmp_path / "out" / "curve_evaluation.json").read_text())["classifiers"]["rules"]
    assert (found["auroc"], found["sensitivity"], found["n"]) == (None, None, 2)
    assert not (tmp_path / "out" / "roc.png").exists()


def test_models_of_one_name_are_told_apart(base: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "curves.pt").write_bytes((base / "rules.pt").read_bytes())
    models = ("-m", tmp_path / "a" / "curves.pt", "-m", tmp_path / "b" / "curves.pt")
    arguments = ("-i", base / "new", "--labels", base / "new_labels.csv", "-o", tmp_path / "out")
    assert run("evaluate", *arguments, *models).exit_code == 0
    assert "p_erroneous_b_curves" in pd.read_csv(tmp_path / "out" / "curve_evaluation.csv").columns
    assert "two classifiers have the same name" in str(failed("evaluate", *arguments, *models[:2], *models[:2]))


def test_predictions(base: Path, tmp_path: Path) -> None:
    assert run("predict", "-i", base / "new", "-m", base / "models" / "lstm.pt").exit_code == 0
    table = pd.read_csv(base / "new" / "curve_quality.csv", keep_default_na=False)
    model, unseen = load(base / "models" / "lstm.pt"), read_curves(base / "new")
    assert table["acquisition_id"].tolist() == [one.acquisition_id for one in unseen]
    assert table["subject_id"].tolist() == [one.subject_id for one in unseen]
    np.testing.assert_allclose(table["p_erroneous"], model.predict_proba(unseen), atol=1e-6)
    assert (table["erroneous"] == model.predict(unseen)).all()
    assert table["model"].str.fullmatch(r"lstm\.pt [0-9a-f]{12}").all()
    for one, text in zip(unseen, table["broken_checks"], strict=True):
        broken = broken_checks(one, ("lv", "myocardium", "rv"))
        assert text.split() == [name for name, wrong in broken.items() if wrong]


def test_predictions_without_labels_or_model(base: Path, tmp_path: Path) -> None:
    result = run("predict", "-i", base / "new", "-o", tmp_path / "quality.csv")
    assert result.exit_code == 0, result.exception
    table = pd.read_csv(tmp_path / "quality.csv", keep_default_na=False)
    assert (table["model"] == "rules").all()
    assert ((table["broken_checks"] != "") == (table["erroneous"] == 1)).all()
    np.testing.assert_allclose(table["p_erroneous"], table["broken_checks"].str.split().str.len() / 6, atol=1e-6)
    assert f"{table['erroneous'].sum()} of 30 acquisitions are called erroneous" in result.stderr


def test_predictions_are_not_rounded(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sure = np.geomspace(1e-12, 1e-7, 30)  # what a classifier says of good ones
    monkeypatch.setattr(CurveRules, "predict_proba", lambda self, acquisitions: sure)
    assert run("predict", "-i", base / "new", "-m", base / "rules.pt", "-o", tmp_path / "quality.csv").exit_code == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "quality.csv")["p_erroneous"], sure, rtol=1e-12)


def test_the_help_states_the_defaults_of_the_lstm() -> None:
    shown = run("fit", "--help").stdout
    defaults = inspect.signature(CurveLSTM).parameters
    for name in ("frames", "hidden", "epochs"):
        (line,) = (line for line in shown.splitlines() if f"--{name} " in line)
        assert f"Default: {defaults[name].default}." in line
    assert not defaults["sizes"].default
    assert not defaults["slices"].default


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kind", "logistic", "--slices"), "--kind logistic makes no use of --slices; leave that out"),
        (("--kind", "rules", "--sizes", "--frames", 50), "--kind rules makes no use of --sizes, --frames; leave"),
        (("--kind", "rules", "--hidden", 64, "--epochs", 40), "rules makes no use of --hidden, --epochs; leave"),
        (("-d", 111), "--labels makes no use of -d; leave that out, or choose --dice"),
        (("--cases", "cases.csv"), "--labels makes no use of --cases; leave that out, or choose --dice"),
        (("--erroneous-below", 0.7), "--labels makes no use of --erroneous-below; leave that out"),
    ],
)
def test_options_without_effect_are_refused(
    base: Path, tmp_path: Path, arguments: tuple[object, ...], said: str
) -> None:
    fit = ("fit", "-i", base / "curves", "--labels", base / "qc_labels.csv", "-o", tmp_path / "m.pt")
    error = failed(*fit, *arguments)
    assert isinstance(error, SelectionError)
    assert said in str(error)
    assert not (tmp_path / "m.pt").exists()


def test_labels_from_the_dice_of_frames(base: Path, tmp_path: Path) -> None:
    some = read_curves(base / "curves")
    rows, dice = [], ["case_id,dice"]
    for number, one in enumerate(some):
        for frame in (0, 1):
            case = f"{one.acquisition_id}_fr{frame:03d}"
            stack = one.acquisition_id if number else ""  # that of the first follows from its subject
            rows.append({"case_id": case, "subject_id": one.subject_id, "stack_id": stack, "role": "test"})
            dice.append(f"{case},{(0.9, 0.5)[frame] if number % 2 else (0.9, 0.7)[frame]}")
    CaseTable.from_rows(rows).write(tmp_path / "cases.csv")
    (tmp_path / "evaluation.csv").write_text("\n".join(dice))
    arguments = ("--dice", tmp_path / "evaluation.csv", "--erroneous-below", 0.75, "--cases", tmp_path / "cases.csv")
    result = run("fit", "-i", base / "curves", "-o", tmp_path / "m.pt", "--kind", "rules", *arguments)
    assert result.exit_code == 0, result.exception
    assert "44 of 44 acquisitions have a label: 22 erroneous" in result.stderr
    about = json.loads((tmp_path / "m.json").read_text())["about"]
    assert about["erroneous below Dice"] == 0.75


def test_mistakes(base: Path, tmp_path: Path) -> None:
    labels = ("--labels", base / "qc_labels.csv")
    fit = ("fit", "-i", base / "curves", "-o", tmp_path / "m.pt", "--kind", "rules")
    aorta = [acquisition({"ascending_aorta": np.full((5, 1), 50)}, name="n0", scheme="ukbb_ao")]
    write_curves(tmp_path / "aorta", aorta)
    write_labels(tmp_path / "few.csv", ["s0", "s20", "s21"], np.array([True, False, False]))
    write_labels(tmp_path / "other.csv", ["s99"], np.array([True]))
    (tmp_path / "empty.jsonl").touch()
    evaluate = ("evaluate", "-i", base / "new", "-o", tmp_path / "out", "--labels", base / "new_labels.csv")
    for arguments, kind, said in (
        (fit, SelectionError, "give either --labels"),
        ((*fit, *labels, "--dice", tmp_path / "few.csv"), SelectionError, "give either --labels"),
        ((*fit, "--labels", tmp_path / "none.csv"), SelectionError, "none.csv: not found"),
        ((*fit, "--labels", tmp_path / "few.csv"), SelectionError, "1 subject(s) with an erroneous acquisition and 2"),
        ((*fit, "--labels", tmp_path / "other.csv"), SelectionError, 'no acquisition has a label; "s99"'),
        ((*fit, *labels, "--structures", "lv,lung"), SelectionError, "has no curve of lung, only of lv"),
        ((*fit[:4], tmp_path / "m.txt", *labels), ModelError, "ends in .pt"),
        ((*fit[:2], tmp_path, *fit[3:], *labels), CurveError, "acquisitions.jsonl: not found"),
        (("predict", "-i", tmp_path / "empty.jsonl"), SelectionError, "holds no acquisition"),
        (("predict", "-i", base / "new", "-m", base / "rules.json"), ModelError, "rules.json: is damaged"),
        (("predict", "-i", tmp_path / "aorta", "-m", base / "rules.pt"), ModelError, "curves of volume, not of area"),
        ((*evaluate, "-m", tmp_path / "none.pt"), ModelError, "none.pt: cannot be read"),
    ):
        error = failed(*arguments)
        assert isinstance(error, kind), (arguments, error)
        assert said in str(error), error
    assert not (tmp_path / "m.pt").exists()
    assert not (tmp_path / "out").exists()

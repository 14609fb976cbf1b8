from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from nnunet_qa.cli import evaluate
from nnunet_qa.errors import CaseTableError, DatasetError, ImageError, NnunetQAError, SelectionError
from nnunet_qa.evaluation.failure_detection import aurc, spearman
from nnunet_qa.quality.table import write_quality
from tests.small import NAME, run_command, tiny_dataset, write_tiny

LABELS = {"background": 0, "fluid": 1, "drusen": 2}
CASES = [f"S{number // 2}_{number % 2}" for number in range(12)]


def truth_of(case: str) -> np.ndarray:
    if case == CASES[-1]:
        return np.zeros((6, 8), np.uint8)
    return np.random.default_rng(sum(map(ord, case))).integers(0, 3, (6, 8)).astype(np.uint8)


def prediction_of(case: str) -> np.ndarray:
    rng = np.random.default_rng(CASES.index(case))
    wrong = rng.uniform(size=(6, 8)) < CASES.index(case) / 12
    return np.where(wrong & (case != CASES[-1]), 0, truth_of(case)).astype(np.uint8)


def dice_by_scikit_learn(case: str) -> list[float]:
    truth, prediction = truth_of(case).ravel(), prediction_of(case).ravel()
    return f1_score(truth, prediction, labels=[1, 2], average=None, zero_division=1.0).tolist()


def folders(base: Path, *, ending: str = ".png", quality: bool = True) -> tuple[Path, Path]:
    predictions, truths = base / "predictions", base / "truths"
    for case in CASES:
        write_tiny(predictions / f"{case}{ending}", prediction_of(case))
        write_tiny(truths / f"{case}{ending}", truth_of(case))
    content = {"channel_names": {"0": "c"}, "labels": LABELS, "numTraining": 1, "file_ending": ending}
    (predictions / "dataset.json").write_text(json.dumps(content))
    if quality:
        rows = [
            {"case_id": case, "role": "test", "level": level, "slice_axis": axis, "slice_index": axis}
            | {"q": 1 - ((number * 5) % 12) / 12, "q_fluid": 0.5}
            for number, case in enumerate(CASES)
            for level, axis in (("case", None), ("slice", 0))
        ]
        write_quality(predictions / "quality.csv", pd.DataFrame(rows))
    return predictions, truths


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_dice_joined_with_scores(tmp_path: Path, ending: str) -> None:
    predictions, truths = folders(tmp_path, ending=ending)
    result = run_command(evaluate, "-p", predictions, "-gt", truths, "--resamples", 50)
    assert result.exit_code == 0, result.exception
    table = pd.read_csv(predictions / "evaluation.csv")
    assert table["case_id"].tolist() == CASES
    assert {"q", "q_fluid", "role", "dice", "dice_fluid", "dice_drusen", "foreground"} <= set(table.columns)
    expected = np.array([dice_by_scikit_learn(case) for case in CASES])
    assert table[["dice_fluid", "dice_drusen"]].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert table["dice"].to_numpy() == pytest.approx(expected.mean(1), abs=1e-6)

    figures = json.loads((predictions / "evaluation.json").read_text())
    dice, q = expected.mean(1), table["q"].to_numpy()
    assert figures["cases"] == figures["subjects"] == 12
    assert figures["all_cases"] == pytest.approx(
        {"n": 12, "mean": dice.mean(), "sd": dice.std(ddof=1), "median": np.median(dice)}
    )
    assert figures["foreground_cases"]["n"] == 11
    assert figures["foreground_cases"]["mean"] == pytest.approx(dice[:-1].mean())
    assert figures["classes"]["fluid"] == pytest.approx(expected[:, 0].mean())
    assert figures["q"]["values"]["spearman"] == pytest.approx(spearman(q, dice))
    assert figures["q"]["values"]["aurc"] == pytest.approx(aurc(q, 1 - dice))
    assert set(figures["q"]["intervals"]) == {"spearman", "pearson", "aurc", "e_aurc", "naurc", "auroc"}

    text = (predictions / "evaluation.md").read_text()
    for shown in (text, result.stdout):
        assert f"{dice.mean():.4f} ± {dice.std(ddof=1):.4f}" in shown
        assert "AUROC of Dice below 0.5" in shown
        assert "nAURC" in shown
    assert "95% bootstrap" in text
    assert "subject of its own" in result.stderr


def test_subjects_of_a_case_table(tmp_path: Path) -> None:
    predictions, truths = folders(tmp_path)
    lines = ["case_id,subject_id,role", *(f"{case},{case[:2]},test" for case in CASES)]
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    options = ["-p", predictions, "-gt", truths, "--resamples", 40, "--cases", tmp_path / "cases.csv"]
    results = []
    for arguments in (options, options, [*options, "--seed", 1], options[:6], [*options, "--resamples", 0]):
        run_command(evaluate, *arguments)
        results.append(json.loads((predictions / "evaluation.json").read_text()))
    first, again, seeded, ungrouped, without = results
    assert first["subjects"] == 6
    assert again == first
    assert seeded["q"]["intervals"] != first["q"]["intervals"] != ungrouped["q"]["intervals"]
    assert seeded["q"]["values"] == first["q"]["values"] == ungrouped["q"]["values"]
    assert without["q"]["intervals"] == {}


def test_the_default_subcommand_need_not_be_named(tmp_path: Path) -> None:
    predictions, truths = folders(tmp_path)
    written = []
    for words in ((), ("folders",)):
        result = run_command(evaluate, *words, "-p", predictions, "-gt", truths, "--resamples", 20)
        assert result.exit_code == 0, result.exception
        written.append(json.loads((predictions / "evaluation.json").read_text()))
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        (("--help",), 0, ("folders", "codes", "Compare predictions with the truth")),
        (("folders", "--help"), 0, ("-gt", "--failure-dice")),
        (("-p", "x", "--help"), 0, ("-gt", "--failure-dice")),
        (("codes", "--help"), 0, ("--arm", "--dice")),
        ((), 2, ("Missing option '-p'",)),
        (("-p", "x"), 2, ("Missing option '-gt'",)),
        (("code", "-o", "x"), 2, ("No such command 'code'", "Did you mean 'codes'?")),
    ],
)
def test_help_and_usage(words: tuple[str, ...], code: int, shown: tuple[str, ...]) -> None:
    result = run_command(evaluate, *words)
    assert result.exit_code == code
    for text in shown:
        assert text in result.output


def test_without_scores_and_elsewhere(tmp_path: Path) -> None:
    predictions, truths = folders(tmp_path, quality=False)
    result = run_command(evaluate, "-p", predictions, "-gt", truths, "-o", tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 0
    assert "there is no Q to judge" in result.stderr
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["q"] is None
    assert "AURC" not in (tmp_path / "out" / "evaluation.md").read_text()
    assert "q" not in pd.read_csv(tmp_path / "out" / "evaluation.csv").columns
    assert not (predictions / "evaluation.csv").exists()


def test_the_limit_of_a_failure(tmp_path: Path) -> None:
    predictions, truths = folders(tmp_path)
    failures = []
    for limit in (0.3, 0.9):
        run_command(evaluate, "-p", predictions, "-gt", truths, "--failure-dice", limit, "--resamples", 0)
        failures.append(json.loads((predictions / "evaluation.json").read_text())["q"]["failures"])
    dice = np.array([np.mean(dice_by_scikit_learn(case)) for case in CASES])
    assert failures == [(dice < 0.3).sum(), (dice < 0.9).sum()]
    assert failures[0] < failures[1]


def test_regions_and_the_ignore_label(tmp_path: Path) -> None:
    predictions, truths = folders(tmp_path, quality=False)
    content = json.loads((predictions / "dataset.json").read_text())
    content["labels"] = {"background": 0, "any": [1, 2], "ignore": 3}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    truth = truth_of("S0_1")
    truth[:3] = 3
    write_tiny(truths / "S0_1.png", truth)
    assert run_command(evaluate, "-p", predictions, "-gt", truths, "--dataset-json", other).exit_code == 0
    table = pd.read_csv(predictions / "evaluation.csv").set_index("case_id")
    counts = (truth != 3).ravel()
    expected = f1_score((truth.ravel() > 0)[counts], (prediction_of("S0_1").ravel() > 0)[counts])
    assert table.loc["S0_1", "dice_any"] == pytest.approx(expected, abs=1e-6)


def test_three_dimensional_tif(tmp_path: Path) -> None:
    import tifffile

    predictions, truths = tmp_path / "p", tmp_path / "t"
    for folder in (predictions, truths):
        folder.mkdir()
        tifffile.imwrite(folder / "a.tif", np.arange(24).reshape(2, 3, 4).astype(np.uint8) % 2)
    content = {"labels": {"background": 0, "x": 1}, "file_ending": ".tif", "overwrite_image_reader_writer": "Tiff3DIO"}
    (predictions / "dataset.json").write_text(json.dumps(content))
    result = run_command(evaluate, "-p", predictions, "-gt", truths)
    assert result.exit_code == 0, result.exception
    assert pd.read_csv(predictions / "evaluation.csv")["dice"].tolist() == [1.0]


def test_a_dataset_gives_labels_and_subjects(fresh_folders: Path) -> None:
    raw = tiny_dataset(fresh_folders, test=tuple(CASES))
    predictions, truths = folders(fresh_folders)
    (predictions / "dataset.json").unlink()
    assert run_command(evaluate, "-p", predictions, "-gt", truths, "-d", NAME, "--resamples", 0).exit_code == 0
    assert json.loads((predictions / "evaluation.json").read_text())["subjects"] == 6
    (raw / "cases.csv").unlink()
    assert run_command(evaluate, "-p", predictions, "-gt", truths, "-d", 301, "--resamples", 0).exit_code == 0
    assert json.loads((predictions / "evaluation.json").read_text())["subjects"] == 12


def test_a_dataset_that_is_only_preprocessed(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, truths = folders(fresh_folders)
    preprocessed = fresh_folders / "nnUNet_preprocessed" / NAME
    preprocessed.mkdir()
    (predictions / "dataset.json").rename(preprocessed / "dataset.json")
    monkeypatch.delenv("nnUNet_raw")
    assert run_command(evaluate, "-p", predictions, "-gt", truths, "-d", 301, "--resamples", 0).exit_code == 0


def _no_prediction(base: Path) -> None:
    (base / "predictions/S1_0.png").unlink()


def _no_truth(base: Path) -> None:
    (base / "truths/S1_0.png").unlink()


def _shape(base: Path) -> None:
    write_tiny(base / "truths/S1_0.png", np.zeros((5, 8), np.uint8))


def _value(base: Path) -> None:
    write_tiny(base / "truths/S1_0.png", np.full((6, 8), 9, np.uint8))


def _damaged(base: Path) -> None:
    (base / "truths/S1_0.png").write_bytes(b"no picture")


def _empty(base: Path) -> None:
    for path in (base / "truths").iterdir():
        path.unlink()


def _nowhere(base: Path) -> None:
    (base / "truths").rename(base / "elsewhere")


def _no_json(base: Path) -> None:
    (base / "predictions/dataset.json").unlink()


def _background_only(base: Path) -> None:
    (base / "predictions/dataset.json").write_text('{"labels": {"background": 0}, "file_ending": ".png"}')


def _no_ending(base: Path) -> None:
    (base / "predictions/dataset.json").write_text('{"labels": {"background": 0}}')


def _unscored(base: Path) -> None:
    path = base / "predictions/quality.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("S1_0")))


def _more_scored(base: Path) -> None:
    _no_prediction(base)
    _no_truth(base)


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (_no_prediction, DatasetError, "predictions/S1_0.png: not found; 1 of 12 cases"),
        (_no_truth, DatasetError, "truths/S1_0.png: not found; 1 of 12 cases"),
        (_shape, ImageError, "predictions/S1_0.png: has shape (6, 8), the truth"),
        (_value, ImageError, "truths/S1_0.png: label value 9 is not in dataset.json"),
        (_damaged, ImageError, "truths/S1_0.png: cannot be read as an image"),
        (_empty, DatasetError, "truths: holds no file with the ending .png"),
        (_nowhere, DatasetError, "truths: no such folder"),
        (_no_json, DatasetError, "name the dataset with -d"),
        (_background_only, DatasetError, "nothing to evaluate"),
        (_no_ending, DatasetError, '"file_ending" is missing'),
        (_unscored, SelectionError, '"S1_0" has no row in quality.csv'),
        (_more_scored, SelectionError, '"S1_0" is in quality.csv and not in the folders'),
    ],
)
def test_mistakes(tmp_path: Path, spoil: object, error: type[NnunetQAError], text: str) -> None:
    predictions, truths = folders(tmp_path)
    spoil(tmp_path)  # type: ignore[operator]
    result = run_command(evaluate, "-p", predictions, "-gt", truths)
    assert isinstance(result.exception, error)
    assert text in str(result.exception)
    assert not (predictions / "evaluation.csv").exists()


def test_a_case_that_the_table_does_not_know(tmp_path: Path) -> None:
    predictions, truths = folders(tmp_path)
    (tmp_path / "cases.csv").write_text("case_id,role\nS0_0,test\n")
    result = run_command(evaluate, "-p", predictions, "-gt", truths, "--cases", tmp_path / "cases.csv")
    assert isinstance(result.exception, CaseTableError)

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, spearmanr
from skimage.io import imread
from sklearn.metrics import confusion_matrix

from nnunet_qa.errors import SelectionError
from nnunet_qa.experiments import qa_loss_codes, qa_loss_discriminators, qa_loss_report
from nnunet_qa.experiments.qa_loss import QA, SUPERVISED, QALossExperiment
from nnunet_qa.experiments.qa_loss_report import guard_stop, write_report
from tests.experiments.qa_loss_stand_ins import KEPT, STOPPED, experiment_on, phantom, q_of, run, stand_ins

SEEDS = (0, 1, 2)
DONE = {SUPERVISED: SEEDS, QA: SEEDS, "mean_teacher": (0, 1), "qa_refit": (0,)}


def code_of(maker: str, arm: str, case: str) -> float:
    """What the stand-in for a discriminator says."""
    return zlib.crc32(f"{maker}{arm}{case}".encode()) % 2400 / 1000 - 0.2


@pytest.fixture(scope="module")
def judged() -> Iterator[list[dict[str, Any]]]:
    """A stand-in for the judgement of discriminators, and what it was asked."""
    asked: list[dict[str, Any]] = []

    def judge(path: Path, **how: Any) -> pd.DataFrame:
        asked.append({"path": path, **how})
        maker, predictions = path.parents[5].name, how["predictions"]
        arm = "truth" if predictions.name == "labelsTs" else predictions.parents[1].name
        codes = [code_of(maker, arm, case) for case in how["cases"]]
        return pd.DataFrame({"case_id": how["cases"], "predicted_code": codes})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qa_loss_discriminators, "predicted_codes", judge)
        yield asked


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, judged: list[dict[str, Any]]) -> Iterator[QALossExperiment]:
    """Cells that are done, with their report."""
    base = tmp_path_factory.mktemp("qa_loss_report")
    with phantom(base) as source, stand_ins(stopped=("qa_refit",)):
        made = experiment_on(source, base / "out", simulation={"epochs": 3})
        for arm, seeds in DONE.items():
            run(made, [arm], seeds)
        write_report(made)
        yield made


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without their pictures, which take most of the time."""
    for module, names in {
        qa_loss_codes: ["codes_picture"],
        qa_loss_discriminators: ["learning_curve_picture"],
        qa_loss_report: ["arms_picture", "errors_picture", "qa_loss_picture"],
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, **__: None)


@pytest.fixture
def report(experiment: QALossExperiment) -> Path:
    return experiment.folder / "report"


def text_of(report: Path) -> str:
    return (report / "README.md").read_text()


def row_of(text: str, *starts: str) -> list[str]:
    """Cells of the first row whose first cells are these."""
    (first, *_) = (line for line in text.splitlines() if line.startswith(f"| {' | '.join(starts)} |"))
    return [cell.strip() for cell in first.strip("|").split("|")]


def true_dice(experiment: QALossExperiment, arm: str) -> dict[tuple[int, str], float]:
    """Mean Dice of the two classes of each draw and test case, from the files."""
    found = {}
    for seed in DONE[arm]:
        for case in experiment.holdout(seed).parts.test:
            folder = experiment.runner.cell(arm, seed).folder / "imagesTs"
            predicted, truth = (imread(place / f"{case}.png") for place in (folder, experiment.source / "labelsTr"))
            both = [(predicted == value, truth == value) for value in (1, 2)]
            found[seed, case] = float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in both]))
    return found


def true_codes(experiment: QALossExperiment, arm: str) -> dict[tuple[int, str], int]:
    return {key: 0 if dice >= 0.7 else 2 if dice < 0.5 else 1 for key, dice in true_dice(experiment, arm).items()}


def test_the_dice_of_each_arm(experiment: QALossExperiment, report: Path) -> None:
    results = pd.read_csv(report / "results.csv")
    for arm, seeds in DONE.items():
        dice = true_dice(experiment, arm)
        means = [np.mean([value for (own, _), value in dice.items() if own == seed]) for seed in seeds]
        np.testing.assert_allclose(results.loc[results["arm"] == arm, "dice"], means, atol=1e-6)
        title = next(one.title for one in experiment.runner.arms if one.name == arm)
        row = row_of(text_of(report), title)
        spread = f" ({np.std(means, ddof=1):.3f})" if len(means) > 1 else ""
        assert row[4] == f"{np.mean(means):.3f}{spread}"
        counts = "4/0/6" if arm == SUPERVISED else "4/6/6"
        assert row[1:4] == [counts, ", ".join(map(str, seeds)), "8"]
    images = pd.read_csv(report / "per_image.csv")
    assert len(images) == 9 * 6 * 2  # cells, test cases, classes
    both = images[(images["arm"] == QA) & (images["seed"] == 0)].groupby("class")["dice"].mean()
    own = results[(results["arm"] == QA) & (results["seed"] == 0)].iloc[0]
    assert [own["dice_small"], own["dice_large"]] == pytest.approx([both["small"], both["large"]], abs=1e-6)


def test_arms_are_paired_with_the_supervised_one_on_the_draws_of_both(
    experiment: QALossExperiment, report: Path
) -> None:
    table = pd.read_csv(report / "comparison.csv", dtype={"draws": str}).set_index("arm")
    assert table["draws"].to_dict() == {QA: "0, 1, 2", "mean_teacher": "0, 1", "qa_refit": "0"}
    base = true_dice(experiment, SUPERVISED)
    for arm in table.index:
        differences = [dice - base[key] for key, dice in true_dice(experiment, arm).items()]
        assert table.loc[arm, "difference"] == pytest.approx(np.mean(differences), abs=1e-6)
        assert table.loc[arm, "pairs"] == len(differences)
    assert f"| QA loss | 0, 1, 2 | {table.loc[QA, 'difference']:+.3f} |" in text_of(report)


def test_the_codes_of_every_scan(experiment: QALossExperiment, report: Path) -> None:
    codes = pd.read_csv(report / "codes.csv")
    assert set(codes["source"]) == {"dice"}
    text = text_of(report)
    for arm in DONE:
        own, expected = codes[codes["arm"] == arm], true_codes(experiment, arm)
        assert dict(zip(zip(own["seed"], own["case_id"], strict=True), own["code"], strict=True)) == expected
        title = next(one.title for one in experiment.runner.arms if one.name == arm)
        part = text[text.index("## Quality codes") :]
        counts = [list(expected.values()).count(code) for code in (0, 1, 2)]
        shares = [f"{count} ({count / len(expected):.1%})" for count in counts]
        draws = ", ".join(map(str, DONE[arm]))
        assert row_of(part, title, draws, str(len(expected)))[3:] == shares


def test_success_and_failure_are_tested_on_pairs_of_draw_and_scan(experiment: QALossExperiment, report: Path) -> None:
    table = pd.read_csv(report / "code_comparison.csv").set_index("arm")
    ours, base = true_codes(experiment, QA), true_codes(experiment, SUPERVISED)
    row = table.loc["QA loss"]
    assert row["cases"] == len(ours) == 18
    for name, code in (("success", 0), ("failure", 2)):
        gained = sum(ours[key] == code != base[key] for key in ours)
        lost = sum(base[key] == code != ours[key] for key in ours)
        assert (row[f"{name}_gained"], row[f"{name}_lost"]) == (gained, lost)
        assert row[f"p_{name}"] == pytest.approx(binomtest(gained, gained + lost).pvalue, abs=1e-6)
        assert f"+{gained} -{lost}, p " in text_of(report)
    assert row["better"] == sum(ours[key] < base[key] for key in ours) > 0
    assert "pooled as pairs of draw and scan" in text_of(report)


def aurc(confidence: np.ndarray, risk: np.ndarray) -> float:
    """Area under the mean risk of the cases that are kept, without ties."""
    ordered = risk[np.argsort(-confidence)]
    means = [ordered[: kept + 1].mean() for kept in range(len(risk))]
    return float(np.trapezoid([means[0], *means], np.linspace(0, 1, len(risk) + 1)))


@pytest.mark.parametrize(("maker", "arm"), [(QA, SUPERVISED), (QA, QA), (QA, "qa_refit"), ("qa_refit", "qa_refit")])
def test_discriminators_are_judged_by_the_dice_beside_q(
    experiment: QALossExperiment, report: Path, maker: str, arm: str
) -> None:
    table = pd.read_csv(report / "discriminator.csv").set_index(["fitted_by", "arm", "seed"])
    row = table.loc[(maker, arm, 0)]
    keys = [key for key in true_dice(experiment, arm) if key[0] == 0]
    dice = np.array([true_dice(experiment, arm)[key] for key in keys])
    codes = np.array([true_codes(experiment, arm)[key] for key in keys])
    said = np.array([code_of(maker, arm, case) for _, case in keys])
    q = np.array([q_of(arm, case) for _, case in keys])
    rounded = np.clip(np.round(said), 0, 2).astype(int)
    assert row["cases"] == len(keys) == 6
    assert row["accuracy"] == pytest.approx(np.mean(rounded == codes), abs=1e-6)
    assert row["most_frequent"] == pytest.approx(max(np.mean(codes == code) for code in (0, 1, 2)), abs=1e-6)
    assert row["rmse"] == pytest.approx(np.sqrt(np.mean((said - codes) ** 2)), abs=1e-5)
    assert row["mean_predicted"] == pytest.approx(said.mean(), abs=1e-5)
    expected = confusion_matrix(codes, rounded, labels=[0, 1, 2])
    found = [[row[f"confusion_{given}_{code}"] for code in (0, 1, 2)] for given in (0, 1, 2)]
    np.testing.assert_array_equal(found, expected)
    for name, score in (("code", -said), ("q", q)):
        assert row[f"{name}_spearman"] == pytest.approx(spearmanr(score, dice).statistic, abs=1e-5)
        assert row[f"{name}_aurc"] == pytest.approx(aurc(score, 1 - dice), abs=1e-5)


def test_the_shared_discriminator_judges_every_arm_and_one_of_an_arm_itself_and_the_supervised_one(
    report: Path,
) -> None:
    table = pd.read_csv(report / "discriminator.csv")
    found = set(zip(table["fitted_by"], table["arm"], table["seed"], strict=True))
    shared = {(QA, arm, seed) for arm, seeds in DONE.items() for seed in seeds}
    own = {("qa_refit", arm, 0) for arm in (SUPERVISED, "qa_refit")}
    assert found == shared | own | {(QA, "truth", seed) for seed in SEEDS} | {("qa_refit", "truth", 0)}
    spearman = table[(table["fitted_by"] == QA) & (table["arm"] == QA)]["code_spearman"]
    section = text_of(report)[text_of(report).index("## The discriminator") :]
    assert row_of(section, "QA loss", "0, 1, 2")[6] == f"{spearman.mean():.2f} ({spearman.std():.2f})"
    assert "Annotated cases alone, by that of: QA loss, discriminator refitted | 0 |" in section
    assert "| QA loss | 1 | 3 of 3 | validation, simulated | 30 | 0.70 | 0.55 | n/a |" in section


def test_true_labels_are_judged_too_and_ought_to_be_a_success(experiment: QALossExperiment, report: Path) -> None:
    table = pd.read_csv(report / "discriminator.csv").set_index(["fitted_by", "arm", "seed"]).sort_index()
    row = table.loc[("qa_refit", "truth", 0)]
    said = np.array([code_of("qa_refit", "truth", case) for case in experiment.holdout(0).parts.test])
    assert row["mean_code"] == 0
    assert row["mean_predicted"] == pytest.approx(said.mean(), abs=1e-5)
    assert row["accuracy"] == pytest.approx(np.mean(np.round(said) <= 0), abs=1e-5)
    assert np.isnan(row["code_spearman"])
    section = text_of(report)[text_of(report).index("## The discriminator") :]
    whole = table.loc[(QA, "truth")]
    counts = [str(int(whole[f"confusion_0_{code}"].sum())) for code in (0, 1, 2)]
    assert row_of(section, "True labels: success")[1:] == counts
    assert "True labels: failure" not in section


def test_a_discriminator_gets_the_plans_and_settings_it_was_fitted_with(
    experiment: QALossExperiment, judged: list[dict[str, Any]], report: Path
) -> None:
    (asked,) = (
        one
        for one in judged
        if one["path"] == experiment.discriminator(1) and one["predictions"].parents[1].name == SUPERVISED
    )
    cell, holdout = experiment.runner.cell(SUPERVISED, 1), experiment.holdout(1)
    assert asked["predictions"] == cell.folder / "imagesTs"
    assert asked["cases"] == list(holdout.parts.test)
    assert asked["images"] == {case: holdout.images(case) for case in asked["cases"]}
    assert asked["plans"] == {"dataset_name": experiment.source.name}
    assert asked["configuration"] == "2d"
    assert asked["settings"].simulation.epochs == 3


def test_codes_are_predicted_once_and_again_for_another_discriminator(
    experiment: QALossExperiment, judged: list[dict[str, Any]], report: Path, unpainted: None
) -> None:
    before = text_of(report)
    judged.clear()
    assert write_report(experiment) == report / "README.md"
    assert judged == []
    assert text_of(report) == before
    path = experiment.discriminator(2)
    newer = path.stat().st_mtime + 60
    os.utime(path, (newer, newer))
    write_report(experiment)
    assert {one["path"] for one in judged} == {path}
    assert len(judged) == 3  # the truth and the two arms of this draw


def test_what_the_guard_did_is_said_and_the_log_is_kept(experiment: QALossExperiment, report: Path) -> None:
    assert f"| QA loss, discriminator refitted | 0 | 5 | {STOPPED} |" in text_of(report)
    curves = pd.read_csv(report / "curves.csv")
    assert set(curves["arm"]) == {SUPERVISED, QA, "qa_refit"}
    own = curves[(curves["arm"] == QA) & (curves["seed"] == 1)]
    assert own["epoch"].tolist() == list(range(8))
    np.testing.assert_allclose(own["qa_loss"], 1 / (np.arange(8) + 1), atol=1e-6)
    np.testing.assert_allclose(own["dice"], KEPT[QA] * (np.arange(8) + 1) / 8, atol=1e-6)
    assert (own["disagreement"] == 0.25).all()
    assert curves[(curves["arm"] == "qa_refit")]["qa_loss"].notna().sum() == 5
    assert curves[curves["arm"] == SUPERVISED]["qa_loss"].isna().all()


def test_the_first_start_that_the_guard_stopped_counts(tmp_path: Path) -> None:
    assert guard_stop(tmp_path) is None
    first = ["2026-01-01 09:00:00.1: Epoch 0 ", "2026-01-01 09:00:00.2: Epoch time: 3.5 s", "x: Epoch 1 "]
    (tmp_path / "training_log_2026_1_1_09_00_00.txt").write_text("\n".join(first))
    assert guard_stop(tmp_path) is None
    second = [": Epoch 7 ", "t: QA loss: stopped by its guard: because. ", ": Epoch 8 "]
    (tmp_path / "training_log_2026_1_1_10_00_00.txt").write_text("\n".join(second))
    third = [": Epoch 9 ", "t: QA loss: stopped by its guard: for another reason "]
    (tmp_path / "training_log_2026_1_1_11_00_00.txt").write_text("\n".join(third))
    assert guard_stop(tmp_path) == (7, "because.")


def test_every_figure_is_there_and_named(report: Path) -> None:
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text_of(report))
    curves = [f"learning_curve_{arm}_{seed}.png" for arm, seed in ((QA, 0), (QA, 1), (QA, 2), ("qa_refit", 0))]
    bars = ["codes_0_1_2.png", "codes_0_1.png", "codes_0.png"]
    assert named == ["arms.png", *bars, *curves, "curves.png", "examples.png", "examples_variants.png"]
    for name in named:
        assert imread(report / name).std() > 0
    text = text_of(report)
    assert '"Annotated cases alone" in draw 0' in text  # the draw with most arms
    assert re.search(r"\| \d+ \| [^|]+ \| [^|]+ \| 9 \| 0 \|\n$", text)  # cells and minutes on the machine


@pytest.fixture
def part(experiment: QALossExperiment, tmp_path: Path, unpainted: None) -> QALossExperiment:
    """A copy of the experiment, to take cells out."""
    for arm in DONE:
        shutil.copytree(experiment.folder / "runs" / arm, tmp_path / "runs" / arm, symlinks=True)
    shutil.copy(experiment.folder / "experiment.json", tmp_path)
    return replace(experiment, folder=tmp_path)


def test_without_the_supervised_arm_nothing_is_compared(part: QALossExperiment) -> None:
    shutil.rmtree(part.folder / "runs" / SUPERVISED)
    text = write_report(part).read_text()
    assert 'Nothing to compare: no draw has both "Annotated cases alone" and another arm.' in text
    assert "codes_" not in text
    assert not (part.folder / "report" / "comparison.csv").exists()
    assert not (part.folder / "report" / "code_comparison.csv").exists()
    assert "| QA loss | 0, 1, 2 | 18 |" in text


def test_without_a_qa_loss_there_is_no_discriminator(part: QALossExperiment) -> None:
    for arm in (QA, "qa_refit"):
        shutil.rmtree(part.folder / "runs" / arm)
    text = write_report(part).read_text()
    assert "No arm has fitted one yet." in text
    assert "No arm with a QA loss is done yet." in text
    assert "| Mean teacher | 0, 1 |" in text


def test_cells_that_are_not_done_are_left_out(part: QALossExperiment) -> None:
    for cell in part.runner.done():
        if (cell.arm, cell.seed) not in {(SUPERVISED, 1), (QA, 1), (QA, 2)}:
            (cell.folder / "done.json").unlink()
    text = write_report(part).read_text()
    assert "| Annotated cases alone | 4/0/6 | 1 |" in text
    assert pd.read_csv(part.folder / "report" / "comparison.csv")["pairs"].tolist() == [6]
    assert "examples_variants" not in text


def test_nothing_done_is_one_line(part: QALossExperiment) -> None:
    shutil.rmtree(part.folder / "runs")
    with pytest.raises(SelectionError, match="nothing is done yet; run the experiment first"):
        write_report(part)

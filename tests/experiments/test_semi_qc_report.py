from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr, ttest_rel
from skimage.io import imread

from nnunet_qa.config import Unit
from nnunet_qa.errors import SelectionError
from nnunet_qa.experiments import semi_qc_measures, semi_qc_report
from nnunet_qa.experiments.experiment import METRICS
from nnunet_qa.experiments.semi_qc import BEST, BY, FULL, HALF, RANKING, SemiQCExperiment
from nnunet_qa.experiments.semi_qc_choices import Choice
from nnunet_qa.experiments.semi_qc_chosen import judged_choice
from nnunet_qa.experiments.semi_qc_report import write_report
from tests.experiments.semi_qc_stand_ins import experiment_on, run, stand_ins, write_hearts

ORACLE = BY[Choice.ORACLE]
DONE = {FULL: (0, 1), HALF: (0, 1, 2), BEST: (0, 1, 2), ORACLE: (0,)}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SemiQCExperiment]:
    """Cells that are done, with their report."""
    base = tmp_path_factory.mktemp("semi_qc_report")
    source = write_hearts(base)
    with stand_ins(source):
        made = experiment_on(source, base / "out")
        for arm, seeds in DONE.items():
            run(made, [arm], seeds)
        write_report(made)
        yield made


@pytest.fixture
def report(experiment: SemiQCExperiment) -> Path:
    return experiment.folder / "report"


@pytest.fixture
def part(experiment: SemiQCExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SemiQCExperiment:
    """A copy of the experiment to take cells out, whose report has no pictures."""
    for name in ("arms_picture", "change_picture", "contours_picture"):
        monkeypatch.setattr(semi_qc_report, name, lambda *_, **__: None)
    monkeypatch.setattr(semi_qc_measures, "bland_altman_picture", lambda *_, **__: None)
    for arm in DONE:
        shutil.copytree(experiment.folder / "runs" / arm, tmp_path / "runs" / arm, symlinks=True)
    return replace(experiment, folder=tmp_path)


def section(report: Path, title: str) -> str:
    (found,) = (part for part in (report / "README.md").read_text().split("\n## ") if part.startswith(title))
    return found


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def dice(experiment: SemiQCExperiment, arm: str) -> pd.DataFrame:
    """Mean Dice over the classes of each draw and case."""
    tables = []
    for seed in DONE[arm]:
        table = pd.read_csv(experiment.runner.cell(arm, seed).folder / METRICS)
        tables.append(table.groupby(["subject_id", "case_id"], as_index=False)["dice"].mean().assign(seed=seed))
    return pd.concat(tables)


def test_table_1_counts_subjects_and_images(report: Path) -> None:
    found = {row[0]: row[1:] for row in rows(section(report, "Table 1"))}
    assert found["All annotated"] == ["0, 1", "5/20", "0/0", "0/0", "1/4", "2/8"]
    assert found["Half annotated"] == ["0, 1, 2", "2/8", "0/0", "3/12", "1/4", "2/8"]
    assert found["Half + 1 best by curves"] == ["0, 1, 2", "2/8", "1/4", "2/8", "1/4", "2/8"]


def test_table_2_compares_with_the_best(experiment: SemiQCExperiment, report: Path) -> None:
    found = rows(section(report, "Table 2"))
    half = dice(experiment, HALF)
    means = half.groupby("seed")["dice"].mean()
    (row,) = (one for one in found if one[:2] == ["Half annotated", "0, 1, 2"] and one[2] == "4")
    assert row[3] == f"{means.mean():.3f} ({means.std():.3f})"
    assert row[4] == f"{half['dice'].std():.3f}"
    both = half.merge(dice(experiment, BEST), on=["seed", "case_id", "subject_id"])
    by_subject = both.groupby("subject_id")[["dice_x", "dice_y"]].mean()
    p = ttest_rel(by_subject["dice_x"], by_subject["dice_y"]).pvalue
    comparison = pd.read_csv(report / "comparison.csv").set_index("arm")
    assert comparison.loc[HALF, "p_t"] == pytest.approx(p, abs=1e-6)
    assert row[-1].startswith(f"{p:.3f} (" if p >= 0.001 else "< 0.001 (")
    assert comparison.loc[HALF, "difference"] == pytest.approx((both["dice_x"] - both["dice_y"]).mean(), abs=1e-6)
    assert comparison.loc[FULL, "draws"] == "0, 1"


def test_table_3_compares_measures_with_the_true_masks(experiment: SemiQCExperiment, report: Path) -> None:
    ours: list[float] = []
    true: list[float] = []
    for seed in DONE[HALF]:
        folder = experiment.runner.cell(HALF, seed).folder
        for found, name in ((ours, "curves"), (true, "true_curves")):
            found += pd.read_csv(folder / name / "measures.csv")["rvedv_ml"].tolist()
    differences = np.subtract(ours, true)
    (row,) = (one for one in rows(section(report, "Table 3")) if one[:2] == ["RVEDV (mL)", "Half annotated"])
    low, high = differences.mean() + np.array([-1.96, 1.96]) * differences.std(ddof=1)
    assert row[2:4] == ["0, 1, 2", "6"]
    assert row[4] == f"{np.mean(true):.1f} ({np.std(true, ddof=1):.1f})"
    assert row[5] == f"{np.mean(ours):.1f} ({np.std(ours, ddof=1):.1f})"
    assert row[6:] == [f"{differences.mean():+.1f}", f"{low:+.1f} to {high:+.1f}"]
    assert "lvm_g" in set(pd.read_csv(report / "measures.csv")["measure"])


def test_figure_2_has_the_slope_of_each_arm(experiment: SemiQCExperiment, report: Path) -> None:
    keys = ["seed", "case_id", "subject_id"]
    both = dice(experiment, HALF).merge(dice(experiment, BEST), on=keys)
    change = both["dice_y"] - both["dice_x"]
    slope, _ = np.polyfit(both["dice_x"], change, 1)
    found = {row[0]: row[1:] for row in rows(section(report, "Figure 2"))}["Half + 1 best by curves"]
    assert found[:3] == [f"{change.mean():+.3f}", f"{(change < 0).sum()} of {len(both)}", f"{slope:+.2f}"]
    table = pd.read_csv(report / "changes.csv")
    assert set(table["arm"]) == {FULL, BEST, ORACLE}


def test_what_was_chosen_is_judged_by_the_truth(experiment: SemiQCExperiment, report: Path, tmp_path: Path) -> None:
    table = pd.read_csv(report / "chosen.csv").set_index(["arm", "seed"])
    assert set(table.index) == {(BEST, 0), (BEST, 1), (BEST, 2), (ORACLE, 0)}
    assert table.loc[(ORACLE, 0), "spearman"] == pytest.approx(1)
    assert table.loc[(ORACLE, 0), "chosen_dice"] >= table.loc[(BEST, 0), "chosen_dice"]
    cell = replace(experiment.runner.cell(BEST, 0), folder=tmp_path)
    units = {"a": (0.9, 0.8), "b": (0.5, 0.9), "c": (0.7, 0.3), "d": (0.1, 0.5)}  # score and Dice
    made = [(f"{unit}{k}", unit, score, true + 0.01 * k) for unit, (score, true) in units.items() for k in (0, 2)]
    pd.DataFrame(made, columns=["case_id", "unit", "score", "dice"]).to_csv(tmp_path / "scores.csv")
    chosen = pd.DataFrame(made, columns=["case_id", "unit", "score", "dice"])
    chosen = chosen[chosen["unit"].isin(["a", "c"])].drop(columns="unit")
    chosen.to_csv(tmp_path / RANKING)
    row = judged_choice(cell, 0.6)
    assert (row["pool_units"], row["pool_erroneous"], row["chosen_units"], row["chosen_erroneous"]) == (4, 2, 2, 1)
    assert row["pool_dice"] == pytest.approx(0.635)
    assert row["chosen_dice"] == pytest.approx(0.56)
    assert row["spearman"] == pytest.approx(spearmanr(*zip(*units.values(), strict=True)).statistic)


def test_every_figure_is_there_and_named(report: Path) -> None:
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (report / "README.md").read_text())
    measures = ("lvedv_ml", "lvef_percent", "rvedv_ml", "rvef_percent")
    drawn = [f"bland_altman_{arm}_{measure}.png" for arm in (FULL, HALF, BEST) for measure in measures]
    assert named == ["arms.png", *drawn, "changes.png", "contours.png"]
    for name in named:
        assert imread(report / name).std() > 0
    assert 'percentile of the Dice of "Half annotated"' in section(report, "Figure 3")
    assert re.search(r"\| 9 \| \d+ \|\n$", (report / "README.md").read_text())  # cells and minutes on the machine


def test_without_the_best_nothing_is_compared(part: SemiQCExperiment) -> None:
    shutil.rmtree(part.folder / "runs" / BEST)
    text = write_report(part).read_text()
    assert 'Nothing to compare: no draw has both "Half + 1 best by curves" and another arm.' in text
    assert "| All annotated | 0, 1 |" in text
    for arm in (HALF, ORACLE):
        shutil.rmtree(part.folder / "runs" / arm)
    text = write_report(part).read_text()
    assert 'No draw has both "Half annotated" and another arm.' in text
    assert "No arm that chooses is done yet." in text


def test_cells_that_are_not_done_are_left_out(part: SemiQCExperiment) -> None:
    (part.runner.cell(HALF, 2).folder / "done.json").unlink()
    text = write_report(part).read_text()
    assert "| Half annotated | 0, 1 |" in text
    assert pd.read_csv(part.folder / "report" / "comparison.csv").set_index("arm").loc[HALF, "pairs"] == 8


def test_no_cine_series_have_no_measures(part: SemiQCExperiment) -> None:
    protocol = replace(part.protocol, scheme=None, unit=Unit.CASE)
    text = write_report(replace(part, protocol=protocol)).read_text()
    assert "The cases are no cine series" in text


def test_nothing_done_is_one_line(part: SemiQCExperiment) -> None:
    shutil.rmtree(part.folder / "runs")
    with pytest.raises(SelectionError, match="nothing is done yet; run the experiment first"):
        write_report(part)

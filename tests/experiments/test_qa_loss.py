from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from skimage.io import imread

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.config import HeadWeights, QAConfig, QAOutputs
from nnunet_qa.errors import DatasetError, SelectionError
from nnunet_qa.experiments.experiment import METRICS
from nnunet_qa.experiments.qa_loss import FULL, QA, SUPERVISED, Protocol
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.quality.codes import CodeThresholds
from tests.experiments.qa_loss_stand_ins import LABELLED, TINY, Commands, experiment_on, phantom, run, stand_ins
from tests.phantom import run as run_command

PEERS = ("mean_teacher", "cross_pseudo")
VARIANTS = ("qa_hard", "qa_noise", "qa_all_outputs", "qa_entropy", "qa_weak", "qa_strong", "qa_refit")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with phantom(tmp_path_factory.mktemp("qa_loss")) as folder:
        yield folder


@pytest.fixture
def commands() -> Iterator[Commands]:
    with stand_ins() as found:
        yield found


def config_of(cell: Cell) -> QAConfig:
    """The settings that the training of a cell was given, read as the trainer reads them."""
    return QAConfig.read(cell.folder / "qa.yaml")


def split_of(cell: Cell) -> dict[str, list[str]]:
    (path,) = (cell.folder / "nnUNet_preprocessed").rglob("splits_final.json")
    found: dict[str, list[str]] = json.loads(path.read_text())[0]
    return found


def names(folder: Path, ending: str) -> set[str]:
    return {path.name.removesuffix(ending) for path in folder.iterdir()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_go_by_subject_and_only_unlabelled_cases_may_share_one(source: Path, tmp_path: Path, seed: int) -> None:
    table = CaseTable.read(source / "cases.csv")
    parts = experiment_on(source, tmp_path).holdout(seed).parts
    every = [*parts.pool, *parts.unlabelled, *parts.validation, *parts.test]
    assert sorted(every) == table.case_ids(Role.LABELLED)  # each once
    assert [len(part) for part in (parts.pool, parts.unlabelled, parts.validation, parts.test)] == [4, 6, 2, 6]
    groups = [{case[:2] for case in part} for part in ((*parts.pool, *parts.unlabelled), parts.validation, parts.test)]
    assert not set.intersection(*groups[:2]) | set.intersection(*groups[1:]) | groups[0] & groups[2]
    assert len({case[:2] for case in parts.pool}) == LABELLED  # as many subjects as possible


def test_the_same_draw_is_the_same_and_another_is_not(source: Path, tmp_path: Path) -> None:
    experiment = experiment_on(source, tmp_path)
    assert experiment.holdout(0).parts == experiment_on(source, tmp_path / "other").holdout(0).parts
    assert experiment.holdout(0).parts.pool != experiment.holdout(3).parts.pool  # both test fold 0
    assert experiment.holdout(0).parts.test == experiment.holdout(3).parts.test


def test_every_arm_sees_the_same_cases_and_none_the_labels_of_the_others(
    source: Path, tmp_path: Path, commands: Commands
) -> None:
    experiment = experiment_on(source, tmp_path)
    run(experiment, [SUPERVISED, QA, *PEERS, *VARIANTS, FULL])
    parts = experiment.holdout(0).parts
    for cell in experiment.runner.done():
        pool, unlabelled = (
            (parts.pool, parts.unlabelled) if cell.arm != FULL else ((*parts.pool, *parts.unlabelled), ())
        )
        assert split_of(cell) == {"train": sorted(pool), "val": sorted(parts.validation)}
        (raw,) = (cell.folder / "nnUNet_raw").iterdir()
        assert names(raw / "imagesTr", "_0000.png") == {*pool, *parts.validation}
        assert names(raw / "imagesTs", "_0000.png") == {*parts.test}
        assert (names(raw / "imagesUn", "_0000.png") if unlabelled else set()) == {*unlabelled}
        labels = {path.name.removesuffix(".png") for path in raw.rglob("labels*/*.png")}
        assert labels == {*pool, *parts.validation, *parts.test}
        record = cell.result()
        counts = [record[name] for name in ("pool", "unlabelled", "validation", "test")]
        assert counts == [len(pool), len(unlabelled), 2, 6]
    ran = [command for command, _ in commands.ran if command[0] == "nnUNetv2_train"]
    assert len(ran) == len(experiment.runner.done()) == 12
    trainers = {command[command.index("-tr") + 1] for command in ran}
    assert trainers == {"QAsemiTrainer", "MeanTeacherTrainer", "CrossPseudoTrainer"}
    assert {settings["training"]["epochs"] for _, settings in commands.ran if "training" in settings} == {8}


def test_the_pool_is_preprocessed_with_the_plans_of_the_training(
    source: Path, tmp_path: Path, commands: Commands
) -> None:
    run(experiment_on(source, tmp_path), [SUPERVISED])
    (pool,) = (command for command, _ in commands.ran if command[:2] == ["nnunet-qa", "pool"])
    assert pool[2:] == ["-d", "761", "-c", "2d", "-p", "nnUNetPlansExperiment", "--jobs", "1"]


@pytest.mark.parametrize(
    ("arm", "changed"),
    [
        (QA, {}),
        ("qa_hard", {"hard": True}),
        ("qa_noise", {"noise": 0.1}),
        ("qa_all_outputs", {"outputs": QAOutputs.ALL}),
        ("qa_entropy", {"entropy_weight": 1.0}),
        ("qa_weak", {"weight": 0.02}),
        ("qa_strong", {"weight": 2.0}),
        ("qa_refit", {"refit_every": 2}),
    ],
)
def test_settings_of_the_qa_arms_reach_the_trainer(
    source: Path, tmp_path: Path, commands: Commands, arm: str, changed: dict[str, Any]
) -> None:
    growth = {"weight": 0.2, "start": 0.3, "ramp_up": 0.4}
    experiment = experiment_on(source, tmp_path, **growth, simulation={"epochs": 3, "patches": 7})
    run(experiment, [arm])
    config = config_of(experiment.runner.cell(arm, 0))
    assert config.head_weights is HeadWeights.ALL
    assert config.pool.enabled
    assert config.scoring.every_epoch
    assert not config.scoring.final
    own = config.qa_loss
    assert (own.simulation.epochs, own.simulation.patches) == (3, 7)
    assert (own.codes.success, own.codes.failure) == (0.7, 0.5)
    shared = arm not in (QA, "qa_noise", "qa_refit")  # what these are fitted on, or withstand, is another
    assert own.discriminator == (experiment.discriminator(0) if shared else None)
    usual = {**growth, "hard": False, "noise": 0.0, "entropy_weight": 0.0, "refit_every": 0, "views": None}
    expected = {**usual, "outputs": QAOutputs.FINEST, **changed}
    assert {name: getattr(own, name) for name in expected} == expected
    # the arm whose discriminator is shared ran first
    assert [cell.arm for cell in experiment.runner.done()] == ([QA, arm] if shared else [arm])


@pytest.mark.parametrize("arm", PEERS)
def test_the_peers_have_the_same_weight_and_outputs(source: Path, tmp_path: Path, commands: Commands, arm: str) -> None:
    growth = {"weight": 0.2, "start": 0.3, "ramp_up": 0.4}
    experiment = experiment_on(source, tmp_path, **growth)
    run(experiment, [arm])
    config = config_of(experiment.runner.cell(arm, 0))
    assert {name: getattr(getattr(config, arm), name) for name in growth} == growth
    assert config.head_weights is HeadWeights.ALL
    assert config.pool.enabled


@pytest.mark.parametrize("arm", [SUPERVISED, FULL])
def test_annotated_cases_alone_leave_the_pool_aside(source: Path, tmp_path: Path, commands: Commands, arm: str) -> None:
    experiment = experiment_on(source, tmp_path)
    run(experiment, [arm])
    config = config_of(experiment.runner.cell(arm, 0))
    assert not config.pool.enabled
    assert config.head_weights is HeadWeights.ALL


def test_volumes_can_be_shown_from_three_sides_and_pictures_cannot(source: Path, tmp_path: Path) -> None:
    flat, volumes = (experiment_on(source, tmp_path, configuration=name) for name in ("2d", "3d_fullres"))
    assert {arm.name for arm in volumes.runner.arms} - {arm.name for arm in flat.runner.arms} == {"qa_views"}
    with stand_ins():
        run(volumes, ["qa_views"])
    own = config_of(volumes.runner.cell("qa_views", 0)).qa_loss
    assert own.views == (0, 1, 2)
    assert own.discriminator is None


def test_test_cases_are_measured_against_their_truth(source: Path, tmp_path: Path, commands: Commands) -> None:
    experiment = experiment_on(source, tmp_path)
    run(experiment, [SUPERVISED])
    cell = experiment.runner.cell(SUPERVISED, 0)
    table = pd.read_csv(cell.folder / METRICS)
    assert sorted(table["case_id"].unique()) == sorted(experiment.holdout(0).parts.test)
    assert (table["subject_id"] == table["case_id"].str[:2]).all()
    for row in table.itertuples():
        value = {"small": 1, "large": 2}[row[3]]
        predicted, truth = (
            imread(folder / f"{row.case_id}.png") == value for folder in (cell.folder / "imagesTs", source / "labelsTr")
        )
        assert row.dice == pytest.approx(2 * np.sum(predicted & truth) / (predicted.sum() + truth.sum()))


def test_a_finished_cell_is_not_run_again(source: Path, tmp_path: Path, commands: Commands) -> None:
    for _ in range(2):
        run(experiment_on(source, tmp_path), [SUPERVISED])
    assert sum(command[0] == "nnUNetv2_train" for command, _ in commands.ran) == 1


def test_what_determines_the_results_is_kept(source: Path, tmp_path: Path, commands: Commands) -> None:
    chosen = {"labelled": 7, "weight": 0.3, "start": 0.2, "ramp_up": 0.1, "simulation": {"epochs": 2}}
    protocol = Protocol(budget=TINY, thresholds=CodeThresholds(0.9, 0.4), **chosen)
    expected = {
        **chosen,
        "configuration": "2d",
        "test_folds": 3,
        "validation_subjects": 1,
        "thresholds": {"success": 0.9, "failure": 0.4},
        "budget": TINY.model_dump(mode="json"),
    }
    assert protocol.settings() == expected
    run(experiment_on(source, tmp_path), [SUPERVISED])
    with pytest.raises(DatasetError, match=r"begun with other settings \(thresholds\)"):
        run(experiment_on(source, tmp_path, thresholds=CodeThresholds(0.9, 0.4)), [SUPERVISED])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labelled": 10}, "10 cases are neither for validation nor for test; 10 labelled ones leave none unlabelled"),
        ({"labelled": 1}, "the labelled cases are of one subject; a discriminator needs two. Label more"),
        ({"validation_subjects": 6}, "6 subjects are left beside the test subjects"),
        ({"test_folds": 10}, "9 subjects cannot be parted into 10 test folds"),
    ],
)
def test_what_could_not_be_run_is_refused_at_once(
    source: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DatasetError, match=said):
        experiment_on(source, tmp_path / "out", **changes).check([0])
    assert not (tmp_path / "out").exists()


def test_an_arm_that_is_not_there_is_refused_at_once(source: Path, tmp_path: Path) -> None:
    experiment = experiment_on(source, tmp_path / "out")
    experiment.check([0], [QA])
    with pytest.raises(SelectionError, match=r'unknown arm "qa_los" \(did you mean "qa_loss"\?\)'):
        experiment.check([0], ["qa_los"])
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_annotated_cases(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / source.name
    bare.mkdir()
    table = pd.read_csv(source / "cases.csv").assign(role="unlabelled")
    table.to_csv(bare / "cases.csv", index=False)
    with pytest.raises(DatasetError, match=r"cases\.csv: no case is labelled"):
        experiment_on(bare, tmp_path / "out").check([0])


@pytest.mark.e2e
def test_the_experiment_runs_and_reports(source: Path, tmp_path: Path) -> None:
    budget = {"iterations": 2, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "batch_size": 2}
    (tmp_path / "tiny.yaml").write_text(json.dumps({**budget, "features": [4, 8, 16]}))
    output = tmp_path / "out"
    command = ["nnunet-qa", "experiment", "qa-loss", "-d", "761", "-o", str(output), "-device", "cpu"]
    command += ["--budget", str(tmp_path / "tiny.yaml"), "--seeds", "0", "--arms", f"{SUPERVISED},qa_hard,mean_teacher"]
    command += ["--labelled", "4", "--fit-epochs", "1", "--fit-patches", "6"]
    first = run_command(*command)
    text = (output / "report" / "README.md").read_text()
    assert text.strip() in first.stdout
    assert "| QA loss, hardened overlays | 4/6/6 | 0 | 2 |" in text
    judged = pd.read_csv(output / "report" / "discriminator.csv")
    assert set(judged["arm"]) == {SUPERVISED, QA, "qa_hard", "mean_teacher", "truth"}  # truth: the labels themselves
    assert (judged["cases"] == 6).all()
    cell = output / "runs" / "qa_hard" / "seed_0"
    assert not list(cell.rglob("discriminator.pt"))
    log = next(cell.rglob("training_log_*.txt")).read_text()
    assert f"QA discriminator: {next((output / 'runs' / QA).rglob('discriminator.pt'))}" in log
    again = run_command(*command, "--report-only")
    assert again.stdout == first.stdout

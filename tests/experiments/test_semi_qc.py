from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.config import QAConfig, Unit
from nnunet_qa.data.cine_files import write_frames
from nnunet_qa.data.cine_phantom import short_axis_cine
from nnunet_qa.errors import DatasetError
from nnunet_qa.experiments import semi_qc_curves
from nnunet_qa.experiments.experiment import METRICS
from nnunet_qa.experiments.semi_qc import AGAIN, BEST, BY, CRF, FULL, HALF, RANDOM, RANKING, TWO, Protocol
from nnunet_qa.experiments.semi_qc import SemiQCExperiment as Experiment
from nnunet_qa.experiments.semi_qc_cells import without_empty
from nnunet_qa.experiments.semi_qc_choices import SCORES, Choice
from nnunet_qa.experiments.semi_qc_curves import LEARNT, simulated
from nnunet_qa.quality.codes import CodeThresholds
from nnunet_qa.quality.curves import SCHEMES, LabelScheme
from tests.experiments.semi_qc_stand_ins import (
    FRAMES,
    NAME,
    TINY,
    Commands,
    chance,
    experiment_on,
    q_of,
    read,
    run,
    stand_ins,
    write_hearts,
)
from tests.phantom import run as run_command
from tests.small import write_tiny
from tests.small_cine import SPACING

Q, CODE, ENSEMBLE, ORACLE = (BY[choice] for choice in (Choice.Q, Choice.CODE, Choice.ENSEMBLE, Choice.ORACLE))
ALL = (FULL, HALF, AGAIN, RANDOM, CRF, BEST, Q, CODE, ENSEMBLE, ORACLE, TWO)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hearts(tmp_path_factory.mktemp("semi_qc"))


@pytest.fixture(scope="module")
def done(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Experiment, Commands]]:
    """All arms of one draw, and what they ran."""
    with stand_ins(source) as commands:
        experiment = experiment_on(source, tmp_path_factory.mktemp("semi_qc_out"), fit={"epochs": 3, "per-code": 2})
        run(experiment)
        yield experiment, commands


def subjects_of(cases: tuple[str, ...] | list[str]) -> set[str]:
    return {case[:2] for case in cases}


def whole(subjects: set[str]) -> list[str]:
    return sorted(f"{subject}_fr{frame:03d}" for subject in subjects for frame in range(FRAMES))


def dice(folder: Path, source: Path, case: str) -> float:
    return agreement(folder, source / "labelsTr", case)


def agreement(folder: Path, other: Path, case: str) -> float:
    """Dice, mean over the three classes, written out."""
    ours, truth = (read(place / f"{case}.nii.gz") for place in (folder, other))
    both = [(ours == value, truth == value) for value in (1, 2, 3)]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in both]))


def chosen_of(experiment: Experiment, arm: str) -> pd.DataFrame:
    return pd.read_csv(experiment.runner.cell(arm, 0).folder / RANKING)


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_subjects_are_halved_with_all_their_frames(source: Path, tmp_path: Path, seed: int) -> None:
    parts = experiment_on(source, tmp_path).holdout(seed).parts
    groups = [parts.pool, parts.unlabelled, parts.validation, parts.test]
    assert [len(subjects_of(group)) for group in groups] == [2, 3, 1, 2]
    assert sum(whole(subjects_of(group)) == sorted(group) for group in groups) == 4
    assert len(set.union(*map(subjects_of, groups))) == 8
    assert experiment_on(source, tmp_path).holdout(seed).parts == parts


def test_the_arms_and_what_they_need(source: Path, tmp_path: Path) -> None:
    cine = experiment_on(source, tmp_path).runner
    assert tuple(arm.name for arm in cine.arms) == ALL
    assert [arm.name for arm in cine.chosen([TWO])] == [HALF, BEST, TWO]
    assert [arm.name for arm in cine.chosen([ENSEMBLE])] == [HALF, AGAIN, ENSEMBLE]
    still = experiment_on(source, tmp_path, scheme=None, unit=Unit.CASE)
    assert still.best is Choice.Q
    assert Q not in {arm.name for arm in still.runner.arms}
    assert {arm.name: arm.title for arm in still.runner.arms}[BEST] == "Half + 1 best by Q"


def test_every_arm_trains_on_the_half_and_what_it_chose(done: tuple[Experiment, Commands], source: Path) -> None:
    experiment, commands = done
    parts = experiment.holdout(0).parts
    for arm in ALL:
        cell = experiment.runner.cell(arm, 0)
        split = json.loads((cell.folder / "nnUNet_preprocessed" / NAME / "splits_final.json").read_text())[0]
        chosen = [] if arm in (FULL, HALF, AGAIN) else chosen_of(experiment, arm)["case_id"].tolist()
        own = (*parts.pool, *parts.unlabelled) if arm == FULL else (*parts.pool, *chosen)
        assert sorted(split["train"]) == sorted(own)
        assert sorted(split["val"]) == sorted(parts.validation)
        assert chosen == whole(subjects_of(chosen))
        assert set(chosen) <= set(parts.unlabelled)
        record = cell.result()
        assert (record["pseudo"], record["pseudo_subjects"]) == (len(chosen), len(chosen) // FRAMES)
        assert (record["left"], record["test"], record["measured"]) == (0 if arm == FULL else 12 - len(chosen), 8, 4)
        config = QAConfig.read(cell.folder / "qa.yaml")
        assert not config.pool.enabled
        assert config.training.epochs == 8
    trained = [where for command, where in commands.ran if command[0] == "nnUNetv2_train"]
    assert sorted(trained) == sorted([*ALL, "seed_0", "seed_0"])  # those of the classifier lie in a cell


def test_no_arm_sees_labels_of_the_pool(done: tuple[Experiment, Commands]) -> None:
    experiment, _ = done
    raw, parts = experiment.holdout(0).raw, experiment.holdout(0).parts
    labels = {path.name.removesuffix(".nii.gz") for path in raw.rglob("labels*/*.nii.gz")}
    assert labels == {*parts.pool, *parts.validation, *parts.test}
    assert {path.name.removesuffix("_0000.nii.gz") for path in (raw / "imagesUn").iterdir()} == {*parts.unlabelled}


@pytest.mark.parametrize(
    ("arm", "predictions"),
    [(RANDOM, (HALF, "imagesUn")), (BEST, (HALF, "imagesUn")), (CRF, (CRF, "imagesUn_crf")), (TWO, (BEST, "imagesUn"))],
)
def test_labels_are_the_predictions(
    done: tuple[Experiment, Commands], source: Path, arm: str, predictions: tuple[str, str]
) -> None:
    experiment, _ = done
    ranking = chosen_of(experiment, arm)
    raw = experiment.runner.cell(arm, 0).folder / "nnUNet_raw" / NAME
    entries = json.loads((raw / "dataset.json").read_text())["dataset"]
    folder = experiment.runner.cell(predictions[0], 0).folder / predictions[1]
    for row in ranking.itertuples():
        own, expected = raw / entries[row.case_id]["label"], folder / f"{row.case_id}.nii.gz"
        np.testing.assert_array_equal(read(own), read(expected))
        assert row.dice == pytest.approx(dice(folder, source, row.case_id))
    table = CaseTable.read(raw / "cases.csv").frame.set_index("case_id")
    assert set(table.loc[ranking["case_id"], "label_source"]) == {"pseudo"}
    assert set(table.loc[ranking["case_id"], "pseudo_model"]) == {BEST if arm == TWO else HALF}
    assert set(table.loc[ranking["case_id"], "pseudo_round"]) == {"2" if arm == TWO else "1"}
    assert set(entries) == {*experiment.holdout(0).parts.pool, *experiment.holdout(0).parts.validation} | set(
        ranking["case_id"]
    )


def test_each_arm_ranks_by_its_own_score(done: tuple[Experiment, Commands], source: Path) -> None:
    experiment, _ = done
    pool = experiment.holdout(0).parts.unlabelled
    half = experiment.runner.cell(HALF, 0).folder / "imagesUn"
    again = experiment.runner.cell(AGAIN, 0).folder / "imagesUn"
    true = {case: dice(half, source, case) for case in pool}
    curves = pd.read_csv(experiment.runner.cell(BEST, 0).folder / "curves.csv").set_index("acquisition_id")
    scores = {
        ORACLE: true,
        ENSEMBLE: {case: agreement(half, again, case) for case in pool},
        Q: {case: q_of(HALF, case) for case in pool},
        CODE: {case: -2 * chance("code", case) for case in pool},
        BEST: {case: 1 - float(curves.loc[f"{case[:2]}_sa", "p_erroneous"]) for case in pool},
    }
    for arm, own in scores.items():
        table = pd.read_csv(experiment.runner.cell(arm, 0).folder / SCORES).set_index("case_id")
        assert set(table.index) == set(pool)
        assert table["score"].to_dict() == pytest.approx(own)
        assert table["dice"].to_dict() == pytest.approx(true)
        assert (table["unit"] == table.index.str[:2] + "_sa").all()
        means = {name: np.mean([own[case] for case in whole({name})]) for name in subjects_of(pool)}
        assert subjects_of(chosen_of(experiment, arm)["case_id"].tolist()) == {max(means, key=lambda n: means[n])}
    drawn = [chosen_of(experiment, arm)["case_id"].tolist() for arm in (RANDOM, CRF)]
    assert drawn[0] == drawn[1]


def test_the_classifier_learns_from_annotated_subjects_alone(done: tuple[Experiment, Commands]) -> None:
    experiment, _ = done
    cell, parts = experiment.runner.cell(BEST, 0), experiment.holdout(0).parts
    learnt = pd.read_csv(cell.folder / LEARNT)
    assert {name[:2] for name in learnt["acquisition_id"]} == subjects_of(parts.pool)
    assert learnt["source"].value_counts().to_dict() == {"simulated": 6, "truth": 2, "cross_validation": 2}
    assert (learnt["erroneous"] == (learnt["dice"] < 0.7)).all()
    assert (learnt.loc[learnt["source"] == "truth", "dice"] == 1).all()
    for fold in range(2):
        (path,) = (cell.folder / f"cross_validation_{fold}").rglob("splits_final.json")
        split = json.loads(path.read_text())[0]
        assert not subjects_of(split["train"]) & subjects_of(split["val"])
        assert sorted([*split["train"], *split["val"]]) == sorted(parts.pool)
    assert not list(experiment.runner.cell(TWO, 0).folder.glob("cross_validation_*"))  # keeps the classifier


def test_simulated_errors_have_the_dice_they_are_said_to_have(source: Path, tmp_path: Path) -> None:
    holdout = experiment_on(source, tmp_path).holdout(0)
    cases = whole({holdout.parts.pool[0][:2]})
    made = simulated(holdout, cases, SCHEMES["ukbb"], CodeThresholds(0.8, 0.5), np.random.default_rng(0))
    assert [kind for _, kind, _ in made] == ["truth", *["simulated"] * semi_qc_curves.COPIES]
    truth = made[0][0]
    volumes = [read(source / "labelsTr" / f"{case}.nii.gz") for case in cases]
    size = np.prod(SPACING) / 1000
    np.testing.assert_allclose(truth.curve("lv"), [np.sum(volume == 1) * size for volume in volumes])
    assert len({one.acquisition_id for one, _, _ in made}) == semi_qc_curves.COPIES + 1
    assert {one.subject_id for one, _, _ in made} == {cases[0][:2]}
    assert all(value < 0.8 for _, _, value in made[1:3])  # every frame has an error
    for one, _, value in made[1:]:
        same = all(np.array_equal(one.curve(name), truth.curve(name)) for name in ("lv", "myocardium", "rv"))
        assert same == (value == 1)


def test_commands_are_given_what_they_need(done: tuple[Experiment, Commands]) -> None:
    experiment, commands = done
    half = experiment.runner.cell(HALF, 0).folder
    said = {" ".join(command[1:3]): (command, where) for command, where in commands.ran if command[0] == "nnunet-qa"}
    fit, where = said["discriminator fit"]
    assert where == HALF  # nnU-Net's folders of the model that is judged
    for option, value in (
        ("--epochs", "3"),
        ("--per-code", "2"),
        ("--success", "0.8"),
        ("--plans", "nnUNetPlansExperiment"),
    ):
        assert fit[fit.index(option) + 1] == value
    tune, where = said["crf tune"]
    assert where == HALF
    (validation,) = half.rglob("fold_0/validation")
    assert tune[tune.index("-p") + 1] == str(validation)
    assert tune[tune.index("--trials") + 1] == "20"
    with_npz = [command for command, where in commands.ran if where == HALF and "--npz" in command]
    assert [command[:2] for command in with_npz] == [["nnUNetv2_train", "771"], ["nnunet-qa", "score"]]


def test_only_frames_with_a_phase_are_measured_where_there_are_any(
    done: tuple[Experiment, Commands], source: Path
) -> None:
    experiment, _ = done
    cell = experiment.runner.cell(HALF, 0)
    table = pd.read_csv(cell.folder / METRICS)
    assert set(table["case_id"].str[-3:]) == {"000", "002"}
    assert subjects_of(table["case_id"].tolist()) == subjects_of(experiment.holdout(0).parts.test)
    for case, rows in table.groupby("case_id"):
        assert rows["dice"].mean() == pytest.approx(dice(cell.folder / "imagesTs", source, str(case)))
    measures = pd.read_csv(cell.folder / "curves" / "measures.csv").set_index("subject_id")
    true = pd.read_csv(cell.folder / "true_curves" / "measures.csv").set_index("subject_id")
    for subject in measures.index:
        for table, folder in ((measures, cell.folder / "imagesTs"), (true, source / "labelsTr")):
            volume = [
                np.sum(read(folder / f"{case}.nii.gz") == 1) * np.prod(SPACING) / 1000 for case in whole({subject})
            ]
            assert table.loc[subject, "lvedv_ml"] == pytest.approx(volume[0])
            assert table.loc[subject, "lvef_percent"] == pytest.approx(100 * (1 - min(volume) / volume[0]))


def test_without_phases_and_curves_all_cases_count(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    for name in ("imagesTr", "labelsTr", "dataset.json"):
        (folder / name).symlink_to(source / name)
    pd.read_csv(source / "cases.csv").assign(phase="", stack_id="", frame_index="").to_csv(folder / "cases.csv")
    experiment = experiment_on(folder, tmp_path / "out", scheme=None, unit=Unit.CASE, number=3, per_subject=1)
    experiment.check([0])
    with stand_ins(source):
        run(experiment, [BEST])
    cell = experiment.runner.cell(BEST, 0)
    assert cell.result()["measured"] == cell.result()["test"] == 8
    assert not (cell.folder / "curves").exists()
    best = chosen_of(experiment, BEST)["case_id"].tolist()
    scores = {case: q_of(HALF, case) for case in experiment.holdout(0).parts.unlabelled}
    expected = [max((c for c in scores if c[:2] == name), key=lambda c: scores[c]) for name in subjects_of([*scores])]
    assert set(best) == set(expected)
    assert cell.result()["left_subjects"] == 3  # other cases of these subjects stay


def test_what_determines_the_results_is_kept(source: Path, tmp_path: Path) -> None:
    protocol = Protocol(budget=TINY, unit=Unit.ACQUISITION, scheme=LabelScheme.custom("lv=1"), fit={"epochs": 2})
    expected: dict[str, Any] = {
        "configuration": "2d",
        "number": 30,
        "per_subject": None,
        "unit": "acquisition",
        "scheme": {"name": "custom", "values": {"lv": 1}, "kind": "volume", "end_diastole": "largest"},
        "erroneous_below": 0.7,
        "thresholds": {"success": 0.8, "failure": 0.5},
        "fit": {"epochs": 2},
        "crf_trials": 20,
        "half": 0.5,
        "test_folds": 3,
        "validation_subjects": 1,
        "budget": TINY.model_dump(mode="json"),
    }
    assert protocol.settings() == expected
    assert set(expected) == set(Protocol.__dataclass_fields__)
    experiment_on(source, tmp_path).runner.begin()
    with pytest.raises(DatasetError, match=r"begun with other settings \(scheme\)"):
        experiment_on(source, tmp_path, scheme=SCHEMES["acdc"]).runner.begin()


def test_empty_predictions_do_not_join(tmp_path: Path) -> None:
    ranking = pd.DataFrame({"case_id": ["a", "b"], "score": [1.0, 0.5]})
    for case, value in (("a", 0), ("b", 2)):
        write_tiny(tmp_path / f"{case}.png", np.full((4, 4), value, np.uint8))
    about = {"file_ending": ".png"}
    assert without_empty(ranking, tmp_path, about)["case_id"].tolist() == ["b"]
    assert without_empty(ranking[:1], tmp_path, about)["case_id"].tolist() == ["a"]  # injecting it says what is wrong


def test_a_finished_cell_is_not_run_again(done: tuple[Experiment, Commands]) -> None:
    experiment, commands = done
    before = len(commands.ran)
    run(experiment)
    assert len(commands.ran) == before


@pytest.mark.e2e
def test_the_experiment_runs_and_reports(fresh_folders: Path) -> None:
    stacks = {
        f"P{n}_sa": (
            f"P{n}",
            short_axis_cine(np.random.default_rng(n), frames=4, slices=4, shape=(48, 48), spacing=(16.0, 5.0, 5.0)),
        )
        for n in range(8)
    }
    write_frames(
        fresh_folders / "nnUNet_raw" / "Dataset772_Cine", stacks, labelled=list(stacks), frames_per_labelled="all"
    )
    budget = {"iterations": 2, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "batch_size": 2}
    (fresh_folders / "tiny.yaml").write_text(json.dumps({**budget, "features": [4, 8, 16], "mirroring": False}))
    output = fresh_folders / "out"
    command = ["nnunet-qa", "experiment", "semi-qc", "-d", "772", "-o", str(output), "-device", "cpu", "-k", "1"]
    command += ["--budget", str(fresh_folders / "tiny.yaml"), "--seeds", "0", "--test-folds", "4"]
    command += ["--scheme", "ukbb", "--unit", "acquisition", "--arms", BEST]
    first = run_command(*command)
    text = (output / "report" / "README.md").read_text()
    assert text.strip() in first.stdout
    results = pd.read_csv(output / "report" / "results.csv").set_index("arm")
    assert tuple(results.index) == (HALF, BEST)
    assert results["pseudo"].tolist() == [0, 4]
    assert (results["annotated"] == 8).all()
    again = run_command(*command, "--report-only")
    assert again.stdout == first.stdout

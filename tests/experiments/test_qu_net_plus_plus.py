from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from skimage.io import imread, imsave

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.paths import raw_dataset_folder
from nnunet_qa.errors import DatasetError, ModelError, SelectionError
from nnunet_qa.experiments.budget import Budget
from nnunet_qa.experiments.holdout import Holdout
from nnunet_qa.experiments.qu_net_plus_plus import INITIAL, REFERENCE, Protocol, QUNetPlusPlusExperiment
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.files import write_json
from nnunet_qa.quality.table import write_quality
from tests.phantom import BIN, run, write_dataset

TINY = Budget(iterations=2, iterations_per_epoch=1, val_iterations_per_epoch=1, features=(4, 8, 16), batch_size=2)
ALLOWED = 5
"""Half of the ten cases in the pool: nine subjects of two cases, three of them for testing and one for validation."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nine annotated subjects with two cases each, and test cases that the experiment has to leave out."""
    base = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (base / name).mkdir()
            patch.setenv(name, str(base / name))
        yield raw_dataset_folder(write_dataset(731, "Experiment", dimensions=2, pool=0, seed=9, subjects=9))


@pytest.fixture
def experiment(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QUNetPlusPlusExperiment:
    """The experiment with trainings that only remember what they were given, and made-up scores."""
    protocol = Protocol(budget=TINY, annotated=0.5, initial_size=2, q0=0.8)
    made = QUNetPlusPlusExperiment(source=source, folder=tmp_path / "out", protocol=protocol)

    def train(self: Any, cell: Cell, cases: list[str], trainer: str, stages: int, **how: Any) -> dict[str, Any]:
        weights = str(how["weights"]) if how.get("weights") else None
        return {"trainer": trainer, "plans": "P", "train": list(cases), "stages": stages, "weights": weights}

    def score(self: Any, cell: Cell, *_: str) -> None:
        parts = self.holdout(cell.seed).parts
        rows = []
        for number, case in enumerate([*parts.pool, *parts.validation]):
            q = 0.4 + 0.03 * number  # the first of the pool agree least
            row = {"case_id": case, "role": "labelled", "level": "case", "slice_axis": None, "slice_index": None}
            rows.append({**row, "q": q, "q_small": q, "q_large": q, "entropy": q, "disagreeing_voxels": 10 * number})
        (cell.folder / "imagesTr").mkdir()
        write_quality(cell.folder / "imagesTr" / "quality.csv", pd.DataFrame(rows))

    monkeypatch.setattr(QUNetPlusPlusExperiment, "_train_and_test", train)
    monkeypatch.setattr(QUNetPlusPlusExperiment, "_score_pool", score)
    monkeypatch.setattr(Holdout, "prepare", lambda self: None)
    monkeypatch.setattr(Holdout, "populate", lambda self, *_: None)
    made.runner.begin()
    return made


def done(experiment: QUNetPlusPlusExperiment, arm: str, seed: int = 0) -> dict[str, Any]:
    for _ in experiment.runner.run([arm], [seed]):
        pass
    return experiment.runner.cell(arm, seed).result()


def free(experiment: QUNetPlusPlusExperiment) -> list[str]:
    """Pool cases that are not in S0."""
    first = done(experiment, INITIAL)["train"]
    return [case for case in experiment.holdout(0).parts.pool if case not in first]


def test_random_arms_draw_alike_and_take_the_part_that_may_be_annotated(experiment: QUNetPlusPlusExperiment) -> None:
    pool = experiment.holdout(0).parts.pool
    first, second = done(experiment, "unet_random"), done(experiment, "unet_plus_plus_random")
    assert first["train"] == second["train"]
    assert len(set(first["train"])) == ALLOWED
    assert set(first["train"]) <= set(pool)
    assert (first["trainer"], second["trainer"]) == ("QAsemiTrainer", "QUNetPlusPlusTrainer")
    assert first["stages"] == 2
    assert first["weights"] is None


def test_full_takes_the_whole_pool(experiment: QUNetPlusPlusExperiment) -> None:
    parts = experiment.holdout(0).parts
    assert done(experiment, "full")["train"] == list(parts.pool)
    assert len(parts.pool) == 2 * ALLOWED


def test_cases_for_testing_elsewhere_are_left_out(experiment: QUNetPlusPlusExperiment, source: Path) -> None:
    parts = experiment.holdout(0).parts
    labelled = CaseTable.read(source / "cases.csv").case_ids(Role.LABELLED)
    assert sorted([*parts.pool, *parts.validation, *parts.test]) == labelled


def test_qu_net_plus_plus_takes_the_lowest_q_and_starts_from_the_first_weights(
    experiment: QUNetPlusPlusExperiment,
) -> None:
    result, first = done(experiment, REFERENCE), done(experiment, INITIAL)
    assert len(first["train"]) == 2
    assert first["stages"] == result["stages"] == 1
    assert result["s_m"] == free(experiment)[: ALLOWED - 2]
    assert result["train"] == [*first["train"], *result["s_m"]]
    model = experiment.model_of(experiment.runner.cell(INITIAL, 0))
    assert result["weights"] == str(model / "fold_0" / "checkpoint_final.pth")
    assert "runs/initial/seed_0/nnUNet_results/Dataset731_Experiment/QUNetPlusPlusTrainer__P__2d" in str(model)


@pytest.mark.parametrize("arm", ["random_same_size", "foreground_random", "entropy", "size", "diverse"])
def test_the_other_choices_have_the_same_size_and_start(experiment: QUNetPlusPlusExperiment, arm: str) -> None:
    reference, other = done(experiment, REFERENCE), done(experiment, arm)
    assert len(set(other["s_m"])) == len(reference["s_m"]) == ALLOWED - 2
    assert other["weights"] == reference["weights"]
    assert other["train"] == [*reference["train"][:2], *other["s_m"]]
    assert set(other["s_m"]) <= set(free(experiment))


def test_entropy_and_size_take_the_highest(experiment: QUNetPlusPlusExperiment) -> None:
    highest = free(experiment)[::-1][: ALLOWED - 2]
    assert done(experiment, "entropy")["s_m"] == highest
    assert done(experiment, "size")["s_m"] == highest


@pytest.mark.parametrize("having", [2, 6])
def test_foreground_random_leaves_empty_cases_for_last(
    experiment: QUNetPlusPlusExperiment, monkeypatch: pytest.MonkeyPatch, having: int
) -> None:
    chosen_from = set(free(experiment)[-having:])
    whole = Holdout.labels
    monkeypatch.setattr(Holdout, "labels", lambda self, path: whole(self, path) * (path.name[:-4] in chosen_from))
    chosen = set(done(experiment, "foreground_random")["s_m"])
    assert len(chosen & chosen_from) == min(having, ALLOWED - 2)


def test_q0_from_validation_uses_the_dice_of_validation_cases(experiment: QUNetPlusPlusExperiment) -> None:
    holdout = experiment.holdout(0)
    done(experiment, INITIAL)
    folder = experiment.runner.cell(INITIAL, 0).folder / "imagesTr"
    (holdout.raw / "labelsTr").mkdir(parents=True)
    bad, good = holdout.parts.validation
    for case in (good, bad):
        shutil.copy(holdout.label(case), holdout.raw / "labelsTr" / f"{case}.png")
        shutil.copy(holdout.label(case), folder / f"{case}.png")
    assert experiment._validated_q0(0) is None  # no failure to learn from
    kept = done(experiment, "q0_validation")
    assert (kept["q0"], kept["q0_was_chosen"]) == (0.8, False)
    assert kept["s_m"] == done(experiment, REFERENCE)["s_m"]
    imsave(folder / f"{bad}.png", np.zeros_like(imread(holdout.label(bad))), check_contrast=False)
    q = pd.read_csv(folder / "quality.csv").set_index("case_id")["q"]
    assert q[bad] < experiment._validated_q0(0) <= q[good]


def test_a_first_model_that_agrees_with_itself_leaves_an_empty_minimal_set(
    experiment: QUNetPlusPlusExperiment, source: Path, tmp_path: Path
) -> None:
    protocol = Protocol(budget=TINY, annotated=0.5, initial_size=2, q0=0.1)
    other = QUNetPlusPlusExperiment(source=source, folder=tmp_path / "low", protocol=protocol)
    other.runner.begin()
    for arm in (REFERENCE, "random_same_size", "entropy"):
        assert done(other, arm)["s_m"] == []


def test_no_room_for_the_minimal_set_is_refused(source: Path, tmp_path: Path) -> None:
    protocol = Protocol(budget=TINY, annotated=0.2, initial_size=2)
    with pytest.raises(DatasetError, match="2 may be annotated, S0 alone has 2; leave room for S_m"):
        QUNetPlusPlusExperiment(source=source, folder=tmp_path / "o", protocol=protocol).holdout(0)


def test_the_replicate_has_the_same_images_and_start(experiment: QUNetPlusPlusExperiment) -> None:
    reference, again = done(experiment, REFERENCE), done(experiment, "replicate")
    assert again["train"] == reference["train"]
    assert again["weights"] == reference["weights"]


def test_transfer_arms_run_only_with_a_model_that_fits(source: Path, tmp_path: Path) -> None:
    model = tmp_path / "QUNetPlusPlusTrainer__nnUNetPlans__2d"
    protocols = [Protocol(budget=TINY, annotated=0.5, initial_size=2, transfer_from=one) for one in (None, model)]
    without, with_model = (
        QUNetPlusPlusExperiment(source=source, folder=tmp_path / "o", protocol=protocol) for protocol in protocols
    )
    assert set(with_model.wanted(None)) - set(without.wanted(None)) == {"transfer", "transfer_initial"}
    assert without.runner.settings == with_model.runner.settings  # these arms may be added later
    with pytest.raises(SelectionError, match="need a trained model to start from"):
        without.check([0], ["transfer"])
    with pytest.raises(ModelError, match="holds no fold 0 trained with QUNetPlusPlusTrainer"):
        with_model.check([0], ["transfer"])
    (model / "fold_0").mkdir(parents=True)
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"")
    with_model.check([0], ["transfer"])


def test_a_cell_keeps_the_weights_that_it_was_begun_with(
    experiment: QUNetPlusPlusExperiment, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def transfer(self: Cell, name: str, *command: str) -> None:
        calls.append(command)
        target = self.folder / "nnUNet_preprocessed" / source.name
        target.mkdir(parents=True, exist_ok=True)
        (target / "nnUNetPlansTransfer_from_Dataset112_fold_0.pth").write_bytes(b"")

    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(Cell, "call", transfer)
    found = []
    for name in ("first", "second"):
        protocol = Protocol(budget=TINY, annotated=0.5, initial_size=2, transfer_from=tmp_path / name)
        other = QUNetPlusPlusExperiment(source=source, folder=tmp_path / "t", protocol=protocol)
        other.runner.begin()
        if name == "first":
            found.append(done(other, "transfer_initial"))
            assert found[0]["weights"].endswith("nnUNetPlansTransfer_from_Dataset112_fold_0.pth")
            assert found[0]["transfer_from"] == str(tmp_path / "first")
            (other.runner.cell("transfer_initial", 0).folder / "done.json").unlink()
        else:
            with pytest.raises(ModelError, match="begun with other weights"):
                done(other, "transfer_initial")
    assert calls[0][:4] == ("nnunet-qa", "transfer", "-i", str(tmp_path / "first"))


def test_one_class_has_no_worst_one(source: Path, tmp_path: Path) -> None:
    def arms() -> list[str]:
        protocol = Protocol(budget=TINY)
        made = QUNetPlusPlusExperiment(source=source, folder=tmp_path / "o", protocol=protocol)
        return [arm.name for arm in made.runner.arms]

    assert "worst_class" in arms()
    path = source / "dataset.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "labels": {"background": 0, "fluid": 1}}))
    try:
        assert "worst_class" not in arms()
    finally:
        path.write_text(before)


@pytest.mark.e2e
def test_the_experiment_runs_reports_and_is_not_run_twice(source: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "tiny.yaml", TINY.model_dump(mode="json"))
    output = tmp_path / "out"
    command = ["nnunet-qa", "experiment", "qu-net-plus-plus", "-d", "731", "-o", str(output), "-device", "cpu"]
    command += ["--budget", str(tmp_path / "tiny.yaml"), "--seeds", "0", "--arms", "qu_net_plus_plus,unet_random"]
    command += ["--annotated", "0.5", "--initial-size", "2", "--q0", "1.0"]
    first = run(*command)
    assert "qu_net_plus_plus, seed 0: running" in first.stderr
    report, text = output / "report", (output / "report" / "README.md").read_text()
    assert text.strip() in first.stdout
    assert "| U-net, random | 5/6 | 0 | 4 |" in text
    images = pd.read_csv(report / "per_image.csv")
    assert set(images["arm"]) == {"unet_random", "initial", "qu_net_plus_plus"}
    assert len(images) == 3 * 6 * 2  # arms, test cases, classes
    results = pd.read_csv(report / "results.csv").set_index("arm")
    both = images[images["arm"] == "unet_random"].groupby("case_id")["dice"].mean()
    assert results.loc["unet_random", "dice"] == pytest.approx(both.mean(), abs=1e-5)
    assert pd.read_csv(report / "comparison.csv")["arm"].tolist() == ["unet_random"]
    for name in ("arms", "level_losses_initial", "level_losses_qu_net_plus_plus", "errors", "levels"):
        assert imread(report / f"{name}.png").std() > 0
        assert f"({name}.png)" in text

    cell = output / "runs" / "qu_net_plus_plus" / "seed_0"
    trained = json.loads((cell / "done.json").read_text())["train"]
    (splits,) = (cell / "nnUNet_preprocessed").rglob("splits_final.json")
    assert json.loads(splits.read_text())[0]["train"] == sorted(trained)
    assert not set(images["subject_id"]) & {case.split("_")[0] for case in trained}

    log = output / "runs" / "unet_random" / "seed_0" / "log.txt"
    before = log.stat().st_mtime_ns
    again = run(*command)
    assert again.stdout == first.stdout
    assert again.stderr.count("done before") == 3
    assert log.stat().st_mtime_ns == before
    write_json(tmp_path / "tiny.yaml", {**TINY.model_dump(mode="json"), "iterations": 3})
    refused = subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "was begun with other settings (budget); choose another -o" in refused.stderr

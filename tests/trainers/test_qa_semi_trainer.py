from __future__ import annotations

import json
import math
import pickle
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_qa.trainers as trainers
from nnunet_qa.config import HeadWeights
from nnunet_qa.data.pool import refuse_overlap
from nnunet_qa.errors import ConfigError, DatasetError, ModelError
from nnunet_qa.quality.table import read_quality
from nnunet_qa.trainers.final_scoring import with_true_dice
from nnunet_qa.trainers.heads import check_two_trained, head_weights
from tests.phantom import trainer_of
from tests.trainers.semi import TINY

OFF = "head_weights: nnunet\npool: {enabled: false}\nscoring: {every_epoch: false, final: false}\n"
SHORT = """
training: {epochs: 2, iterations_per_epoch: 3, val_iterations_per_epoch: 2}
pool: {batches_per_epoch: 2}
qa_loss: {enabled: false}
"""


def seed_everything() -> None:
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


def weights_after(trainer: Any, *, epochs: int, steps: int) -> dict[str, torch.Tensor]:
    """Train through nnU-Net's own loop, batches loaded in this process, everything seeded."""
    seed_everything()
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, steps, 2
    trainer.disable_checkpointing = True
    trainer.run_training()
    return trainer.network.state_dict()


@pytest.mark.parametrize(("kind", "configuration"), [("2d", "2d"), ("3d", "3d_fullres"), ("regions", "2d")])
@pytest.mark.parametrize("settings", ["off", "no pool"])
def test_twenty_steps_equal_nnunet_trainer_bit_for_bit(
    planned: dict[str, str], results: Path, qa_yaml: Any, kind: str, configuration: str, settings: str
) -> None:
    """With the features off, and with the defaults where there is no pool."""
    qa_yaml(OFF if settings == "off" else "pool: {enabled: false}")
    torch.set_num_threads(1)
    ours = weights_after(trainer_of(planned[kind], configuration, 0), epochs=2, steps=10)
    stock = weights_after(trainer_of(planned[kind], configuration, 0, name="nnUNetTrainer"), epochs=2, steps=10)
    assert list(ours) == list(stock)
    for name, weights in stock.items():
        assert torch.equal(ours[name], weights), name


def test_training_with_a_pool_logs_scores_and_resumes(
    planned: dict[str, str], results: Path, qa_yaml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(SHORT)
    trainer = trainer_of(planned["2d"], "2d", 0)
    assert len(trainer.pool_images) == 4
    trainer.save_every = 1
    monkeypatch.setattr(trainer, "on_train_end", lambda: trainer._close_pool_loader())  # as if stopped after 2 epochs
    trainer.num_epochs = 3
    on_epoch_end = type(trainer).on_epoch_end

    def stop_after_two() -> None:
        on_epoch_end(trainer)
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "on_epoch_end", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    trainer._close_pool_loader()
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert len(logged["disagreement_val"]) == len(logged["disagreement_pool"]) == 2
    assert all(0 <= value <= 1 for value in logged["disagreement_val"] + logged["disagreement_pool"])

    resumed = trainer_of(planned["2d"], "2d", 0)
    resumed.num_epochs = 3
    resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 2
    resumed.run_training()
    again = resumed.logger.local_logger.my_fantastic_logging
    assert again["disagreement_val"][:2] == logged["disagreement_val"]
    assert len(again["disagreement_pool"]) == len(again["train_losses"]) == 3
    assert resumed._pool_loader is None

    resumed.perform_actual_validation()
    table = read_quality(Path(resumed.output_folder) / "quality.csv")
    assert sorted(table.loc[table["role"] == "unlabelled", "case_id"]) == [f"P0_c{n}" for n in range(4)]
    validation = table[table["role"] == "labelled"]
    _, keys = resumed.do_split()
    assert sorted(validation["case_id"]) == sorted(keys)
    assert validation["dice"].between(0, 1).all()
    assert table.loc[table["role"] == "unlabelled", "dice"].isna().all()
    queue = pd.read_csv(Path(resumed.output_folder) / "queue.csv")
    assert set(queue["case_id"]) == {f"P0_c{n}" for n in range(4)}
    assert queue["q"].is_monotonic_increasing


def test_true_dice_in_the_table_is_nnunets(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    qa_yaml(SHORT)
    trainer = trainer_of(planned["3d"], "3d_fullres", 1)
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    table = read_quality(Path(trainer.output_folder) / "quality.csv").set_index("case_id")
    for entry in summary["metric_per_case"]:
        case = Path(entry["prediction_file"]).name.removesuffix(".nii.gz")
        for label, name in (("1", "small"), ("2", "large")):
            dice = entry["metrics"][label]["Dice"]
            assert table.loc[case, f"dice_{name}"] == pytest.approx(1.0 if math.isnan(dice) else dice, abs=1e-6)
    slices = read_quality(Path(trainer.output_folder) / "quality.csv", "slice")
    assert set(slices["case_id"]) == set(table.index)
    assert (slices.groupby("case_id")["slice_index"].nunique() == 16).all()
    progress = Path(trainer.output_folder) / "progress.png"
    from skimage.io import imread

    assert imread(progress).shape[0] == 5400 + 1800


def test_a_checkpoint_of_nnunet_trainer_can_be_continued(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    qa_yaml(SHORT)
    stock = trainer_of(planned["2d"], "2d", 0, name="nnUNetTrainer")
    stock.num_epochs, stock.num_iterations_per_epoch, stock.num_val_iterations_per_epoch = 1, 2, 1
    stock.run_training()
    trainer = trainer_of(planned["2d"], "2d", 0)
    trainer.load_checkpoint(str(Path(stock.output_folder) / "checkpoint_final.pth"))
    assert [math.isnan(value) for value in trainer.logger.get_value("disagreement_val", step=None)] == [True]
    trainer.run_training()
    assert len(trainer.logger.get_value("disagreement_val", step=None)) == 2


def test_qa_yaml_sets_the_length_and_the_class_name_wins(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    qa_yaml("training: {epochs: 7, iterations_per_epoch: 11, val_iterations_per_epoch: 3, initial_lr: 0.005}")
    trainer = trainer_of(planned["2d"], "2d", 0)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (7, 11, 3)
    assert trainer.initial_lr == 0.005
    for epochs in (5, 50, 250):
        variant = trainer_of(planned["2d"], "2d", 0, name=f"QAsemiTrainer_{epochs}epochs")
        assert (variant.num_epochs, variant.num_iterations_per_epoch) == (epochs, 11)


def test_defaults_are_nnunets(planned: dict[str, str], results: Path) -> None:
    trainer = trainer_of(planned["regions"], "2d", 0)
    stock = trainer_of(planned["regions"], "2d", 0, name="nnUNetTrainer")
    for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr"):
        assert getattr(trainer, name) == getattr(stock, name)


@pytest.mark.parametrize("name", ["QAsemiTrainer", "QAsemiTrainer_5epochs"])
def test_nnunet_finds_a_trainer_that_can_be_pickled(planned: dict[str, str], results: Path, name: str) -> None:
    trainer = trainer_of(planned["2d"], "2d", 0, name=name)
    assert type(trainer) is getattr(trainers, name)
    assert pickle.loads(pickle.dumps(type(trainer))) is type(trainer)
    assert isinstance(trainer, nnUNetTrainer)


@pytest.mark.parametrize(
    ("mode", "outputs", "with_pool", "expected"),
    [
        (HeadWeights.AUTO, 4, False, None),
        (HeadWeights.AUTO, 3, False, None),
        (HeadWeights.AUTO, 2, False, [2 / 3, 1 / 3]),
        (HeadWeights.AUTO, 4, True, [8 / 15, 4 / 15, 2 / 15, 1 / 15]),
        (HeadWeights.ALL, 3, False, [4 / 7, 2 / 7, 1 / 7]),
        (HeadWeights.NNUNET, 4, True, None),
    ],
)
def test_head_weights(mode: HeadWeights, outputs: int, with_pool: bool, expected: list[float] | None) -> None:
    found = head_weights(mode, outputs, with_pool=with_pool)
    assert found == (None if expected is None else pytest.approx(expected))


def test_with_a_pool_every_output_is_trained(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    qa_yaml("")
    trainer = trainer_of(planned["2d"], "2d", 0)
    trainer.initialize()
    factors = trainer.loss.supervised.weight_factors
    assert len(factors) >= 3
    assert all(later == pytest.approx(earlier / 2) for earlier, later in pairwise(factors))
    assert sum(factors) == pytest.approx(1)


def test_plans_with_fewer_than_two_trained_outputs_are_refused(
    planned: dict[str, str], results: Path, qa_yaml: Any
) -> None:
    with pytest.raises(ModelError, match=r"1 output.*at least three stages"):
        check_two_trained(HeadWeights.AUTO, 1, "plans", "2d")
    with pytest.raises(ModelError, match="stays untrained"):
        check_two_trained(HeadWeights.NNUNET, 2, "plans", "2d")
    check_two_trained(HeadWeights.AUTO, 2, "plans", "2d")
    qa_yaml("")
    trainer = trainer_of(planned["2d"], "2d", 0)
    trainer._get_deep_supervision_scales = lambda: [[1.0, 1.0]]
    with pytest.raises(ModelError, match="1 output"):
        trainer._build_loss()


def test_an_unknown_key_stops_the_training_with_the_nearest_known(
    planned: dict[str, str], results: Path, qa_yaml: Any
) -> None:
    qa_yaml("pool: {batch_per_epoch: 3}")
    with pytest.raises(ConfigError, match=r'"pool\.batch_per_epoch" .did you mean "batches_per_epoch"'):
        trainer_of(planned["2d"], "2d", 0)


def test_folds_that_are_missing_are_made_by_subject(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    qa_yaml("")
    trainer = trainer_of(planned["2d"], "2d", 0)
    path = Path(trainer.preprocessed_dataset_folder_base) / "splits_final.json"
    before = path.read_bytes()
    try:
        path.unlink()
        train, validation = trainer.do_split()
        assert not {case[:2] for case in train} & {case[:2] for case in validation}
        assert len(json.loads(path.read_text())) == 4  # as many folds as subjects
    finally:
        path.write_bytes(before)


def test_the_cascade_hands_the_pool_from_stage_to_stage(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    """3d_lowres predicts the pool for 3d_cascade_fullres, which then trains, scores and reads it."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    import nnunet_qa.data.paths as paths

    folder = paths.preprocessed_dataset_folder(planned["3d"])
    plans = paths.read_plans(planned["3d"], "nnUNetPlans")
    plans["plans_name"] = "cascade"
    plans["configurations"]["3d_lowres"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "cascade_3d_lowres",
        "spacing": [spacing * 1.5 for spacing in plans["configurations"]["3d_fullres"]["spacing"]],
        "patch_size": [16, 32, 32],
        "next_stage": "3d_cascade_fullres",
    }
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (folder / "cascade.json").write_text(json.dumps(plans))
    DefaultPreprocessor(verbose=False).run(702, "3d_lowres", "cascade", num_processes=2)

    qa_yaml(SHORT)
    with pytest.raises(DatasetError, match="train 3d_lowres with QAsemiTrainer first"):
        trainer_of(planned["3d"], "3d_cascade_fullres", 0, plans="cascade").on_train_start()
    for fold in (0, 1):
        lowres = trainer_of(planned["3d"], "3d_lowres", fold, plans="cascade")
        lowres.run_training()
        lowres.perform_actual_validation()
    predicted = {path.name for path in (Path(lowres.output_folder_base) / "predicted_next_stage").rglob("*.b2nd")}
    assert {"P0_c0.b2nd", "P0_c1.b2nd", "S0_c0.b2nd"} <= predicted

    # with the QA loss, whose batches hold the previous stage's segmentation too
    with_qa = SHORT.replace("{enabled: false}", f"{{simulation: {TINY}, batch_size: 1}}")
    qa_yaml(with_qa)
    seed_everything()
    cascade = trainer_of(planned["3d"], "3d_cascade_fullres", 0, plans="cascade")
    cascade.run_training()
    for key in ("disagreement_pool", "qa_loss"):
        assert np.isfinite(cascade.logger.get_value(key, step=None)).tolist() == [True, True]
    cascade.perform_actual_validation()
    table = read_quality(Path(cascade.output_folder) / "quality.csv")
    assert (table["role"] == "unlabelled").sum() == 2


def test_dice_goes_to_its_class_though_the_summary_sorts_keys_as_texts(tmp_path: Path) -> None:
    keys = [str(value) for value in range(1, 12)]
    metrics = {key: {"Dice": int(key) / 100} for key in sorted(keys)}
    summary = {"metric_per_case": [{"prediction_file": "x/A.nii.gz", "metrics": metrics}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary, sort_keys=True))
    rows = [{"case_id": "A", "role": "labelled", "level": "case", "q": 1.0}]
    table = with_true_dice(rows, tmp_path / "summary.json", {key: f"L{key}" for key in keys})
    for key in keys:
        assert table.loc[0, f"dice_L{key}"] == int(key) / 100


def test_a_fold_that_would_part_subjects_is_refused(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    qa_yaml("")
    with pytest.raises(DatasetError, match=r"has 2 folds, counted from 0, and no fold 2"):
        trainer_of(planned["2d"], "2d", 2).do_split()


def test_a_case_in_pool_and_training_set_is_refused(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path
) -> None:
    qa_yaml("")
    raw = tmp_path / "imagesTr"
    raw.mkdir()
    (raw / "A_0000.png").touch()
    with pytest.raises(DatasetError, match="A is in imagesTr and in imagesUn"):
        refuse_overlap(tmp_path, {"A": []}, ".png")


def test_a_checkpoint_with_a_pool_goes_on_without_one(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    qa_yaml(SHORT)
    trainer = trainer_of(planned["2d"], "2d", 0)
    logged = {key: [0.5] for key in trainer.logger.local_logger.my_fantastic_logging}
    qa_yaml("pool: {enabled: false}")
    without = trainer_of(planned["2d"], "2d", 0)
    without.logger.load_checkpoint(logged)
    assert "disagreement_pool" not in without.logger.local_logger.my_fantastic_logging
    assert without.logger.get_value("disagreement_val", step=None) == [0.5]


def test_a_kill_while_saving_leaves_the_checkpoint_before(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(planned["2d"], "2d", 0)
    trainer.initialize()
    path = tmp_path / "saved" / "checkpoint_latest.pth"
    path.parent.mkdir()
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()
    assert torch.load(path, weights_only=False)["trainer_name"] == "QAsemiTrainer"

    def killed(_: Any, filename: str) -> None:
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(path.parent / "none.pth"))
    assert not (path.parent / "none.pth").exists()

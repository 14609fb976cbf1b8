from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage.io import imread

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.checkpoint import read_content
from nnunet_qa.data.moved_plans import move_plans
from nnunet_qa.data.paths import preprocessed_dataset_folder
from nnunet_qa.data.transfer import transfer
from nnunet_qa.errors import DatasetError, ModelError
from tests.data.test_transfer import SOURCE, TARGET, network_of, write_source, write_target
from tests.inference.interactive_model import plans_of
from tests.phantom import trainer_of
from tests.trainers.semi import copied, logs, one_step, settings, started

NAME = "RestorationTrainer"


def restoring(dataset: str, configuration: str = "2d", fold: int | str = 0) -> Any:
    return trainer_of(dataset, configuration, fold, name=NAME)


@pytest.mark.parametrize(("kind", "configuration"), [("2d", "2d"), ("3d", "3d_fullres")])
def test_trains_and_starts_other_trainings(
    planned: dict[str, str], qa_yaml: Any, results: Path, kind: str, configuration: str
) -> None:
    qa_yaml(settings())
    trainer = restoring(planned[kind], configuration)
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    assert np.isfinite(trainer.logger.get_value("val_losses", step=None)).all()
    written = json.loads((folder / "restoration.json").read_text())
    pool = 4 if kind == "2d" else 2
    held_out = sorted(trainer.do_split()[1])
    assert written["images"] == {"annotated": 8, "pool": pool, "held_out": len(held_out)}
    assert written["held_out_cases"] == held_out
    assert (written["iterations"], written["configuration"]) == (4, configuration)
    assert written["settings"]["distortions"]["blocks"] == 10_000
    assert written["validation"]["patches"] == len(held_out)
    assert 0 < written["validation"]["restored"]["l1"] < 2
    assert imread(folder / "restored.png").std() > 0

    final = read_content(folder / "checkpoint_final.pth")
    assert final["restoration"] == {key: value for key, value in written.items() if key != "validation"}
    assert (folder / "checkpoint_half.pth").is_file()
    for name in ("nnUNetTrainer", "QAsemiTrainer"):
        other = trainer_of(planned[kind], configuration, 0, name=name)
        other.initialize()
        load_pretrained_weights(other.network, str(folder / "checkpoint_final.pth"))
        for key, value in other.network.state_dict().items():
            assert torch.equal(value, final["network_weights"][key]) != (".seg_layers." in key)
    other = trainer_of(planned[kind], configuration, 0)
    other.configuration_manager.configuration["spacing"][-1] *= 1.02
    other.initialize()
    with pytest.raises(ModelError, match=r"checkpoint_final.pth: weights of images that were preprocessed otherwise"):
        load_pretrained_weights(other.network, str(folder / "checkpoint_final.pth"))


def test_several_channels_and_the_loss(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml(settings(restoration={"loss": "mse"}))
    trainer = restoring(planned["2d"])
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 3, 7, False)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    assert float(trainer._build_loss()(torch.full((2,), 3.0), torch.zeros(2))) == 9
    qa_yaml(settings())
    assert float(restoring(planned["2d"])._build_loss()(torch.full((2,), 3.0), torch.zeros(2))) == 3


def test_a_batch_holds_distorted_and_clean_images(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    off = {"flip": 0, "shuffle": 0, "intensity": 0, "painting": 0}
    qa_yaml(settings(restoration={"distortions": {**off, "painting": 1, "in_painting": 1, "windows": 1}}))
    with started(restoring(planned["2d"])) as trainer:
        seen: set[str] = set()
        for _ in range(6):
            batch = next(trainer.dataloader_train)
            seen |= {str(key)[0] for key in batch["keys"]}
            assert batch["target"].shape == batch["data"].shape
            same = ((batch["target"] - batch["data"]).abs() < 1e-4).float().mean()
            assert 0.8 < same < 1
        assert seen == {"S", "P"}  # annotated and pool
        assert not torch.equal(trainer.network(batch["data"]), batch["target"])


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_every_parameter_that_asks_for_a_gradient_gets_one(
    planned: dict[str, str], qa_yaml: Any, results: Path, kind: str
) -> None:
    """DDP, as nnU-Net sets it up, stops at the second step otherwise."""
    qa_yaml(settings())
    trainer = restoring(planned["2d"])
    plans = plans_of([16, 16])
    ((name, configuration),) = plans["configurations"].items()
    if kind == "residual":
        architecture = configuration["architecture"]
        architecture["network_class_name"] = architecture["network_class_name"].replace("PlainConv", "ResidualEncoder")
        architecture["arch_kwargs"]["n_blocks_per_stage"] = [1, 1, 1]
        del architecture["arch_kwargs"]["n_conv_per_stage"]
    manager = PlansManager(plans)
    network = trainer.build_network_architecture(manager, manager.get_configuration(name), 1, 2, False)
    network(torch.rand(1, 1, 16, 16)).sum().backward()
    assert [key for key, value in network.named_parameters() if (value.grad is None) == value.requires_grad] == []
    assert any(not value.requires_grad for value in network.parameters())
    deep = trainer.build_network_architecture(manager, manager.get_configuration(name), 1, 2, True)
    assert all(value.requires_grad for value in deep.parameters())


def test_a_loss_that_is_no_number_is_never_the_best(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml(settings())
    trainer = restoring(planned["2d"])
    saved = []
    trainer.save_checkpoint = lambda path: saved.append(Path(path).name)
    trainer.logger.plot_progress_png = lambda _: None
    best = []
    for loss in (float("nan"), 2.0, float("nan"), 1.0):
        trainer.on_epoch_start()
        trainer.logger.log("train_losses", 1.0, trainer.current_epoch)
        trainer.on_validation_epoch_end([{"loss": loss}])
        trainer.on_epoch_end()
        best.append(trainer._best_ema)
    assert best == [None, -2, -2, -1]
    assert saved.count("checkpoint_best.pth") == 2


def test_all_ranks_prepare_the_pool_before_one_validates(
    planned: dict[str, str], qa_yaml: Any, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(settings())
    trainer = restoring(planned["2d"])
    prepared = []
    monkeypatch.setattr(trainer, "_prepare_pool", lambda: prepared.append(trainer.local_rank))
    trainer.local_rank = 1
    trainer.perform_actual_validation()  # as --val does, without a training before
    assert prepared == [1]


def test_a_better_checkpoint_of_before_is_not_overwritten(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml(settings())
    trainer = restoring(planned["2d"])
    trainer.initialize()
    folder = Path(trainer.output_folder)
    for name, best in (("latest", -2.0), ("best", -1.0)):
        trainer._best_ema = best
        trainer.save_checkpoint(str(folder / f"checkpoint_{name}.pth"))
    again = restoring(planned["2d"])
    again.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert again._best_ema == -1


def test_a_resumed_training_goes_on(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml(settings())
    first = restoring(planned["2d"])
    first.num_epochs = 1
    first.run_training()
    again = restoring(planned["2d"])
    again.load_checkpoint(str(Path(first.output_folder) / "checkpoint_final.pth"))
    assert again.current_epoch == 1
    assert again._best_ema == -again.logger.get_value("val_losses", step=0)
    again.run_training()
    assert len(again.logger.get_value("val_losses", step=None)) == 2


def test_it_learns(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    """The loss of one batch falls well below that of the distorted images themselves."""
    qa_yaml(settings(training={"epochs": 1, "initial_lr": 0.01}))
    torch.manual_seed(0)
    np.random.seed(0)
    with started(restoring(planned["2d"])) as trainer:
        trainer.on_train_epoch_start()
        batch = next(trainer.dataloader_train)
        unchanged = float((batch["data"] - batch["target"]).abs().mean())
        losses = [float(trainer.train_step(batch)["loss"]) for _ in range(60)]
        assert losses[-1] < 0.7 * min(unchanged, losses[0])


def test_held_out_subjects(
    planned: dict[str, str], qa_yaml: Any, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(settings())
    raw = copied(planned["2d"], tmp_path, monkeypatch)
    table = CaseTable.read(raw / "cases.csv")
    frame = table.frame.copy()
    frame.loc[frame["case_id"] == "P0_c0", "subject_id"] = "S0"  # a subject with an annotated and a pool image
    CaseTable(frame).write(raw / "cases.csv")
    subjects = CaseTable(frame).subjects()
    everything = set(table.case_ids(Role.LABELLED)) | set(table.case_ids(Role.UNLABELLED))
    for fold in (0, 1, "all"):
        trainer = restoring(planned["2d"], fold=fold)
        trainer.initialize()
        train, held_out = trainer.do_split()
        assert {*train, *held_out} == everything
        assert held_out
        assert not {subjects[case] for case in train} & {subjects[case] for case in held_out}
        if fold != "all":
            splits = json.loads((preprocessed_dataset_folder(planned["2d"]) / "splits_final.json").read_text())
            assert set(splits[fold]["val"]) == set(held_out) - set(table.case_ids(Role.UNLABELLED))
            assert ("P0_c0" in held_out) == ("S0_c0" in held_out)


def test_a_test_set_of_the_folds_is_left_out(
    planned: dict[str, str], qa_yaml: Any, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(settings())
    raw = copied(planned["2d"], tmp_path, monkeypatch)
    frame = CaseTable.read(raw / "cases.csv").frame.copy()
    for case, subject in (("P0_c0", "S3"), ("P0_c1", "S0")):  # of the test set, and of the training
        frame.loc[frame["case_id"] == case, "subject_id"] = subject
    CaseTable(frame).write(raw / "cases.csv")
    train, validated = ["S0_c0", "S1_c0", "S1_c1"], ["S2_c0"]  # S0_c1 and S2_c1 are of nobody, as is S3
    splits = preprocessed_dataset_folder(planned["2d"]) / "splits_final.json"
    splits.write_text(json.dumps([{"train": train, "val": validated}]))
    trainer = restoring(planned["2d"])
    trainer.initialize()
    assert trainer.do_split() == (["P0_c1", "P0_c2", "P0_c3", *train], validated)
    trainer.get_tr_and_val_datasets()
    assert "5 images left out: by splits_final.json they are not of fold 0" in logs(trainer)
    assert trainer.description()["images"] == {"annotated": 4, "pool": 3, "held_out": 1}


def test_plans_moved_to_a_dataset_without_any_label(
    planned: dict[str, str], qa_yaml: Any, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the weights trained there start a training of the dataset that the plans are of."""
    qa_yaml(settings(training={"epochs": 1, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1}))
    annotated = copied(planned["2d"], tmp_path, monkeypatch)
    raw = annotated.with_name("Dataset709_Scans")
    shutil.copytree(annotated / "imagesUn", raw / "imagesUn")
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0}, "numTraining": 0, "file_ending": ".png"}
    (raw / "dataset.json").write_text(json.dumps(content))
    move_plans(planned["2d"], raw.name, plans="nnUNetPlans", identifier="nnUNetPlansFrom701")
    trainer = trainer_of(raw.name, "2d", "all", name=NAME, plans="nnUNetPlansFrom701")
    trainer.run_training()
    trainer.perform_actual_validation()
    written = json.loads((Path(trainer.output_folder) / "restoration.json").read_text())
    assert written["images"] == {"annotated": 0, "pool": 4, "held_out": 1}
    other = trainer_of(planned["2d"], "2d", 0, name="nnUNetTrainer")
    other.initialize()
    load_pretrained_weights(other.network, str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    key = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(other.network.state_dict()[key], trainer.network.state_dict()[key])

    shutil.rmtree(raw / "imagesUn")
    with pytest.raises(DatasetError, match="there is no image to restore; put images into imagesUn"):
        trainer_of(raw.name, "2d", "all", name=NAME, plans="nnUNetPlansFrom701").initialize()


def test_annotated_images_alone(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml(settings(pool={"enabled": False}))
    with started(restoring(planned["regions"], fold="all")) as trainer:
        assert len(trainer.annotated) == 8
        assert np.isfinite(one_step(trainer)["loss"])


def test_one_subject_and_the_cascade(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml(settings())
    trainer = restoring(planned["2d"], fold="all")
    trainer.annotated = []  # what is left are images of the subject P0
    with pytest.raises(DatasetError, match="needs images of another one to train on"):
        trainer.do_split()

    plans = json.loads((preprocessed_dataset_folder(planned["2d"]) / "nnUNetPlans.json").read_text())
    plans["configurations"]["cascade"] = {"inherits_from": "2d", "previous_stage": "2d"}
    kind = type(trainer)
    with pytest.raises(ModelError, match=r"RestorationTrainer: cascade of nnUNetPlans is fed segmentations of 2d"):
        kind({**plans, "continue_training": False}, "cascade", 0, trainer.dataset_json, torch.device("cpu"))
    assert "val_loss" not in logs(trainer)


def test_weights_for_other_channels(fresh_folders: Path) -> None:
    """As docs/restoration.md says: `nnunet-qa transfer` takes a pretrained network, too."""
    pretrained = network_of(SOURCE, "2d", 1, 1)  # one output, though the dataset has three classes
    model, _ = write_source(fresh_folders, SOURCE, "2d", network=pretrained, trainer=NAME)
    write_target(fresh_folders, TARGET, channels=3)
    done = transfer(model, "101", fold="0", configuration="2d", identifier="FromCT")
    weights = read_content(done.weights)["network_weights"]
    key = "encoder.stages.0.0.convs.0.conv.weight"
    torch.testing.assert_close(weights[key].sum(1, keepdim=True), pretrained.state_dict()[key])

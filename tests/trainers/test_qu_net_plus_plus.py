from __future__ import annotations

import inspect
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage.io import imread

from nnunet_qa.data.paths import preprocessed_dataset_folder, raw_dataset_folder, read_json
from nnunet_qa.errors import ModelError
from nnunet_qa.inference.score import ScoreOptions, score_folder
from nnunet_qa.networks.nested_unet import NestedUNet
from nnunet_qa.quality.table import read_quality
from nnunet_qa.trainers import QUNetPlusPlusTrainer
from tests.phantom import trainer_of

NAME = "QUNetPlusPlusTrainer"
SHORT = """
training: {epochs: 2, iterations_per_epoch: 2, val_iterations_per_epoch: 1}
pool: {batches_per_epoch: 1, jobs: 1}
scoring: {mirroring: false}
"""
CPU = torch.device("cpu")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder of the test's own, and quick settings."""
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    settings(tmp_path, monkeypatch, SHORT)
    return tmp_path / "results"


def settings(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "qa.yaml").write_text(text)
    monkeypatch.setenv("nnUNet_qa_config", str(folder / "qa.yaml"))


def test_training_resumes_scores_and_predicts(
    planned: dict[str, str], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trainer_of(planned["2d"], "2d", 0, name=NAME)
    assert pickle.loads(pickle.dumps(type(first))) is QUNetPlusPlusTrainer
    first.num_epochs = 1
    first.run_training()
    trainer = trainer_of(planned["2d"], "2d", 0, name=NAME)
    trainer.load_checkpoint(os.fspath(Path(first.output_folder) / "checkpoint_final.pth"))
    assert trainer.current_epoch == 1
    for name, value in first.network.state_dict().items():
        assert torch.equal(trainer.network.state_dict()[name], value), name
    trainer.run_training()
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert len(logged["disagreement_val"]) == len(logged["disagreement_pool"]) == 2
    trainer.perform_actual_validation()
    table = read_quality(Path(trainer.output_folder) / "quality.csv")
    assert (table["role"] == "unlabelled").sum() == 4
    assert (table["disagreeing_voxels"] <= table["union_voxels"]).all()
    assert (Path(trainer.output_folder) / "queue.csv").is_file()

    images = raw_dataset_folder(planned["2d"]) / "imagesTs"
    stock = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=CPU, allow_tqdm=False)
    model = Path(trainer.output_folder_base)
    stock.initialize_from_trained_model_folder(os.fspath(model), (0,))
    assert isinstance(stock.network, NestedUNet)
    (tmp_path / "stock").mkdir()
    stock.predict_from_files_sequential(os.fspath(images), os.fspath(tmp_path / "stock"))
    options = ScoreOptions(processes=1, mirroring=False, entropy=True)
    written = score_folder(model, images, tmp_path / "ours", options, device=CPU, show_progress=False)
    assert written is not None
    cases = read_quality(written)
    assert cases["entropy"].between(0, np.log(3)).all()
    for case in cases["case_id"]:
        np.testing.assert_array_equal(
            imread(tmp_path / "ours" / f"{case}.png"), imread(tmp_path / "stock" / f"{case}.png")
        )


@pytest.mark.parametrize(("kind", "configuration"), [("3d", "3d_fullres"), ("3d", "2d"), ("regions", "2d")])
def test_a_step_reaches_every_parameter_and_targets_have_full_resolution(
    planned: dict[str, str], results: Path, kind: str, configuration: str
) -> None:
    trainer = trainer_of(planned[kind], configuration, 0, name=NAME)
    trainer.on_train_start()
    try:
        batch = next(trainer.dataloader_train)
    finally:
        trainer._close_pool_loader()
    patch = tuple(trainer.configuration_manager.patch_size)
    outputs = trainer.network(batch["data"])
    assert len(outputs) == len(batch["target"]) == len(trainer.network.decoder.seg_layers)
    assert {tuple(target.shape[2:]) for target in batch["target"]} == {patch}
    assert {tuple(output.shape[2:]) for output in outputs} == {patch}
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.train_step(batch)
    for name, value in trainer.network.state_dict().items():
        assert not torch.equal(before[name], value), name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", [1 / 3] * 3),
        ("head_weights: all", [4 / 7, 2 / 7, 1 / 7]),
        ("head_weights: nnunet", [2 / 3, 1 / 3, 0]),
    ],
)
def test_outputs_are_weighted_alike_unless_qa_yaml_says_otherwise(
    planned: dict[str, str],
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    expected: list[Any],
) -> None:
    settings(tmp_path, monkeypatch, line)
    trainer = trainer_of(planned["3d"], "3d_fullres", 0, name=NAME)
    trainer.initialize()
    assert trainer.loss.weight_factors == pytest.approx(expected)


def test_the_loss_is_the_mean_over_outputs(planned: dict[str, str], results: Path) -> None:
    trainer = trainer_of(planned["2d"], "2d", 0, name=NAME)
    trainer.initialize()
    outputs = trainer.network(torch.randn(2, 1, *trainer.configuration_manager.patch_size))
    target = torch.randint(0, 3, (2, 1, *trainer.configuration_manager.patch_size)).float()
    parts = [trainer.loss.loss(output, target).item() for output in outputs]
    assert trainer.loss(outputs, [target] * len(outputs)).item() == pytest.approx(np.mean(parts), rel=1e-5)


def test_the_log_says_how_much_more_memory_than_planned(
    planned: dict[str, str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(planned["2d"], "2d", 0, name=NAME)
    trainer.initialize()
    stock = trainer_of(planned["2d"], "2d", 0, name="QAsemiTrainer")
    stock.initialize()
    patch = trainer.configuration_manager.patch_size
    ours, theirs = (one.network.compute_conv_feature_map_size(patch) for one in (trainer, stock))
    text = f"about {ours / theirs:.1f} times the memory that the plans were made for; "
    assert text in (log := Path(trainer.log_file).read_text())
    assert "`nnunet-qa plans --batch-size` or `--patch-size`" in log
    state = torch.get_rng_state()
    trainer._memory_factor()
    assert torch.equal(torch.get_rng_state(), state)  # the first weights stay those of the seed
    monkeypatch.delattr(NestedUNet, "compute_conv_feature_map_size")
    broken = trainer_of(planned["2d"], "2d", 0, name=NAME)
    broken.initialize()
    assert broken.was_initialized
    assert "cannot be compared" in Path(broken.log_file).read_text()


def test_pretrained_weights_are_taken_without_the_heads(planned: dict[str, str], results: Path, tmp_path: Path) -> None:
    first, second = (trainer_of(planned["2d"], "2d", fold, name=NAME) for fold in (0, 1))
    first.initialize()
    second.initialize()
    path = os.fspath(tmp_path / "first.pth")
    first.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    first.save_checkpoint(path)
    load_pretrained_weights(second.network, path)
    for name, value in second.network.state_dict().items():
        is_head_weight = ".seg_layers." in name and name.endswith("weight")
        assert torch.equal(first.network.state_dict()[name], value) is not is_head_weight, name


def altered(dataset: str, change: Any) -> None:
    """Plans named `altered`, with changes."""
    folder = preprocessed_dataset_folder(dataset)
    plans = read_json(folder / "nnUNetPlans.json")
    plans["plans_name"] = "altered"
    change(plans["configurations"]["2d"])
    (folder / "altered.json").write_text(json.dumps(plans))


def shortened(configuration: dict[str, Any], stages: int) -> None:
    kwargs = configuration["architecture"]["arch_kwargs"]
    for key in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage"):
        kwargs[key] = kwargs[key][:stages]
    kwargs["n_conv_per_stage_decoder"] = kwargs["n_conv_per_stage_decoder"][: stages - 1]
    kwargs["n_stages"] = stages


def test_plans_with_two_stages_are_refused_and_three_are_scored(
    planned: dict[str, str], results: Path, tmp_path: Path
) -> None:
    altered(planned["2d"], lambda configuration: shortened(configuration, 2))
    with pytest.raises(ModelError, match=r"1 output.*at least three stages"):
        trainer_of(planned["2d"], "2d", 0, name=NAME, plans="altered").initialize()
    altered(planned["2d"], lambda configuration: shortened(configuration, 3))
    trainer = trainer_of(planned["2d"], "2d", 0, name=NAME, plans="altered")
    trainer.num_epochs = 1
    trainer.run_training()
    images, options = raw_dataset_folder(planned["2d"]) / "imagesTs", ScoreOptions(processes=1, mirroring=False)
    model = Path(trainer.output_folder_base)
    written = score_folder(model, images, tmp_path / "out", options, device=CPU, show_progress=False)
    assert written is not None  # two outputs, both trained


def test_residual_plans_build_and_others_are_refused(planned: dict[str, str], results: Path) -> None:
    folder = preprocessed_dataset_folder(planned["2d"])
    plans = read_json(folder / "nnUNetPlans.json")
    architecture = plans["configurations"]["2d"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")

    def build() -> Any:
        manager = PlansManager(plans)
        return QUNetPlusPlusTrainer.build_network_architecture(manager, manager.get_configuration("2d"), 1, 3, False)

    net = build()
    assert type(net.encoder).__name__ == "ResidualEncoder"
    assert net(torch.randn(1, 1, 64, 64)).shape == (1, 3, 64, 64)
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.primus.Primus"
    with pytest.raises(ModelError, match=r'plans "nnUNetPlans": U-Net\+\+ cannot be built from .*Primus'):
        build()


@pytest.mark.parametrize("name", ["build_network_architecture", "_get_deep_supervision_scales", "_build_loss"])
def test_hooks_have_nnunets_signature(name: str) -> None:
    ours, stock = (
        inspect.signature(getattr(kind, name)).parameters.values() for kind in (QUNetPlusPlusTrainer, nnUNetTrainer)
    )
    assert [(one.name, one.default) for one in ours] == [(one.name, one.default) for one in stock]

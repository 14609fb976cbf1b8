from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from skimage.io import imread

from nnunet_qa.data.paths import preprocessed_dataset_folder, raw_dataset_folder
from nnunet_qa.errors import ModelError
from nnunet_qa.inference.predictor import QAPredictor
from nnunet_qa.quality.table import read_quality
from nnunet_qa.trainers import PaperQUNetPlusPlusTrainer
from nnunet_qa.trainers.affine import RandomAffine, affine_matrix
from tests.phantom import trainer_of

PLUS, UNET = "PaperQUNetPlusPlusTrainer", "PaperQUNetTrainer"
SHORT = "training: {epochs: 1, iterations_per_epoch: 2, val_iterations_per_epoch: 1}\n"


@pytest.fixture
def settings(tmp_path: Path, planned: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a qa.yaml; nnU-Net's results go to a folder of the test's own."""
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))

    def write(text: str) -> None:
        (tmp_path / "qa.yaml").write_text(text)
        monkeypatch.setenv("nnUNet_qa_config", str(tmp_path / "qa.yaml"))

    return write


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow network on small images; PaperQUNetTrainer inherits the three numbers."""
    monkeypatch.setattr(PaperQUNetPlusPlusTrainer, "features", (3, 4, 5, 6, 7))
    monkeypatch.setattr(PaperQUNetPlusPlusTrainer, "image_size", (32, 48))
    monkeypatch.setattr(PaperQUNetPlusPlusTrainer, "images_a_batch", 3)


@pytest.fixture
def one_class(planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The preprocessed 2d phantom with its two classes as one."""
    source = preprocessed_dataset_folder(planned["2d"])
    target = tmp_path / "preprocessed" / source.name
    shutil.copytree(source, target)
    monkeypatch.setenv("nnUNet_preprocessed", str(target.parent))
    content = json.loads((target / "dataset.json").read_text()) | {"labels": {"background": 0, "blob": 1}}
    (target / "dataset.json").write_text(json.dumps(content))
    cases = str(target / "nnUNetPlans_2d")
    for case in nnUNetDatasetBlosc2.get_identifiers(cases):
        data, seg, _, properties = nnUNetDatasetBlosc2(cases, [case]).load_case(case)
        data, seg = data[:], np.minimum(seg[:], 1)
        for path in Path(cases).glob(f"{case}*"):
            path.unlink()
        nnUNetDatasetBlosc2.save_case(data, seg, properties, f"{cases}/{case}")
    return planned["2d"]


def test_the_papers_recipe(planned: dict[str, str], settings: Any) -> None:
    settings("")
    trainer = trainer_of(planned["2d"], "2d", 0, name=PLUS)
    assert (trainer.num_epochs, trainer.initial_lr) == (60, 1e-4)
    assert trainer.configuration_manager.patch_size == [256, 256]
    trainer.initialize()
    assert trainer.batch_size == 20
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (1, 1)  # 4 images, batch 20
    assert type(trainer.optimizer) is torch.optim.Adam
    assert trainer.optimizer.defaults["weight_decay"] == 0
    for epoch in (0, 30, 59):
        trainer.lr_scheduler.step(epoch)
        assert trainer.optimizer.param_groups[0]["lr"] == 1e-4
    assert trainer.network.encoder.blocks[4][0].weight.shape == (512, 256, 3, 3)
    assert trainer.network.decoder.seg_layers[0].weight.shape[0] == 3  # background and two classes
    assert "nnunet-qa plans --image-size 256,256" in Path(trainer.log_file).read_text()


def test_one_class_has_the_papers_single_output(one_class: str, settings: Any) -> None:
    settings("")
    trainer = trainer_of(one_class, "2d", 0, name=PLUS)
    trainer.initialize()
    assert sum(value.numel() for value in trainer.network.parameters()) == 9_043_620


def test_qa_yaml_sets_length_and_rate(planned: dict[str, str], settings: Any, small: None) -> None:
    settings("training: {epochs: 7, iterations_per_epoch: 11, val_iterations_per_epoch: 5, initial_lr: 0.01}")
    trainer = trainer_of(planned["2d"], "2d", 0, name=PLUS)
    trainer.initialize()
    assert (trainer.num_epochs, trainer.initial_lr) == (7, 0.01)
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (11, 5)


def test_patches_are_drawn_without_regard_to_foreground(
    planned: dict[str, str], settings: Any, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings("")
    trainer = trainer_of(planned["2d"], "2d", 0, name=PLUS)
    assert trainer.oversample_foreground_percent == 0
    trainer.is_ddp = True
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        trainer._set_batch_size_and_oversample()
        assert trainer.oversample_foreground_percent == 0
    assert trainer_of(planned["2d"], "2d", 0, name=UNET).oversample_foreground_percent == 0


def test_an_epoch_has_as_many_images_as_the_fold(planned: dict[str, str], settings: Any, small: None) -> None:
    settings("")
    two = trainer_of(planned["2d"], "2d", 0, name=PLUS)
    two.initialize()
    assert two.num_iterations_per_epoch == 2  # 4 images in batches of 3
    three = trainer_of(planned["3d"], "2d", 0, name=PLUS)
    three.initialize()
    assert three.num_iterations_per_epoch == 22  # 4 volumes of 16 slices


@pytest.mark.parametrize(("name", "kind"), [(PLUS, "one class"), (PLUS, "regions"), (PLUS, "2d"), (UNET, "one class")])
def test_trains_and_predicts(
    planned: dict[str, str], request: pytest.FixtureRequest, settings: Any, small: None, tmp_path: Path, name: str,
    kind: str,
) -> None:  # fmt: skip
    with_pool = (name, kind) == (PLUS, "2d")
    settings(SHORT if with_pool or name == UNET else SHORT + "pool: {enabled: false}")
    dataset = request.getfixturevalue("one_class") if kind == "one class" else planned[kind]
    torch.manual_seed(1)
    trainer = trainer_of(dataset, "2d", 0, name=name)
    trainer.run_training()
    heads = trainer.network.decoder.seg_layers
    assert len(heads) == (4 if name == PLUS else 1)
    assert heads[0].weight.shape[0] == {"one class": 1, "2d": 3, "regions": 2}[kind]
    low = -len(heads) - 1e-6
    trained = trainer.logger.get_value("train_losses", step=None)
    assert all(low <= value < 0 for value in trained)
    losses = pd.read_csv(Path(trainer.output_folder) / "level_losses.csv")
    levels = [f"level_{level + 1}" for level in range(len(heads))]
    assert losses.columns.tolist() == ["epoch", "part", *levels]
    assert losses["part"].tolist() == ["train", "validation"]
    assert losses[levels].iloc[0].sum() == pytest.approx(trained[0], rel=1e-4)  # each level has the weight 1

    if with_pool or name == UNET:
        trainer.perform_actual_validation()
    table = Path(trainer.output_folder) / "quality.csv"
    if with_pool:
        scored = read_quality(table)
        assert set(scored["role"]) == {"labelled", "unlabelled"}
        assert scored["q"].between(0, 1).all()
        assert len(trainer.logger.get_value("disagreement_pool", step=None)) == 1
    if name == UNET:
        assert not table.exists()
        assert trainer.pool is None
        assert "no scoring" in Path(trainer.log_file).read_text()

    plans = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())["configurations"]["2d"]
    assert (plans["patch_size"], plans["batch_size"]) == ([32, 48], 3)
    image = raw_dataset_folder(dataset) / "imagesTs" / "T0_c0_0000.png"
    kind_of_predictor = QAPredictor if name == PLUS else nnUNetPredictor
    predictor = kind_of_predictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
    assert predictor.allowed_mirroring_axes is None
    predictor.predict_from_files_sequential([[os.fspath(image)]], [os.fspath(tmp_path / "predicted")])
    predicted = imread(tmp_path / "predicted.png")
    assert predicted.shape == imread(image).shape
    assert set(np.unique(predicted)) <= ({0, 1} if kind == "one class" else {0, 1, 2})
    if name == PLUS:
        assert 0 <= predictor.last_quality.q <= 1


def test_every_head_is_trained_alike(planned: dict[str, str], settings: Any, small: None) -> None:
    settings(SHORT)
    trainer = trainer_of(planned["2d"], "2d", 0, name=PLUS)
    trainer.initialize()
    assert trainer.loss.weight_factors == (1, 1, 1, 1)
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    batch = next(trainer.dataloader_train)
    assert [tuple(target.shape) for target in batch["target"]] == [(3, 1, 32, 48)] * 4
    assert all(torch.equal(target, batch["target"][0]) for target in batch["target"])
    outputs = trainer.network(batch["data"])
    total = trainer.loss(outputs, batch["target"])
    apart = [trainer.loss.loss(output, batch["target"][0]) for output in outputs]
    assert float(total.detach()) == pytest.approx(sum(float(value.detach()) for value in apart), abs=1e-5)
    trainer.train_step(batch)
    assert all(head.weight.grad.any() for head in trainer.network.decoder.seg_layers)


def test_weights_of_another_dataset_are_taken_but_for_the_heads(
    planned: dict[str, str], settings: Any, small: None
) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    settings(SHORT + "pool: {enabled: false}")
    first = trainer_of(planned["2d"], "2d", 0, name=PLUS)
    first.run_training()
    second = trainer_of(planned["regions"], "2d", 0, name=PLUS)
    second.initialize()
    load_pretrained_weights(second.network, str(Path(first.output_folder) / "checkpoint_final.pth"))
    ours, theirs = second.network.state_dict(), first.network.state_dict()
    for name, value in ours.items():
        assert ".seg_layers." in name or torch.equal(value, theirs[name])
    assert ours["decoder.seg_layers.0.weight"].shape[0] == 2


@pytest.mark.parametrize("name", [PLUS, UNET])
def test_three_dimensions_are_refused(planned: dict[str, str], settings: Any, name: str) -> None:
    settings("")
    with pytest.raises(ModelError, match=rf"{name}: .* the configuration 3d_fullres is not; train 2d"):
        trainer_of(planned["3d"], "3d_fullres", 0, name=name)


@pytest.mark.parametrize(
    ("angle", "shift", "shear"), [(0.2, (0, 0), 0), (0, (3.4, -6), 0), (0, (0, 0), -0.2), (-0.15, (2, 5), 0.1)]
)
def test_the_affine_transform_is_scipys(angle: float, shift: tuple[float, float], shear: float) -> None:
    image = torch.randn(2, 20, 33, generator=torch.Generator().manual_seed(3))
    matrix = affine_matrix(angle, shift, shear)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    moved = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
    slanted = np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]])
    whole = rotation @ moved @ slanted  # Keras' order
    centre = (np.array(image.shape[1:]) - 1) / 2
    offset = whole[:2, 2] + centre - whole[:2, :2] @ centre
    transform = RandomAffine(rotation=0, shift=0, shear=0)
    found = transform._apply_to_image(image, matrix=matrix)
    labels = transform._apply_to_segmentation((image > 0).to(torch.int16) * 2 - 1, matrix=matrix)
    for channel in range(2):
        for result, source, order in ((found, image, 1), (labels, (image > 0).numpy() * 2 - 1, 0)):
            expected = scipy.ndimage.affine_transform(
                np.asarray(source[channel]), whole[:2, :2], offset, order=order, mode="nearest"
            )
            if order:
                np.testing.assert_allclose(result[channel], expected, atol=1e-4)
            else:
                assert (result[channel].numpy() == expected).mean() > 0.99  # ties between two pixels
    assert labels.dtype == torch.int16


def test_augmentation_draws_within_its_ranges_and_leaves_a_strength_of_zero() -> None:
    image, labels = torch.randn(1, 16, 24), torch.randint(-1, 3, (1, 16, 24))
    still = RandomAffine(rotation=0, shift=0, shear=0)(image=image, segmentation=labels)
    assert torch.allclose(still["image"], image, atol=1e-5)
    assert torch.equal(still["segmentation"], labels)
    np.random.seed(1)
    transform = RandomAffine(rotation=0, shift=0.25, shear=0)
    drawn = np.array([transform.get_parameters(image=image)["matrix"] for _ in range(300)])
    assert np.allclose(drawn[:, :, :2], np.eye(2))
    assert (np.abs(drawn[:, :, 2]) <= [4, 6]).all()
    assert (np.abs(drawn[:, :, 2]).max(0) > [3.5, 5]).all()
    turned = RandomAffine(rotation=0.2, shift=0, shear=0)
    angles = [np.arcsin(turned.get_parameters(image=image)["matrix"][1, 0]) for _ in range(300)]
    assert 0.18 < max(np.abs(angles)) <= 0.2
    moved = RandomAffine(rotation=0.2, shift=0.2, shear=0.2)(image=image, segmentation=labels)
    assert not torch.equal(moved["image"], image)

"""What the trainers that learn from the pool have in common."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from skimage.io import imread

from nnunet_qa.data.paths import raw_dataset_folder
from nnunet_qa.trainers.split_loss import SplitLoss
from tests.phantom import trainer_of
from tests.trainers.semi import (
    NoLoss,
    begin_epoch,
    one_step,
    regions_with_pool,
    seed,
    settings,
    started,
    write_discriminator,
)

SECTIONS = {"QAsemiTrainer": "qa_loss", "MeanTeacherTrainer": "mean_teacher", "CrossPseudoTrainer": "cross_pseudo"}
KEYS = {"QAsemiTrainer": "qa_loss", "MeanTeacherTrainer": "consistency_loss", "CrossPseudoTrainer": "cross_pseudo_loss"}
NAMES = list(SECTIONS)
PEERS = NAMES[1:]


def trainer_with(
    qa_yaml: Any,
    name: str,
    dataset: str,
    folder: Path,
    *,
    configuration: str = "2d",
    slices: int | None = None,
    **own: Any,
) -> Any:
    """A trainer with these settings of its loss of pool images; a discriminator is there where it needs one."""
    qa_yaml(settings(**{SECTIONS[name]: own}))
    trainer = trainer_of(dataset, configuration, 0, name=name)
    if name == "QAsemiTrainer" and "discriminator" not in own:
        own = {**own, "discriminator": str(write_discriminator(trainer, folder / "any.pt", slices=slices))}
        qa_yaml(settings(qa_loss=own))
        trainer = trainer_of(dataset, configuration, 0, name=name)
    return trainer


@pytest.mark.parametrize("name", NAMES)
def test_start_weight_ramp_up_frequency_and_batch_size_are_settings(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, name: str
) -> None:
    own = {"weight": 0.3, "start": 0.25, "ramp_up": 0.5, "every": 2, "batch_size": 3}
    trainer = trainer_with(qa_yaml, name, planned["2d"], tmp_path, **own)
    trainer.num_epochs = 8
    seen: list[int] = []
    with started(trainer):
        trainer.network.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
        for epoch in range(7):
            begin_epoch(trainer, epoch)
            if epoch < 2:  # before the start
                one_step(trainer)
                one_step(trainer)
            else:
                expected = 0.3 * math.exp(-5 * (1 - min((epoch - 1) / 4, 1)) ** 2)
                assert trainer.loss.weight == pytest.approx(expected)
        assert math.isnan(trainer.loss.collect())
        for _ in range(4):
            one_step(trainer)
        assert math.isfinite(trainer.loss.collect())
    annotated = trainer.batch_size
    assert seen == [annotated] * 4 + [annotated, annotated + 3] * 2


CONFIGURATIONS = [("2d", "2d"), ("3d", "3d_fullres"), ("3d", "2d"), ("regions", "2d")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "configuration"), CONFIGURATIONS)
def test_pool_images_alone_give_a_gradient(
    planned: dict[str, str],
    results: Path,
    qa_yaml: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
    configuration: str,
) -> None:
    """All networks, of all configurations and kinds of labels, learn something where annotated images teach nothing."""
    dataset = regions_with_pool(planned, tmp_path, monkeypatch) if kind == "regions" else planned[kind]
    slices = 6 if (kind, configuration) == ("3d", "2d") else None
    trainer = trainer_with(qa_yaml, name, dataset, tmp_path, configuration=configuration, slices=slices, ramp_up=0)
    with started(trainer):
        begin_epoch(trainer)
        assert trainer.loss.weight == 0.1
        trainer.loss.supervised = NoLoss()
        result = one_step(trainer)
        size = trainer.configuration_manager.patch_size
        assert trainer._pool_images.shape == (trainer.batch_size, 1, *size)  # as many as annotated ones
        assert float(result["loss"]) == 0  # what nnU-Net logs as the training loss is that of annotated images
        for network in [trainer.network] + ([trainer.second_network] if name == "CrossPseudoTrainer" else []):
            gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
            moved = {key for key, grad in gradients.items() if grad is not None and grad.abs().max() > 0}
            heads = [key for key in gradients if "seg_layers" in key and key.endswith("weight")]
            assert moved & set(heads) == {heads[-1]}  # the finest output
            assert {key for key in gradients if "encoder.stages.0" in key and key.endswith("conv.weight")} <= moved
        value = trainer.loss.collect()
    assert math.isfinite(value)
    assert value > 0


def test_a_2d_configuration_takes_evenly_spaced_slices_of_one_volume(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path
) -> None:
    trainer = trainer_with(
        qa_yaml, "QAsemiTrainer", planned["3d"], tmp_path, configuration="2d", slices=4, batch_size=4
    )
    with started(trainer):
        assert trainer.renderer.stacked
        assert trainer.renderer.specs[0].slices == 4
        volumes = {case: np.asarray(trainer.pool.dataset().load_case(case)[0][0]) for case in trainer.pool.case_ids}
        for _ in range(3):
            batch = next(trainer._pool_batches)
            (case,) = set(batch["keys"])
            for number, image in enumerate(batch["data"][:, 0].numpy()):
                wanted = (2 * number + 1) * len(volumes[case]) // 8
                shared = [np.isin(image, whole).mean() for whole in volumes[case]]  # intensities are those of one slice
                assert int(np.argmax(shared)) == wanted
                assert shared[wanted] > 0.9
        begin_epoch(trainer)
        one_step(trainer)
        assert trainer.renderer(trainer._pool_images, torch.zeros(4, 2, *trainer._pool_images.shape[2:])).shape[0] == 1


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_takes_slices_of_any_case(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, name: str
) -> None:
    """They draw no montage, and a batch of many cases teaches more."""
    trainer = trainer_with(qa_yaml, name, planned["3d"], tmp_path, configuration="2d")
    with started(trainer):
        seed()
        assert {len(set(next(trainer._pool_batches)["keys"])) for _ in range(5)} == {2}


@pytest.mark.parametrize("name", PEERS)
def test_without_a_pool_the_peers_are_nnunet_trainer_bit_for_bit(
    planned: dict[str, str], results: Path, qa_yaml: Any, name: str
) -> None:
    qa_yaml(settings(pool={"enabled": False}, scoring={"every_epoch": False, "final": False}))
    torch.set_num_threads(1)
    states = []
    for which in (name, "nnUNetTrainer"):
        trainer = trainer_of(planned["2d"], "2d", 0, name=which)
        seed()
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 4, 1
        trainer.run_training()
        states.append(trainer.network.state_dict())
        content = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
        assert "nnunet_qa" not in content  # nothing that only a pool needs
    assert list(states[0]) == list(states[1])
    for key, value in states[1].items():
        assert torch.equal(states[0][key], value), key


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_of_zero_leaves_the_pool_alone(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, name: str
) -> None:
    trainer = trainer_with(qa_yaml, name, planned["2d"], tmp_path, weight=0)
    with started(trainer):
        assert not isinstance(trainer.loss, SplitLoss)
        begin_epoch(trainer)
        one_step(trainer)
        assert trainer._pool_batches is None
    assert KEYS[name] not in trainer.logger.local_logger.my_fantastic_logging


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_logs_resumes_and_predicts_with_nnunets_commands(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, name: str
) -> None:
    qa_yaml(settings())
    first = trainer_of(planned["2d"], "2d", 0, name=name)
    first.num_epochs = 1
    first.run_training()
    assert first._pool_batches is None  # closed
    checkpoint = Path(first.output_folder) / "checkpoint_final.pth"
    second = trainer_of(planned["2d"], "2d", 0, name=name)
    second.load_checkpoint(str(checkpoint))
    own = {"MeanTeacherTrainer": "teacher", "CrossPseudoTrainer": "second_network"}[name]
    for network in ("network", own):
        states = [getattr(trainer, network).state_dict() for trainer in (first, second)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with started(second):  # does not lose them either
        states = [getattr(trainer, own).state_dict() for trainer in (first, second)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    second.run_training()
    logged = second.logger.local_logger.my_fantastic_logging
    assert len(logged[KEYS[name]]) == len(logged["disagreement_pool"]) == len(logged["train_losses"]) == 2
    assert logged[KEYS[name]][0] == first.logger.get_value(KEYS[name], step=0)
    assert np.isfinite(logged[KEYS[name]]).all()
    assert imread(Path(second.output_folder) / "progress.png").shape[0] == 5400 + 2 * 1800

    stock = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"))
    stock.initialize_from_trained_model_folder(str(second.output_folder_base), (0,))
    for key, value in second.network.state_dict().items():
        assert torch.equal(stock.list_of_parameters[0][key], value), key
    (tmp_path / "stock").mkdir()
    images = raw_dataset_folder(planned["2d"]) / "imagesTs"
    stock.predict_from_files_sequential(str(images), str(tmp_path / "stock"))
    assert sorted(path.name for path in (tmp_path / "stock").glob("*.png")) == ["T0_c0.png", "T0_c1.png"]


def test_a_kill_while_the_extra_state_is_added_leaves_the_checkpoint_before(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(settings())
    trainer = trainer_of(planned["2d"], "2d", 0, name="MeanTeacherTrainer")
    trainer.initialize()
    path = tmp_path / "saved" / "checkpoint_latest.pth"
    path.parent.mkdir()
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()
    assert set(torch.load(path, weights_only=False)["nnunet_qa"]) == {"teacher", "teacher_steps"}
    real = torch.save

    def killed(content: Any, target: Any) -> None:
        if "nnunet_qa" in content:
            raise KeyboardInterrupt
        real(content, target)

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_nnunet_trainer_can_be_continued(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, name: str
) -> None:
    stock = trainer_of(planned["2d"], "2d", 0, name="nnUNetTrainer")
    stock.initialize()
    stock.save_checkpoint(str(tmp_path / "stock.pth"))
    trainer = trainer_with(qa_yaml, name, planned["2d"], tmp_path)
    trainer.load_checkpoint(str(tmp_path / "stock.pth"))
    with started(trainer):
        begin_epoch(trainer, trainer.current_epoch - 1)
        if name == "MeanTeacherTrainer":
            weights = stock.network.state_dict()
            assert all(torch.equal(value, weights[key]) for key, value in trainer.teacher.state_dict().items())
        one_step(trainer)

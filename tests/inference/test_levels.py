from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_qa.data.images import holds_volumes, read_array
from nnunet_qa.data.paths import raw_dataset_folder
from nnunet_qa.errors import ModelError
from nnunet_qa.evaluation.segmentation import foreground_classes, overlaps
from nnunet_qa.files import write_json
from nnunet_qa.inference.levels import level_segmentations
from nnunet_qa.inference.predictor import QAPredictor
from tests.phantom import trainer_of


def write_model(folder: Path, dataset: str, configuration: str, name: str) -> Path:
    """A model folder as nnUNetv2_train leaves it, with random weights and, where there is one, a used batch norm."""
    torch.manual_seed(0)
    trainer = trainer_of(dataset, configuration, 0, name=name)
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    for module in trainer.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 3)
    centre_heads(trainer.network, (1, trainer.num_input_channels, *trainer.configuration_manager.patch_size))
    (folder / "fold_0").mkdir(parents=True)
    trainer.save_checkpoint(os.fspath(folder / "fold_0" / "checkpoint_final.pth"))
    write_json(folder / "plans.json", trainer.plans_manager.plans)
    write_json(folder / "dataset.json", trainer.dataset_json)
    return folder


def centre_heads(network: Any, shape: tuple[int, ...]) -> None:
    """Move the bias of each head such that random weights find every class somewhere."""
    means: dict[Any, torch.Tensor] = {}
    heads = list(network.decoder.seg_layers)
    hooks = [
        head.register_forward_hook(
            lambda head, _, output: means.update({head: output.transpose(0, 1).flatten(1).mean(1)})
        )
        for head in heads
    ]
    with torch.no_grad():
        network.eval()(torch.randn(shape))
        for head in heads:
            head.bias -= means[head]
    for hook in hooks:
        hook.remove()


def loaded(model: Path, kind: type[nnUNetPredictor] = nnUNetPredictor, *, mirroring: bool = False) -> nnUNetPredictor:
    predictor = kind(
        use_mirroring=mirroring, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(os.fspath(model), (0,))
    return predictor


@pytest.mark.parametrize(
    ("kind", "configuration", "name"),
    [
        ("2d", "2d", "QAsemiTrainer"),
        ("2d", "2d", "PaperQUNetPlusPlusTrainer"),
        ("regions", "2d", "QUNetPlusPlusTrainer"),
        ("3d", "3d_fullres", "QUNetPlusPlusTrainer"),
    ],
)
def test_the_finest_level_is_what_nnunet_predicts(
    planned: dict[str, str], tmp_path: Path, kind: str, configuration: str, name: str
) -> None:
    model = write_model(tmp_path / "model", planned[kind], configuration, name)
    stock = loaded(model)
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    source = next((raw_dataset_folder(planned[kind]) / "imagesTs").glob("T0_c0_0000*"))
    (tmp_path / "in" / source.name).write_bytes(source.read_bytes())
    stock.predict_from_files_sequential(os.fspath(tmp_path / "in"), os.fspath(tmp_path / "out"))
    expected = read_array(next((tmp_path / "out").glob("T0_c0.*")), volumes=holds_volumes(stock.dataset_json))

    predictor = loaded(model)
    network = predictor.network
    predictor.network.train()  # as a trainer leaves it
    found = level_segmentations(predictor, [source])
    assert predictor.network is network
    assert not network.decoder.deep_supervision
    assert len(found) == len(network.decoder.seg_layers)
    assert {one.shape for one in found} == {expected.shape}
    np.testing.assert_array_equal(found[-1], expected)
    assert len(np.unique(expected)) > 1
    assert all((one != expected).any() for one in found[:-1])
    weights: dict[str, Any] = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    for key, value in weights["network_weights"].items():
        assert torch.equal(network.state_dict()[key], value), key


def test_levels_go_from_the_coarsest_to_the_finest(planned: dict[str, str], tmp_path: Path) -> None:
    """With the heads below the finest set to one class each, each level shows its own."""
    predictor = loaded(write_model(tmp_path / "model", planned["2d"], "2d", "QAsemiTrainer"))
    weights = predictor.list_of_parameters[0]
    heads = [f"decoder.seg_layers.{index}" for index in range(len(predictor.network.decoder.seg_layers))]
    for level, head in enumerate(heads):  # seg_layers hold the coarsest first
        weights[f"{head}.weight"].zero_()
        weights[f"{head}.bias"].copy_(torch.eye(3)[level % 3])
    source = raw_dataset_folder(planned["2d"]) / "imagesTs" / "T0_c0_0000.png"
    found = level_segmentations(predictor, [source])
    assert [np.unique(one).tolist() for one in found] == [[level % 3] for level in range(len(heads))]


@pytest.mark.parametrize("mirroring", [False, True])
def test_the_two_finest_levels_agree_as_q_says(planned: dict[str, str], tmp_path: Path, mirroring: bool) -> None:
    model = write_model(tmp_path / "model", planned["2d"], "2d", "QUNetPlusPlusTrainer")
    predictor = loaded(model, QAPredictor, mirroring=mirroring)
    source = raw_dataset_folder(planned["2d"]) / "imagesTs" / "T0_c0_0000.png"
    (tmp_path / "out").mkdir()
    predictor.predict_from_files_sequential([[os.fspath(source)]], [os.fspath(tmp_path / "out" / "case")])
    quality = predictor.last_quality
    levels = level_segmentations(predictor, [source])
    assert predictor.last_quality is quality
    classes = foreground_classes(predictor.dataset_json["labels"])
    found = [one.jaccard() for one in overlaps(levels[-2], levels[-1], classes=classes).values()]
    assert np.mean(found) == pytest.approx(quality.q, abs=2e-3)  # margins are kept in half precision
    assert 0 < quality.q < 1


def test_a_model_of_the_cascade_is_refused() -> None:
    predictor: Any = SimpleNamespace(configuration_manager=SimpleNamespace(previous_stage_name="3d_lowres"))
    with pytest.raises(ModelError, match=r"previous stage \(3d_lowres\)"):
        level_segmentations(predictor, [Path("a_0000.png")])


def test_a_network_with_one_output_has_no_levels(planned: dict[str, str], tmp_path: Path) -> None:
    predictor = loaded(write_model(tmp_path / "model", planned["2d"], "2d", "PaperQUNetTrainer"))
    with pytest.raises(ModelError):
        level_segmentations(predictor, [raw_dataset_folder(planned["2d"]) / "imagesTs" / "T0_c0_0000.png"])

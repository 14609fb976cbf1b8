"""Source and target are plans and freshly drawn weights; nnU-Net itself builds the networks and loads the file."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_qa.data.plans import PlansError
from nnunet_qa.data.transfer import TransferError, adapted_input, fitted_patch, transfer
from nnunet_qa.errors import DatasetError, EnvironmentVariableError, ModelError, NnunetQAError
from tests.phantom import EXTERNAL

PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
HALVE = {2: [[1, 1], [2, 2], [2, 2], [2, 2]], 3: [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
NAMES = {2: "2d", 3: "3d_fullres"}


def configuration(dim: int, patch: list[int], features: list[int], *, network: str = PLAIN) -> dict[str, Any]:
    stages = len(features)
    strides = [*HALVE[dim], *[[2] * dim] * 3][:stages]
    return {
        "data_identifier": f"nnUNetPlans_{NAMES[dim]}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 7,
        "patch_size": patch,
        "spacing": [1.0] * dim,
        "architecture": {
            "network_class_name": network,
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": features,
                "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
                "kernel_sizes": [[3] * dim] * stages,
                "strides": strides,
                "n_conv_per_stage" if network == PLAIN else "n_blocks_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }


def plans_of(dataset: str, **configurations: dict[str, Any]) -> dict[str, Any]:
    return {
        "dataset_name": dataset,
        "plans_name": "nnUNetPlans",
        "configurations": configurations,
        "label_manager": "LabelManager",
    }


def dataset_json(channels: int, classes: int) -> dict[str, Any]:
    return {
        "channel_names": {str(number): f"c{number}" for number in range(channels)},
        "labels": {"background": 0, **{f"class{value}": value for value in range(1, classes)}},
        "file_ending": ".nii.gz",
    }


def network_of(plans: dict[str, Any], name: str, channels: int, heads: int) -> nn.Module:
    manager = PlansManager(copy.deepcopy(plans)).get_configuration(name)
    return get_network_from_plans(
        manager.network_arch_class_name,
        manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import,
        channels,
        heads,
        deep_supervision=False,
    )


def write_source(
    base: Path,
    plans: dict[str, Any],
    name: str,
    *,
    channels: int = 1,
    classes: int = 3,
    extra: int = 0,
    network: nn.Module | None = None,
    trainer: str = "nnUNetTrainer",
) -> tuple[Path, nn.Module]:
    """A results folder as a training leaves it, and its network."""
    torch.manual_seed(channels)
    network = network or network_of(plans, name, channels + extra, classes)
    folder = base / "nnUNet_results" / plans["dataset_name"] / f"{trainer}__nnUNetPlans__{name}"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(channels, classes)))
    checkpoint = {
        "network_weights": network.state_dict(),
        "logging": {"mean_fg_dice": [np.float32(0.5)]},
        "init_args": {"configuration": name, "fold": 0},
        "trainer_name": trainer,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder, network


def write_target(base: Path, plans: dict[str, Any], *, channels: int = 1, classes: int = 3) -> Path:
    folder = base / "nnUNet_preprocessed" / plans["dataset_name"]
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(dataset_json(channels, classes)))
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    return folder


SOURCE = plans_of(
    "Dataset105_CT",
    **{"2d": configuration(2, [64, 64], [4, 6, 8, 8]), "3d_fullres": configuration(3, [8, 16, 16], [3, 4, 6])},
)
TARGET = plans_of(
    "Dataset101_OCT",
    **{
        "2d": configuration(2, [44, 70], [8, 16, 32]),
        "3d_fullres": configuration(3, [5, 18, 23], [8, 16, 32]),
        "3d_lowres": configuration(3, [8, 16, 16], [8, 16]),
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    },
)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(EXTERNAL))
    return tmp_path


def written(plans: Path) -> dict[str, Any]:
    return json.loads(plans.read_text())


@pytest.mark.parametrize("architecture", [PLAIN, RESIDUAL])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (2, 2)])
def test_nnunet_loads_the_file_and_equal_channels_give_what_they_gave(
    folders: Path, architecture: str, dim: int, old: int, new: int
) -> None:
    name = NAMES[dim]
    source = plans_of("Dataset105_CT", **{name: configuration(dim, [16] * dim, [4, 6, 8], network=architecture)})
    model, network = write_source(folders, source, name, channels=old, classes=4)
    write_target(folders, TARGET, channels=new, classes=2)
    done = transfer(model, "101", fold=0, configuration=name, identifier="FromCT")

    target = network_of(written(done.plans), name, new, 2)
    heads = {key: value.clone() for key, value in target.state_dict().items() if ".seg_layers." in key}
    load_pretrained_weights(target, str(done.weights))
    loaded = target.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in heads.items())
    differ = {key for key, value in network.state_dict().items() if not torch.equal(value, loaded[key])} - set(heads)
    assert bool(differ) == (old != new)
    assert all(loaded[key].shape[1] == new for key in differ)

    image = torch.rand(2, 1, *[16] * dim)
    before = network.encoder(image.repeat(1, old, *[1] * dim))
    after = target.encoder(image.repeat(1, new, *[1] * dim))
    assert len(before) == 3
    for was, now in zip(before, after, strict=True):
        torch.testing.assert_close(now, was, rtol=1e-4, atol=1e-4)


def test_plans_of_the_target_with_the_network_of_the_source(folders: Path) -> None:
    model, _ = write_source(folders, SOURCE, "2d")
    folder = write_target(folders, TARGET, channels=3)
    before = (folder / "nnUNetPlans.json").read_bytes()
    done = transfer(model, "101", fold=0, configuration="2d", identifier="FromCT")
    assert done.plans == folder / "FromCT.json"
    assert done.weights.parent == folder
    expected = copy.deepcopy(TARGET)
    expected["plans_name"] = "FromCT"
    expected["configurations"]["2d"]["architecture"] = SOURCE["configurations"]["2d"]["architecture"]
    expected["configurations"]["2d"]["patch_size"] = [40, 72]  # multiples of 8 next to 44 (the smaller) and 70
    assert written(done.plans) == expected
    assert (folder / "nnUNetPlans.json").read_bytes() == before
    assert done.trainer == "nnUNetTrainer"
    assert done.changes == (
        "network: PlainConvUNet with features 8,16,32 -> PlainConvUNet with features 4,6,8,8",
        "input channels: 1 -> 3; the new ones share the first convolution's weights",
        "outputs: 3 -> 3; nnU-Net starts the output layers afresh",
        "patch size: 44,70 -> 40,72",
        "batch size: 7 -> 7",
    )


def test_a_configuration_that_inherits_keeps_its_network(folders: Path) -> None:
    model, _ = write_source(folders, SOURCE, "3d_fullres")
    write_target(folders, TARGET)
    done = transfer(model, "101", fold=0, configuration="3d_fullres", identifier="FromCT", batch_size=2)
    new = PlansManager(written(done.plans))
    old = PlansManager(copy.deepcopy(TARGET))
    cascade, was = (plans.get_configuration("3d_cascade_fullres").configuration for plans in (new, old))
    assert {**cascade, "inherits_from": None} == {**was, "inherits_from": None}
    changed = new.get_configuration("3d_fullres")
    assert (changed.patch_size, changed.batch_size) == ([4, 16, 24], 2)


def test_the_nested_network_of_our_trainer(folders: Path) -> None:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    trainer = recursive_find_trainer_class_by_name("QUNetPlusPlusTrainer")
    manager = PlansManager(copy.deepcopy(SOURCE))
    built = trainer.build_network_architecture(manager, manager.get_configuration("2d"), 1, 3)
    model, _ = write_source(folders, SOURCE, "2d", network=built, trainer="QUNetPlusPlusTrainer")
    write_target(folders, TARGET, channels=3, classes=2)
    done = transfer(model, "101", fold=0, configuration="2d", identifier="FromCT")
    new = PlansManager(written(done.plans))
    target = trainer.build_network_architecture(new, new.get_configuration("2d"), 3, 2)
    load_pretrained_weights(target, str(done.weights))
    assert torch.equal(target.state_dict()["decoder.transpconvs.0.0.weight"], built.decoder.transpconvs[0][0].weight)


def test_a_second_time_leaves_the_same_files(folders: Path) -> None:
    model, _ = write_source(folders, SOURCE, "2d")
    folder = write_target(folders, TARGET)
    first = transfer(model, "101", fold=0, configuration="2d", identifier="FromCT")
    content = first.plans.read_bytes(), torch.load(first.weights, weights_only=True)["network_weights"]
    assert transfer(model, "101", fold=0, configuration="2d", identifier="FromCT") == first
    again = torch.load(first.weights, weights_only=True)["network_weights"]
    assert first.plans.read_bytes() == content[0]
    assert all(torch.equal(again[key], value) for key, value in content[1].items())
    with pytest.raises(PlansError, match=r"FromCT\.json: other plans of this name exist"):
        transfer(model, "101", fold=0, configuration="2d", identifier="FromCT", batch_size=3)
    transfer(model, "101", fold=0, configuration="2d", identifier="FromCT", batch_size=3, overwrite=True)
    assert written(first.plans)["configurations"]["2d"]["batch_size"] == 3
    assert len(list(folder.iterdir())) == 4


def test_data_that_is_not_there_yet_is_named(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = write_source(folders, SOURCE, "2d")
    folder = write_target(folders, TARGET)
    transfer(model, "101", fold=0, configuration="2d", identifier="FromCT")
    assert "nnUNetPlans_2d: not there yet; run `nnUNetv2_preprocess` with the plans nnUNetPlans" in caplog.text
    caplog.clear()
    (folder / "nnUNetPlans_2d").mkdir()
    transfer(model, "101", fold=0, configuration="2d", identifier="FromCT")
    assert not caplog.text


@pytest.mark.parametrize(
    ("patch", "strides", "fitted"),
    [
        ((64, 96), [1, 2, 2, 2], (64, 96)),
        ((44, 45), [1, 2, 2, 2], (40, 48)),  # 44 is as far from 40 as from 48
        ((3, 500), [[1, 1], [4, 4]], (4, 500)),
        ((20, 30), [[1, 1], [16, 16]], (16, 32)),  # one multiple more where it goes the least beyond
        ((8, 16, 16), [[1, 1, 1], [1, 2, 2], [2, 2, 2]], (8, 16, 16)),
        ((2, 4, 5), [[2, 4, 4]], (4, 4, 4)),
    ],
)
def test_the_patch(patch: tuple[int, ...], strides: list[Any], fitted: tuple[int, ...]) -> None:
    found = fitted_patch(patch, strides)
    steps = [math.prod(step if isinstance(step, int) else step[axis] for step in strides) for axis in range(len(patch))]
    assert all(size % step == 0 for size, step in zip(found, steps, strict=True))
    assert math.prod(size // step for size, step in zip(found, steps, strict=True)) > 1
    assert found == fitted


def test_channels_are_shared_at_the_same_scale() -> None:
    weight = torch.rand(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    new = adapted_input(weight, 2)
    expected = np.repeat(weight.numpy().mean(1, keepdims=True) * 3 / 2, 2, axis=1)
    np.testing.assert_allclose(new.numpy(), expected, rtol=1e-6)


def other_source(**changes: Any) -> dict[str, Any]:
    plans = copy.deepcopy(SOURCE)
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(changes)
    return plans


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (
            other_source(features_per_stage=[4, 6, 8, 10]),
            r"encoder\.stages\.3\.0\.convs\.0\.conv\.weight is 10x8x3x3 and",
        ),
        (other_source(n_conv_per_stage_decoder=[1, 1, 2]), r"the network has no decoder\.stages\.2\.convs\.1"),
        (other_source(n_conv_per_stage=[2, 2, 3, 2][::-1]), r"the network has no encoder\.stages\.1\.0\.convs\.2"),
        (other_source(n_conv_per_stage=[1, 2, 2, 2]), r"encoder\.stages\.0\.0\.convs\.1\.conv\.weight is missing"),
    ],
)
def test_weights_of_another_architecture(folders: Path, trained: dict[str, Any], said: str) -> None:
    folder = write_target(folders, TARGET)
    model, _ = write_source(folders, SOURCE, "2d", network=network_of(trained, "2d", 1, 3))
    with pytest.raises(
        ModelError, match=rf"checkpoint_final\.pth: weights of another architecture than .*: {said}"
    ) as e:
        transfer(model, "101", fold=0, configuration="2d", identifier="FromCT")
    assert "\n" not in str(e.value)
    assert len(list(folder.iterdir())) == 2


def test_a_network_whose_heads_nnunet_would_load(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    def build(_plans: Any, _configuration: Any, channels: int, heads: int, enable_deep_supervision: bool) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Conv2d(4, heads, 1))

    monkeypatch.setattr(nnUNetTrainer, "build_network_architecture", staticmethod(build))
    model, _ = write_source(folders, SOURCE, "2d", network=build(None, None, 1, 3, False))
    folder = write_target(folders, TARGET, channels=3, classes=2)
    with pytest.raises(
        TransferError, match=r"1\.weight is 3x4x1x1 and the target needs 2x4x1x1; nnUNetTrainer can only"
    ):
        transfer(model, "101", fold=0, configuration="2d", identifier="FromCT")
    (folder / "dataset.json").write_text(json.dumps(dataset_json(3, 3)))
    done = transfer(model, "101", fold=0, configuration="2d", identifier="FromCT")
    assert set(torch.load(done.weights, weights_only=True)["network_weights"]) == set(
        build(0, 0, 3, 3, False).state_dict()
    )


@pytest.mark.parametrize(
    ("trained", "wanted", "said"),
    [
        ("2d", "3d_fullres", r"weights of a 2D network \(2d\), and 3d_fullres is 3D; choose a 2D"),
        ("3d_fullres", "2d", r"weights of a 3D network \(3d_fullres\), and 2d is 2D; choose a 3D"),
        ("3d_fullres", "3d_cascade_fullres", "fed 1 image and 0 .*fed 1 image and 2 segmentation channels"),
    ],
)
def test_what_cannot_be_transferred(folders: Path, trained: str, wanted: str, said: str) -> None:
    model, _ = write_source(folders, SOURCE, trained)
    folder = write_target(folders, TARGET)
    with pytest.raises(TransferError, match=said):
        transfer(model, "101", fold=0, configuration=wanted, identifier="FromCT")
    assert len(list(folder.iterdir())) == 2


def test_stages_of_a_cascade_that_are_fed_alike(folders: Path) -> None:
    source = {**copy.deepcopy(TARGET), "dataset_name": "Dataset105_CT"}
    model, network = write_source(folders, source, "3d_cascade_fullres", channels=1, classes=3, extra=2)
    write_target(folders, TARGET, channels=1, classes=3)
    done = transfer(model, "101", fold=0, configuration="3d_cascade_fullres", identifier="FromCT")
    target = network_of(written(done.plans), "3d_cascade_fullres", 3, 3)
    load_pretrained_weights(target, str(done.weights))
    assert torch.equal(
        target.encoder.stages[0][0].convs[0].conv.weight, network.encoder.stages[0][0].convs[0].conv.weight
    )


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"fold": 4}, ModelError, r"fold_4/checkpoint_final\.pth: not found; folds that have it: 0\."),
        (
            {"checkpoint": "checkpoint_best.pth"},
            ModelError,
            r"checkpoint_best\.pth: not found; folds that have it: none",
        ),
        ({"dataset": "102"}, DatasetError, "no dataset 102"),
        ({"plans": "Other"}, DatasetError, r"Other\.json: no such plans; found: nnUNetPlans"),
        (
            {"configuration": "2D"},
            PlansError,
            r'no configuration "2D" \(did you mean "2d"\?\)|no configuration "2D"; there is',
        ),
        ({"identifier": "a__b"}, PlansError, '"a__b" cannot name plans'),
        ({"identifier": "nnUNetPlans"}, PlansError, "need another name"),
        ({"identifier": "dataset"}, PlansError, "exists and holds no plans"),
        (
            {"patch_size": (40, 60)},
            PlansError,
            "patch size 40,60: each axis must be a multiple of 8,8.* 40,56 would fit",
        ),
        ({"patch_size": (8, 8)}, PlansError, "more than one voxel left"),
        ({"patch_size": (16, 16, 16)}, PlansError, "has 3 axes, the configuration 2"),
        ({"batch_size": 0}, PlansError, "must be at least 1"),
    ],
)
def test_mistakes(folders: Path, changed: dict[str, Any], error: type[NnunetQAError], said: str) -> None:
    model, _ = write_source(folders, SOURCE, "2d")
    folder = write_target(folders, TARGET)
    arguments = {"dataset": "101", "fold": 0, "configuration": "2d", "identifier": "FromCT", **changed}
    with pytest.raises(error, match=said):
        transfer(model, arguments.pop("dataset"), **arguments)
    assert len(list(folder.iterdir())) == 2


def test_mistakes_of_the_source(folders: Path) -> None:
    model, _ = write_source(folders, SOURCE, "2d")
    folder = write_target(folders, TARGET)

    def refused(error: type[NnunetQAError], said: str, given: Path = model) -> None:
        with pytest.raises(error, match=said):
            transfer(given, "101", fold=0, configuration="2d", identifier="FromCT")
        assert len(list(folder.iterdir())) == 2

    refused(ModelError, "no trained model there", model.parent)
    path = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, "trainer_name": "SomebodysTrainer"}, path)
    refused(ModelError, "does not find its trainer SomebodysTrainer; name its folder in nnUNet_extTrainer")
    torch.save({**content, "init_args": {"configuration": "3d_lowres"}}, path)
    refused(PlansError, r'plans\.json: no configuration "3d_lowres"')
    torch.save(content, path)
    plans = copy.deepcopy(SOURCE)
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "nowhere.Net"
    (model / "plans.json").write_text(json.dumps(plans))
    refused(ModelError, "nnUNetTrainer cannot build the network of 2d in FromCT|of 2d in nnUNetPlans")
    del plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["strides"]
    (model / "plans.json").write_text(json.dumps(plans))
    refused(PlansError, "the network Net is not planned by stages")
    path.write_bytes(b"text")
    refused(ModelError, "damaged, or no checkpoint")


def test_a_target_that_is_not_planned(folders: Path) -> None:
    model, _ = write_source(folders, SOURCE, "2d")
    with pytest.raises(DatasetError, match="has not been planned; run `nnUNetv2_plan_and_preprocess -d 101` first"):
        transfer(model, "Dataset101_OCT", fold=0, configuration="2d", identifier="FromCT")


def test_without_the_preprocessed_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = write_source(folders, SOURCE, "2d")
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(EnvironmentVariableError, match="nnUNet_preprocessed is not set"):
        transfer(model, "Dataset101_OCT", fold=0, configuration="2d", identifier="FromCT")

"""What cannot be transferred, and the line that says so."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from nnunet_qa.data.plans import PlansError
from nnunet_qa.data.transfer import TransferError, transfer
from nnunet_qa.errors import DatasetError, EnvironmentVariableError, ModelError, NnunetQAError
from tests.data.transferred import (
    SOURCE,
    TARGET,
    dataset_json,
    network_of,
    write_source,
    write_target,
    written,
)


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

"""Source and target are plans and freshly drawn weights; nnU-Net itself builds the networks and loads the file."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_qa.data.plans import PlansError
from nnunet_qa.data.transfer import adapted_input, fitted_patch, transfer
from tests.architecture import PLAIN, RESIDUAL
from tests.data.transferred import (
    NAMES,
    SOURCE,
    TARGET,
    configuration,
    network_of,
    plans_of,
    write_source,
    write_target,
    written,
)


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

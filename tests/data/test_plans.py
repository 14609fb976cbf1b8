from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_qa.data.plans import PlansError, Smaller, smaller_plans, write_smaller_plans
from tests.architecture import PLAIN, RESIDUAL
from tests.data.planned import configuration, ct_plans, made_plans


def resolved(plans: dict[str, Any], name: str) -> dict[str, Any]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(copy.deepcopy(plans)).get_configuration(name).configuration


def outputs(plans: dict[str, Any], name: str, classes: int = 3) -> list[torch.Tensor]:
    """The deep supervision outputs of the network that nnU-Net itself builds from the plans, in training mode."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans).get_configuration(name)
    network = get_network_from_plans(
        manager.network_arch_class_name,
        manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import,
        1,
        classes,
        deep_supervision=True,
    )
    return network.train()(torch.zeros(1, 1, *manager.patch_size))


@pytest.mark.parametrize("network", [PLAIN, RESIDUAL])
@pytest.mark.parametrize(
    ("name", "features", "patch"),
    [
        ("2d", (4, 8, 12, 16), (80, 192)),
        ("2d", (4, 8, 8, 8, 8, 8), (32, 64)),
        ("2d", (4, 8, 16), (16, 24)),
        ("3d_fullres", (4, 6, 8), (6, 16, 20)),
        ("3d_cascade_fullres", (4, 6, 8, 10), (8, 16, 24)),
    ],
)
def test_the_network_that_nnunet_builds_has_the_new_shape(
    network: str, name: str, features: tuple[int, ...], patch: tuple[int, ...]
) -> None:
    smaller = Smaller(features=features, patch_size=patch, batch_size=3)
    plans = smaller_plans(made_plans(network), name, smaller=smaller, identifier="Small")
    arguments = resolved(plans, name)["architecture"]["arch_kwargs"]
    before = resolved(made_plans(network), name)["architecture"]["arch_kwargs"]
    stages = len(features)
    blocks = "n_conv_per_stage" if network == PLAIN else "n_blocks_per_stage"
    assert arguments["n_stages"] == stages
    assert arguments["features_per_stage"] == list(features)
    for key in ("strides", "kernel_sizes", blocks):
        assert arguments[key] == before[key][:stages]
    assert arguments["n_conv_per_stage_decoder"] == before["n_conv_per_stage_decoder"][-(stages - 1) :]
    assert resolved(plans, name)["batch_size"] == 3

    result = outputs(plans, name)
    scales = np.cumprod(np.array(before["strides"][: stages - 1]), axis=0)
    assert [tuple(output.shape) for output in result] == [
        (1, 3, *(np.array(patch) // scale).tolist()) for scale in scales
    ]


def test_integer_arguments_are_left_and_bottleneck_channels_are_cut() -> None:
    plans = made_plans(RESIDUAL)
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments |= {"n_conv_per_stage_decoder": 1, "n_blocks_per_stage": 2, "strides": [1, 2, 2, 2, 2, 2]}
    arguments["bottleneck_channels"] = [None] * 6
    new = smaller_plans(plans, "2d", smaller=Smaller(features=(4, 4, 4), patch_size=(16, 16)), identifier="Small")
    cut = new["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert cut["n_conv_per_stage_decoder"] == 1
    assert cut["n_blocks_per_stage"] == 2
    assert cut["bottleneck_channels"] == [None] * 3
    assert len(outputs(new, "2d")) == 2


def test_only_what_was_asked_for_changes() -> None:
    before = made_plans()
    kept = copy.deepcopy(before)
    new = smaller_plans(before, "2d", smaller=Smaller(batch_size=4), identifier="Small")
    assert before == kept
    assert new["plans_name"] == "Small"
    assert new["configurations"]["2d"].pop("batch_size") == 4
    kept["configurations"]["2d"].pop("batch_size")
    assert {**new, "plans_name": "nnUNetPlans"} == kept


@pytest.mark.parametrize(("name", "size"), [("2d", (256, 320)), ("3d_fullres", (32, 48, 96))])
def test_an_image_size_sets_spacing_patch_and_a_place_for_the_data(name: str, size: tuple[int, ...]) -> None:
    plans = made_plans()
    before = copy.deepcopy(plans["configurations"][name])
    new = smaller_plans(plans, name, smaller=Smaller(image_size=size), identifier="Sized")["configurations"][name]
    extent = np.array(before["spacing"]) * before["median_image_size_in_voxels"]
    np.testing.assert_allclose(np.array(new["spacing"]) * size, extent)
    assert new["patch_size"] == new["median_image_size_in_voxels"] == list(size)
    assert new["data_identifier"] == f"Sized_{name}_{'x'.join(map(str, size))}"
    for key in set(before) - {"spacing", "patch_size", "median_image_size_in_voxels", "data_identifier"}:
        assert new[key] == before[key]


def test_a_patch_may_be_smaller_than_the_image() -> None:
    small = Smaller(image_size=(250, 250), patch_size=(128, 128))
    new = smaller_plans(made_plans(), "2d", smaller=small, identifier="Sized")["configurations"]["2d"]
    assert (new["patch_size"], new["median_image_size_in_voxels"]) == ([128, 128], [250, 250])


def test_an_heir_of_another_image_size_keeps_its_own() -> None:
    new = smaller_plans(made_plans(), "3d_fullres", smaller=Smaller(image_size=(32, 48, 96)), identifier="Sized")
    assert resolved(new, "3d_cascade_fullres") == resolved(made_plans(), "3d_cascade_fullres")


def test_a_window_of_hu_becomes_0_to_1_by_nnunets_own_normalisation() -> None:
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    plans = ct_plans()
    new = smaller_plans(plans, "2d", smaller=Smaller(hu_window=(-1024, 3000)), identifier="Window")
    assert plans == ct_plans()
    properties = new["foreground_intensity_properties_per_channel"]
    assert properties["1"] == plans["foreground_intensity_properties_per_channel"]["1"]
    image = np.array([-2000, -1024, 0, 1000.5, 3000, 5000], np.float32)
    found = CTNormalization(use_mask_for_norm=False, intensityproperties=properties["0"]).run(image.copy())
    np.testing.assert_allclose(found, (image.clip(-1024, 3000) + 1024) / 4024, atol=1e-6)
    assert new["configurations"]["2d"]["patch_size"] == plans["configurations"]["2d"]["patch_size"]


def test_a_window_gives_every_configuration_other_data_for_plans_have_one_normalisation() -> None:
    small = Smaller(hu_window=(-1024, 3000), image_size=(256, 320))
    new = smaller_plans(ct_plans(), "2d", smaller=small, identifier="Window")
    assert {name: resolved(new, name)["data_identifier"] for name in new["configurations"]} == {
        "2d": "Window_2d_256x320_hu-1024to3000",
        "3d_lowres": "nnUNetPlans_3d_lowres_hu-1024to3000",
        "3d_fullres": "nnUNetPlans_3d_fullres_hu-1024to3000",
        "3d_cascade_fullres": "nnUNetPlans_3d_fullres_hu-1024to3000",
    }
    small = Smaller(hu_window=(-1024, 3000), image_size=(32, 48, 96))
    new = smaller_plans(ct_plans(), "3d_fullres", smaller=small, identifier="Window")
    assert resolved(new, "3d_fullres")["data_identifier"] == "Window_3d_fullres_32x48x96_hu-1024to3000"
    assert resolved(new, "3d_cascade_fullres")["data_identifier"] == "nnUNetPlans_3d_fullres_hu-1024to3000"


@pytest.mark.parametrize(
    ("window", "schemes", "said"),
    [
        ((3000, -1024), ["CTNormalization"], "HU window 3000 -1024: give two numbers, the lower first"),
        ((float("nan"), 1), ["CTNormalization"], "HU window nan 1: give two numbers"),
        ((0, float("inf")), ["CTNormalization"], "HU window 0 inf: give two numbers"),
        ((-1024, 3000), ["ZScoreNormalization"], "HU window -1024 3000: no channel is normalised as CT"),
    ],
)
def test_refused_windows(window: tuple[float, float], schemes: list[str], said: str) -> None:
    plans = ct_plans()
    plans["configurations"]["2d"]["normalization_schemes"] = schemes
    with pytest.raises(PlansError, match=said):
        smaller_plans(plans, "2d", smaller=Smaller(hu_window=window), identifier="Window")


def test_plans_without_a_median_size_are_refused() -> None:
    plans = made_plans()
    del plans["configurations"]["2d"]["median_image_size_in_voxels"]
    with pytest.raises(PlansError, match="image size 256,256: the plans do not tell the median"):
        smaller_plans(plans, "2d", smaller=Smaller(image_size=(256, 256)), identifier="Sized")


def test_nnunet_preprocesses_to_the_image_size(planned: dict[str, str]) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    path = write_smaller_plans(planned["2d"], "2d", smaller=Smaller(image_size=(64, 96)), identifier="nnUNetPlansSized")
    DefaultPreprocessor(verbose=False).run(701, "2d", "nnUNetPlansSized", num_processes=1)
    folder = str(path.parent / "nnUNetPlansSized_2d_64x96")
    for case in ("S0_c0", "S3_c1"):  # 48×64 in the phantom
        data, seg, _, _ = nnUNetDatasetBlosc2(folder, [case]).load_case(case)
        assert data.shape == seg.shape == (1, 1, 64, 96)
        assert set(np.unique(seg[:])) == {0, 1, 2}


def test_an_heir_keeps_what_it_inherited_and_a_shrunk_heir_leaves_its_parent() -> None:
    small = Smaller(features=(4, 8, 8), batch_size=2, patch_size=(8, 16, 16))
    new = smaller_plans(made_plans(), "3d_fullres", smaller=small, identifier="Small")
    for name in ("2d", "3d_lowres", "3d_cascade_fullres"):
        assert resolved(new, name) == resolved(made_plans(), name)
    assert new["configurations"]["3d_cascade_fullres"]["inherits_from"] == "3d_fullres"

    new = smaller_plans(made_plans(), "3d_cascade_fullres", smaller=small, identifier="Small")
    assert resolved(new, "3d_fullres") == resolved(made_plans(), "3d_fullres")
    assert resolved(new, "3d_cascade_fullres")["patch_size"] == [8, 16, 16]
    assert resolved(new, "3d_cascade_fullres")["previous_stage"] == "3d_lowres"


def test_plans_of_older_versions() -> None:
    old = made_plans()
    old["configurations"]["2d"] = {
        "data_identifier": "nnUNetPlans_2d",
        "batch_size": 12,
        "patch_size": [64, 64],
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 32,
        "unet_max_num_features": 512,
        "n_conv_per_stage_encoder": [2] * 5,
        "n_conv_per_stage_decoder": [2] * 4,
        "num_pool_per_axis": [4, 4],
        "pool_op_kernel_sizes": [[1, 1], *[[2, 2]] * 4],
        "conv_kernel_sizes": [[3, 3]] * 5,
    }
    with pytest.warns(UserWarning, match="old nnU-Net plans"):
        new = smaller_plans(old, "2d", smaller=Smaller(features=(4, 8, 8)), identifier="Small")
    assert [output.shape[-1] for output in outputs(new, "2d")] == [64, 32]


@pytest.mark.parametrize(
    ("name", "smaller", "said"),
    [
        ("2d", Smaller(), "nothing to change"),
        ("2e", Smaller(batch_size=2), r'no configuration "2e" \(did you mean "2d"\?\)'),
        ("2d", Smaller(features=(8, 16)), "2 stages give 1 output.*at least 3 stages"),
        ("2d", Smaller(features=(8,) * 7), "7 features, but the network is planned with 6 stages"),
        ("2d", Smaller(features=(8, 0, 8)), "features 8,0,8: each must be at least 1"),
        ("2d", Smaller(batch_size=0), "batch size 0: must be at least 1"),
        ("2d", Smaller(patch_size=(80, 192)), "multiple of 32,32.*64,192 would fit"),
        ("2d", Smaller(features=(8,) * 4, patch_size=(84, 200)), "multiple of 8,8.*80,200 would fit"),
        ("2d", Smaller(patch_size=(20, 64)), "32,64 would fit"),
        ("2d", Smaller(patch_size=(0, -64)), "64,64 would fit"),
        ("2d", Smaller(patch_size=(32, 32)), "more than one voxel.*64,64 would fit"),
        ("2d", Smaller(patch_size=(8, 64, 64)), r"has 3 axes, the configuration 2 \(planned: 320,256\)"),
        ("3d_fullres", Smaller(patch_size=(12, 64, 64)), "multiple of 8,16,16.*8,64,64 would fit"),
        ("2d", Smaller(image_size=(250, 256)), "image size 250,256: each axis must be a multiple of 32,32.*224,256"),
        ("2d", Smaller(image_size=(256, 0)), "image size 256,0: each axis.*256,32 would fit"),
        ("2d", Smaller(image_size=(8, 256, 256)), "image size 8,256,256: has 3 axes, the configuration 2"),
        ("2d", Smaller(image_size=(0, 9), patch_size=(64, 64)), "image size 0,9: give 2 numbers from 1 up"),
        ("2d", Smaller(image_size=(99,), patch_size=(64, 64)), "image size 99: give 2 numbers from 1 up"),
    ],
)
def test_refusals_say_what_would_do(name: str, smaller: Smaller, said: str) -> None:
    with pytest.raises(PlansError, match=said):
        smaller_plans(made_plans(), name, smaller=smaller, identifier="Small")


def test_what_the_refusal_of_a_patch_names_does_fit() -> None:
    plans = smaller_plans(
        made_plans(), "2d", smaller=Smaller(features=(4,) * 6, patch_size=(32, 64)), identifier="Small"
    )
    assert len(outputs(plans, "2d")) == 5
    # and what is refused for its single coarsest voxel is what torch refuses in training
    plans["configurations"]["2d"]["patch_size"] = [32, 32]
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        outputs(plans, "2d")


def test_planned_with_too_few_stages_is_refused_even_for_another_batch_size() -> None:
    plans = made_plans()
    plans["configurations"]["2d"] = configuration("nnUNetPlans_2d", [32, 32], [[1, 1], [2, 2]])
    with pytest.raises(PlansError, match="disagreement needs two"):
        smaller_plans(plans, "2d", smaller=Smaller(batch_size=2), identifier="Small")


def test_a_network_without_stages_is_refused() -> None:
    plans = made_plans()
    plans["configurations"]["2d"]["architecture"] = {
        "network_class_name": "dynamic_network_architectures.architectures.primus.Primus",
        "arch_kwargs": {"patch_embed_size": [8, 8, 8]},
        "_kw_requires_import": [],
    }
    with pytest.raises(PlansError, match="Primus is not planned by stages"):
        smaller_plans(plans, "2d", smaller=Smaller(batch_size=2), identifier="Small")


def test_one_patch_a_batch_warns(caplog: pytest.LogCaptureFixture) -> None:
    smaller_plans(made_plans(), "2d", smaller=Smaller(batch_size=1), identifier="Small")
    assert "oversample" in caplog.text

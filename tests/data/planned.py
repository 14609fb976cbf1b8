"""Plans as nnU-Net writes them, for the tests of smaller plans."""

from __future__ import annotations

from typing import Any

from tests.architecture import PLAIN, architecture


def configuration(
    data: str, patch: list[int], strides: list[list[int]], *, network: str = PLAIN, batch_size: int = 12
) -> dict[str, Any]:
    stages, dim = len(strides), len(patch)
    return {
        "data_identifier": data,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": patch,
        "spacing": [1.0, 0.5, 0.5][:dim] if dim == 3 else [0.5, 0.25],
        "median_image_size_in_voxels": [30.0, 70.0, 100.0] if dim == 3 else [300.0, 250.0],
        "architecture": architecture(
            [min(512, 32 * 2**stage) for stage in range(stages)],
            strides,
            network=network,
            kernel_sizes=[[1, 3, 3][-dim:] if stage == 0 else [3] * dim for stage in range(stages)],
            # different numbers, so that a test sees which of them were kept
            blocks=[2, 1, 1, 2, 3, 1, 1][:stages],
            decoder=[3, 3, 2, 1, 1, 2][-(stages - 1) :],
        ),
        "batch_dice": True,
    }


def made_plans(network: str = PLAIN) -> dict[str, Any]:
    halve = [[1, 1], *[[2, 2]] * 5]
    anisotropic = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    return {
        "dataset_name": "Dataset777_Test",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "configurations": {
            "2d": configuration("nnUNetPlans_2d", [320, 256], halve, network=network),
            "3d_lowres": configuration("nnUNetPlans_3d_lowres", [32, 64, 64], anisotropic, network=network),
            "3d_fullres": configuration("nnUNetPlans_3d_fullres", [32, 64, 96], anisotropic, network=network),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def ct_plans() -> dict[str, Any]:
    """Plans of a CT channel and an MR channel."""
    plans = made_plans()
    properties = {"mean": 40.0, "std": 100.0, "percentile_00_5": -900.0, "percentile_99_5": 1500.0, "median": 30.0}
    plans["foreground_intensity_properties_per_channel"] = {"0": dict(properties), "1": dict(properties)}
    for content in plans["configurations"].values():
        if "data_identifier" in content:
            content["normalization_schemes"] = ["CTNormalization", "ZScoreNormalization"]
    return plans

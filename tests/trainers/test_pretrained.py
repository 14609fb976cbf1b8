from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from nnunet_qa.errors import ModelError
from nnunet_qa.trainers.pretrained import (
    DESCRIPTION,
    PREPROCESSING,
    difference,
    preprocessing,
    refuse_other_preprocessing,
)

STATISTICS = {"percentile_00_5": -1000.0, "percentile_99_5": 1600.0, "mean": 100.0, "std": 400.0, "median": 7.0}


def seen(**changed: Any) -> dict[str, Any]:
    """Preprocessing of a channel of CT and one of PET."""
    statistics = {**STATISTICS, **changed.pop("ct", {})}
    plans = {
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": statistics, "1": changed.pop("pet", STATISTICS)},
    }
    configuration = {"spacing": [3.0, 0.9, 0.9], "normalization_schemes": ["CTNormalization", "ZScoreNormalization"]}
    return preprocessing(plans, configuration) | changed


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (seen(), None),
        (seen(spacing=[3.02, 0.905, 0.9], ct={"mean": 190.0, "std": 490.0, "median": 900.0}), None),
        (seen(pet={**STATISTICS, "mean": 9000.0}), None),  # each image has its own there
        (seen(transpose_forward=[1, 0, 2]), "transpose_forward [1, 0, 2], here [0, 1, 2]"),
        (
            seen(normalization_schemes=["CTNormalization"] * 2),
            "normalization_schemes ['CTNormalization', 'CTNormalization'], "
            "here ['CTNormalization', 'ZScoreNormalization']",
        ),
        (seen(spacing=[3.0, 0.9, 1.0]), "spacing [3.0, 0.9, 1.0] mm, here [3.0, 0.9, 0.9] mm"),
        (seen(spacing=[0.9, 0.9]), "spacing [0.9, 0.9] mm, here [3.0, 0.9, 0.9] mm"),
        (seen(ct={"percentile_99_5": 1701.0}), "CTNormalization of channel 0 by percentile_99_5 1701, here 1600"),
        (seen(ct={"percentile_00_5": -1101.0}), "CTNormalization of channel 0 by percentile_00_5 -1101, here -1000"),
        (seen(ct={"mean": -1.0}), "CTNormalization of channel 0 by mean -1, here 100"),
        (seen(ct={"std": 501.0}), "CTNormalization of channel 0 by std 501, here 400"),
    ],
)
def test_the_first_difference_that_matters(theirs: dict[str, Any], said: str | None) -> None:
    assert difference(theirs, seen()) == said


def test_what_nnunet_loads_is_compared_and_nothing_else(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)
    weights = copy.deepcopy(network.state_dict())
    refuse_other_preprocessing(network, seen())
    path = str(tmp_path / "a.pth")
    other = {PREPROCESSING: seen(spacing=[1.0, 1.0, 1.0])}
    for description in ({}, {DESCRIPTION: {}}, {DESCRIPTION: {PREPROCESSING: seen()}}):
        torch.save({"network_weights": weights, **description}, path)
        load_pretrained_weights(network, path)
    torch.save({"network_weights": weights, DESCRIPTION: other}, path)
    for wanted in (network, copy.deepcopy(network)):
        with pytest.raises(ModelError, match=r"a.pth: weights of images .* otherwise: spacing \[1.0, 1.0, 1.0\] mm"):
            load_pretrained_weights(wanted, path)
    network.load_state_dict(weights)

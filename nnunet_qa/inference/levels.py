"""The segmentation of each output of a network with deep supervision (paper 001, Figure 5)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunet_qa.data.images import holds_volumes
from nnunet_qa.errors import ModelError
from nnunet_qa.inference.predictor import deep_supervision_on, unwrapped
from nnunet_qa.quality.disagreement import resize_output


class _Level(nn.Module):
    """One output of a network, resized to the finest."""

    def __init__(self, network: nn.Module, index: int) -> None:
        super().__init__()
        self.network = network
        self.index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.network(x)
        return resize_output(outputs[self.index], tuple(outputs[0].shape[2:]))


@torch.inference_mode()
def level_segmentations(predictor: nnUNetPredictor, images: Sequence[Path]) -> list[np.ndarray]:
    """Segment one case with every output of the network.

    Args:
        predictor: initialised from a trained model; the weights of its first fold are used.
        images: channel files of the case.

    Returns:
        Label maps in the space of the image as nnU-Net reads it, `(z, y, x)`, or `(y, x)` for a picture; the finest
        output last, as the paper counts its levels.

    Raises:
        ModelError: the network has fewer than two outputs, or needs a previous stage's segmentation as well.
    """
    if (previous := predictor.configuration_manager.previous_stage_name) is not None:
        raise ModelError(
            f"the model also needs the segmentation of the previous stage ({previous}), which is not given here; take "
            "the levels of a model outside the cascade"
        )
    given = predictor.network
    network = unwrapped(given).to(predictor.device).eval()
    network.load_state_dict(predictor.list_of_parameters[0])
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    files = [os.fspath(path) for path in images]
    data, _, properties = preprocessor.run_case(files, None, plans, configuration, predictor.dataset_json)
    volumes = holds_volumes(predictor.dataset_json)
    found: list[np.ndarray] = []
    with deep_supervision_on(network):
        levels = len(network(torch.zeros(1, len(data), *configuration.patch_size, device=predictor.device)))
        try:
            for index in reversed(range(levels)):
                predictor.network = _Level(network, index)
                # nnU-Net's own, for a QAPredictor's returns the finest output and looks for its switch itself
                logits = nnUNetPredictor.predict_sliding_window_return_logits(predictor, torch.from_numpy(data)).cpu()
                labels = convert_predicted_logits_to_segmentation_with_correct_shape(
                    logits, plans, configuration, predictor.label_manager, properties
                )
                found.append(labels if volumes else labels[0])
        finally:
            predictor.network = given
    return found

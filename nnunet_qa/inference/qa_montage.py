"""What the discriminator sees of an nnU-Net configuration: the montage that fits its patches, and how to draw it.

Images are as nnU-Net's preprocessor leaves them; a window in HU is taken through the normalisation of the plans.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_qa.config import QALossConfig
from nnunet_qa.inference.predictor import class_names
from nnunet_qa.quality.montage import MontageSpec, gray, montage, normalised_window, stacked


@dataclass(frozen=True, kw_only=True)
class Renderer:
    """Draws montages of preprocessed images.

    Attributes:
        specs: what they look like, one a view; all pictures have the same size.
        window: normalised intensities shown as black and white; None for robust percentiles of each image.
        stacked: a batch of 2D images are slices of one case and give one montage.
    """

    specs: tuple[MontageSpec, ...]
    window: tuple[float, float] | None = None
    stacked: bool = False

    def __call__(self, images: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Montages `(views * pictures, 3, rows, columns)` in [0, 1].

        Args:
            images: `(batch, channels, *spatial)`; the first channel is shown.
            probabilities: of the foreground classes or regions, `(batch, classes, *spatial)`.
        """
        first = images[:, 0]
        if self.stacked:
            first, probabilities = stacked(first, probabilities)
        shades = gray(first, window=self.window)
        return torch.cat([montage(shades, probabilities, spec) for spec in self.specs])

    def shades(self, images: torch.Tensor) -> np.ndarray:
        """The gray images of a batch as the montage shows them, `(pictures, *spatial)`, float32."""
        first = images[:, 0]
        return gray(first[None] if self.stacked else first, window=self.window).cpu().numpy()


def renderer_of(
    plans: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: dict[str, Any],
    settings: QALossConfig,
    *,
    slices: int | None = None,
) -> Renderer:
    """The montage that fits the patches of a configuration.

    Args:
        plans: of the dataset.
        configuration: one of theirs.
        dataset_json: content of dataset.json.
        settings: window, views and number of slices.
        slices: of a 2D configuration of volumes: how many slices of a case are shown; None where cases are pictures.

    Raises:
        SelectionError: the settings do not fit the patch.
    """
    classes = class_names(dataset_json, plans.get_label_manager(dataset_json))
    is_ct = configuration.normalization_schemes[0] == "CTNormalization"
    window = settings.window if is_ct else None
    flat = len(configuration.patch_size) == 2
    specs = [
        MontageSpec.for_patch(
            configuration.patch_size,
            configuration.spacing,
            classes=len(classes),
            window=window,
            slices=slices if flat else settings.slices,
            axis=axis,
        )
        for axis in settings.views or (None,)
    ]
    rows, columns = (min(spec.size[side] for spec in specs) for side in (0, 1))
    specs = [replace(spec, output=(rows, columns)) for spec in specs]
    own = None
    if window is not None:
        properties = plans.foreground_intensity_properties_per_channel["0"]
        own = normalised_window(window, mean=properties["mean"], std=properties["std"])
    return Renderer(specs=tuple(specs), window=own, stacked=slices is not None)


def class_values(dataset_json: dict[str, Any], labels: LabelManager) -> dict[str, tuple[int, ...]]:
    """Label values of each foreground class or region, in the order of the output channels."""
    names = class_names(dataset_json, labels)
    groups = labels.foreground_regions if labels.has_regions else [(label,) for label in labels.foreground_labels]
    return {
        name: tuple(int(value) for value in (group if isinstance(group, (tuple, list)) else (group,)))
        for name, group in zip(names, groups, strict=True)
    }

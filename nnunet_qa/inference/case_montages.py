"""Whole cases of a dataset as the discriminator sees them (paper 002).

Image and label map go through the plans' own preprocessor together, so that montages look like those of a training. Of
a volume only the slices are kept that the montage shows; a case of a 2D configuration is shown by evenly spaced slices,
as many as a step of a training shows. The whole of a slice fills its tile, where a training shows a patch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_qa.config import QALossConfig
from nnunet_qa.data.images import check_finite, check_label_values, label_values
from nnunet_qa.data.nifti import check_nifti
from nnunet_qa.data.pool import case_files
from nnunet_qa.data.raw_dataset import FOLDERS
from nnunet_qa.errors import DatasetError, ImageError, SelectionError, nearest
from nnunet_qa.inference.qa_montage import Renderer, class_values, renderer_of
from nnunet_qa.quality.coded_montages import CodedPatch, class_probabilities, render
from nnunet_qa.quality.montage import MontageSpec, slice_indices


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """A case with a label map, predicted or true.

    Attributes:
        case_id: the case.
        subject: its subject.
        images: channel files, in order.
        labels: the label map.
    """

    case_id: str
    subject: str
    images: tuple[Path, ...]
    labels: Path


@dataclass(frozen=True, kw_only=True)
class CaseRenderer:
    """Draws whole cases for one configuration of a dataset.

    Attributes:
        plans: content of the plans file.
        configuration: one of theirs.
        dataset_json: content of dataset.json.
        renderer: draws the montages.
        slices: of a 2D configuration of volumes: how many slices of a case are shown; None elsewhere.
    """

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    renderer: Renderer
    slices: int | None = None

    @property
    def shows_slices(self) -> bool:
        """Whether cases are volumes, of which slices are shown."""
        plans = PlansManager(self.plans)
        return self.slices is not None or len(plans.get_configuration(self.configuration).patch_size) == 3

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """Label values of each foreground class or region."""
        return class_values(self.dataset_json, PlansManager(self.plans).get_label_manager(self.dataset_json))

    def patches(self, files: CaseFiles) -> list[CodedPatch]:
        """What the montages show of a case, one a view.

        Raises:
            ImageError: a file cannot be read, the two do not fit, or the label map holds an undeclared value.
        """
        plans = PlansManager(self.plans)
        configuration = plans.get_configuration(self.configuration)
        data, labels = preprocessed_pair(files.images, files.labels, plans, configuration, self.dataset_json)
        return self.patches_of(data, labels, case_id=files.case_id, subject=files.subject)

    def patches_of(self, data: np.ndarray, labels: np.ndarray, *, case_id: str, subject: str) -> list[CodedPatch]:
        """What the montages show of a preprocessed case, one a view.

        Args:
            data: `(channels, *spatial)`.
            labels: label map `(*spatial)`.
            case_id: the case.
            subject: its subject.
        """
        configuration = PlansManager(self.plans).get_configuration(self.configuration)
        if len(configuration.patch_size) == 3:
            shades = self.renderer.shades(torch.from_numpy(data)[None])[0]
            shown = []
            for spec in self.renderer.specs:
                kept = slice_indices(shades.shape[spec.axis], spec.slices)
                shown.append((shades.take(kept, spec.axis), labels.take(kept, spec.axis)))
        else:
            tiles = self.slices or 1
            # with repetitions where there are fewer slices, as in a training
            kept = [(2 * tile + 1) * labels.shape[0] // (2 * tiles) for tile in range(tiles)]
            shades = self.renderer.shades(torch.from_numpy(data[:, kept]).transpose(0, 1))[0]
            shown = [(shades, labels[kept] if self.slices else labels[kept][0])] * len(self.renderer.specs)
        return [CodedPatch(case_id=case_id, subject=subject, image=image, labels=own) for image, own in shown]

    def pictures(self, files: CaseFiles) -> torch.Tensor:
        """Montages of a case, uint8 `(views, 3, rows, columns)`; raises what `patches` does."""
        return self.drawn(self.patches(files))

    def drawn(self, patches: Sequence[CodedPatch]) -> torch.Tensor:
        """Montages of what `patches` or `patches_of` gave, uint8 `(views, 3, rows, columns)`."""
        pictures = []
        for spec, patch in zip(self.renderer.specs, patches, strict=True):
            masks = class_probabilities(patch.labels, self.classes, sigma=0.0, axis=spec.axis)
            pictures.append(render(patch.image, masks, spec))
        return torch.stack(pictures)


def case_renderer(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    settings: QALossConfig,
    *,
    images: Sequence[Path],
    slices: int | None = None,
) -> CaseRenderer:
    """The montages that a training with these settings shows its discriminator.

    Args:
        plans: content of the plans file.
        configuration: one of theirs.
        dataset_json: content of dataset.json.
        settings: window, views and number of slices; of a 2D configuration the pool images of a step.
        images: channel files of any case, to know volumes from pictures.
        slices: show so many slices, rounded up to fill the grid of tiles; None for as many as a training shows.

    Raises:
        DatasetError: the plans lack the configuration.
        ImageError: the image cannot be read.
        SelectionError: the settings do not fit the patch, or slices are asked for where cases are pictures.
    """
    known = plans.get("configurations", {})
    if configuration not in known:
        raise DatasetError(
            f'the plans "{plans.get("plans_name")}" have no configuration "{configuration}"'
            f"{nearest(configuration, known)}; found: {', '.join(known)}"
        )
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    if len(chosen.patch_size) == 3:
        if slices is not None:
            settings = settings.model_copy(update={"slices": slices})
        renderer = renderer_of(manager, chosen, dataset_json, settings)
        return CaseRenderer(plans=plans, configuration=configuration, dataset_json=dataset_json, renderer=renderer)
    stack = None
    if _holds_volume(images, manager):
        stack = slices or settings.batch_size or chosen.batch_size
    elif slices is not None:
        raise SelectionError(f"{slices} slices of {images[0]}: the cases are pictures, not volumes; leave out --slices")
    renderer = renderer_of(manager, chosen, dataset_json, settings, slices=stack)
    return CaseRenderer(
        plans=plans,
        configuration=configuration,
        dataset_json=dataset_json,
        renderer=renderer,
        slices=renderer.specs[0].slices if slices is not None else stack,
    )


def fitting_renderer(
    spec: MontageSpec,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    settings: QALossConfig,
    *,
    images: Sequence[Path],
) -> CaseRenderer:
    """As `case_renderer`, but with the window and the number of slices of given montages.

    Where the configuration has no such montages, the nearest ones are given.
    """
    settings = settings.model_copy(update={"window": spec.window})
    own = case_renderer(plans, configuration, dataset_json, settings, images=images)
    if own.renderer.specs[0] == spec or not own.shows_slices:
        return own
    return case_renderer(plans, configuration, dataset_json, settings, images=images, slices=spec.slices)


def preprocessed_pair(
    images: Sequence[Path],
    labels: Path,
    plans: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Image and label map of a case on the grid of the plans, by the plans' own preprocessor.

    Returns:
        The image `(channels, *spatial)`, normalised float32, and the labels `(*spatial)`, -1 outside the body where
        nnU-Net normalises within it; both have three axes.

    Raises:
        ImageError: a file cannot be read or holds NaN, the two differ in shape, or a label value is not declared.
    """
    for path in (*images, labels):
        check_nifti(path)
    preprocessor = configuration.preprocessor_class(verbose=False)
    names = [os.fspath(path) for path in images]
    try:
        data, seg, _ = preprocessor.run_case(names, os.fspath(labels), plans, configuration, dataset_json)
    except Exception as error:  # each reader has errors of its own
        raise ImageError(
            f"{labels}: cannot be laid over {images[0]} (truncated, or of another shape?): {_first_line(error)}"
        ) from error
    check_finite(data, f"{images[0]} (after normalisation)")
    check_label_values(seg[0], label_values(dataset_json["labels"]) | {-1}, str(labels))
    return data.astype(np.float32, copy=False), seg[0]


def case_files_of(
    cases: Sequence[str],
    labels: Path,
    images: Mapping[str, Sequence[Path]],
    subjects: Mapping[str, str],
    file_ending: str,
) -> list[CaseFiles]:
    """The files of cases whose label maps lie in one folder.

    Args:
        cases: which cases.
        labels: folder of label maps, `<case><file_ending>`.
        images: channel files by case.
        subjects: by case; a case that is not there is a subject of its own.
        file_ending: of the dataset.

    Raises:
        DatasetError: there is no case, or a label map or image is missing.
    """
    if not cases:
        raise DatasetError(f"{labels}: no label map with the ending {file_ending} to look at")
    found = []
    for case in cases:
        path = labels.absolute() / f"{case}{file_ending}"
        if not path.is_file():
            raise DatasetError(f"{path}: not found; predict the case first, or remove it from the codes")
        if case not in images:
            raise DatasetError(f'{path}: the dataset has no image of the case "{case}"{nearest(case, images)}')
        own = tuple(image.absolute() for image in images[case])
        found.append(CaseFiles(case_id=case, subject=subjects.get(case, case), images=own, labels=path))
    return found


def label_maps(folder: Path, file_ending: str) -> list[str]:
    """The cases that have a label map in a folder, sorted; none where there is no folder."""
    paths = folder.glob(f"*{file_ending}") if folder.is_dir() else ()
    return sorted(path.name.removesuffix(file_ending) for path in paths if not path.name.startswith("."))


def dataset_images(raw: Path, dataset_json: dict[str, Any]) -> dict[str, list[Path]]:
    """Channel files of all cases of a raw dataset, annotated, unlabelled and for test.

    Raises:
        DatasetError: a case lacks a channel, or there is no case at all.
    """
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    found: dict[str, list[Path]] = {}
    for images, _ in FOLDERS.values():
        if (raw / images).is_dir():
            found |= case_files(raw / images, ending, channels)
    if not found:
        raise DatasetError(f"{raw}: none of its folders holds an image with the ending {ending}")
    return found


def _holds_volume(images: Sequence[Path], plans: PlansManager) -> bool:
    """Whether a 2D configuration cuts this image into several slices."""
    try:
        array, _ = plans.image_reader_writer_class().read_images([os.fspath(path) for path in images])
    except Exception as error:  # each reader has errors of its own
        raise ImageError(f"{images[0]}: cannot be read as an image: {_first_line(error)}") from error
    return bool(array.shape[1 + plans.transpose_forward[0]] > 1)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""Interactive prediction (paper 004): an image is predicted once, then each click corrects the part around it.

The model is one of InteractiveTrainer. The prediction without clicks is that of `nnUNetv2_predict`; a click costs the
patches in which it changes something, whatever the size of the image.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from nnunet_qa.data.images import check_finite
from nnunet_qa.errors import ClickError, ImageError, ModelError
from nnunet_qa.inference.crf_folder import CaseReader
from nnunet_qa.inference.half_precision import half_precision
from nnunet_qa.inference.interactive_channels import channels_of_model
from nnunet_qa.inference.interactive_patches import Patches, Place
from nnunet_qa.inference.interactive_region import Box, Placement, bounding
from nnunet_qa.inference.predictor import unwrapped
from nnunet_qa.inference.score import ScoreOptions, _check_model
from nnunet_qa.interaction.click_maps import ClickChannels
from nnunet_qa.interaction.clicks import Click
from nnunet_qa.interaction.grid import Grid


@dataclass(frozen=True)
class _Change:
    """What one patch or one clicked voxel replaced, to undo it."""

    part: Box
    logits: torch.Tensor
    region: Box
    mask: np.ndarray


class InteractivePredictor:
    """Set an image, click, see the mask, undo. Positions are voxels (z, y, x) of the image; a picture has one slice.

    With several folds the mean of their logits counts. Test-time mirroring is used without clicks only.

    Attributes:
        classes: number of classes K, background not counted; clicks have labels 0…K.
        clicks: so far, in order.
        source: folder, folds and files of the model, to know it again.
        properties: what nnU-Net's reader noted of the image, for its writer.
        grid: where the image's voxels lie in the patient.
        last_changed_region: the part (z, y, x) of the mask that the last click, undo or reset made anew.
    """

    clicks: list[Click]
    properties: dict[str, Any]
    grid: Grid
    last_changed_region: Box
    _placement: Placement
    _patches: Patches
    _logits: torch.Tensor
    _mask: np.ndarray
    _history: list[tuple[int, list[_Change]]]
    _keeps_history: bool

    def __init__(self, predictor: nnUNetPredictor, channels: ClickChannels) -> None:
        """See `from_model`.

        Args:
            predictor: with the weights of an interactive model.
            channels: what its network sees of clicks.
        """
        self.predictor = predictor
        self.source: dict[str, Any] = {}
        self.channels = channels
        self.classes = channels.labels
        weights, network = predictor.list_of_parameters, unwrapped(predictor.network)
        # a network a fold, so that a click has no weights to load; nnU-Net's own takes turns
        self._networks = [network] if len(weights) == 1 else [copy.deepcopy(network) for _ in weights]
        for network, parameters in zip(self._networks, weights, strict=True):
            network.load_state_dict(parameters)
            network.to(predictor.device).eval()
        self._data: torch.Tensor | None = None

    @classmethod
    def from_model(
        cls,
        folder: Path,
        *,
        folds: Sequence[str] = (),
        checkpoint: str = "checkpoint_final.pth",
        device: torch.device,
        mirroring: bool = True,
    ) -> InteractivePredictor:
        """Load a model.

        Args:
            folder: `nnUNet_results/DatasetXXX/<trainer>__<plans>__<configuration>`.
            folds: folds whose logits are averaged; empty for all that are there.
            checkpoint: name of the checkpoint file in each fold.
            device: where to compute.
            mirroring: test-time mirroring of the prediction without clicks.

        Raises:
            ModelError: the model or a fold is missing, cannot be loaded, or was not trained with clicks, or two folds
                were trained with clicks that look differently.
        """
        _, found = _check_model(folder, ScoreOptions(folds=tuple(folds), checkpoint=checkpoint))
        channels = channels_of_model(folder, found, checkpoint)
        predictor = nnUNetPredictor(
            use_mirroring=mirroring,
            perform_everything_on_device=device.type == "cuda",
            device=device,
            allow_tqdm=False,
        )
        chosen = tuple(fold if fold == "all" else int(fold) for fold in found)
        try:
            predictor.initialize_from_trained_model_folder(os.fspath(folder), chosen, checkpoint)
        except Exception as error:  # a damaged checkpoint, a trainer that nnU-Net does not find, other plans
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"{folder}: the model cannot be loaded: {lines[0]}") from error
        loaded = cls(predictor, channels)
        files = [(folder / f"fold_{fold}" / checkpoint).stat() for fold in found]
        loaded.source = {
            "model": os.fspath(folder.resolve()),
            "folds": list(found),
            "checkpoint": checkpoint,
            "weights": [[one.st_size, one.st_mtime_ns] for one in files],
            "mirroring": mirroring,
        }
        return loaded

    def set_image(
        self,
        image: Sequence[Path] | np.ndarray,
        *,
        properties: dict[str, Any] | None = None,
        previous_stage: np.ndarray | None = None,
        history: bool = True,
    ) -> np.ndarray:
        """Take an image, without clicks as yet, and predict it.

        Args:
            image: its files, one a channel; or an array `(channels, z, y, x)`.
            properties: of an array, as nnU-Net's readers return them; `spacing` (z, y, x) in mm is needed.
            previous_stage: for a cascade, the label map (z, y, x) that the previous stage predicted.
            history: keep what each click replaced, without which there is neither `undo` nor `reset`; it is about as
                large as the patches of all clicks together.

        Returns:
            The mask, see `mask`.

        Raises:
            ImageError: a file cannot be read, holds NaN, or the array or its properties do not fit.
            ModelError: the model continues from a previous stage and got nothing from it, or the other way round.
        """
        if isinstance(image, np.ndarray):
            array, found = image, dict(properties or {})
            channels = len(self.predictor.dataset_json["channel_names"])
            if array.ndim != 4 or len(array) != channels or "spacing" not in found:
                raise ImageError(
                    f"an image of shape {array.shape}: must be ({channels}, z, y, x), with a spacing in its properties"
                )
            check_finite(array, "the image")
        else:
            array, found = self.reader.image(image)
        self._data = None  # nothing of another image is left if this one fails
        data = self._preprocessed(array, found, previous_stage)
        logits = self.predictor.predict_logits_from_preprocessed_data(data)
        mask = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self.predictor.plans_manager,
            self.predictor.configuration_manager,
            self.predictor.label_manager,
            found,
        )
        plans, configuration = self.predictor.plans_manager, self.predictor.configuration_manager
        self._placement = Placement.of(found, data.shape[1:], plans, configuration)
        self._patches = Patches(data.shape[1:], configuration.patch_size)
        self._logits, self._mask, self._data = logits, np.array(mask), data
        self.properties, self.grid = found, Grid.of(array.shape[1:], found)
        self.clicks, self._history, self._keeps_history = [], [], history
        self.last_changed_region = tuple(slice(0, length) for length in mask.shape)
        return self.mask

    @property
    def order(self) -> tuple[int, ...]:
        """The image's axis that each axis of the network is."""
        return tuple(self.predictor.plans_manager.transpose_forward)

    @property
    def sees_slices(self) -> bool:
        """Whether the network is 2D: it sees slices along the first of `order`."""
        return len(self.predictor.configuration_manager.patch_size) == 2

    @property
    def reader(self) -> CaseReader:
        """Reads and writes the files of the model's dataset."""
        dataset = self.predictor.dataset_json
        files = self.predictor.plans_manager.image_reader_writer_class()
        return CaseReader(files=files, classes=self.classes + 1, file_ending=dataset["file_ending"])

    @property
    def mask(self) -> np.ndarray:
        """Label values (z, y, x) in the image's own grid; read-only, and changed by the next click.

        Clicked voxels have the label of their click, whatever the network says.

        Raises:
            ClickError: there is no image.
        """
        self._require_image()
        view = self._mask.view()
        view.flags.writeable = False
        return view

    def add_click(self, position: Sequence[int], label: int) -> np.ndarray:
        """Click a voxel and predict what is around it.

        Args:
            position: (z, y, x); (y, x) in a picture.
            label: what the voxel belongs to, 0 for background.

        Returns:
            The mask, see `mask`.

        Raises:
            ClickError: there is no image, the voxel lies outside, there is no such label, or the voxel has been clicked
                with another one.
        """
        return self.add_clicks([Click(tuple(position), label)])

    def add_line(self, points: Sequence[Sequence[int]], label: int) -> np.ndarray:
        """Click several voxels at once; as `add_click`, and one `undo` takes back all of them."""
        return self.add_clicks([Click(tuple(point), label) for point in points])

    def add_clicks(self, clicks: Sequence[Click]) -> np.ndarray:
        """Click several voxels at once, of any labels; as `add_click`, and one `undo` takes back all of them."""
        self._require_image()
        placed = self._checked(clicks)
        before = len(self.clicks)
        changes: list[_Change] = []
        try:
            self.clicks += placed
            for start in self._patches.starts(self._placement.to_network(click.position) for click in placed):
                self._predict_from(start, changes)
            for click in self.clicks:  # of earlier ones, too: a patch may cover them
                self._obey(click, changes)
        except BaseException:  # out of memory, or the user stopped it
            self._take_back(changes)
            del self.clicks[before:]
            raise
        if self._keeps_history:
            self._history.append((before, changes))
        self.last_changed_region = _around(changes)
        return self.mask

    def undo(self) -> np.ndarray:
        """Take back the last click or line.

        Raises:
            ClickError: there is none, or no history is kept.
        """
        self._require_history()
        if not self._history:
            raise ClickError("there is no click to undo")
        before, changes = self._history.pop()
        self._take_back(changes)
        del self.clicks[before:]
        self.last_changed_region = _around(changes)
        return self.mask

    def reset(self) -> np.ndarray:
        """Take back all clicks; the mask is again that of `nnUNetv2_predict`.

        Raises:
            ClickError: no history is kept.
        """
        self._require_history()
        changes = [change for _, some in self._history for change in some]
        while self._history:
            self.undo()
        self.last_changed_region = _around(changes)
        return self.mask

    def _checked(self, clicks: Sequence[Click]) -> list[Click]:
        known = {click.position: click.label for click in self.clicks}
        placed = []
        for click in clicks:
            position = tuple(int(at) for at in click.position)
            if len(position) == 2 and self.grid.shape[0] == 1:
                position = (0, *position)
            if len(position) != 3 or not self.grid.holds(position):
                raise ClickError(
                    f"the click at {position} lies outside the image of {self.grid.shape} voxels (z, y, x)"
                )
            if not 0 <= click.label <= self.classes:
                raise ClickError(f"the click at {position} has the label {click.label}; there are 0 to {self.classes}")
            if known.setdefault(position, click.label) != click.label:
                raise ClickError(
                    f"the click at {position} contradicts an earlier one there, of label {known[position]}; undo that"
                )
            placed.append(Click(position, int(click.label)))
        return placed

    def _preprocessed(self, array: np.ndarray, properties: dict[str, Any], previous: np.ndarray | None) -> torch.Tensor:
        """The image as the network sees it `(channels, *spatial)`; adds to `properties`."""
        predictor = self.predictor
        stage = predictor.configuration_manager.previous_stage_name
        if (stage is None) != (previous is None):
            needs = "no previous stage" if stage is None else f"{stage}, whose prediction is needed"
            raise ModelError(f"this model continues from {needs} (`previous_stage`)")
        if previous is not None and previous.shape != array.shape[1:]:
            raise ImageError(f"the previous stage's prediction has shape {previous.shape}, the image {array.shape[1:]}")
        data, stage_labels, _ = predictor.configuration_manager.preprocessor_class(verbose=False).run_case_npy(
            array,
            None if previous is None else previous[None],
            properties,
            predictor.plans_manager,
            predictor.configuration_manager,
            predictor.dataset_json,
        )
        if previous is not None:
            labels = predictor.label_manager.foreground_labels
            data = np.vstack((data, convert_labelmap_to_one_hot(stage_labels[0], labels, data.dtype)))
        return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))

    @torch.inference_mode()
    def _predict_from(self, start: Place, changes: list[_Change]) -> None:
        part, fresh = self._patches.predict(start, self._predict_patch, self._logits)
        at = (slice(None), *part)
        touched = self._placement.touched(part)
        region = self._placement.in_image(touched)
        # noted before anything is written, so that a failure from here on can be taken back
        changes.append(_Change(part, self._logits[at].clone(), region, self._mask[region].copy()))
        self._logits[at] = fresh.to(self._logits.dtype)
        if self._mask[region].size:
            logits = self._placement.resample(self._logits, touched)
            labels = self.predictor.label_manager.convert_logits_to_segmentation(logits)
            # as nnU-Net's `transpose_backward`
            self._mask[region] = np.asarray(labels).transpose(np.argsort(self._placement.order))

    def _obey(self, click: Click, changes: list[_Change]) -> None:
        """Give a clicked voxel its label in the mask, where the network does not, or where it sees no such voxel."""
        if self._mask[click.position] != click.label:
            voxel, nothing = tuple(slice(at, at + 1) for at in click.position), (slice(0, 0),) * 3
            changes.append(_Change(nothing, self._logits[(slice(None), *nothing)], voxel, self._mask[voxel].copy()))
            self._mask[click.position] = click.label

    def _predict_patch(self, start: Place) -> torch.Tensor:
        """Logits `(classes, *patch)` of the patch at `start`, which may begin before the image or end after it."""
        assert self._data is not None
        patch, flat = self._patches.size, self._patches.flat
        image = self._patches.cut(self._data, start)
        shape = patch[1:] if flat else patch
        clicks = []
        for click in self.clicks:
            place = self._placement.to_network(click.position)
            position = tuple(at - first for at, first in zip(place, start, strict=True))
            if not flat:
                clicks.append(Click(position, click.label))
            elif position[0] == 0:  # a 2D network sees the clicks of its slice
                clicks.append(Click(position[1:], click.label))
        before = None
        if self.channels.previous:
            before = self._patches.cut(self._logits, start).argmax(0).reshape(shape).numpy()
        told = torch.from_numpy(self.channels(clicks, shape, before))
        x = torch.cat((image.reshape(-1, *shape), told))[None].to(self.predictor.device)
        with half_precision(self.predictor.device):
            logits = torch.stack([network(x)[0].float() for network in self._networks]).mean(0)
        return logits.cpu().reshape(-1, *patch)

    @torch.inference_mode()
    def _take_back(self, changes: Sequence[_Change]) -> None:
        for change in reversed(changes):
            self._logits[(slice(None), *change.part)] = change.logits
            self._mask[change.region] = change.mask

    def _require_image(self) -> None:
        if self._data is None:
            raise ClickError("there is no image yet; give one with set_image")

    def _require_history(self) -> None:
        self._require_image()
        if not self._keeps_history:
            raise ClickError("no click can be taken back: set_image was told to keep no history (history=False)")


def _around(changes: Sequence[_Change]) -> Box:
    """The part of the image that all of these touched; nothing of it where there is none."""
    regions = [change.region for change in changes if change.mask.size]
    return bounding(regions) if regions else (slice(0, 0),) * 3

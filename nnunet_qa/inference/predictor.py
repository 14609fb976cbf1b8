"""QAPredictor: nnU-Net's predictor that also says how far the two finest outputs agree, in the same pass.

During the sliding window the network returns its finest output with the second finest one behind it as further
channels, so nnU-Net's own code tiles, mirrors, weighs and averages both alike. The segmentation comes from the first
channels and is that of `nnUNetv2_predict`, voxel for voxel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from nnunet_qa.errors import ImageError, ModelError
from nnunet_qa.quality.disagreement import Agreement, agreement_by_slice, resize_output
from nnunet_qa.quality.uncertainty import entropy_by_slice


@dataclass(frozen=True)
class CaseQuality:
    """Q of one predicted case.

    Attributes:
        case_id: identifier; empty for an array without a name.
        classes: names of the foreground classes or regions, in the order of the output channels.
        agreement: counts over the whole case `(classes)`.
        slices: counts of each slice of the image `(slices, classes)`, within nnU-Net's crop to nonzero.
        slice_axis: axis of the image, as nnU-Net reads it (0 = z), along which the slices lie.
        first_slice: index in the image of the first of `slices`.
        entropy: mean predictive entropy in nats; None where it was not asked for.
        slice_entropy: that of each of `slices`.
    """

    case_id: str
    classes: tuple[str, ...]
    agreement: Agreement
    slices: Agreement
    slice_axis: int
    first_slice: int
    entropy: float | None = None
    slice_entropy: torch.Tensor | None = None

    @property
    def q(self) -> float:
        """Mean Q over classes, in [0, 1]."""
        return float(self.agreement.mean)

    def rows(self, role: str = "") -> list[dict[str, Any]]:
        """Rows for `quality.csv`: the case, then its slices where it has more than one."""
        start = {"case_id": self.case_id, "role": role}
        case = {"level": "case", "slice_axis": None, "slice_index": None, **self._scores(self.agreement, self.entropy)}
        number = self.slices.union.shape[0]
        if number == 1:
            return [{**start, **case}]
        slices = []
        for index in range(number):
            place = {"level": "slice", "slice_axis": self.slice_axis, "slice_index": self.first_slice + index}
            counts = Agreement(self.slices.intersection[index], self.slices.union[index])
            entropy = float(self.slice_entropy[index]) if self.slice_entropy is not None else None
            slices.append({**start, **place, **self._scores(counts, entropy)})
        return [{**start, **case}, *slices]

    def _scores(self, counts: Agreement, entropy: float | None) -> dict[str, float]:
        named = {f"q_{name}": float(q) for name, q in zip(self.classes, counts.per_class, strict=True)}
        union, intersection = int(counts.union.sum()), int(counts.intersection.sum())
        scores = {"q": float(counts.mean), **named, "union_voxels": union, "disagreeing_voxels": union - intersection}
        return scores if entropy is None else {**scores, "entropy": entropy}


class _TwoOutputs(nn.Module):
    """The network with its second finest output, resized, as further channels behind the finest."""

    def __init__(self, network: nn.Module, *, regions: bool, sampled: list[nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.regions = regions
        self._sampled = tuple(sampled)  # in a tuple, or they would be registered as modules a second time

    def eval(self) -> _TwoOutputs:
        """As nn.Module's, but the sampled dropout stays on."""
        super().eval()
        for dropout in self._sampled:
            dropout.train()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        finest, second = self.network(x)[:2]
        # subtracting the background keeps the argmax and saves a channel; it commutes with all that follows
        margins = second if self.regions else second[:, 1:] - second[:, :1]
        return torch.cat([finest, resize_output(margins, tuple(finest.shape[2:]))], dim=1)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network below DistributedDataParallel and torch.compile."""
    for attribute in ("module", "_orig_mod"):
        network = getattr(network, attribute, network)
    return network


@contextmanager
def deep_supervision_on(network: nn.Module) -> Iterator[None]:
    """Let the network return the list of its outputs, finest first, and put the switch back afterwards.

    Raises:
        ModelError: the network has no deep supervision, or fewer than two outputs.
    """
    decoder = getattr(unwrapped(network), "decoder", None)
    if decoder is None or not hasattr(decoder, "deep_supervision"):
        raise ModelError(
            f"{type(unwrapped(network)).__name__} has no deep supervision, so there is no second output to compare"
        )
    if len(getattr(decoder, "seg_layers", (0, 0))) < 2:
        raise ModelError(
            "the plans give this network one output only; Q needs two: use plans with at least three stages"
        )
    before = decoder.deep_supervision
    decoder.deep_supervision = True
    try:
        yield
    finally:
        decoder.deep_supervision = before


def active_dropout(network: nn.Module) -> list[nn.Module]:
    """The dropout layers of a network that drop anything.

    Raises:
        ModelError: it has none, so that Monte Carlo dropout would sample nothing.
    """
    found: list[nn.Module] = [module for module in network.modules() if isinstance(module, _DropoutNd) and module.p > 0]
    if not found:
        raise ModelError(
            f"{type(unwrapped(network)).__name__} has no dropout layer to sample from; score without --mc-dropout, or "
            "train with plans that set dropout_op"
        )
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` on; torch's generators, all of which `manual_seed` seeds, are put back afterwards."""
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with torch.random.fork_rng(range(torch.cuda.device_count()), device_type="cuda"):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


def class_names(dataset_json: dict[str, Any], label_manager: Any) -> tuple[str, ...]:
    """Names of the foreground classes or regions of a dataset, in the order of the output channels."""
    foreground = {
        name: value
        for name, value in dataset_json["labels"].items()
        if value != label_manager.ignore_label and value != 0
    }
    if label_manager.has_regions:
        return tuple(foreground)
    return tuple(sorted(foreground, key=lambda name: int(foreground[name])))


class QAPredictor(nnUNetPredictor):
    """An nnUNetPredictor whose predictions come with Q (paper 001, Algorithm 1), 2D and 3D, labels and regions.

    Use it as nnUNetPredictor. With several folds both outputs are averaged as logits before they are compared.

    Attributes:
        entropy: also measure the mean predictive entropy of the finest output.
        mc_dropout: leave dropout on while predicting, as the reference code of the paper does. Both outputs come from
            the same pass and are samples, the segmentations too; folds and mirroring average over samples.
        seed: seed of the dropout; each case starts from it, and each fold from the next number, so the result depends
            neither on other cases nor on whether nnU-Net had to begin a sliding window again for lack of memory.
        last_quality: Q of the case that was predicted last.
        before_case: called with the identifier of each case that is about to be predicted from files.
        on_case: called with the quality of each predicted case, as soon as it is known.
        second_output_name: given the (truncated) output file of a case, where to write the second output's
            segmentation; None to write none.
    """

    entropy: bool = False
    mc_dropout: bool = False
    seed: int = 0
    before_case: Callable[[str], None] | None = None
    on_case: Callable[[CaseQuality], None] | None = None
    second_output_name: Callable[[str], str] | None = None
    last_quality: CaseQuality | None = None
    network: Any
    label_manager: Any
    _margins: torch.Tensor | None = None
    _folds_done: int = 0
    _current: dict[str, Any] | None = None

    @torch.inference_mode()
    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """Logits of the finest output `(channels, *spatial)`; the second output is kept for `last_quality`."""
        network, labels = self.network, self.label_manager
        heads = labels.num_segmentation_heads
        both = heads * 2 if labels.has_regions else heads * 2 - 1
        sampled = active_dropout(network) if self.mc_dropout else []
        with deep_supervision_on(network):
            self.network = _TwoOutputs(network, regions=labels.has_regions, sampled=sampled)
            self.label_manager = SimpleNamespace(num_segmentation_heads=both)
            try:
                outputs = super().predict_sliding_window_return_logits(input_image)
            finally:
                self.network, self.label_manager = network, labels
                for dropout in sampled:
                    dropout.eval()
        margins = outputs[heads:].to("cpu")
        self._margins = margins if self._margins is None else self._margins + margins
        self._folds_done += 1
        return outputs[:heads]

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(
        self, data: torch.Tensor, slicers: Any, do_on_device: bool = True
    ) -> torch.Tensor:
        # nnU-Net calls this a second time where the first ran out of memory
        with _seeded(self.seed + self._folds_done) if self.mc_dropout else nullcontext():
            return super()._internal_predict_sliding_window_return_logits(data, slicers, do_on_device)

    @torch.inference_mode()
    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """Logits averaged over folds `(channels, *spatial)`; sets `last_quality`.

        Raises:
            ImageError: the image holds NaN or infinite intensities.
        """
        current = self._current or {}
        name = os.path.basename(current.get("ofile") or "")
        if not torch.isfinite(data).all():
            raise ImageError(f"{name or 'the image'}: holds NaN or infinite intensities; replace them first")
        self._margins, self._folds_done = None, 0
        logits = super().predict_logits_from_preprocessed_data(data)
        if len(self.list_of_parameters) > 1:
            assert self._margins is not None
            self._margins = self._margins / len(self.list_of_parameters)
        self._finish_case(name, logits, current.get("data_properties"))
        if self.second_output_name is not None and current.get("ofile"):
            self._export_second(self.second_output_name(current["ofile"]), current["data_properties"])
        self._margins = None
        return logits

    def predict_from_data_iterator(
        self,
        data_iterator: Any,
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
    ) -> Any:
        """As nnUNetPredictor's; remembers which case is at work, so that its quality gets its name."""
        try:
            return super().predict_from_data_iterator(
                self._remembering(data_iterator), save_probabilities, num_processes_segmentation_export
            )
        finally:
            self._current = None

    def predict_single_npy_array(
        self,
        input_image: np.ndarray,
        image_properties: dict,
        segmentation_previous_stage: np.ndarray | None = None,
        output_file_truncated: str | None = None,
        save_or_return_probabilities: bool = False,
    ) -> Any:
        """As nnUNetPredictor's; `last_quality` holds the quality. The preprocessor adds to `image_properties`."""
        self._current = {"ofile": output_file_truncated, "data_properties": image_properties}
        try:
            return super().predict_single_npy_array(
                input_image,
                image_properties,
                segmentation_previous_stage,
                output_file_truncated,
                save_or_return_probabilities,
            )
        finally:
            self._current = None

    def quality_of_preprocessed(
        self, data: torch.Tensor, properties: dict[str, Any], case_id: str
    ) -> tuple[CaseQuality, torch.Tensor]:
        """Q of a preprocessed case with the network as it is, without loading weights (used while training).

        Args:
            data: `(channels, *spatial)`, the previous stage's one-hot segmentation included for the cascade.
            properties: what nnU-Net's preprocessor noted of the case.
            case_id: identifier.

        Returns:
            The quality and the logits of the finest output.
        """
        self._margins, self._folds_done = None, 0
        logits = self.predict_sliding_window_return_logits(data).to("cpu")
        quality = self._finish_case(case_id, logits, properties)
        self._margins = None
        return quality, logits

    def _remembering(self, data_iterator: Any) -> Iterator[Any]:
        for item in data_iterator:
            self._current = item
            if self.before_case is not None and item["ofile"] is not None:
                self.before_case(os.path.basename(item["ofile"]))
            yield item
        if hasattr(data_iterator, "_finish"):
            data_iterator._finish()

    def _finish_case(self, name: str, logits: torch.Tensor, properties: dict[str, Any] | None) -> CaseQuality:
        assert self._margins is not None
        regions = self.label_manager.has_regions
        counts = agreement_by_slice(logits, self._margins, regions=regions)
        nearest, first = _slices_in_image(counts.union.shape[0], properties)
        entropies = entropy_by_slice(logits, regions=regions) if self.entropy else None
        quality = CaseQuality(
            case_id=name,
            classes=class_names(self.dataset_json, self.label_manager),
            agreement=counts.total(0),
            slices=Agreement(counts.intersection[nearest], counts.union[nearest]),
            slice_axis=int(self.plans_manager.transpose_forward[0]),
            first_slice=first,
            entropy=None if entropies is None else float(entropies.mean()),
            slice_entropy=None if entropies is None else entropies[nearest],
        )
        self.last_quality = quality
        if self.on_case is not None:
            self.on_case(quality)
        return quality

    def _export_second(self, name: str, properties: dict[str, Any]) -> None:
        assert self._margins is not None
        logits = self._margins
        if not self.label_manager.has_regions:
            logits = torch.cat([torch.zeros_like(logits[:1]), logits])
        export_prediction_from_logits(
            logits.float().numpy(),
            properties,
            self.configuration_manager,
            self.plans_manager,
            self.dataset_json,
            name,
            False,
        )


def _slices_in_image(have: int, properties: dict[str, Any] | None) -> tuple[torch.Tensor, int]:
    """The preprocessed slice for each slice of the image (the nearest, where the axis was resampled), and the first."""
    if properties is None:
        return torch.arange(have), 0
    number = int(properties["shape_after_cropping_and_before_resampling"][0])
    first = int(properties["bbox_used_for_cropping"][0][0])
    return torch.from_numpy(np.minimum(((np.arange(number) + 0.5) * have / number).astype(np.int64), have - 1)), first

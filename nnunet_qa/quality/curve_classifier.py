"""The curve classifier of paper 003: a dense layer and an LSTM of three layers tell good from erroneous curves.

Volume or area over the heartbeat of all structures of an acquisition goes in, one probability comes out. Sizes are
unstated in the paper; curves divided by their own maximum and resampled to 50 frames are the defaults here. Such curves
do not show a structure that is too small in all frames alike; with `sizes` the network is also told how large each is.
Nor do they show slices that are lost and added; with `slices` it also sees how irregular each frame is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import clip_grad_norm_

from nnunet_qa.networks.curve_lstm import CurveNetwork
from nnunet_qa.quality.curve_estimator import CurveEstimator
from nnunet_qa.quality.curves import Acquisition
from nnunet_qa.quality.slice_irregularity import irregularity_in_space, irregularity_in_time

_LARGEST_GRADIENT = 1.0
_CHUNK = 256  # acquisitions judged at a time


class CurveLSTM(CurveEstimator):
    """Dense layer and LSTM; see `CurveEstimator` for the verbs and attributes.

    Args:
        frames: what curves are resampled to, see `resampled`.
        sizes: also give the network `log_size` of each curve, which its division by its own maximum takes away.
        slices: also give it `irregularity_in_time` and `irregularity_in_space` of each frame.
        hidden: width of the dense layer and the LSTM.
        epochs: times that every acquisition is shown.
        batch_size: acquisitions a step.
        learning_rate: of Adam at the start; it falls to 0 as a cosine.
        more: arguments of `CurveEstimator`.

    Raises:
        ValueError: a number is out of its range.
    """

    kind = "lstm"

    def __init__(
        self,
        *,
        frames: int = 50,
        sizes: bool = False,
        slices: bool = False,
        hidden: int = 64,
        epochs: int = 40,
        batch_size: int = 16,
        learning_rate: float = 3e-3,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        counts = {"frames": frames, "hidden": hidden, "epochs": epochs, "batch_size": batch_size}
        for name, number in counts.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, found {number}")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, found {learning_rate}")
        self.frames, self.sizes, self.slices, self.hidden = frames, sizes, slices, hidden
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate

    def settings(self) -> dict[str, Any]:
        """The arguments that it was made with, but for `structures`."""
        names = ("frames", "sizes", "slices", "hidden", "epochs", "batch_size", "learning_rate")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    def _inputs(self, acquisitions: Sequence[Acquisition]) -> np.ndarray:
        """Float32 `(acquisitions, frames, curves)`: structures in [0, 1], then perhaps sizes and irregularities."""
        return np.stack([self._channels(one) for one in acquisitions]).astype(np.float32)

    def _channels(self, acquisition: Acquisition) -> np.ndarray:
        curves = [relative_curves(acquisition, self.structures_)]
        if self.sizes:
            sizes = [log_size(acquisition, name) for name in self.structures_]
            curves.append(np.broadcast_to(sizes, curves[0].shape))
        if self.slices:
            for name in self.structures_:
                pixels = acquisition.pixels[name]
                curves.append(np.stack([irregularity_in_time(pixels), irregularity_in_space(pixels)], axis=1))
        return resampled(np.concatenate(curves, axis=1), self.frames)

    def _learn(self, inputs: np.ndarray, erroneous: np.ndarray) -> dict[str, torch.Tensor]:
        network = self._new_network()
        values, wanted = torch.from_numpy(inputs), torch.from_numpy(erroneous).float()
        network.standardise(values)
        # both classes weigh the same, however few the errors are
        weight = torch.tensor(float((~erroneous).sum() / erroneous.sum()))
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        rng = np.random.default_rng(self.seed)
        for epoch in range(self.epochs):
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
            for batch in torch.from_numpy(rng.permutation(len(wanted))).split(self.batch_size):
                loss = binary_cross_entropy_with_logits(network(values[batch]), wanted[batch], pos_weight=weight)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
                optimiser.step()
        return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def _judge(self, model: Mapping[str, torch.Tensor], inputs: np.ndarray) -> np.ndarray:
        network = self._new_network()
        network.load_state_dict(model)
        logits = [network(chunk) for chunk in torch.from_numpy(inputs).split(_CHUNK)]
        return torch.sigmoid(torch.cat(logits).double()).numpy()

    def _new_network(self) -> CurveNetwork:
        """A network before training; torch's global generator stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would also set the GPUs'
            curves = len(self.structures_) * (1 + self.sizes + 2 * self.slices)
            return CurveNetwork(curves, hidden=self.hidden)


def relative_curves(acquisition: Acquisition, structures: Sequence[str]) -> np.ndarray:
    """Curves of structures, each divided by its own maximum: `(frames, structures)` in [0, 1]; zeros stay zeros."""
    curves = np.stack([acquisition.curve(structure) for structure in structures], axis=1)
    highest = curves.max(axis=0)
    return curves / np.where(highest > 0, highest, 1)


def log_size(acquisition: Acquisition, structure: str) -> float:
    """Decimal logarithm of 1 + the maximum of a curve in mL or mm²."""
    return float(np.log10(1 + acquisition.curve(structure).max()))


def resampled(curves: np.ndarray, frames: int) -> np.ndarray:
    """Curves over one cycle with another number of frames.

    More frames are interpolated linearly, with the first frame after the last. Fewer are means over the frames that
    each of them stands for, so that an error in a single frame is not lost between two of them.

    Args:
        curves: `(frames, …)`.
        frames: how many to return; with as many as there are, the curves stay as they are.

    >>> resampled(np.array([0.0, 1.0]), 4).tolist()
    [0.0, 0.5, 1.0, 0.5]
    >>> resampled(np.array([0.0, 1.0, 1.0, 4.0]), 2).tolist()
    [0.5, 2.5]
    """
    given = len(curves)
    if frames < given:
        edges = np.arange(frames + 1) * given / frames
        so_far = np.concatenate([np.zeros_like(curves[:1]), np.cumsum(curves, axis=0)])
        return np.diff(_at(so_far, edges), axis=0) * frames / given
    return _at(np.concatenate([curves, curves[:1]]), np.arange(frames) * given / frames)


def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Linear interpolation along the first axis."""
    before = np.minimum(places.astype(np.int64), len(values) - 2)
    share = (places - before).reshape(-1, *(1,) * (values.ndim - 1))
    return (1 - share) * values[before] + share * values[before + 1]

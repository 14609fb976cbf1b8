"""Body-part regression: where in the body a slice is, learnt from scans without labels (paper 002, section 2.1).

The paper takes from each scan the slab between the scores −6 and 6, and names the method only. Its loss knows nothing
but the order of slices and the distances between them: of two slices z mm apart, the network is to put the second
higher by about β·z / α.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from nnunet_qa.data.checkpoint import read_tensors
from nnunet_qa.data.slice_stack import SliceSpec, SliceStack
from nnunet_qa.errors import DatasetError, ImageError, ModelError
from nnunet_qa.files import replacing
from nnunet_qa.networks.slice_order import FEATURES, SliceOrderNetwork
from nnunet_qa.progress import track
from nnunet_qa.quality.body_part_scale import Landmark, Scale, find_landmarks, landmark_scale, standard_scale
from nnunet_qa.quality.slice_scores import monotonicity

ALPHA, BETA = 0.5, 0.025
_GAPS = (5.0, 100.0)  # mm between the slices that are compared
_ROTATION, _SCALING, _SHIFT = math.radians(5), 0.1, 0.05
_SLICES_AT_ONCE = 256
_STEPS_BETWEEN_SAVES = 100


def order_loss(
    scores: torch.Tensor, distances: torch.Tensor, *, alpha: float = ALPHA, beta: float = BETA
) -> torch.Tensor:
    """mean((σ(β·z) − σ(α·(s_{i+1} − s_i)))²) over neighbours of a row of slices.

    Args:
        scores: `(volumes, slices)`, in the order of the slices.
        distances: `(volumes, slices − 1)`, from each slice to the next, in mm, at least 0.
        alpha: how steeply the difference of scores counts.
        beta: how steeply the distance counts, a mm.

    Returns:
        A scalar in [0, 1], 0 where scores grow by β / α a mm.

    >>> order_loss(torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[20.0, 40.0]])).item()
    0.0
    """
    return (torch.sigmoid(beta * distances) - torch.sigmoid(alpha * scores.diff(dim=1))).square().mean()


def draw_slices(rng: np.random.Generator, depth: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` slices at about the same distance, which is drawn too: 5 to 100 mm, less where the scan is short.

    Args:
        rng: draws distance and first slice.
        depth: `(slices,)` of a scan in mm, increasing.
        count: how many, at least 2; slices repeat where the scan has fewer.

    Returns:
        `(count,)` numbers of slices, in order.
    """
    longest = (depth[-1] - depth[0]) / (count - 1)
    gap = rng.uniform(*(min(gap, longest) for gap in _GAPS))
    first = rng.uniform(depth[0], max(depth[0], depth[-1] - gap * (count - 1)))
    wanted = first + gap * np.arange(count)
    after = np.searchsorted(depth, wanted).clip(1, len(depth) - 1)
    return after - (wanted - depth[after - 1] < depth[after] - wanted)


def draw_views(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw `count` small rotations, changes of scale and shifts, as `(count, 2, 3)` matrices of `affine_grid`."""
    angle = rng.uniform(-_ROTATION, _ROTATION, count)
    scale = np.exp(rng.uniform(-_SCALING, _SCALING, count))
    shift = rng.uniform(-2 * _SHIFT, 2 * _SHIFT, (2, count))  # a picture is 2 wide there
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cosine, -sine, shift[0]], [sine, cosine, shift[1]]]).transpose(2, 0, 1).astype(np.float32)


def viewed(pictures: torch.Tensor, views: np.ndarray) -> torch.Tensor:
    """Pictures `(volumes, slices, rows, columns)`, all of a volume moved by the same of the views `(volumes, 2, 3)`."""
    matrices = torch.from_numpy(views).to(pictures.device)
    grid = functional.affine_grid(matrices, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, align_corners=False)


class BodyPartRegressor:
    """Scores of slices that grow along the body, by about the same in all scans.

    Args:
        spec: how slices are made.
        features: see `SliceOrderNetwork`.
        steps: of the optimiser, Adam with a rate that falls to 0 as a cosine.
        batch_size: scans a step.
        slices: compared slices of each.
        learning_rate: at the start.
        seed: of weights and draws.
        device: where the network is.

    Attributes:
        network_: in evaluation mode.
        scale_: from the network's output to the score.
        history_: columns step, loss.
        cases_: the training scans.
    """

    network_: SliceOrderNetwork
    scale_: Scale
    history_: pd.DataFrame
    cases_: list[str]

    def __init__(
        self,
        spec: SliceSpec,
        *,
        features: Sequence[int] = FEATURES,
        steps: int = 1000,
        batch_size: int = 8,
        slices: int = 8,
        learning_rate: float = 3e-3,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec = spec
        self.features = tuple(features)
        self.steps = steps
        self.batch_size = batch_size
        self.slices = slices
        self.learning_rate = learning_rate
        self.seed = seed
        self.device = torch.device(device)

    def settings(self) -> dict[str, Any]:
        """What the training depends on, besides the scans."""
        names = ("features", "steps", "batch_size", "slices", "learning_rate", "seed")
        return {name: getattr(self, name) for name in names}

    def fit(
        self,
        volumes: Sequence[SliceStack],
        *,
        landmarks: Sequence[Landmark] = (),
        state: Path | None = None,
        show_progress: bool = False,
    ) -> BodyPartRegressor:
        """Learn the order of slices, and set the scale.

        Args:
            volumes: slices of the training scans; empty slices are left out.
            landmarks: what scores mean, see `nnunet_qa.quality.body_part_scale`; none for the standard scale.
            state: file that keeps what was learnt so far, so that a run that was killed goes on; deleted at the end.
            show_progress: draw a bar on the standard error stream.

        Raises:
            DatasetError: there are fewer than two scans.
            ImageError: a scan has fewer than two slices that are not empty; the text names the case.
            SelectionError: the landmarks do not fit the scans.
            ModelError: nothing was learnt.
        """
        if len(volumes) < 2:
            raise DatasetError(f"body-part regression learns from two scans or more, found {len(volumes)}; add some")
        for volume in volumes:
            if volume.seen.sum() < 2:
                raise ImageError(f'the case "{volume.case_id}" has fewer than two slices that are not empty; remove it')
        places = find_landmarks(landmarks, volumes) if landmarks else []
        network = self.new_network()
        losses = self._train(network, volumes, state, show_progress=show_progress)
        self.network_ = network.eval()
        self.history_ = pd.DataFrame({"step": np.arange(1, len(losses) + 1), "loss": losses})
        self.cases_ = [volume.case_id for volume in volumes]
        outputs = [self._outputs(volume) for volume in volumes]
        self.scale_ = landmark_scale(landmarks, places, outputs) if landmarks else standard_scale(outputs)
        if state is not None:
            state.unlink(missing_ok=True)
        return self

    def predict(self, volume: SliceStack) -> np.ndarray:
        """Scores `(slices,)` of one scan, NaN for empty slices."""
        return self.scale_.slope * self._outputs(volume) + self.scale_.offset

    def score(self, volumes: Sequence[SliceStack]) -> pd.DataFrame:
        """How well the scores follow the order of the slices: one row a scan, `case_id` and `Monotonicity`."""
        return monotonicity_table(volumes, [self.predict(volume) for volume in volumes])

    def new_network(self) -> SliceOrderNetwork:
        """A network before training; torch's global generator stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return SliceOrderNetwork(self.features).to(self.device)

    def _train(
        self, network: SliceOrderNetwork, volumes: Sequence[SliceStack], state: Path | None, *, show_progress: bool
    ) -> list[float]:
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        made_for = self._fingerprint(volumes)
        losses = _resume(state, made_for, network, optimiser)
        pictures = [torch.from_numpy(volume.pictures[volume.seen]) for volume in volumes]
        depths = [volume.depth[volume.seen] for volume in volumes]
        steps = range(len(losses), self.steps)
        for step in track(steps, "learning the order", len(steps)) if show_progress else steps:
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate * (1 + math.cos(math.pi * step / self.steps)) / 2
            # The generator follows from the step, so that a run that goes on draws what it would have drawn.
            batch, distances = self._batch(pictures, depths, np.random.default_rng((self.seed, step)))
            scores = network(batch.flatten(0, 1)[:, None]).view(batch.shape[:2])
            loss = order_loss(scores, distances)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            if state is not None and (step + 1) % _STEPS_BETWEEN_SAVES == 0:
                _keep(state, made_for, network, optimiser, losses)
        return losses

    def _batch(
        self, pictures: Sequence[torch.Tensor], depths: Sequence[np.ndarray], rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures `(batch_size, slices, size, size)` in [0, 1] and the distances between them."""
        chosen = rng.integers(len(pictures), size=self.batch_size)
        drawn = [draw_slices(rng, depths[number], self.slices) for number in chosen]
        batch = torch.stack([pictures[number][which] for number, which in zip(chosen, drawn, strict=True)])
        distances = [np.diff(depths[number][which]) for number, which in zip(chosen, drawn, strict=True)]
        batch = viewed(batch.to(self.device).float() / 255, draw_views(rng, self.batch_size))
        return batch, torch.from_numpy(np.array(distances, dtype=np.float32)).to(self.device)

    @torch.inference_mode()
    def _outputs(self, volume: SliceStack) -> np.ndarray:
        """The network's output `(slices,)`, NaN for empty slices."""
        outputs = np.full(len(volume.pictures), np.nan)
        seen = torch.from_numpy(volume.pictures[volume.seen])
        parts = [self.network_(part.to(self.device)[:, None].float() / 255) for part in seen.split(_SLICES_AT_ONCE)]
        outputs[volume.seen] = torch.cat(parts).cpu().numpy()
        return outputs

    def _fingerprint(self, volumes: Sequence[SliceStack]) -> str:
        scans = {volume.case_id: zlib.crc32(volume.pictures.tobytes()) for volume in volumes}
        return json.dumps([self.settings(), asdict(self.spec), scans])


def monotonicity_table(volumes: Sequence[SliceStack], scores: Sequence[np.ndarray]) -> pd.DataFrame:
    """One row a scan: `case_id`, and how its scores follow the order of its slices, see `Monotonicity`."""
    return pd.DataFrame(
        {"case_id": volume.case_id, **asdict(monotonicity(some, volume.depth))}
        for volume, some in zip(volumes, scores, strict=True)
    )


def score_table(volume: SliceStack, scores: np.ndarray) -> pd.DataFrame:
    """One row a slice, in order: `case_id`, `slice_index` in the file, `position_mm` (LPS), and `score` or none."""
    return pd.DataFrame(
        {
            "case_id": volume.case_id,
            "slice_index": volume.indices,
            "position_mm": volume.positions.round(3),
            "score": scores.round(4),
        }
    )


def _keep(
    path: Path, made_for: str, network: SliceOrderNetwork, optimiser: torch.optim.Optimizer, losses: list[float]
) -> None:
    content = {"of": made_for, "weights": network.state_dict(), "optimiser": optimiser.state_dict(), "losses": losses}
    with replacing(path) as temporary:
        torch.save(content, temporary)


def _resume(
    path: Path | None, made_for: str, network: SliceOrderNetwork, optimiser: torch.optim.Optimizer
) -> list[float]:
    """The losses of the steps that were done before with the same scans and settings, whose end is put back."""
    if path is None or not path.is_file():
        return []
    try:
        content = read_tensors(path)
    except ModelError:  # nothing is lost but time
        return []
    if not isinstance(content, dict) or content.get("of") != made_for:
        return []
    network.load_state_dict(content["weights"])
    optimiser.load_state_dict(content["optimiser"])
    return list(content["losses"])

"""A simulated user who clicks, sees what the network makes of it, and clicks again (paper 004).

`Dialogue` holds the talk about a batch of a training, `simulate` that about one image to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nnunet_qa.config_limited_data import ClickMode, InteractionConfig
from nnunet_qa.interaction.click_maps import ClickChannels
from nnunet_qa.interaction.clicks import BACKGROUND, Click, next_click
from nnunet_qa.interaction.lines import line_clicks


def simulate(
    truth: np.ndarray,
    predict: Callable[[list[Click]], np.ndarray],
    *,
    number: int,
    least_error: int = 0,
    spacing: Sequence[float] | None = None,
    mode: ClickMode | str = ClickMode.POINTS,
    slices: bool = False,
    ignore: int | None = None,
) -> Iterator[tuple[list[Click], np.ndarray]]:
    """The predictions that a user gets who sees the truth, before the first click and after each round.

    Where there is no object, the first click is on the largest false positive.

    Args:
        truth: label map.
        predict: gives the label map for all clicks so far.
        number: rounds. A round is one click, or one a slice, or first of all a line.
        least_error: errors of fewer voxels get no click.
        spacing: voxel sizes in the order of the axes; None for equal ones.
        mode: how the user begins: with a point, or with a line in the plane across the last axis.
        slices: each round has one click a slice of the first axis, for a network that sees single slices.
        ignore: label of `truth` at which nothing is an error and no click is placed.

    Yields:
        All clicks so far and the prediction for them. It ends before `number` rounds where nothing is left to click.

    >>> truth = np.eye(3, dtype=int)
    >>> [len(clicks) for clicks, _ in simulate(truth, lambda clicks: truth, number=3)]
    [0, 1]
    """
    user = _User(least_error, spacing, ignore)
    clicks: list[Click] = []
    prediction = predict(clicks)
    yield clicks, prediction
    for turn in range(number):
        first = turn == 0
        new: list[Click] = []
        if first and ClickMode(mode) is ClickMode.LINE:
            new = line_clicks(truth, axis=truth.ndim - 1, ignore=ignore)
        if not new:  # also where there is no object to draw a line through
            new = (user.click_a_slice if slices else user.click)(truth, prediction, first=first)
        if not new:
            return
        clicks = [*clicks, *new]
        prediction = predict(clicks)
        yield clicks, prediction


@dataclass(frozen=True)
class _User:
    """One who knows the truth and clicks points, see `simulate`."""

    least_error: int
    spacing: Sequence[float] | None
    ignore: int | None

    def click(self, truth: np.ndarray, prediction: np.ndarray, *, first: bool) -> list[Click]:
        """One click, or none where nothing is wrong."""
        click = next_click(truth, None, spacing=self.spacing, ignore=self.ignore) if first else None
        click = click or next_click(
            truth, prediction, least_error=self.least_error, spacing=self.spacing, ignore=self.ignore
        )
        return [click] if click is not None else []

    def click_a_slice(self, truth: np.ndarray, prediction: np.ndarray, *, first: bool) -> list[Click]:
        """One click in each slice of the first axis where something is wrong, or at first where there is an object."""
        within = replace(self, spacing=self.spacing[1:] if self.spacing is not None else None)
        return [
            Click((z, *click.position), click.label)
            for z in range(len(truth))
            for click in within.click(truth[z], prediction[z], first=first)
        ]


@dataclass(frozen=True)
class Draw:
    """How a batch is talked about.

    Attributes:
        numbers: rounds of each sample.
        negative: samples of which the user wants nothing: all is background, and only that is clicked.
    """

    numbers: tuple[int, ...]
    negative: tuple[bool, ...]


def draw(size: int, settings: InteractionConfig, rng: np.random.Generator) -> Draw:
    """Numbers of rounds, uniform in `least`…`most`, and negative samples.

    A negative sample always has a click, without which nothing would tell it from others.
    """
    negative = rng.random(size) < (settings.negative if settings.most > 0 else 0)
    least = np.where(negative, max(settings.least, 1), settings.least)
    numbers = rng.integers(least, settings.most + 1)
    return Draw(tuple(map(int, numbers)), tuple(map(bool, negative)))


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """The talk about a batch of image patches.

    Attributes:
        channels: what the network sees of the clicks.
        least_error: errors of fewer voxels get no click.
        mode: how the user begins; the plane of a line is drawn at random.
        ignore: label of voxels of unknown class, which are never clicked.
    """

    channels: ClickChannels
    least_error: int = 0
    mode: ClickMode = ClickMode.POINTS
    ignore: int | None = None

    def __call__(
        self,
        truths: np.ndarray,
        drawn: Draw,
        predict: Callable[[list[int], np.ndarray], np.ndarray],
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """The channels of the batch after the last click.

        A sample is predicted only where its next click or its channel of the previous prediction needs it: once less
        than it has rounds, or as often where it holds no object or the network sees its previous prediction. The user
        takes it that clicked voxels have their label, as they do in an interactive prediction, so that a click which
        the network does not obey is not made again.

        Args:
            truths: label maps `(batch, *spatial)`; of negative samples as they were, for the first click of those is
                where the object is.
            drawn: how many rounds, and which samples are negative.
            predict: gives for samples of the batch and their channels `(samples, 2K + 1, *spatial)` the label maps
                `(samples, *spatial)`.
            rng: draws the planes of lines; None for those that hold most.

        Returns:
            `(batch, 2K + 1, *spatial)` float32.
        """
        shape = truths.shape[1:]
        clicks: list[list[Click]] = [[] for _ in truths]
        previous: list[np.ndarray | None] = [None] * len(truths)
        active = list(range(len(truths)))
        for turn in range(max(drawn.numbers, default=0)):
            active = [sample for sample in active if drawn.numbers[sample] > turn]
            new: dict[int, list[Click]] = {}
            if turn == 0:
                new = {sample: self._first(truths[sample], drawn.negative[sample], rng) for sample in active}
            # a first click in an object needs no prediction
            asked = active if self.channels.previous else [sample for sample in active if not new.get(sample)]
            answers: dict[int, np.ndarray] = {}
            if asked:
                inputs = np.stack([self.channels(clicks[sample], shape, previous[sample]) for sample in asked])
                answers = dict(zip(asked, predict(asked, inputs), strict=True))
            for sample in active:
                if not new.get(sample):
                    seen = _obeyed(answers[sample], clicks[sample])
                    new[sample] = self._next(truths[sample], seen, negative=drawn.negative[sample])
            active = [sample for sample in active if new[sample]]
            for sample in active:
                clicks[sample] += new[sample]
                previous[sample] = answers.get(sample)  # that after the last click no user has answered
        return np.stack([self.channels(*talk) for talk in zip(clicks, [shape] * len(truths), previous, strict=True)])

    def _first(self, truth: np.ndarray, negative: bool, rng: np.random.Generator | None) -> list[Click]:
        """Clicks in the largest object; none where there is none."""
        if self.mode is ClickMode.LINE:
            axis = int(rng.choice((truth.ndim - 2, truth.ndim - 1))) if rng is not None else truth.ndim - 1
            clicks = line_clicks(truth, axis=axis, rng=rng, ignore=self.ignore)
        else:
            click = next_click(truth, None, spacing=self.channels.spacing, ignore=self.ignore)
            clicks = [click] if click is not None else []
        return [Click(click.position, BACKGROUND) for click in clicks] if negative else clicks

    def _next(self, truth: np.ndarray, prediction: np.ndarray, *, negative: bool) -> list[Click]:
        wanted = _without_objects(truth, self.ignore) if negative else truth
        click = next_click(
            wanted,
            prediction,
            least_error=self.least_error,
            spacing=self.channels.spacing,
            ignore=self.ignore,
        )
        return [click] if click is not None else []


def _obeyed(prediction: np.ndarray, clicks: Sequence[Click]) -> np.ndarray:
    """The prediction with the label of each click at its voxel."""
    obeyed = prediction.copy()
    for click in clicks:
        obeyed[click.position] = click.label
    return obeyed


def _without_objects(truth: np.ndarray, ignore: int | None) -> np.ndarray:
    """The truth of a negative sample: all background but what is to be ignored."""
    return np.where(truth == ignore, truth, BACKGROUND) if ignore is not None else np.zeros_like(truth)

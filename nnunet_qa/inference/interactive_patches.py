"""Which patches of an image are predicted again after a click, and how they join what was there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from nnunet_qa.inference.interactive_region import Box, bounding

Place = tuple[int, ...]
"""A voxel, or the first voxel of a patch, in the network's grid."""

RIM = 8
"""A patch fades into the old prediction over one part in so many of its length."""
STEP = 3
"""A neighbouring patch lies one part in so many of the length further."""
CHANGED = 0.1
"""A neighbour is predicted too where more than this part of the foreground in the rim has changed."""
MOST = 27
"""A click never costs more patches than this, however far its change goes."""


class Patches:
    """The patches of a preprocessed image, of the size that the network was trained with.

    Args:
        shape: of the image `(z, y, x)`.
        patch_size: of the network; two lengths for one that sees single slices.

    Attributes:
        size: of a patch `(z, y, x)`; one slice thick for a 2D network.
        flat: whether the network sees single slices.
    """

    def __init__(self, shape: Sequence[int], patch_size: Sequence[int]) -> None:
        self.shape = tuple(int(length) for length in shape)
        self.flat = len(patch_size) < len(self.shape)
        self.size: Place = (*([1] if self.flat else []), *(int(length) for length in patch_size))
        weights = compute_gaussian(
            tuple(patch_size), sigma_scale=1 / 8, dtype=torch.float32, device=torch.device("cpu")
        )
        self._weights = weights.reshape(self.size)

    def starts(self, places: Iterable[Place]) -> list[Place]:
        """First voxels of patches around these voxels; voxels within half a patch share one."""
        groups: list[list[Place]] = []
        for place in places:
            for group in groups:
                spans = (max(values) - min(values) for values in zip(*group, place, strict=True))
                if all(span <= (length - 1) // 2 for span, length in zip(spans, self.size, strict=True)):
                    group.append(place)
                    break
            else:
                groups.append([place])
        found = []
        for group in groups:
            centre = [(min(values) + max(values)) // 2 for values in zip(*group, strict=True)]
            found.append(tuple(self._fit(at - self.size[axis] // 2, axis) for axis, at in enumerate(centre)))
        return list(dict.fromkeys(found))

    def predict(
        self, start: Place, predict: Callable[[Place], torch.Tensor], old: torch.Tensor
    ) -> tuple[Box, torch.Tensor]:
        """Predict a patch, and its neighbours as long as the mask changes at the border between them.

        Overlapping patches are weighted as nnU-Net weights them. Towards the rest of the image the outer patches fade
        into the old prediction.

        Args:
            start: first voxel of the patch.
            predict: gives the logits `(classes, *size)` of the patch with this first voxel.
            old: logits of the image `(classes, *shape)`.

        Returns:
            The part of the image that is new, and its logits.
        """
        done: dict[Place, torch.Tensor] = {}
        waiting = [start]
        while waiting and len(done) < MOST:
            place = waiting.pop(0)
            if place not in done:
                done[place] = predict(place)
                waiting += self._neighbours(place, done[place], old)
        return self._joined(done, old)

    def cut(self, image: torch.Tensor, start: Place) -> torch.Tensor:
        """The patch `(channels, *size)` of `(channels, *shape)`; 0 beyond the image, as nnU-Net pads."""
        inside, within = self._inside(start)
        if within == tuple(slice(0, length) for length in self.size):
            return image[(slice(None), *inside)]
        patch = image.new_zeros((len(image), *self.size))
        patch[(slice(None), *within)] = image[(slice(None), *inside)]
        return patch

    def _fit(self, start: int, axis: int) -> int:
        """The nearest start of a patch that does not leave the image; a patch longer than the image lies around it."""
        spare = self.shape[axis] - self.size[axis]
        return -(-spare // 2) if spare < 0 else min(max(start, 0), spare)

    def _inside(self, start: Place) -> tuple[Box, Box]:
        """The part of the image that a patch covers, and the part of the patch that this is."""
        inside, within = [], []
        for first, size, length in zip(start, self.size, self.shape, strict=True):
            low, high = max(first, 0), min(first + size, length)
            inside.append(slice(low, high))
            within.append(slice(low - first, high - first))
        return tuple(inside), tuple(within)

    def _faces(self, start: Place) -> Iterable[tuple[int, int]]:
        """Axis and direction of each face of a patch behind which the image goes on, and the network could see it."""
        for axis, direction in itertools.product(range(int(self.flat), len(start)), (-1, 1)):
            edge = start[axis] if direction < 0 else start[axis] + self.size[axis]
            if (edge > 0) if direction < 0 else (edge < self.shape[axis]):
                yield axis, direction

    def _neighbours(self, start: Place, fresh: torch.Tensor, old: torch.Tensor) -> list[Place]:
        inside, within = self._inside(start)
        after = fresh[(slice(None), *within)].argmax(0)
        before = old[(slice(None), *inside)].argmax(0)
        found = []
        for axis, direction in self._faces(start):
            rim = max(self.size[axis] // RIM, 1)
            first = 0 if direction < 0 else after.shape[axis] - rim
            new, was = after.narrow(axis, first, rim), before.narrow(axis, first, rim)
            if (new != was).sum() > CHANGED * ((new > 0) | (was > 0)).sum():
                moved = list(start)
                moved[axis] = self._fit(start[axis] + direction * max(self.size[axis] // STEP, 1), axis)
                found.append(tuple(moved))
        return found

    def _joined(self, patches: dict[Place, torch.Tensor], old: torch.Tensor) -> tuple[Box, torch.Tensor]:
        box = bounding([self._inside(start)[0] for start in patches])
        shape = [part.stop - part.start for part in box]
        total, weights, share = torch.zeros(len(old), *shape), torch.zeros(shape), torch.zeros(shape)
        for start, logits in patches.items():
            inside, within = self._inside(start)
            at = tuple(
                slice(part.start - whole.start, part.stop - whole.start)
                for part, whole in zip(inside, box, strict=True)
            )
            total[(slice(None), *at)] += logits[(slice(None), *within)] * self._weights[within]
            weights[at] += self._weights[within]
            share[at] = torch.maximum(share[at], self._fade(start)[within])
        fresh = total / weights.clamp(min=torch.finfo(torch.float32).tiny)  # 0 in the corners that no patch covers
        return box, torch.lerp(old[(slice(None), *box)].float(), fresh, share)

    def _fade(self, start: Place) -> torch.Tensor:
        """1 in a patch, falling towards faces behind which the image goes on."""
        share = torch.ones(self.size)
        for axis, direction in self._faces(start):
            length = self.size[axis]
            rim = max(length // RIM, 1)
            slope = ((torch.arange(length) + 0.5) / rim).clamp(max=1)
            shape = [1] * len(self.size)
            shape[axis] = length
            share *= (slope if direction < 0 else slope.flip(0)).reshape(shape)
        return share

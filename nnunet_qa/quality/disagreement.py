"""Agreement of the two finest deep-supervision outputs, the quality Q of QU-Net++ (paper 001, Algorithm 1).

Q is the Jaccard index of the finest output and of the second finest one resized to it; 1 − Q is the disagreement. The
paper has one foreground class; here each class (or region) has a Q of its own and a case has their mean. Where both
outputs leave a class empty they agree: Q = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import interpolate

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Agreement:
    """Voxel counts of two segmentations that are compared, per class.

    Attributes:
        intersection: voxels that both give to the class, int64 `(…, classes)`.
        union: voxels that at least one gives to the class, int64, same shape.
    """

    intersection: torch.Tensor
    union: torch.Tensor

    @property
    def per_class(self) -> torch.Tensor:
        """Jaccard index of each class, float64 in [0, 1]; 1 where both are empty."""
        return jaccard(self.intersection, self.union)

    @property
    def mean(self) -> torch.Tensor:
        """Mean over classes of the Jaccard index, float64 in [0, 1], shape `(…)`."""
        return self.per_class.mean(dim=-1)

    def total(self, dim: int) -> Agreement:
        """Counts summed over one axis, such as the slices of a volume."""
        return Agreement(self.intersection.sum(dim), self.union.sum(dim))


def jaccard(intersection: torch.Tensor, union: torch.Tensor) -> torch.Tensor:
    """Jaccard index from counts, in float64; 1 where the union is empty.

    >>> jaccard(torch.tensor([1, 0]), torch.tensor([4, 0])).tolist()
    [0.25, 1.0]
    """
    intersection, union = intersection.cpu(), union.cpu()  # MPS knows no float64
    ratio = intersection.double() / union.clamp(min=1).double()
    return torch.where(union == 0, torch.ones_like(ratio), ratio)


def resize_output(output: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Resize logits `(batch, channels, *spatial)` linearly to another spatial shape, one to three axes.

    Linear interpolation without aligned corners, so that a flipped output resizes to the flipped result.
    """
    if tuple(output.shape[2:]) == tuple(shape):
        return output
    return interpolate(output, size=tuple(shape), mode=_LINEAR[len(shape)], align_corners=False)


def class_masks(logits: torch.Tensor, *, regions: bool = False) -> torch.Tensor:
    """Binary masks of the foreground classes or regions.

    Args:
        logits: `(batch, channels, *spatial)`. Channel 0 is the background unless there are regions.
        regions: channels are overlapping regions, each thresholded at probability 0.5, with no background among them.

    Returns:
        Booleans `(batch, classes, *spatial)`; classes is one less than channels for labels, all channels for regions.
    """
    if regions:
        return logits > 0
    labels = logits.argmax(dim=1, keepdim=True)
    classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
    return labels == classes


def agreement_of_masks(first: torch.Tensor, second: torch.Tensor, *, slice_axis: int | None = None) -> Agreement:
    """Compare two sets of binary masks.

    Args:
        first: booleans `(batch, classes, *spatial)`.
        second: the same shape.
        slice_axis: spatial axis (0 = first) along which slices are counted apart; None for one count an image.

    Returns:
        Counts `(batch, classes)`, or `(batch, slices, classes)`.

    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"masks must have the same shape, found {tuple(first.shape)} and {tuple(second.shape)}")
    summed = [axis for axis in range(2, first.ndim) if slice_axis is None or axis != slice_axis + 2]
    intersection, union = first & second, first | second
    if summed:
        intersection, union = intersection.sum(summed), union.sum(summed)
    if slice_axis is not None:
        intersection, union = intersection.transpose(1, 2), union.transpose(1, 2)
    return Agreement(intersection.long(), union.long())


def agreement_of_outputs(
    finest: torch.Tensor, second: torch.Tensor, *, regions: bool = False, slice_axis: int | None = None
) -> Agreement:
    """Q of two deep-supervision outputs of one batch (paper 001, Algorithm 1).

    Args:
        finest: logits of the finest output `(batch, channels, *spatial)`, 2D or 3D.
        second: logits of the second finest output `(batch, channels, *smaller)`; resized to the finest.
        regions: see `class_masks`.
        slice_axis: see `agreement_of_masks`.

    Returns:
        Counts `(batch, classes)`, or `(batch, slices, classes)`.

    Raises:
        ValueError: batch or channels differ.

    >>> finest = torch.tensor([[[[2.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 2.0]]]])
    >>> agreement_of_outputs(finest, finest[..., :1]).mean.tolist()
    [1.0]
    """
    if finest.shape[:2] != second.shape[:2]:
        raise ValueError(
            f"outputs must agree in batch and channels, found {tuple(finest.shape)} and {tuple(second.shape)}"
        )
    resized = resize_output(second, tuple(finest.shape[2:]))
    return agreement_of_masks(
        class_masks(finest, regions=regions), class_masks(resized, regions=regions), slice_axis=slice_axis
    )


def agreement_by_slice(finest: torch.Tensor, margins: torch.Tensor, *, regions: bool = False) -> Agreement:
    """Q of a whole volume, slice by slice along the first axis, so that memory stays that of one slice.

    Args:
        finest: logits of the finest output `(channels, slices, *in_plane)`.
        margins: the second output, already resized. For regions its logits; for labels its foreground logits less the
            background's `(channels − 1, slices, *in_plane)`, which have the same argmax and need one channel less.
        regions: see `class_masks`.

    Returns:
        Counts `(slices, classes)`.
    """
    counts = []
    for number in range(finest.shape[1]):
        second = margins[None, :, number]
        if not regions:
            second = torch.cat([torch.zeros_like(second[:, :1]), second], dim=1)
        masks = class_masks(finest[None, :, number], regions=regions), class_masks(second, regions=regions)
        counts.append(agreement_of_masks(*masks))
    return Agreement(torch.cat([one.intersection for one in counts]), torch.cat([one.union for one in counts]))

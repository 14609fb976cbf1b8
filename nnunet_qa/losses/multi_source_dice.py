"""The multi-sourced Dice loss of paper 002 (section 2.4), for cases that label only some of the classes.

The formula is lost in the paper's text. Reconstructed: −(2 / |A|) Σ_a w_a Σ p·g / (Σ p² + Σ g²) over the anatomies A,
with w_a = 0 where a source does not label a. Sums run over the pixels of all cases of a batch that label the anatomy
(the paper's batches hold one case); under DDP each process sums over its own share of the batch.
"""

from __future__ import annotations

import torch
from torch import nn

from nnunet_qa.losses.qa import foreground_probabilities

SMOOTHING = 1e-5


def multi_source_dice(
    probabilities: torch.Tensor,
    truth: torch.Tensor,
    *,
    labelled: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    smooth: float = SMOOTHING,
) -> torch.Tensor:
    """Weighted soft Dice with squares in the denominator, negative, the mean over classes, in [−1, 0] without weights.

    A class takes no loss from a case that does not label it, and adds 0 where no case of the batch does. The mean is
    over all classes nevertheless, so that the others count as much as they do where everything is labelled. The
    smoothing is added to 2 Σ p·g, not to Σ p·g: a class that is in neither costs −1.

    Args:
        probabilities: `(batch, classes, *spatial)`, in [0, 1], of the foreground classes or regions.
        truth: the same shape, 0 or 1; anything where a class is not labelled.
        labelled: `(batch, classes)`, whether a case labels a class.
        weights: `(classes)`, the w_a of the classes; None for 1.
        mask: `(batch, 1, *spatial)`, true where pixels count; None for everywhere.
        smooth: added to numerator and denominator.

    Raises:
        ValueError: shapes that do not fit each other.

    >>> p, g = torch.tensor([[[0.5, 0.5], [0.9, 0.9]]]), torch.tensor([[[1, 0], [0, 0]]])
    >>> multi_source_dice(p, g, labelled=torch.tensor([[True, False]]))  # half of −2·0.5 / (0.5 + 1)
    tensor(-0.3333)
    """
    if probabilities.shape != truth.shape:
        raise ValueError(f"shapes must be the same, found {tuple(probabilities.shape)} and {tuple(truth.shape)}")
    _check_labelled(labelled, probabilities)
    truth = truth.to(probabilities.dtype)
    if mask is not None:
        probabilities, truth = probabilities * mask, truth * mask
    pixels = list(range(2, probabilities.ndim))
    overlap = torch.where(labelled, (probabilities * truth).sum(pixels), 0).sum(0)
    total = torch.where(labelled, (probabilities.square() + truth.square()).sum(pixels), 0).sum(0)
    dice = torch.where(labelled.any(0), (2 * overlap + smooth) / (total + smooth), 0)
    return -(dice if weights is None else dice * weights).mean()


def marginal_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, labelled: torch.Tensor, *, ignore_label: int | None = None
) -> torch.Tensor:
    """Cross entropy in which the classes that a case does not label are one with its background.

    What such a case calls background may be any of these classes, so its probability is the sum of theirs. Where all
    classes are labelled it is `torch.nn.functional.cross_entropy`.

    Args:
        logits: `(batch, 1 + classes, *spatial)`, the background first.
        target: labels `(batch, *spatial)`; one that a case does not label counts as background.
        labelled: `(batch, classes)`, whether a case labels a class.
        ignore_label: pixels of this label do not count; the loss is 0 where none counts.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check_labelled(labelled, logits[:, 1:])
    merged = nn.functional.pad(~labelled, (1, 0), value=True)  # with the background, which is one of them
    hidden = _for_pixels(merged, logits)
    background = logits.masked_fill(~hidden, -torch.inf).logsumexp(1, keepdim=True)
    logits = torch.cat([background, logits[:, 1:].masked_fill(hidden[:, 1:], -torch.inf)], 1)
    ignored = torch.zeros_like(target, dtype=torch.bool) if ignore_label is None else target == ignore_label
    shown = torch.arange(logits.shape[1], device=target.device) * ~merged
    wanted = shown.gather(1, target.long().masked_fill(ignored, 0).flatten(1)).view_as(target)
    loss = nn.functional.cross_entropy(logits, wanted, reduction="none").masked_fill(ignored, 0)
    return loss.sum() / (~ignored).sum().clamp(min=1)


def partial_binary_cross_entropy(
    logits: torch.Tensor, truth: torch.Tensor, labelled: torch.Tensor, *, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross entropy of regions; a region takes none from a case that does not label it.

    The mean is over all regions, as in `multi_source_dice`; with all of them labelled it is
    `torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        logits: `(batch, regions, *spatial)`.
        truth: the same shape, 0 or 1; anything where a region is not labelled.
        labelled: `(batch, regions)`, whether a case labels a region.
        mask: `(batch, 1, *spatial)`, true where pixels count; None for everywhere. The loss is 0 where none counts.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check_labelled(labelled, logits)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
    counts = torch.ones_like(logits[:, :1], dtype=torch.bool) if mask is None else mask
    loss = loss.masked_fill(~(counts & _for_pixels(labelled, logits)), 0)
    return loss.sum() / (counts.sum() * logits.shape[1]).clamp(min=1)


class PartialLabelLoss(nn.Module):
    """`multi_source_dice` of logits, with targets as nnU-Net's loaders give them, and on request cross entropy.

    It computes in single precision, inside autocast too. Within nnU-Net's `DeepSupervisionWrapper` all outputs of a
    batch share `labelled`.

    Args:
        regions: channels are regions, each with a sigmoid; else they are classes with a softmax, the background first.
        ignore_label: pixels of this label do not count. For regions the last channel of the target marks them.
        cross_entropy: add `marginal_cross_entropy`, or `partial_binary_cross_entropy` for regions.

    Attributes:
        labelled: `(batch, classes)`, which foreground classes or regions each case of the next batch labels; None for
            all of them.
    """

    def __init__(self, *, regions: bool, ignore_label: int | None, cross_entropy: bool) -> None:
        super().__init__()
        self.regions = regions
        self.ignore_label = ignore_label
        self.cross_entropy = cross_entropy
        self.labelled: torch.Tensor | None = None

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of `logits` `(batch, channels, *spatial)`.

        Args:
            logits: of one head.
            target: label map `(batch, 1, *spatial)`; for regions their masks `(batch, regions, *spatial)`, with one
                more channel where there is an ignore label.

        Raises:
            ValueError: `labelled` is for another number of cases or classes.
        """
        logits = logits.float()  # a sum over a batch is beyond the range of half precision
        probabilities = foreground_probabilities(logits, regions=self.regions)
        labelled = self.labelled
        if labelled is None:
            labelled = torch.ones(probabilities.shape[:2], dtype=torch.bool)
        labelled = labelled.to(logits.device)
        truth, mask = self._truth(target, probabilities.shape[1])
        loss = multi_source_dice(probabilities, truth, labelled=labelled, mask=mask)
        if not self.cross_entropy:
            return loss
        if self.regions:
            return loss + partial_binary_cross_entropy(logits, truth, labelled, mask=mask)
        return loss + marginal_cross_entropy(logits, target[:, 0], labelled, ignore_label=self.ignore_label)

    def _truth(self, target: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Masks `(batch, classes, *spatial)`, and where pixels count."""
        if self.regions:
            return (target, None) if self.ignore_label is None else (target[:, :-1], ~target[:, -1:].bool())
        values = torch.arange(1, classes + 1, device=target.device).view(1, -1, *[1] * (target.ndim - 2))
        return target == values, None if self.ignore_label is None else target != self.ignore_label


def _for_pixels(flags: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`(batch, channels)` as `(batch, channels, 1, …)`."""
    return flags.view(*flags.shape, *[1] * (like.ndim - 2))


def _check_labelled(labelled: torch.Tensor, classes: torch.Tensor) -> None:
    if labelled.shape != classes.shape[:2]:
        raise ValueError(
            f"labelled must have the shape (batch, classes) {tuple(classes.shape[:2])}, found {tuple(labelled.shape)}"
        )

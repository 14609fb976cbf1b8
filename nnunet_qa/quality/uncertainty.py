"""Predictive entropy, the uncertainty against which Q is judged: high where a model is unsure, whatever it is sure of.

With labels the entropy is that of the softmax over classes, −Σ p ln p in [0, ln channels] nats. Regions overlap, so
each has a binary entropy of its own in [0, ln 2], of which the mean is taken.
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus


def entropy(logits: torch.Tensor, *, regions: bool = False) -> torch.Tensor:
    """Predictive entropy of each voxel, in nats.

    Args:
        logits: `(batch, channels, *spatial)`. Channel 0 is the background unless there are regions.
        regions: channels are overlapping regions, each with a sigmoid of its own.

    Returns:
        Float32 `(batch, *spatial)`.

    >>> entropy(torch.zeros(1, 2, 1)).tolist()
    [[0.6931471824645996]]
    """
    logits = logits.float()  # nnU-Net adds up patches in half precision
    if regions:
        # −ln σ(z) = softplus(−z): no logarithm of a probability that was rounded to 0
        present, absent = torch.sigmoid(logits), torch.sigmoid(-logits)
        return (present * softplus(-logits) + absent * softplus(logits)).mean(dim=1)
    logarithms = torch.log_softmax(logits, dim=1)
    return -(logarithms.exp() * logarithms).sum(dim=1)


def entropy_by_slice(logits: torch.Tensor, *, regions: bool = False) -> torch.Tensor:
    """Mean entropy of each slice of a volume along the first axis, so that memory stays that of one slice.

    Args:
        logits: `(channels, slices, *in_plane)`.
        regions: see `entropy`.

    Returns:
        Nats, float64 `(slices)`; their mean is that of the volume, for all slices have as many voxels.
    """
    means = [entropy(logits[None, :, number], regions=regions).mean().item() for number in range(logits.shape[1])]
    return torch.tensor(means, dtype=torch.float64)

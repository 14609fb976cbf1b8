"""The network that reads the curves of one heartbeat: a dense layer, then an LSTM of three layers (paper 003).

The paper does not say how its LSTM ends in one output; here the states of all frames are averaged, so that an error in
an early frame counts as much as one in the last.
"""

from __future__ import annotations

import torch
from torch import nn

LAYERS = 3


class CurveNetwork(nn.Module):
    """One logit an acquisition.

    Args:
        curves: how many curves each acquisition has.
        hidden: width of the dense layer and of the LSTM.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(self, curves: int, *, hidden: int = 64) -> None:
        super().__init__()
        if curves < 1 or hidden < 1:
            raise ValueError(f"curves and hidden must be at least 1, found {curves} and {hidden}")
        # what a typical value is, for curves divided by their maximum lie close to 1 and differ by little
        self.register_buffer("mean", torch.zeros(curves))
        self.register_buffer("scale", torch.ones(curves))
        self.dense = nn.Linear(curves, hidden)
        self.lstm = nn.LSTM(hidden, hidden, LAYERS, batch_first=True)
        self.output = nn.Linear(hidden, 1)

    def standardise(self, values: torch.Tensor) -> None:
        """Take mean and standard deviation of each curve from training values `(acquisitions, frames, curves)`."""
        scale = values.std(dim=(0, 1), correction=0)
        self.mean = values.mean(dim=(0, 1))
        self.scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))  # constant curves say nothing

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Logits `(batch)`, the higher the more likely erroneous, of curves `(batch, frames, curves)`."""
        states, _ = self.lstm(torch.relu(self.dense((values - self.mean) / self.scale)))
        return self.output(states.mean(dim=1)).squeeze(1)

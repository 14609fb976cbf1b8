"""When to stop a QA loss: a frozen discriminator can be fooled by the network that it steers (methods.md, section 2).

The reason is read from what was logged, epoch by epoch, so a resumed training comes to the same end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def reason_to_stop(
    *,
    qa: Sequence[float],
    dice: Sequence[float],
    disagreement: Sequence[float] | None,
    patience: int,
    tolerance: float,
    smoothing: int = 1,
) -> str | None:
    """Why the QA loss has to stop, or None.

    An epoch looks bad when the QA loss is below what it was at the epoch of the best labelled Dice (or of the lowest
    disagreement), although the Dice has since fallen (the disagreement has since risen) by more than `tolerance`. A
    disagreement that rose while the Dice did too, by more than `tolerance`, says nothing: a network that finds nothing
    agrees with itself.

    Args:
        qa: QA loss of each epoch; NaN where there was none.
        dice: labelled validation (pseudo) Dice of each epoch, in [0, 1], smoothed.
        disagreement: mean disagreement on the pool of each epoch, in [0, 1]; None where it was not measured.
        patience: how many epochs in a row, the last ones, must look bad.
        tolerance: see above.
        smoothing: QA loss and disagreement of an epoch are means of so many epochs up to it; single epochs of few
            batches are noisy, and one of them would break the row.

    Raises:
        ValueError: the series have different lengths.

    >>> reason_to_stop(qa=[2, 1, 0.5], dice=[0.7, 0.8, 0.6], disagreement=None, patience=1, tolerance=0.1)
    'the labelled Dice fell from 0.800 (epoch 1) to 0.600 while the QA loss fell from 1.000 to 0.500'
    """
    losses = _trailing_mean(qa, smoothing)
    watched = [("the labelled Dice fell", np.asarray(dice, dtype=np.float64), 1.0)]
    if disagreement is not None:
        watched.append(("the disagreement on the pool rose", _trailing_mean(disagreement, smoothing), -1.0))
    for what, values, sign in watched:
        if len(values) != len(losses):
            raise ValueError(f"{len(losses)} QA losses, but {len(values)} values; give one of each an epoch")
        reason = _worse(what, losses, values * sign, watched[0][1], sign, patience, tolerance)
        if reason is not None:
            return reason
    return None


def _trailing_mean(values: Sequence[float], over: int) -> np.ndarray:
    """Mean of each value and those before it, `over` of them; NaN where there are not as many, or one is NaN."""
    series = np.asarray(values, dtype=np.float64)
    means = np.full(len(series), np.nan)
    if len(series) >= over:
        means[over - 1 :] = sliding_window_view(series, over).mean(axis=1)
    return means


def _worse(
    what: str,
    losses: np.ndarray,
    values: np.ndarray,
    dice: np.ndarray,
    sign: float,
    patience: int,
    tolerance: float,
) -> str | None:
    """Whether `values`, higher is better, have fallen in each of the last epochs while the losses fell too."""
    if len(values) <= patience:
        return None
    for now in range(len(values) - patience, len(values)):
        earlier = np.where(np.isnan(values[:now]) | np.isnan(losses[:now]), -np.inf, values[:now])
        best = int(earlier.argmax())
        fell = values[now] < earlier[best] - tolerance and losses[now] < losses[best]
        if not (fell and dice[now] <= dice[best] + tolerance):
            return None
    return (
        f"{what} from {sign * values[best]:.3f} (epoch {best}) to {sign * values[now]:.3f} while the QA loss fell from "
        f"{losses[best]:.3f} to {losses[now]:.3f}"
    )

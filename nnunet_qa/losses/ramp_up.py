"""How the weight of a loss of unlabelled images grows at the start of a training."""

from __future__ import annotations

import math


def sigmoid_ramp_up(progress: float) -> float:
    """Factor in [0, 1]: exp(−5 (1 − progress)²), and 1 from `progress` 1 on (Laine and Aila 2017, section 3).

    >>> round(sigmoid_ramp_up(0.0), 4), sigmoid_ramp_up(1.0)
    (0.0067, 1.0)
    """
    return math.exp(-5 * (1 - min(max(progress, 0.0), 1.0)) ** 2)

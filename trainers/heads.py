"""Which deep-supervision outputs are trained, and how much."""

from __future__ import annotations

from nnunet_qa.config import HeadWeights
from nnunet_qa.errors import ModelError


def head_weights(mode: HeadWeights, outputs: int, *, with_pool: bool) -> list[float] | None:
    """Weights of the outputs in the loss, finest first, with a sum of 1.

    Args:
        mode: see `HeadWeights`.
        outputs: how many outputs the plans give the network (stages − 1).
        with_pool: whether there is an unlabelled pool.

    Returns:
        The weights, or None to leave nnU-Net's own, which halve from output to output and give the coarsest 0.

    >>> head_weights(HeadWeights.ALL, 2, with_pool=True)
    [0.6666666666666666, 0.3333333333333333]
    """
    nnunet_trains_two = outputs >= 3
    if mode is HeadWeights.NNUNET or (mode is HeadWeights.AUTO and nnunet_trains_two and not with_pool):
        return None
    weights = [0.5**number for number in range(outputs)]
    return [weight / sum(weights) for weight in weights]


def check_two_trained(mode: HeadWeights, outputs: int, plans_name: str, configuration: str) -> None:
    """Refuse plans that leave fewer than two trained outputs to compare.

    Raises:
        ModelError: with what to change.
    """
    where = f'plans "{plans_name}", configuration "{configuration}"'
    if outputs < 2:
        raise ModelError(
            f"{where}: the network has {outputs} output(s); the disagreement compares two. Use plans with at least "
            "three stages, or set scoring.every_epoch and scoring.final to false in qa.yaml"
        )
    if outputs == 2 and mode is HeadWeights.NNUNET:
        raise ModelError(
            f"{where}: with head_weights: nnunet the second of two outputs has weight 0 and stays untrained; set "
            "head_weights to auto or all in qa.yaml"
        )

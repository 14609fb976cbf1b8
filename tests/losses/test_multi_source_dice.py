from __future__ import annotations

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from scipy.special import expit, log_softmax, softmax
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from nnunet_qa.losses.multi_source_dice import (
    PartialLabelLoss,
    marginal_cross_entropy,
    multi_source_dice,
    partial_binary_cross_entropy,
)

MIXED = np.array([[True, False, True], [True, False, False]])
"""Of two cases and three classes: one labelled by both, one by none, one by the first case alone."""


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def dice(p: np.ndarray, g: np.ndarray) -> float:
    """Soft Dice with squares, of all pixels."""
    return float((2 * (p * g).sum() + 1e-5) / ((p**2).sum() + (g**2).sum() + 1e-5))


def by_hand(p: np.ndarray, g: np.ndarray, labelled: np.ndarray, counts: np.ndarray) -> float:
    """The loss of `(batch, classes, …)`, class by class and case by case; `counts` `(batch, …)`."""
    found = []
    for c in range(p.shape[1]):
        cases = [b for b in range(p.shape[0]) if labelled[b, c]]
        pixels = [np.concatenate([x[b, c][counts[b]] for b in cases]) if cases else None for x in (p, g)]
        found.append(dice(*pixels) if cases else 0.0)  # type: ignore[arg-type]
    return -sum(found) / len(found)


@pytest.mark.parametrize(
    ("p", "g", "labelled", "weights", "expected"),
    [
        ([[[1.0, 0.0]]], [[[1, 0]]], [[True]], None, -1.0),
        ([[[0.5, 0.5]]], [[[1, 0]]], [[True]], None, -2 / 3),  # 2·0.5 / (0.25 + 0.25 + 1)
        ([[[0.0, 0.0]]], [[[0, 0]]], [[True]], None, -1.0),  # in neither
        ([[[0.5, 0.5]]], [[[1, 0]]], [[False]], None, 0.0),
        # one of two classes: half of its Dice; the weight of the other does not matter
        ([[[0.5, 0.5], [1.0, 1.0]]], [[[1, 0], [0, 0]]], [[True, False]], [3.0, 9.0], -1.0),
        # two cases, one set of pixels for the class that both label: 2·1.5 / (1.5 + 3)
        ([[[1.0, 0.5]], [[0.5, 0.0]]], [[[1, 0]], [[1, 1]]], [[True], [True]], None, -3 / 4.5),
        ([[[1.0, 0.5]], [[0.5, 0.0]]], [[[1, 0]], [[1, 1]]], [[False], [True]], None, -1 / 2.25),
    ],
)
def test_dice_by_hand(p: list, g: list, labelled: list, weights: list | None, expected: float) -> None:
    weight = None if weights is None else torch.tensor(weights)
    loss = multi_source_dice(torch.tensor(p), torch.tensor(g), labelled=torch.tensor(labelled), weights=weight)
    assert float(loss) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 5)])
@pytest.mark.parametrize("labelled", [np.ones((2, 3), bool), MIXED])
@pytest.mark.parametrize("ignore", [None, 4])
def test_classes_equal_numpy(
    rng: np.random.Generator, shape: tuple[int, ...], labelled: np.ndarray, ignore: int | None
) -> None:
    """With all classes labelled this is plain soft Dice with squared denominators, and plain cross entropy."""
    logits = rng.normal(size=(2, 4, *shape))
    target = rng.integers(0, 4 if ignore is None else 5, (2, 1, *shape))
    counts = target[:, 0] != ignore
    truth = np.stack([target[:, 0] == c for c in (1, 2, 3)], 1)
    expected = by_hand(softmax(logits, axis=1)[:, 1:], truth, labelled, counts)
    loss = PartialLabelLoss(regions=False, ignore_label=ignore, cross_entropy=False)
    both = PartialLabelLoss(regions=False, ignore_label=ignore, cross_entropy=True)
    loss.labelled = both.labelled = torch.tensor(labelled)
    pair = torch.tensor(logits), torch.tensor(target)
    assert float(loss(*pair)) == pytest.approx(expected, rel=1e-5)
    entropies = []
    for case in range(2):
        p = softmax(logits[case], axis=0)
        open_background = p[0] + sum(p[1 + c] for c in range(3) if not labelled[case, c])
        for pixel in np.argwhere(counts[case]):
            value = target[case, 0][tuple(pixel)]
            known = value > 0 and labelled[case, value - 1]
            entropies.append(-np.log((p[value] if known else open_background)[tuple(pixel)]))
    assert float(both(*pair)) == pytest.approx(expected + np.mean(entropies), rel=1e-5)


@pytest.mark.parametrize("labelled", [np.ones((2, 3), bool), MIXED])
@pytest.mark.parametrize("ignore", [None, 4])
@pytest.mark.parametrize("kind", [bool, np.int16])
def test_regions_equal_numpy(rng: np.random.Generator, labelled: np.ndarray, ignore: int | None, kind: type) -> None:
    logits = rng.normal(size=(2, 3, 6, 7))
    target = rng.integers(0, 2, (2, 3 if ignore is None else 4, 6, 7))
    counts = np.ones((2, 6, 7), bool) if ignore is None else target[:, 3] == 0
    p, g = expit(logits), target[:, :3]
    expected = by_hand(p, g, labelled, counts)
    entropy = -np.where(g == 1, np.log(p), np.log1p(-p)) * labelled[..., None, None] * counts[:, None]
    pair = torch.tensor(logits), torch.tensor(target.astype(kind))
    for also in (False, True):
        loss = PartialLabelLoss(regions=True, ignore_label=ignore, cross_entropy=also)
        loss.labelled = torch.tensor(labelled)
        wanted = expected + (entropy.sum() / (3 * counts.sum()) if also else 0)
        assert float(loss(*pair)) == pytest.approx(wanted, rel=1e-5)


def test_all_labelled_is_what_torch_and_nnunet_compute(rng: np.random.Generator) -> None:
    logits = torch.tensor(rng.normal(size=(2, 4, 5, 6)), requires_grad=True)
    target = torch.tensor(rng.integers(0, 4, (2, 5, 6)))
    every = torch.ones(2, 3, dtype=torch.bool)
    ours, theirs = marginal_cross_entropy(logits, target, every), cross_entropy(logits, target)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0])
    masks = torch.tensor(rng.integers(0, 2, (2, 3, 5, 6)))
    assert float(partial_binary_cross_entropy(logits.detach()[:, 1:], masks, every)) == pytest.approx(
        float(binary_cross_entropy_with_logits(logits.detach()[:, 1:], masks.double())), rel=1e-12
    )
    # on hard predictions the squares make no difference, so that this is nnU-Net's own loss
    hard = 60.0 * torch.nn.functional.one_hot(torch.tensor(rng.integers(0, 4, (2, 5, 6))), 4).movedim(-1, 1).float()
    stock = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {})
    loss = PartialLabelLoss(regions=False, ignore_label=None, cross_entropy=True)
    assert float(loss(hard, target[:, None])) == pytest.approx(float(stock(hard, target[:, None])), rel=1e-5)


def test_nothing_is_learnt_about_a_class_that_is_not_labelled(rng: np.random.Generator) -> None:
    labelled = torch.tensor(MIXED)
    p = torch.tensor(rng.random((2, 3, 6, 7)), requires_grad=True)
    g = torch.tensor(rng.integers(0, 2, (2, 3, 6, 7)))
    (gradient,) = torch.autograd.grad(multi_source_dice(p, g, labelled=labelled), p)
    assert torch.equal(gradient.abs().amax((2, 3)) > 0, labelled)
    every = torch.ones(2, 3, dtype=torch.bool)
    (full,) = torch.autograd.grad(multi_source_dice(p, g, labelled=every), p)
    torch.testing.assert_close(gradient[:, 0], full[:, 0])  # and no less about a class that both label
    # background and a class that is not labelled may change places: neither pixel says which it is
    logits = torch.tensor(rng.normal(size=(1, 4, 6, 7)))
    target = torch.tensor(rng.choice([0, 1, 3], (1, 6, 7)))
    one = torch.tensor([[True, False, True]])
    swapped = logits[:, [2, 1, 0, 3]]
    torch.testing.assert_close(
        marginal_cross_entropy(logits, target, one), marginal_cross_entropy(swapped, target, one)
    )
    assert float(marginal_cross_entropy(logits, target, every[:1])) != pytest.approx(
        float(marginal_cross_entropy(swapped, target, every[:1])), rel=1e-3
    )


def test_a_label_that_the_case_does_not_declare_counts_as_background(rng: np.random.Generator) -> None:
    logits, labelled = torch.tensor(rng.normal(size=(1, 3, 6, 7))), torch.tensor([[True, False]])
    target = torch.tensor(rng.integers(0, 3, (1, 6, 7)))
    loss = marginal_cross_entropy(logits, target, labelled)
    log_p = log_softmax(np.stack([logits[:, [0, 2]].logsumexp(1).numpy(), logits[:, 1].numpy()], 1), axis=1)
    assert float(loss) == pytest.approx(-np.where(target == 1, log_p[:, 1], log_p[:, 0]).mean(), rel=1e-9)


@pytest.mark.parametrize("regions", [False, True])
def test_gradients_equal_finite_differences(rng: np.random.Generator, regions: bool) -> None:
    labelled = torch.tensor(MIXED)
    logits = torch.tensor(rng.normal(size=(2, 4, 3, 2)), requires_grad=True)
    target = torch.tensor(rng.integers(0, 5, (2, 3, 2)))
    mask = target[:, None] != 4
    masks = torch.tensor(rng.integers(0, 2, (2, 3, 3, 2)))
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        p = x[:, 1:].sigmoid() if regions else x.softmax(1)[:, 1:]
        value = multi_source_dice(p, masks, labelled=labelled, weights=weights, mask=mask)
        if regions:
            return value + partial_binary_cross_entropy(x[:, 1:], masks, labelled, mask=mask)
        return value + marginal_cross_entropy(x, target, labelled, ignore_label=4)

    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("regions", [False, True])
def test_nothing_to_learn_from_costs_nothing(regions: bool) -> None:
    """Every pixel ignored, or no class labelled: a number and a gradient, not NaN."""
    logits = torch.randn(1, 3 - regions, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ignored = torch.ones(1, 3, 4, 4) if regions else torch.full((1, 1, 4, 4), 3)
    loss = PartialLabelLoss(regions=regions, ignore_label=3, cross_entropy=True)
    value = loss(logits, ignored)
    (gradient,) = torch.autograd.grad(value, logits)
    assert float(value.detach()) == pytest.approx(-1)
    assert not gradient.any()
    loss.labelled = torch.zeros(1, 2, dtype=torch.bool)
    empty = torch.zeros(1, 3 if regions else 1, 4, 4)
    (gradient,) = torch.autograd.grad(loss(logits, empty), logits)
    assert float(loss(logits, empty).detach()) == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-6


def test_in_nnunets_deep_supervision_and_half_precision(rng: np.random.Generator) -> None:
    outputs = [torch.tensor(rng.normal(size=(2, 4, n, n)), dtype=torch.float32) for n in (8, 4)]
    targets = [torch.tensor(rng.integers(0, 4, (2, 1, n, n))).to(torch.int16) for n in (8, 4)]
    loss = PartialLabelLoss(regions=False, ignore_label=None, cross_entropy=True)
    wrapped = DeepSupervisionWrapper(loss, [0.75, 0.25])
    loss.labelled = torch.tensor(MIXED)
    expected = 0.75 * loss(outputs[0], targets[0]) + 0.25 * loss(outputs[1], targets[1])
    assert float(wrapped(outputs, targets)) == pytest.approx(float(expected), rel=1e-6)
    loss.labelled = None
    assert abs(float(wrapped(outputs, targets)) - float(expected)) > 0.1
    loss.labelled = torch.tensor(MIXED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = wrapped(outputs, targets)
    assert within.dtype == torch.float32
    assert float(within) == pytest.approx(float(expected), rel=1e-6)
    half = [output.to(torch.float16) for output in outputs]
    assert float(wrapped(half, targets)) == float(wrapped([output.float() for output in half], targets))
    regions = PartialLabelLoss(regions=True, ignore_label=None, cross_entropy=True)
    logits = torch.full((20, 1, 256, 256), 8.0, dtype=torch.float16)  # its sums are far beyond the largest half
    assert float(regions(logits, torch.ones(20, 1, 256, 256))) == pytest.approx(-1, abs=1e-3)


def test_descent_finds_each_class_from_the_case_that_labels_it() -> None:
    """Two cases of one image, each with one of its two classes labelled."""
    truth = torch.zeros(1, 1, 4, 6, dtype=torch.int64)
    truth[..., :2], truth[..., 4:] = 1, 2
    target = torch.cat([truth * (truth == 1), truth * (truth == 2)])
    loss = PartialLabelLoss(regions=False, ignore_label=None, cross_entropy=True)
    loss.labelled = torch.tensor([[True, False], [False, True]])
    logits = torch.zeros(1, 3, 4, 6, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(30):
        optimizer.zero_grad()
        loss(logits.expand(2, -1, -1, -1), target).backward()
        optimizer.step()
    assert torch.equal(logits.argmax(1), truth[:, 0])


def test_shapes_that_do_not_fit_are_refused() -> None:
    p, every = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="must be the same"):
        multi_source_dice(p, p[:, :2], labelled=every)
    for labelled in (every[:1], every[:, :2]):
        message = r"labelled must have the shape \(batch, classes\) \(2, 3\), found"
        with pytest.raises(ValueError, match=message):
            multi_source_dice(p, p, labelled=labelled)
        with pytest.raises(ValueError, match=message):
            partial_binary_cross_entropy(p, p, labelled)
        with pytest.raises(ValueError, match=message):
            marginal_cross_entropy(torch.zeros(2, 4, 5), torch.zeros(2, 5), labelled)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import entropy

from nnunet_qa.losses.qa import QALoss, foreground_probabilities, hardened, mean_entropy


@pytest.fixture
def logits() -> torch.Tensor:
    """Of two images and three channels."""
    return 2 * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float32)


def first_codes(pictures: torch.Tensor) -> torch.Tensor:
    """A discriminator that is the mean of the first colour."""
    return pictures[:, 0].mean((1, 2))


def plain(images: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """A picture that is the image and the probabilities of two classes, not mixed."""
    return torch.cat([probabilities, images], 1)


def qa_loss(**options: Any) -> QALoss:
    return QALoss(first_codes, plain, **{"regions": False, **options})


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 4, 3, 2, 2)])
def test_probabilities_equal_scipy(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    given = torch.from_numpy(values)
    classes, regions = (foreground_probabilities(given, regions=regions).numpy() for regions in (False, True))
    np.testing.assert_allclose(classes, softmax(values, axis=1)[:, 1:], atol=1e-6)
    np.testing.assert_allclose(regions, expit(values), atol=1e-6)
    assert foreground_probabilities(given.half(), regions=True).dtype == torch.float32


@pytest.mark.parametrize("regions", [False, True])
def test_hardened_is_the_decision_with_the_gradient_of_the_probabilities(logits: torch.Tensor, regions: bool) -> None:
    logits.requires_grad_()
    soft = foreground_probabilities(logits, regions=regions)
    hard = hardened(soft, regions=regions)
    values = logits.detach().numpy()
    decided = values > 0 if regions else np.stack([values.argmax(1) == c for c in (1, 2)], 1)
    np.testing.assert_allclose(hard.detach(), decided, atol=1e-6)
    weights = torch.rand(soft.shape, generator=torch.Generator().manual_seed(0))
    of_hard, of_soft = (
        torch.autograd.grad((weights * one).sum(), logits, retain_graph=True)[0] for one in (hard, soft)
    )
    assert of_hard.abs().max() > 0
    torch.testing.assert_close(of_hard, of_soft)


def test_entropy_equals_scipy(logits: torch.Tensor) -> None:
    values = logits.double().numpy()
    classes = entropy(softmax(values, axis=1), axis=1).mean() / np.log(3)
    assert float(mean_entropy(logits, regions=False)) == pytest.approx(classes, rel=1e-5)
    p = expit(values)
    regions = entropy(np.stack([p, 1 - p]), axis=0).mean() / np.log(2)
    assert float(mean_entropy(logits, regions=True)) == pytest.approx(regions, rel=1e-5)


@pytest.mark.parametrize("regions", [False, True])
def test_entropy_is_one_for_a_guess_and_zero_for_a_decision(regions: bool) -> None:
    assert float(mean_entropy(torch.zeros(1, 4, 3, 3), regions=regions)) == pytest.approx(1)
    decided = torch.full((1, 4, 3, 3), -200.0)
    decided[:, 1] = 200.0
    assert float(mean_entropy(decided, regions=regions)) == pytest.approx(0, abs=1e-6)


def test_the_loss_is_the_mean_squared_code(logits: torch.Tensor) -> None:
    images = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    codes = softmax(logits.numpy(), axis=1)[:, 1].mean((1, 2))
    loss = qa_loss()
    assert float(loss([logits], images)) == pytest.approx(float((codes**2).mean()), rel=1e-5)
    other = softmax(-logits.numpy(), axis=1)[:, 1].mean((1, 2))
    expected = ((codes**2).mean() + (other**2).mean()) / 2
    assert float(loss([logits, -logits], images)) == pytest.approx(float(expected), rel=1e-5)


def test_the_gradient_is_that_of_the_formula(logits: torch.Tensor) -> None:
    """Of regions: d/dz mean_i c_i² = 2 c_i p (1 − p) / (images · pixels), in the channel that the code looks at."""
    images = torch.zeros(2, 1, 4, 5)
    given = logits[:, :2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(qa_loss(regions=True)([given], images), given)
    p = expit(given.detach().numpy())
    codes = p[:, 0].mean((1, 2))
    expected = np.zeros_like(p)
    expected[:, 0] = 2 * codes[:, None, None] * p[:, 0] * (1 - p[:, 0]) / (2 * 20)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-4, atol=1e-8)


def test_the_picture_shows_the_images(logits: torch.Tensor) -> None:
    seen = []

    def picture(images: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return plain(images, probabilities)

    images = torch.rand(2, 1, 4, 5)
    QALoss(first_codes, picture, regions=False)([logits], images)
    assert seen[0] is images


def test_hard_shows_decisions(logits: torch.Tensor) -> None:
    images = torch.zeros(2, 1, 4, 5)
    logits.requires_grad_()
    loss = qa_loss(hard=True)([logits], images)
    codes = (logits.detach().numpy().argmax(1) == 1).mean((1, 2))
    assert float(loss.detach()) == pytest.approx(float((codes**2).mean()), rel=1e-5)
    assert float(loss.detach()) != pytest.approx(float(qa_loss()([logits], images).detach()), rel=1e-3)
    assert torch.autograd.grad(loss, logits)[0].abs().max() > 0


def test_noise_lies_on_the_pictures(logits: torch.Tensor) -> None:
    seen: list[torch.Tensor] = []

    def codes_of(pictures: torch.Tensor) -> torch.Tensor:
        seen.append(pictures)
        return first_codes(pictures)

    def blank(images: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        return torch.full((2, 3, 64, 64), 0.5)

    torch.manual_seed(0)
    for noise in (0.0, 0.2, 0.2):
        QALoss(codes_of, blank, regions=False, noise=noise)([logits], torch.zeros(2, 1, 4, 5))
    assert torch.equal(seen[0], torch.full((2, 3, 64, 64), 0.5))
    assert float(seen[1].std()) == pytest.approx(0.2, rel=0.03)
    assert float(seen[1].mean()) == pytest.approx(0.5, abs=0.01)
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("regions", [False, True])
def test_entropy_is_added_with_its_weight(logits: torch.Tensor, regions: bool) -> None:
    images = torch.zeros(2, 1, 4, 5)
    given = logits[:, :2] if regions else logits
    both, code = (float(qa_loss(regions=regions, entropy_weight=w)([given], images)) for w in (0.3, 0.0))
    assert both - code == pytest.approx(0.3 * float(mean_entropy(given, regions=regions)), rel=1e-4)


def test_descent_reaches_success(logits: torch.Tensor) -> None:
    images = torch.zeros(2, 1, 4, 5)
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.2)
    loss = qa_loss()
    before = float(loss([logits], images).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss([logits], images).backward()
        optimizer.step()
    assert float(loss([logits], images).detach()) < 0.01 * before


def test_half_precision_gives_a_float32_loss(logits: torch.Tensor) -> None:
    images = torch.zeros(2, 1, 4, 5)
    loss = QALoss(lambda pictures: first_codes(pictures).half(), plain, regions=False)
    found = loss([logits.half()], images)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(qa_loss()([logits], images)), rel=1e-2)

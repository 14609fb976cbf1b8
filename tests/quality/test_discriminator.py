from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn
from torchvision.models import resnet18

from nnunet_qa.errors import ModelError, SelectionError
from nnunet_qa.quality import discriminator as module
from nnunet_qa.quality.coded_montages import CodedMontages
from nnunet_qa.quality.discriminator import Discriminator, code_metrics
from tests.body import one_thread
from tests.quality.easy_montages import CLASSES, SPEC, easy_montages


def small_network(weights: Path | None = None) -> nn.Module:
    """Stands in for ResNet-18 where only the course of fitting matters."""
    layers = {"conv1": nn.Conv2d(3, 4, 4, 4), "norm": nn.BatchNorm2d(4), "pool": nn.AdaptiveAvgPool2d(1)}
    return nn.Sequential(OrderedDict(**layers, flat=nn.Flatten(), fc=nn.Linear(4, 1)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resnet18_regressor", small_network)


def discriminator(**settings: Any) -> Discriminator:
    return Discriminator(SPEC, CLASSES, **{"epochs": 1, "batch_size": 6, "steps_per_epoch": 1, **settings})


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def fitted() -> Discriminator:
    made = Discriminator(SPEC, CLASSES, learning_rate=3e-4, epochs=6, batch_size=8, steps_per_epoch=6)
    return made.fit(easy_montages(120))


def test_it_learns_codes_of_unseen_subjects(fitted: Discriminator) -> None:
    assert fitted.metrics_["test"]["accuracy"] >= 0.9
    score = fitted.score(easy_montages(60, seed=9))
    assert score["accuracy"] >= 0.9
    assert score["auroc"] >= 0.99
    assert score["n"] == 60


def test_subjects_stay_apart_in_the_parts(fitted: Discriminator) -> None:
    assert list(fitted.parts_.columns) == ["case_id", "subject", "part"]
    assert len(fitted.parts_) == 120
    assert (fitted.parts_.groupby("subject")["part"].nunique() == 1).all()
    assert fitted.parts_.drop_duplicates("subject")["part"].value_counts().to_dict() == {
        "train": 8,
        "validation": 1,
        "test": 1,
    }
    assert fitted.metrics_["validation"]["n"] == fitted.metrics_["test"]["n"] == 12


def test_the_best_epoch_is_kept(fitted: Discriminator) -> None:
    history = fitted.history_
    assert history["epoch"].tolist() == list(range(1, len(history) + 1))
    assert fitted.best_epoch_ == history.loc[history["validation_rmse"].idxmin(), "epoch"]
    assert fitted.metrics_["validation"]["rmse"] == pytest.approx(history["validation_rmse"].min(), rel=1e-6)


class Scripted(Discriminator):
    """Its validation errors are made up, one an epoch; the code it predicts is the epoch."""

    errors: tuple[float, ...] = ()

    def _train_epoch(self, network: nn.Module, *_: Any) -> float:
        self.epoch = getattr(self, "epoch", 0) + 1
        network.conv1.weight.data.fill_(self.epoch)
        return 1.0

    def _judge(self, network: nn.Module, pictures: torch.Tensor) -> np.ndarray:
        if hasattr(self, "network_"):
            return super()._judge(network, pictures)
        return np.full(len(pictures), 1e6 + self.errors[self.epoch - 1])  # so large that the codes are nothing to it


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("errors", "patience", "best", "last"),
    [
        ((9, 3, 5, 4, 6, 1), 3, 2, 5),  # 3 epochs without a better one
        ((9, 3, 5, 4, 2, 6), 3, 5, 6),
        ((5, 5, 5, 5, 5, 5), 2, 1, 3),  # as good is not better
        ((6, 5, 4, 3, 2, 1), 1, 6, 6),
        ((6, 5, np.nan, 3, 2, 1), 3, 2, 2),  # nothing can become of NaN
    ],
)
def test_it_stops_early_and_takes_the_best_weights(
    errors: tuple[float, ...], patience: int, best: int, last: int
) -> None:
    made = Scripted(SPEC, CLASSES, epochs=len(errors), patience=patience)
    made.errors = errors
    made.fit(easy_montages())
    assert made.best_epoch_ == best
    assert len(made.history_) == last
    assert (made.network_.state_dict()["conv1.weight"] == best).all()


@pytest.mark.usefixtures("small")
def test_no_finite_epoch_is_an_error() -> None:
    made = Scripted(SPEC, CLASSES)
    made.errors = (np.nan,)
    with pytest.raises(ModelError, match=r"did not converge.*learning rate"):
        made.fit(easy_montages())


@pytest.mark.usefixtures("small")
def test_the_seed_decides_and_torchs_generator_is_left_alone() -> None:
    montages = easy_montages()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    one = discriminator(epochs=2, noise=0.1, seed=1).fit(montages)
    assert torch.equal(torch.rand(4), expected)
    same, other = (discriminator(epochs=2, noise=0.1, seed=seed).fit(montages) for seed in (1, 2))
    weights = [made.network_.state_dict() for made in (one, same, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["conv1.weight"], weights[2]["conv1.weight"])
    assert one.history_.equals(same.history_)


@pytest.mark.usefixtures("small")
def test_noise_changes_what_is_learnt() -> None:
    clean, noisy = (discriminator(noise=noise).fit(easy_montages()) for noise in (0.0, 0.5))
    assert not torch.equal(clean.network_.state_dict()["conv1.weight"], noisy.network_.state_dict()["conv1.weight"])


@pytest.mark.usefixtures("small")
def test_batches_hold_the_codes_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    loss = module.mse_loss
    monkeypatch.setattr(module, "mse_loss", lambda found, codes: (seen.append(codes), loss(found, codes))[1])
    montages = easy_montages(60)
    rare = [k for k in range(60) if montages.codes[k] != 2 or montages.subjects[k] in ("S00", "S01", "S02")]
    discriminator(steps_per_epoch=None).fit(montages.subset(rare))
    counts = torch.bincount(torch.cat(seen).long(), minlength=3)
    assert counts.max() - counts.min() <= 1
    assert all(len(codes) == 6 for codes in seen)


@pytest.mark.usefixtures("small")
def test_steps_follow_from_the_number_of_training_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = module.equal_draw
    monkeypatch.setattr(
        module, "equal_draw", lambda codes, n, rng: (drawn.append((len(codes), n)), draw(codes, n, rng))[1]
    )
    discriminator(steps_per_epoch=None, batch_size=7).fit(easy_montages(60))
    assert drawn == [(48, 49)]  # 8 of 10 subjects; 7 steps of 7


def test_the_network_is_frozen(fitted: Discriminator) -> None:
    before = {key: value.clone() for key, value in fitted.network_.state_dict().items()}
    assert not any(part.training for part in fitted.network_.modules())
    pictures = torch.rand(3, 3, 32, 32, requires_grad=True)
    (fitted.codes_of(pictures) ** 2).mean().backward()
    fitted.predict(easy_montages(6).pictures)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in fitted.network_.parameters())
    after = fitted.network_.state_dict()  # with the statistics of batch norm
    assert any("running_mean" in key for key in after)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_codes_are_differentiable_in_the_pictures(fitted: Discriminator) -> None:
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    codes = fitted.codes_of(pictures)
    assert codes.shape == (2,)
    codes.sum().backward()
    assert pictures.grad is not None
    step = 1e-2 * pictures.grad / pictures.grad.norm()
    with torch.no_grad():
        change = (fitted.codes_of(pictures + step) - fitted.codes_of(pictures - step)).sum() / 2
    assert change.item() == pytest.approx(1e-2 * pictures.grad.norm().item(), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(fitted: Discriminator, dtype: torch.dtype) -> None:
    pictures = (easy_montages(6).pictures / 255).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        codes = fitted.codes_of(pictures.to(dtype))
    assert codes.dtype == torch.float32
    np.testing.assert_allclose(codes.detach(), fitted.predict(pictures.detach()), atol=0.1)
    codes.sum().backward()
    assert pictures.grad is not None
    assert torch.isfinite(pictures.grad).all()
    assert pictures.grad.any()


def test_bytes_and_floats_give_the_same_codes(fitted: Discriminator) -> None:
    pictures = easy_montages(70).pictures  # more than are judged at a time
    predicted = fitted.predict(pictures)
    assert predicted.shape == (70,)
    assert predicted.dtype == np.float64
    np.testing.assert_array_equal(predicted, fitted.predict(pictures / 255))
    np.testing.assert_allclose(predicted[-3:], fitted.predict(pictures[-3:]), atol=1e-5)
    assert fitted.predict(pictures[:0]).shape == (0,)


def test_score_parts_the_sources(fitted: Discriminator) -> None:
    human, simulated = easy_montages(12), easy_montages(9, seed=1, source="simulated")
    score = fitted.score(CodedMontages.joined([human, simulated]))
    assert score["n"] == 21
    assert list(score["by_source"]) == ["human", "simulated"]
    for source, montages in (("human", human), ("simulated", simulated)):
        assert score["by_source"][source]["n"] == len(montages)
        expected = code_metrics(fitted.predict(montages.pictures), montages.codes)
        assert score["by_source"][source]["rmse"] == pytest.approx(expected["rmse"], rel=1e-5)


def test_metrics_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 200)
    predicted = codes + rng.normal(0, 0.8, 200)
    rounded = np.select([predicted < 0.5, predicted < 1.5], [0, 1], 2)
    found = code_metrics(predicted, codes)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(codes, rounded))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(codes, predicted))
    assert found["confusion"] == metrics.confusion_matrix(codes, rounded).tolist()
    assert found["recall"] == pytest.approx(metrics.recall_score(codes, rounded, average=None).tolist())
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(codes > 0, predicted))


def test_metrics_that_are_not_defined_are_none() -> None:
    found = code_metrics(np.array([-3.0, 7.0]), np.array([0, 0]))
    assert found["confusion"] == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert found["recall"] == [0.5, None, None]
    assert found["auroc"] is None
    empty = code_metrics(np.empty(0), np.empty(0))
    assert (empty["n"], empty["accuracy"], empty["rmse"], empty["auroc"]) == (0, None, None, None)


def test_pretrained_weights_are_the_start(tmp_path: Path) -> None:
    start = resnet18().state_dict()
    torch.save(start, tmp_path / "resnet18.pth")
    made = discriminator(weights=tmp_path / "resnet18.pth", learning_rate=1e-9).fit(easy_montages())
    torch.testing.assert_close(made.network_.state_dict()["layer4.1.conv2.weight"], start["layer4.1.conv2.weight"])
    with pytest.raises(ModelError, match="No such file"):
        discriminator(weights=tmp_path / "none.pth").fit(easy_montages())


def test_what_cannot_be_fitted_is_refused() -> None:
    montages = easy_montages()
    with pytest.raises(SelectionError, match="no case has code 1;"):
        discriminator().fit(montages.subset(np.flatnonzero(montages.codes != 1)))
    with pytest.raises(SelectionError, match='all montages are of the subject "S00"'):
        discriminator().fit(easy_montages(subjects=1))


@pytest.mark.usefixtures("small")
def test_two_subjects_leave_none_for_the_test() -> None:
    made = discriminator().fit(easy_montages(12, subjects=2))
    assert list(made.metrics_) == ["validation"]


@pytest.mark.usefixtures("small")
def test_the_test_part_can_be_left_out() -> None:
    made = discriminator().fit(easy_montages(), test=False)
    assert list(made.metrics_) == ["validation"]
    assert made.parts_["part"].value_counts().to_dict() == {"train": 54, "validation": 6}


def test_an_unfitted_one_and_pictures_of_another_size_are_refused(fitted: Discriminator) -> None:
    with pytest.raises(ModelError, match="has not been fitted"):
        discriminator().predict(easy_montages(3).pictures)
    with pytest.raises(ModelError, match="has not been fitted"):
        discriminator().codes_of(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ModelError, match=r"\(16, 32\) pixels, but the discriminator was made for \(32, 32\)"):
        fitted.predict(easy_montages(3).pictures[:, :, ::2])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1, found 0"),
        ({"patience": 0}, "patience must be"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"noise": -0.1}, "noise at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        discriminator(**settings)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.phantom import trainer_of
from tests.trainers.semi import begin_epoch, one_step, regions_with_pool, settings, started


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.fixture
def make(planned: dict[str, str], results: Path, qa_yaml: Any) -> Any:
    def trainer(dataset: str | None = None, **own: Any) -> Any:
        qa_yaml(settings(mean_teacher={"ramp_up": 0, **own}))
        return trainer_of(dataset or planned["2d"], "2d", 0, name="MeanTeacherTrainer")

    return trainer


def test_the_teacher_is_the_moving_average(make: Any) -> None:
    """By hand: of step t it keeps min(decay, 1 − 1/(t + 1)), and takes the rest from the network."""
    trainer = make(decay=0.6, every=2)
    with started(trainer):
        expected = weights(trainer.network)
        begin_epoch(trainer)
        for decay in (1 / 2, 0.6, 0.6):  # 1 − 1/3 is above 0.6; steps without pool images count too
            one_step(trainer)
            now = weights(trainer.network)
            expected = {key: decay * value + (1 - decay) * now[key] for key, value in expected.items()}
            for key, value in trainer.teacher.state_dict().items():
                torch.testing.assert_close(value, expected[key], msg=key)
        assert any(not torch.equal(value, now[key]) for key, value in expected.items())
        assert not trainer.teacher.training
        assert all(one.grad is None and not one.requires_grad for one in trainer.teacher.parameters())
        assert all(one.requires_grad for one in trainer.network.parameters())


def test_without_decay_the_teacher_is_the_network(make: Any) -> None:
    trainer = make(decay=0.0)
    with started(trainer):
        begin_epoch(trainer)
        one_step(trainer)
        now = trainer.network.state_dict()
        assert all(torch.equal(value, now[key]) for key, value in trainer.teacher.state_dict().items())


def test_the_loss_is_the_squared_distance_to_the_teacher(make: Any) -> None:
    trainer = make(noise=0.0)
    with started(trainer):
        begin_epoch(trainer)
        one_step(trainer)
        assert trainer.loss.collect() == pytest.approx(0, abs=1e-9)  # the teacher began as the network
        student, teacher = weights(trainer.network), weights(trainer.teacher)
        one_step(trainer)
        found = trainer.loss.collect()
        trainer.network.load_state_dict(student)
        trainer.teacher.load_state_dict(teacher)
        with torch.no_grad():
            one, other = (network(trainer._pool_images)[0].softmax(1) for network in (trainer.network, trainer.teacher))
        assert found > 0
        assert found == pytest.approx(float((one - other).square().mean()), rel=1e-3)


def test_the_network_sees_noise_and_the_teacher_does_not(make: Any) -> None:
    trainer = make(noise=0.2)
    seen: dict[str, torch.Tensor] = {}
    with started(trainer):
        begin_epoch(trainer)
        for name in ("network", "teacher"):
            getattr(trainer, name).register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
        one_step(trainer)
        annotated = trainer.batch_size
        assert torch.equal(seen["teacher"], trainer._pool_images)
        noise = seen["network"][annotated:] - trainer._pool_images
        assert float(noise.std()) == pytest.approx(0.2, rel=0.05)
        assert trainer.loss.collect() > 0


def test_regions_are_compared_by_their_sigmoids(
    make: Any, planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(regions_with_pool(planned, tmp_path, monkeypatch))
    one, other = torch.randn(3, 2, 8, 8), torch.randn(3, 2, 8, 8)
    trainer.initialize()
    trainer._pool_images, trainer.teacher = torch.zeros(3, 1, 8, 8), lambda _: [other]
    expected = (one.sigmoid() - other.sigmoid()).square().mean()
    assert float(trainer._unlabelled_loss([one])) == pytest.approx(float(expected), rel=1e-6)


def test_pretrained_weights_reach_the_teacher(make: Any) -> None:
    trainer = make()
    trainer.initialize()
    torch.nn.init.constant_(trainer.network.decoder.seg_layers[-1].weight, 0.25)  # as nnU-Net loads them: afterwards
    with started(trainer):
        assert (trainer.teacher.decoder.seg_layers[-1].weight == 0.25).all()


def test_statistics_of_batch_norm_are_averaged_too(make: Any) -> None:
    trainer = make(decay=0.75)
    trainer.network = torch.nn.BatchNorm1d(2)
    trainer._new_teacher()
    trainer._teacher_steps = 10
    trainer.network(torch.tensor([[1.0, 4.0], [3.0, 8.0]]))  # its running mean is a tenth of that of the batch
    trainer._move_teacher()
    torch.testing.assert_close(trainer.teacher.running_mean, 0.25 * torch.tensor([0.2, 0.6]))
    assert int(trainer.teacher.num_batches_tracked) == 1

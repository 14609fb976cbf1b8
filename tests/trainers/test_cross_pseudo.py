from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tests.phantom import trainer_of
from tests.trainers.semi import begin_epoch, one_step, regions_with_pool, settings, started


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.fixture
def make(planned: dict[str, str], results: Path, qa_yaml: Any) -> Any:
    def trainer(dataset: str | None = None, **own: Any) -> Any:
        qa_yaml(settings(cross_pseudo={"ramp_up": 0, **own}))
        return trainer_of(dataset or planned["2d"], "2d", 0, name="CrossPseudoTrainer")

    return trainer


def test_each_network_learns_from_the_labels_of_the_other(make: Any) -> None:
    trainer = make()
    with started(trainer):
        begin_epoch(trainer)
        first, second = weights(trainer.network), weights(trainer.second_network)
        assert any(not torch.equal(value, second[key]) for key, value in first.items())  # different beginnings
        batch = next(trainer.dataloader_train)
        result = trainer.train_step(batch)
        images = trainer._pool_images
        found = [float(value) for value in trainer.loss._remembered]
        trained = [weights(trainer.network), weights(trainer.second_network)]
        for before, after in zip((first, second), trained, strict=True):
            assert all(not torch.equal(after[key], value) for key, value in before.items() if "seg_layers" in key)

        # the outputs of both before the step
        outputs, supervised = [], []
        for network, before in ((trainer.network, first), (trainer.second_network, second)):
            network.load_state_dict(before)
            with torch.no_grad():
                outputs.append(network(images)[0])
                supervised.append(float(trainer.loss.supervised(network(batch["data"]), batch["target"])))
        assert float(result["loss"]) == pytest.approx(supervised[0], rel=1e-4)  # what nnU-Net logs is of the first
        assert supervised[0] != pytest.approx(supervised[1], rel=1e-3)
        expected = [float(cross_entropy(outputs[own], outputs[1 - own].argmax(1))) for own in (0, 1)]
        assert found == pytest.approx(expected, rel=1e-4)
        alone = [float(cross_entropy(one, one.argmax(1))) for one in outputs]
        assert found != pytest.approx(alone, rel=1e-3)


def test_both_take_the_annotated_images_in_every_step(make: Any) -> None:
    trainer = make(every=3, weight=0.5)
    with started(trainer):
        begin_epoch(trainer)
        sizes: dict[str, list[int]] = {"network": [], "second_network": []}
        for name, seen in sizes.items():
            getattr(trainer, name).register_forward_pre_hook(lambda _, given, seen=seen: seen.append(len(given[0])))
        for _ in range(3):
            before = weights(trainer.second_network)
            one_step(trainer)
            after = trainer.second_network.state_dict()
            assert any(not torch.equal(value, after[key]) for key, value in before.items())
    own = trainer.batch_size
    assert sizes["network"] == [own, own, 2 * own]
    assert sizes["second_network"] == [own, own, own, 2 * own]  # once to label the pool images


def test_the_second_learns_what_a_lone_network_would_where_the_pool_is_not_asked(make: Any) -> None:
    """Its step on annotated images is nnU-Net's: with the weights of the first it ends where the first does."""
    trainer = make(every=5)
    torch.set_num_threads(1)
    with started(trainer):
        begin_epoch(trainer)
        trainer.second_network.load_state_dict(trainer.network.state_dict())
        for _ in range(2):
            one_step(trainer)
        first = trainer.network.state_dict()
        for key, value in trainer.second_network.state_dict().items():
            torch.testing.assert_close(value, first[key], msg=key)


def test_the_second_optimiser_follows_the_learning_rate(make: Any, tmp_path: Path) -> None:
    trainer = make()
    with started(trainer):
        assert trainer.second_optimizer is not trainer.optimizer
        assert type(trainer.second_optimizer) is type(trainer.optimizer)
        rates = []
        for epoch in range(2):
            begin_epoch(trainer, epoch)
            (rate,) = {group["lr"] for group in trainer.second_optimizer.param_groups}
            assert rate == trainer.optimizer.param_groups[0]["lr"]
            rates.append(rate)
        assert rates[1] < rates[0]
        theirs = {id(parameter) for group in trainer.second_optimizer.param_groups for parameter in group["params"]}
        assert theirs == {id(parameter) for parameter in trainer.second_network.parameters()}
        one_step(trainer)
        trainer.save_checkpoint(str(tmp_path / "c.pth"))
    resumed = make()
    resumed.load_checkpoint(str(tmp_path / "c.pth"))
    for one, other in ((trainer.optimizer, resumed.optimizer), (trainer.second_optimizer, resumed.second_optimizer)):
        momenta = [[entry["momentum_buffer"] for entry in each.state_dict()["state"].values()] for each in (one, other)]
        assert momenta[0]
        assert all(torch.equal(mine, loaded) for mine, loaded in zip(*momenta, strict=True))


def test_labels_of_regions(make: Any, planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(regions_with_pool(planned, tmp_path, monkeypatch))
    trainer.initialize()
    logits, other = torch.randn(3, 2, 8, 8), torch.randn(3, 2, 8, 8)
    trainer._labels = trainer._hardened(other)
    expected = binary_cross_entropy_with_logits(logits, (other.sigmoid() > 0.5).float())
    assert float(trainer._unlabelled_loss([logits])) == pytest.approx(float(expected), rel=1e-6)
    assert torch.equal(trainer._own_labels, logits > 0)

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn

from nnunet_qa.trainers.level_losses import LevelLosses, add_epoch
from tests.phantom import trainer_of


def outputs(seed: int) -> list[torch.Tensor]:
    """Logits of three outputs, finest first."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, size, size, generator=generator) for size in (8, 4, 2)]


def targets(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 3, (2, size, size), generator=generator) for size in (8, 4, 2)]


@pytest.mark.parametrize("weights", [[1 / 3] * 3, [4 / 7, 2 / 7, 1 / 7], [2 / 3, 1 / 3, 0.0]])
def test_loss_and_gradients_are_those_of_deep_supervision(weights: list[float]) -> None:
    ours, stock = outputs(0), outputs(0)
    for one in (*ours, *stock):
        one.requires_grad_()
    found = LevelLosses(nn.CrossEntropyLoss(), weights)(ours, targets(1))
    expected = DeepSupervisionWrapper(nn.CrossEntropyLoss(), weights)(stock, targets(1))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    found.backward()
    expected.backward()
    for one, other, weight in zip(ours, stock, weights, strict=True):
        if weight == 0:
            assert one.grad is None  # not 0, with which weight decay and momentum would still move the head
            assert other.grad is None
        else:
            assert torch.equal(one.grad, other.grad)


def test_an_output_of_no_weight_may_be_infinite() -> None:
    made = outputs(0)
    made[2].fill_(torch.inf)
    assert LevelLosses(nn.CrossEntropyLoss(), [0.5, 0.5, 0.0])(made, targets(0)).isfinite()


def test_the_mean_of_each_level_since_the_last_time_coarsest_first() -> None:
    loss = LevelLosses(nn.CrossEntropyLoss(), [0.5, 0.3, 0.2])
    assert loss.collect() == []
    for batches in ((0, 1, 2), (3, 4)):
        expected = np.zeros(3)
        for seed in batches:
            made = [one.requires_grad_() for one in outputs(seed)]
            loss(made, targets(seed))
            for level, (logits, target) in enumerate(zip(reversed(made), reversed(targets(seed)), strict=True)):
                chances = np.exp(logits.detach().double().numpy())
                chances /= chances.sum(1, keepdims=True)
                right = np.take_along_axis(chances, target.numpy()[:, None], 1)
                expected[level] -= np.log(right).mean() / len(batches)
        assert not any(one.requires_grad for one in loss.remembered)
        assert loss.collect() == pytest.approx(expected.tolist(), rel=1e-5)


def test_outputs_and_targets_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        LevelLosses(nn.CrossEntropyLoss(), [0.5, 0.3, 0.2])(outputs(0), targets(0)[:2])


def rows(path: Path) -> list[list[object]]:
    return pd.read_csv(path)[["epoch", "part", "level_1"]].to_numpy().tolist()


def test_an_epoch_that_is_run_again_replaces_its_rows_and_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "level_losses.csv"
    for epoch in range(3):
        for part, loss in (("train", 0.1), ("validation", 0.2)):
            add_epoch(path, epoch, part, [epoch + loss, 9.12345678])
    assert pd.read_csv(path).columns.tolist() == ["epoch", "part", "level_1", "level_2"]
    assert pd.read_csv(path)["level_2"].tolist() == [9.123457] * 6
    add_epoch(path, 1, "train", [7.0, 7.0])
    assert rows(path) == [[0, "train", 0.1], [0, "validation", 0.2], [1, "validation", 1.2], [1, "train", 7.0]]
    add_epoch(path, 1, "validation", [8.0, 8.0])
    assert rows(path)[2:] == [[1, "train", 7.0], [1, "validation", 8.0]]


def test_a_training_writes_its_levels_and_goes_on_after_a_resume(
    planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    settings = "training: {epochs: 2, iterations_per_epoch: 2, val_iterations_per_epoch: 1}\n"
    (tmp_path / "qa.yaml").write_text(settings + "scoring: {every_epoch: false, final: false}\n")
    monkeypatch.setenv("nnUNet_qa_config", str(tmp_path / "qa.yaml"))
    first = trainer_of(planned["regions"], "2d", 0, name="QUNetPlusPlusTrainer")
    first.num_epochs = 1
    first.run_training()
    path = Path(first.output_folder) / "level_losses.csv"
    add_epoch(path, 1, "train", [5.0])  # of an epoch that was stopped before its checkpoint
    second = trainer_of(planned["regions"], "2d", 0, name="QUNetPlusPlusTrainer")
    second.load_checkpoint(os.fspath(Path(first.output_folder) / "checkpoint_final.pth"))
    second.run_training()
    table = pd.read_csv(path)
    parts = [(0, "train"), (0, "validation"), (1, "train"), (1, "validation")]
    assert list(zip(table["epoch"], table["part"], strict=True)) == parts
    levels = [f"level_{level + 1}" for level in range(len(second.loss.weight_factors))]
    assert table.columns.tolist() == ["epoch", "part", *levels]
    weights = np.array(second.loss.weight_factors[::-1])
    logged = second.logger.local_logger.my_fantastic_logging
    trained, validated = (table[table["part"] == part][levels] @ weights for part in ("train", "validation"))
    np.testing.assert_allclose(trained, logged["train_losses"], rtol=1e-4)
    np.testing.assert_allclose(validated, logged["val_losses"], rtol=1e-4)

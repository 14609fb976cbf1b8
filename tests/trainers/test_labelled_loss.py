"""The loss of annotated cases that label only some of the classes, in the trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from skimage.io import imread, imsave

import nnunet_qa.trainers.qa_discriminator as qa_discriminator
from nnunet_qa.errors import DatasetError, SelectionError
from nnunet_qa.losses.multi_source_dice import PartialLabelLoss
from tests.phantom import trainer_of
from tests.trainers.semi import TINY, begin_epoch, copied, seed, settings, started, write_discriminator

PARTIAL = {"S0_c0": (True, False), "S0_c1": (True, False), "S2_c0": (True, False)}
"""Cases that label only the small ball."""


@pytest.fixture
def declare(planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes which classes cases label into a copy of the dataset, and takes the others from their labels."""
    raw = copied(planned["2d"], tmp_path, monkeypatch)

    def write(cells: dict[str, str], *, keep: bool = False) -> str:
        table = pd.read_csv(raw / "cases.csv", dtype=str)
        table["labelled_classes"] = table["case_id"].map(cells)
        table.to_csv(raw / "cases.csv", index=False)
        for case, classes in cells.items():
            if classes == "small" and not keep:
                path = raw / "labelsTr" / f"{case}.png"
                label = imread(path)
                imsave(path, np.where(label == 2, 0, label).astype(np.uint8), check_contrast=False)
        return planned["2d"]

    return write


def base(trainer: Any) -> Any:
    """The loss of one output of annotated images."""
    supervised = getattr(trainer.loss, "supervised", trainer.loss)
    return getattr(supervised, "loss", supervised)


def initialised(dataset: str, name: str = "QAsemiTrainer") -> Any:
    trainer = trainer_of(dataset, "2d", 0, name=name)
    trainer.initialize()
    return trainer


@pytest.mark.parametrize(
    ("kind", "cells", "partial"),
    [
        ("auto", {}, False),
        ("auto", {"S0_c0": "small;large"}, False),  # all classes, said aloud
        ("auto", {"S0_c0": "small"}, True),
        ("nnunet", {"S0_c0": "small"}, False),
        ("msdl", {}, True),
        ("msdl", {"S0_c0": "small;large"}, True),
    ],
)
def test_which_loss_is_taken(
    declare: Any, results: Path, qa_yaml: Any, kind: str, cells: dict[str, str], partial: bool
) -> None:
    dataset = declare(cells)
    for pool in (True, False):
        qa_yaml(settings(labelled_loss={"kind": kind}, pool={"enabled": pool}))
        trainer = initialised(dataset)
        assert isinstance(base(trainer), PartialLabelLoss if partial else DC_and_CE_loss)


def test_the_other_trainers_take_it_too(declare: Any, results: Path, qa_yaml: Any) -> None:
    dataset = declare({"S0_c0": "small"})
    qa_yaml(settings())
    for name in ("MeanTeacherTrainer", "CrossPseudoTrainer"):
        assert isinstance(base(initialised(dataset, name)), PartialLabelLoss)


def test_a_label_that_its_case_does_not_declare_stops_the_training(declare: Any, results: Path, qa_yaml: Any) -> None:
    dataset = declare({"S0_c0": "small"}, keep=True)
    qa_yaml(settings())
    with pytest.raises(
        DatasetError, match=r'S0_c0\.png: holds the label 2 \("large"\), but its case declares only small'
    ):
        initialised(dataset)


def test_classes_that_a_case_does_not_label_take_no_loss(
    declare: Any, results: Path, qa_yaml: Any, tmp_path: Path
) -> None:
    """Each case of a batch by its name; pool images beside them change nothing in that."""
    dataset = declare(dict.fromkeys(PARTIAL, "small"))
    qa_yaml(settings())
    path = write_discriminator(trainer_of(dataset, "2d", 0), tmp_path / "any.pt")
    qa_yaml(settings(qa_loss={"discriminator": str(path)}))
    trainer = trainer_of(dataset, "2d", 0)
    every = set(PARTIAL) | {f"S{s}_c{c}" for s in range(4) for c in range(2)}
    with started(trainer):
        begin_epoch(trainer)
        for step in (trainer.train_step, trainer.validation_step):
            batch = next(trainer.dataloader_train)
            first = ["S0_c0", "S1_c0"] if step == trainer.train_step else ["S1_c1", "S2_c0"]
            batch["keys"] = [*first, *batch["keys"][2:]]
            assert set(batch["keys"]) <= every
            expected = [PARTIAL.get(case, (True, True)) for case in batch["keys"]]
            step(batch)
            assert torch.equal(base(trainer).labelled, torch.tensor(expected))

        batch = next(trainer.dataloader_train)
        batch["keys"] = ["S0_c0"] * len(batch["keys"])
        trainer._tell_labelled(batch)
        with torch.no_grad():
            outputs = trainer.network(batch["data"])
            found = trainer.loss(outputs, batch["target"])
            without = [torch.where(target == 2, 0, target) for target in batch["target"]]
            assert any((target == 2).any() for target in batch["target"])
            assert torch.equal(trainer.loss(outputs, without), found)  # its pixels are background, which says nothing
            trainer._tell_labelled({"keys": ["S1_c0"] * len(batch["keys"])})
            assert not torch.isclose(trainer.loss(outputs, batch["target"]), found)
            assert not torch.isclose(trainer.loss(outputs, without), trainer.loss(outputs, batch["target"]))


def test_cross_entropy_is_a_setting(declare: Any, results: Path, qa_yaml: Any) -> None:
    dataset = declare({"S0_c0": "small"})
    found = []
    for cross_entropy in (True, False):
        qa_yaml(settings(labelled_loss={"cross_entropy": cross_entropy}, pool={"enabled": False}))
        loss = base(initialised(dataset))
        assert loss.cross_entropy is cross_entropy
        found.append(float(loss(torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4))))
    assert found[0] > found[1]


def test_cases_with_partial_labels_teach_the_discriminator_nothing(
    declare: Any, planned: dict[str, str], results: Path, qa_yaml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing organ would be right there."""
    seen: list[str] = []
    real = qa_discriminator.simulated_montages

    def spied(patches: list[Any], **how: Any) -> Any:
        seen.extend(patch.case_id for patch in patches)
        return real(patches, **how)

    monkeypatch.setattr(qa_discriminator, "simulated_montages", spied)
    qa_yaml(settings(qa_loss={"simulation": {**TINY, "patches": 12}}))
    train = sorted(trainer_of(planned["2d"], "2d", 0).do_split()[0])
    dataset = declare({train[0]: "small"})
    seed()
    with started(trainer_of(dataset, "2d", 0)) as trainer:
        assert set(seen) == set(train[1:])
        assert sorted(trainer.get_tr_and_val_datasets()[0].identifiers) == train  # it is trained on nevertheless
    declare(dict.fromkeys(train, "small"))
    with (
        pytest.raises(SelectionError, match="every training case labels only some"),
        started(trainer_of(dataset, "2d", 0)),
    ):
        pass


def test_a_training_on_partial_labels(declare: Any, results: Path, qa_yaml: Any) -> None:
    dataset = declare(dict.fromkeys(PARTIAL, "small"))
    qa_yaml(settings(qa_loss={"enabled": False}))
    trainer = trainer_of(dataset, "2d", 0)
    trainer.num_epochs = 1
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=0))
    assert np.isfinite(trainer.logger.get_value("val_losses", step=0))

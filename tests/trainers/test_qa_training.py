"""The QA loss in QAsemiTrainer: its discriminator, its options and its guard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.io import imread

import nnunet_qa.trainers.qa_discriminator as qa_discriminator
from nnunet_qa.errors import ModelError, SelectionError
from nnunet_qa.losses.qa import mean_entropy
from nnunet_qa.quality.discriminator_file import load
from tests.phantom import trainer_of
from tests.trainers.semi import (
    TINY,
    NoLoss,
    begin_epoch,
    change,
    logs,
    one_step,
    regions_with_pool,
    seed,
    settings,
    started,
    write_discriminator,
)

FITTED = "QA discriminator: fitted on simulated errors"


def state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def given(planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path) -> Any:
    """Makes a trainer of the 2D phantom with a discriminator of random weights, or one that always says `code`."""

    def make(*, code: float | None = None, **own: Any) -> Any:
        qa_yaml(settings())
        path = write_discriminator(trainer_of(planned["2d"], "2d", 0), tmp_path / "given.pt", code=code)
        qa_yaml(settings(qa_loss={"ramp_up": 0, "discriminator": str(path), **own}))
        return trainer_of(planned["2d"], "2d", 0)

    return make


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """With what errors were simulated, and what came of it."""
    seen: list[dict[str, Any]] = []
    real = qa_discriminator.simulated_montages

    def spied(patches: list[Any], **how: Any) -> Any:
        made = real(patches, **how)
        seen.append({"patches": patches, "made": made, **how})
        return made

    monkeypatch.setattr(qa_discriminator, "simulated_montages", spied)
    return seen


def test_a_training_fits_its_discriminator_and_keeps_it_after_a_resume(
    planned: dict[str, str], results: Path, qa_yaml: Any, simulated: list[dict[str, Any]]
) -> None:
    """Every setting of the simulation counts; nothing changes the discriminator from then on."""
    seed()
    simulation = {"patches": 7, "per_code": 2, "epochs": 2, "patience": 3, "learning_rate": 0.002}
    codes = {"success": 0.9, "failure": 0.6}
    qa_yaml(settings(qa_loss={"simulation": simulation, "codes": codes, "noise": 0.05}))
    first = trainer_of(planned["2d"], "2d", 0)
    first.num_epochs = 1
    first.run_training()

    (call,) = simulated
    assert call["per_code"] == 2
    assert len(call["patches"]) % 7 == 0
    assert {patch.case_id for patch in call["patches"]} <= set(first.do_split()[0])  # never of validation cases
    assert all(patch.case_id.startswith(f"{patch.subject}_") for patch in call["patches"])  # from cases.csv
    made = call["made"]
    np.testing.assert_array_equal(made.codes, np.where(made.dice >= 0.9, 0, np.where(made.dice < 0.6, 2, 1)))
    own = Path(first.output_folder) / "discriminator.pt"
    description = json.loads(own.with_suffix(".json").read_text())
    assert description["about"] == {"codes": {"simulated": len(made)}, "fold": 0}
    wanted = {"epochs": 2, "patience": 3, "learning_rate": 0.002, "noise": 0.05}
    assert {key: description["settings"][key] for key in wanted} == wanted
    assert len(description["history"]) == 2
    assert FITTED in logs(first)
    written = own.read_bytes()
    network = first.discriminator.network_
    assert equal(state(network), state(load(own).network_))  # after the training, batch norm's statistics too
    assert not network.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())

    second = trainer_of(planned["2d"], "2d", 0)
    second.load_checkpoint(str(Path(first.output_folder) / "checkpoint_final.pth"))
    second.run_training()
    assert len(simulated) == 1
    assert FITTED not in logs(second)
    assert own.read_bytes() == written
    assert equal(state(second.discriminator.network_), state(network))
    logged = second.logger.local_logger.my_fantastic_logging
    assert len(logged["qa_loss"]) == len(logged["train_losses"]) == 2
    assert logged["qa_loss"][0] == first.logger.get_value("qa_loss", step=0)
    assert np.isfinite(logged["qa_loss"]).all()
    assert "qa_loss" in logs(second)
    assert imread(Path(second.output_folder) / "progress.png").shape[0] == 5400 + 2 * 1800


@pytest.mark.parametrize(("kind", "configuration"), [("3d", "3d_fullres"), ("3d", "2d")])
def test_volumes_fit_a_discriminator_too(
    planned: dict[str, str],
    results: Path,
    qa_yaml: Any,
    simulated: list[dict[str, Any]],
    kind: str,
    configuration: str,
) -> None:
    seed()
    own: dict[str, Any] = {"simulation": TINY, "batch_size": 3, "ramp_up": 0}
    if configuration == "3d_fullres":
        own.update(views=[0, 2], slices=4)
    qa_yaml(settings(qa_loss=own))
    trainer = trainer_of(planned[kind], configuration, 0)
    with started(trainer):
        specs = trainer.renderer.specs
        if configuration == "3d_fullres":
            assert [(spec.axis, spec.slices) for spec in specs] == [(0, 4), (2, 4)]
        else:
            assert [spec.slices for spec in specs] == [4]  # three slices on a grid of two by two
        assert [call["spec"] for call in simulated] == list(specs)
        description = json.loads((Path(trainer.output_folder) / "discriminator.json").read_text())
        codes = description["about"]["codes"]
        assert codes == {"simulated": sum(len(call["made"]) for call in simulated)}  # of all views
        begin_epoch(trainer)
        one_step(trainer)
        assert math.isfinite(trainer.loss.collect())


def test_patches_for_a_fit_hold_foreground_more_often(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    """Stacks too, which are placed by their first slice."""
    qa_yaml(settings())
    trainer = trainer_of(planned["3d"], "2d", 0)
    trainer.initialize()
    cases, _ = trainer.get_tr_and_val_datasets()
    seed()
    for stacked, share, low, high in ((True, 0.5, 30, 70), (True, 0.0, 0, 0), (False, 0.5, 100, 100)):
        loader = trainer._plain_loader(cases, 4, stacked=stacked, foreground=share)
        place = 0 if stacked else 3  # nnU-Net asks for it in the last images of a batch
        assert low <= sum(loader.get_do_oversample(place) for _ in range(100)) <= high


def test_regions_fit_a_discriminator_too(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed()
    qa_yaml(settings(qa_loss={"simulation": TINY, "ramp_up": 0}))
    trainer = trainer_of(regions_with_pool(planned, tmp_path, monkeypatch), "2d", 0)
    with started(trainer):
        assert trainer.discriminator.classes == ("both", "large")
        begin_epoch(trainer)
        one_step(trainer)
        assert math.isfinite(trainer.loss.collect())


def test_where_the_discriminator_comes_from(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a discriminator was fitted although there is one")

    monkeypatch.setattr(qa_discriminator, "simulated_montages", never)
    qa_yaml(settings())
    trainer = trainer_of(planned["2d"], "2d", 0)
    shared = write_discriminator(trainer, results / planned["2d"] / "qa" / "discriminator.pt", code=1.0)
    named = write_discriminator(trainer, tmp_path / "named.pt", code=2.0)
    own = write_discriminator(trainer, Path(trainer.output_folder) / "discriminator.pt", code=0.5)
    with started(trainer):
        assert float(trainer.discriminator.network_.fc.bias) == 1.0
        assert f"QA discriminator: {shared}" in logs(trainer)
        assert "validation cases of this fold" not in logs(trainer)
        change(trainer, "qa_loss", discriminator=named)
        assert float(trainer._find_discriminator(trainer.renderer).network_.fc.bias) == 2.0
        trainer.current_epoch = 5  # resumed: what the user named still counts, unless it was fitted anew since
        assert float(trainer._find_discriminator(trainer.renderer).network_.fc.bias) == 2.0
        change(trainer, "qa_loss", refit_every=2)
        assert float(trainer._find_discriminator(trainer.renderer).network_.fc.bias) == 0.5
        change(trainer, "qa_loss", refit_every=0, discriminator=None)
        shared.unlink()
        assert float(trainer._find_discriminator(trainer.renderer).network_.fc.bias) == 0.5
        trainer.current_epoch = 0  # a new training does not take the leavings of an old one
        with pytest.raises(AssertionError, match="was fitted"):
            trainer._find_discriminator(trainer.renderer)
        assert own.is_file()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "Dataset999_Else"}, "made for dataset Dataset999_Else, not Dataset701_Phantom2D"),
        ({"classes": ["large", "small"]}, r"made for classes \['large', 'small'\], not \['small', 'large'\]"),
        ({"output": (32, 32)}, r"made for montage output \[32, 32\], not \["),
    ],
)
def test_a_discriminator_for_something_else_is_refused(
    given: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    trainer = given()
    write_discriminator(trainer, tmp_path / "given.pt", **changes)
    with pytest.raises(ModelError, match=rf"given\.pt: was {said}"), started(trainer):
        pass
    assert (trainer.pool is None) == ("output" not in changes)  # before hours go into the pool, where that can be


@pytest.mark.parametrize(
    ("own", "error", "said"),
    [
        ({"discriminator": "/no/such/file.pt"}, ModelError, "/no/such/file.pt"),
        ({"simulation": {**TINY, "weights": "/no/such/resnet.pth"}}, ModelError, "/no/such/resnet.pth"),
        ({"views": [1]}, SelectionError, "slices along axis 1"),
    ],
)
def test_what_is_not_there_is_refused(
    planned: dict[str, str], results: Path, qa_yaml: Any, own: dict[str, Any], error: type[Exception], said: str
) -> None:
    qa_yaml(settings(qa_loss=own))
    trainer = trainer_of(planned["2d"], "2d", 0)
    with pytest.raises(error, match=said), started(trainer):
        pass


def test_a_discriminator_that_always_says_the_same_changes_nothing(given: Any) -> None:
    """The weights after some steps are those of a training without QA loss on the same batches."""
    torch.set_num_threads(1)
    found, initial = [], None
    for enabled in (True, False):
        trainer = given(code=1.5, enabled=enabled, weight=1.0)
        with started(trainer):
            initial = initial or state(trainer.network)
            trainer.network.load_state_dict(initial)
            begin_epoch(trainer)
            for step in range(4):
                seed(step)
                batch = next(trainer.dataloader_train)
                trainer.train_step(batch)  # with pool images, or without
            found.append(state(trainer.network))
            if enabled:
                assert trainer.loss.collect() == pytest.approx(1.5**2)
    assert list(found[0]) == list(found[1])
    for key, value in found[1].items():
        torch.testing.assert_close(found[0][key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_options_of_the_loss(given: Any) -> None:
    """Each changes the loss of the same predictions for the same pool images, in the way that its name says."""
    trainer = given()
    with started(trainer):
        begin_epoch(trainer)
        one_step(trainer)
        images = trainer._pool_images
        outputs = [4 * output.detach() for output in trainer.network(images)]

        def loss(**own: Any) -> float:
            before = trainer.config
            change(trainer, "qa_loss", **own)
            trainer._use(trainer.discriminator)
            seed()
            found = float(trainer._unlabelled_loss(outputs))
            trainer.config = before
            return found

        def by_hand(logits: torch.Tensor, *, hard: bool = False) -> torch.Tensor:
            p = logits.softmax(1)[:, 1:]
            if hard:
                p = torch.nn.functional.one_hot(logits.argmax(1), 3).movedim(-1, 1)[:, 1:].float()
            return trainer.discriminator.codes_of(trainer.renderer(images, p)).square().mean()

        plain = float(by_hand(outputs[0]))
        assert loss() == pytest.approx(plain, rel=1e-5)
        assert loss(hard=True) == pytest.approx(float(by_hand(outputs[0], hard=True)), rel=1e-4)
        assert loss(hard=True) != pytest.approx(plain, rel=1e-4)
        assert loss(noise=0.3) != pytest.approx(plain, rel=1e-4)
        entropy = float(mean_entropy(outputs[0], regions=False))
        assert loss(entropy_weight=0.5) == pytest.approx(plain + 0.5 * entropy, rel=1e-5)
        size = images.shape[2:]
        resized = [torch.nn.functional.interpolate(one, size=size, mode="bilinear") for one in outputs]
        every = float(torch.stack([by_hand(one) for one in resized]).mean())
        assert len(outputs) >= 3
        assert loss(outputs="all") == pytest.approx(every, rel=1e-5)
        assert loss(outputs="all") != pytest.approx(plain, rel=1e-4)


def test_all_outputs_get_a_gradient_where_all_are_shown(given: Any) -> None:
    trainer = given(outputs="all")
    with started(trainer):
        begin_epoch(trainer)
        trainer.loss.supervised = NoLoss()
        one_step(trainer)
        assert all(head.weight.grad.abs().max() > 0 for head in trainer.network.decoder.seg_layers)


def test_the_discriminator_is_fitted_anew_on_current_predictions(
    planned: dict[str, str], results: Path, qa_yaml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Any]] = []
    real = qa_discriminator.predicted_montages

    def spied(predictions: list[Any], **how: Any) -> Any:
        seen.append(predictions)
        return real(predictions, **how)

    monkeypatch.setattr(qa_discriminator, "predicted_montages", spied)
    seed()
    qa_yaml(settings(qa_loss={"simulation": TINY, "refit_every": 2, "ramp_up": 0}))
    trainer = trainer_of(planned["2d"], "2d", 0)
    with started(trainer):
        first = state(trainer.discriminator.network_)
        begin_epoch(trainer, 0)
        begin_epoch(trainer, 1)
        assert not seen
        assert equal(state(trainer.discriminator.network_), first)
        assert "WARNING: the guard needs 10 epochs with one discriminator" in logs(trainer)
        logged = trainer.logger.local_logger.my_fantastic_logging
        logged.update(qa_loss=[1, 1], ema_fg_dice=[0, 0], disagreement_pool=[1, 1])
        begin_epoch(trainer, 2)
        (predictions,) = seen
        patch, probabilities = predictions[0]
        assert probabilities.shape == (2, *patch.image.shape)
        assert 0 <= probabilities.min() <= probabilities.max() <= 1
        assert trainer.network.training
        assert not equal(state(trainer.discriminator.network_), first)
        codes = json.loads((Path(trainer.output_folder) / "discriminator.json").read_text())["about"]["codes"]
        assert codes["dice"] == len(predictions) >= 4
        one_step(trainer)
        assert math.isfinite(trainer.loss.collect())


GUARD = {"patience": 2, "tolerance": 0.1, "smoothing": 1}


def test_the_guard_stops_the_loss_for_good(given: Any, planned: dict[str, str], tmp_path: Path) -> None:
    trainer = given(guard=GUARD)
    trainer.num_epochs = 8
    bad = {"qa_loss": [2.0, 1.0, 0.9], "ema_fg_dice": [0.8, 0.6, 0.6], "disagreement_pool": [0.1, 0.1, 0.1]}
    with started(trainer):
        log = trainer.logger.local_logger.my_fantastic_logging
        for epoch in range(3):
            begin_epoch(trainer, epoch)
        log.update(bad)
        for own in ({"enabled": False}, {"patience": 3}, {"tolerance": 0.3}, {"smoothing": 3}):
            change(trainer, "qa_loss", guard={**GUARD, **own})
            begin_epoch(trainer, 3)
            assert trainer.stopped is None
        change(trainer, "qa_loss", guard=GUARD, refit_every=2)
        begin_epoch(trainer, 3)  # the losses of the first two epochs are those of another discriminator
        assert trainer.stopped is None
        change(trainer, "qa_loss", refit_every=0)
        begin_epoch(trainer, 3)
        assert trainer.stopped is not None
        assert "QA loss: stopped by its guard: the labelled Dice fell from 0.800 (epoch 0) to 0.600" in logs(trainer)
        one_step(trainer)
        assert trainer._pool_images is None
        trainer.on_train_epoch_end([{"loss": np.float32(1.0)}])
        assert math.isnan(log["qa_loss"][3])
        trainer.save_checkpoint(str(tmp_path / "stopped.pth"))

    resumed = trainer_of(planned["2d"], "2d", 0)
    resumed.num_epochs = 8
    resumed.load_checkpoint(str(tmp_path / "stopped.pth"))
    assert resumed.stopped == trainer.stopped
    with started(resumed):
        begin_epoch(resumed, 4)
        one_step(resumed)
        assert resumed._pool_images is None

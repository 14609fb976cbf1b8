from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_qa.data.paths import preprocessed_dataset_folder, raw_dataset_folder
from nnunet_qa.errors import DatasetError, ModelError
from nnunet_qa.interaction.click_maps import CHECKPOINT_KEY, ClickChannels, click_maps
from nnunet_qa.interaction.clicks import next_click
from nnunet_qa.interaction.dialogue import Draw
from nnunet_qa.interaction.zoom import zoomed
from nnunet_qa.networks.click_input import ClickConvolution
from tests.phantom import run, trainer_of, write_dataset
from tests.trainers.semi import change, one_step, seed, settings, started

PAGE = Path(__file__).parents[2] / "docs" / "interactive.md"


def quick(**interaction: Any) -> str:
    plain = {"unclicked": 0, "zoomed": 0}  # most tests compare what is clicked with the batch as it was
    return settings(pool={"enabled": False}, scoring={"final": False}, interaction=plain | interaction)


def made(dataset: str, configuration: str = "2d") -> Any:
    seed()
    trainer = trainer_of(dataset, configuration, 0, name="InteractiveTrainer")
    trainer.configuration_manager.configuration["batch_size"] = 2
    return trainer


def record(trainer: Any, monkeypatch: pytest.MonkeyPatch, step: str = "train_step") -> list[dict]:
    """The batches that reach nnU-Net's own step."""
    seen: list[dict] = []
    stock = getattr(nnUNetTrainer, step)
    monkeypatch.setattr(nnUNetTrainer, step, lambda self, batch: (seen.append(batch), stock(self, batch))[1])
    return seen


@pytest.mark.parametrize(
    ("kind", "configuration", "interaction"),
    [("2d", "2d", {"previous": True}), ("3d", "3d_fullres", {"mode": "line", "unclicked": 1, "zoomed": 1})],
    ids=["2d", "3d"],
)
def test_trains_goes_on_and_predicts_with_stock_nnunet(
    planned: dict[str, str],
    qa_yaml: Any,
    results: Path,
    tmp_path: Path,
    kind: str,
    configuration: str,
    interaction: dict[str, Any],
) -> None:
    qa_yaml(quick(most=2, **interaction))
    trainer = made(planned[kind], configuration)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    assert np.isfinite(trainer.logger.get_value("disagreement_val", step=None)).all()
    weights = Path(trainer.output_folder) / "checkpoint_final.pth"
    fields = torch.load(weights, weights_only=False)[CHECKPOINT_KEY]
    spacing = tuple(trainer.configuration_manager.spacing)
    assert ClickChannels(**fields) == ClickChannels(
        labels=2, sigma=2.0, spacing=spacing, previous=interaction.get("previous", False)
    )

    qa_yaml(quick(most=2, **{**interaction, "sigma": 3}))
    with pytest.raises(ModelError, match=r"trained with clicks of sigma 2.0, but 3.0 in qa.yaml; set it back"):
        made(planned[kind], configuration).load_checkpoint(str(weights))
    qa_yaml(quick(most=2, **interaction))
    again = made(planned[kind], configuration)
    again.initialize()
    again.load_checkpoint(str(weights))
    assert again.current_epoch == 2
    for name, value in again.network.state_dict().items():
        assert torch.equal(value, trainer.network.state_dict()[name])

    ending = ".png" if configuration == "2d" else ".nii.gz"
    image = raw_dataset_folder(planned[kind]) / "imagesTs" / f"T0_c0_0000{ending}"
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
    assert any(isinstance(module, ClickConvolution) for module in predictor.network.modules())
    predictor.predict_from_files_sequential([[os.fspath(image)]], [os.fspath(tmp_path / "predicted")])
    assert (tmp_path / f"predicted{ending}").is_file()


def test_clicks_reach_the_network_and_negatives_are_empty_at_all_scales(
    planned: dict[str, str], qa_yaml: Any, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(quick(least=1, most=1, negative=0))
    trainer = made(planned["2d"])
    with started(trainer):
        batch = next(trainer.dataloader_train)
        before = [target.clone() for target in batch["target"]]
        seen = record(trainer, monkeypatch)
        trainer.train_step(batch)
        monkeypatch.setattr("nnunet_qa.trainers.interactive.draw", lambda *_: Draw((1, 1), (True, False)))
        trainer.train_step(batch)
    first, second = seen
    for one in (first, second):
        np.testing.assert_array_equal(one["data"][:, :1], batch["data"])
        assert one["data"].shape[1] == 1 + 3 + 2
    for sample in range(2):
        click = next_click(before[0][sample, 0].numpy(), None, spacing=trainer.configuration_manager.spacing)
        expected = click_maps([click] if click else [], batch["data"].shape[2:], 2)
        np.testing.assert_array_equal(first["data"][sample, 1:4], expected)
    np.testing.assert_array_equal(second["data"][0, 1], first["data"][0, 1:4].amax(0))
    assert not second["data"][0, 2:].any()
    for old, plain, emptied in zip(before, first["target"], second["target"], strict=True):
        assert torch.equal(plain, old)
        assert not emptied[0].any()
        assert torch.equal(emptied[1], old[1])


@pytest.mark.parametrize(("unclicked", "again"), [(1.0, 2), (0.5, 1), (0.1, 1)])
def test_patches_are_also_trained_without_their_clicks(
    planned: dict[str, str], qa_yaml: Any, results: Path, monkeypatch: pytest.MonkeyPatch, unclicked: float, again: int
) -> None:
    qa_yaml(quick(least=1, most=1, negative=0, unclicked=unclicked))
    trainer = made(planned["2d"])
    monkeypatch.setattr("nnunet_qa.trainers.interactive.draw", lambda *_: Draw((1, 1), (True, True)))
    with started(trainer):
        batch = next(trainer.dataloader_train)
        truths = [target.clone() for target in batch["target"]]
        seen = record(trainer, monkeypatch)
        maps: list[torch.Tensor] = []
        stock = trainer.loss.forward
        monkeypatch.setattr(trainer.loss, "forward", lambda *pair: (maps.append(trainer.loss.maps), stock(*pair))[1])
        trainer.train_step(batch)
    (step,) = seen
    assert len(step["data"]) == len(maps[0]) == 2 + again
    assert not maps[0][2:].any()
    assert step["data"][:2, 1:].any()
    assert not step["data"][2:, 1:].any()
    for row in range(again):
        same = [number for number in range(2) if torch.equal(step["data"][2 + row, :1], batch["data"][number])]
        assert len(same) == 1
        for target, truth in zip(step["target"], truths, strict=True):
            assert not target[same[0]].any()  # a negative sample
            assert torch.equal(target[2 + row], truth[same[0]])  # but not without its click


def test_clicked_patches_are_zoomed_and_clicked_where_the_object_then_is(
    planned: dict[str, str], qa_yaml: Any, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(quick(least=1, most=1, negative=0, unclicked=1, zoomed=1, zoom=2))
    trainer = made(planned["2d"])
    factors = np.array([2.0, 0.6])
    drawn: list[Any] = []
    monkeypatch.setattr(
        "nnunet_qa.trainers.interactive.draw_zooms", lambda *given: (drawn.append(given[1]), factors)[1]
    )
    with started(trainer):
        batch = next(trainer.dataloader_train)
        images, targets = zoomed(batch["data"], batch["target"], factors)
        seen = record(trainer, monkeypatch)
        trainer.train_step(batch)
    (step,) = seen
    assert (drawn[0].zoomed, drawn[0].zoom) == (1, 2)
    assert not torch.equal(images, batch["data"])
    assert torch.equal(step["data"][:2, :1], images)
    for found, wanted, old in zip(step["target"], targets, batch["target"], strict=True):
        assert torch.equal(found[:2], wanted)
        again = found[2:].sum((1, 2, 3)).sort().values  # without clicks, as they were
        assert torch.equal(again, old.sum((1, 2, 3)).sort().values)
    for sample in range(2):
        click = next_click(targets[0][sample, 0].numpy(), None, spacing=trainer.configuration_manager.spacing)
        expected = click_maps([click] if click else [], images.shape[2:], 2)
        np.testing.assert_array_equal(step["data"][sample, 1:4], expected)


def test_passes_between_clicks_leave_no_trace(
    planned: dict[str, str], qa_yaml: Any, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(quick(least=3, most=3, negative=0, least_error=0, validation_clicks=2))
    trainer = made(planned["2d"])
    with started(trainer):
        sizes: list[tuple[int, bool, bool]] = []
        stock = type(trainer.network).forward

        def forward(network: Any, x: torch.Tensor) -> Any:
            sizes.append((len(x), torch.is_grad_enabled(), network.training))
            return stock(network, x)

        monkeypatch.setattr(type(trainer.network), "forward", forward)
        trainer.network.train()
        one_step(trainer)
        assert sizes == [(2, False, False), (2, False, False), (2, True, True)]
        assert trainer.network.training
        sizes.clear()
        seen = record(trainer, monkeypatch, "validation_step")
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            trainer.validation_step(next(trainer.dataloader_val))
        assert [size for size, _, _ in sizes] == [2, 2]
        assert len(trainer._measured) == 2  # of nnU-Net's own pass alone
        assert all((sample[1:4] == 1).sum() in (1, 2) for sample in seen[0]["data"])
        trainer._hook.remove()


def test_the_loss_of_clicked_patches_is_added_while_training_alone(
    planned: dict[str, str], qa_yaml: Any, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(quick(least=1, most=1, negative=0, click_weight=2.5))
    trainer = made(planned["2d"])
    with started(trainer):
        seen: list[tuple[torch.Tensor | None, torch.Tensor]] = []
        stock = trainer.loss.forward

        def forward(output: Any, target: Any) -> torch.Tensor:
            seen.append((trainer.loss.maps, stock(output, target)))
            return seen[-1][1]

        monkeypatch.setattr(trainer.loss, "forward", forward)
        steps = record(trainer, monkeypatch)
        found = trainer.train_step(next(trainer.dataloader_train))
        ((maps, loss),) = seen
        assert torch.equal(maps, steps[0]["data"][:, 1:4])
        assert maps.any()
        assert found["loss"] == loss.item()
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            trainer.validation_step(next(trainer.dataloader_val))
        assert seen[-1][0] is None
        assert trainer.loss.weight == 2.5
        trainer._hook.remove()


def test_learns_to_obey_clicks(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    """In pure noise only a click can tell where the square is."""
    qa_yaml(quick(least=1, most=1, negative=0))
    trainer = made(planned["2d"])
    trainer.initialize()
    trainer.optimizer.param_groups[0]["lr"] = 0.05
    rng = np.random.default_rng(0)
    steps = [[round(1 / scale) for scale in scales] for scales in trainer._get_deep_supervision_scales()]

    def batch(size: int) -> dict[str, Any]:
        truth = np.zeros((size, 1, 32, 32), np.int16)
        for sample in truth:
            y, x = rng.integers(4, 20, 2)
            sample[0, y : y + 8, x : x + 8] = 1
        targets = [torch.from_numpy(truth[..., ::down, ::across].copy()) for down, across in steps]
        return {"data": torch.from_numpy(rng.normal(size=truth.shape).astype(np.float32)), "target": targets}

    trainer.network.train()
    for _ in range(130):
        trainer.train_step(batch(4))
    trainer.network.eval()
    dice = []
    for clicks in (0, 1):
        change(trainer, "interaction", validation_clicks=clicks)
        with torch.no_grad():
            found = trainer.validation_step(batch(8))
        tp, fp, fn = (found[f"{kind}_hard"][0] for kind in ("tp", "fp", "fn"))  # of the first class
        dice.append(2 * tp / (2 * tp + fp + fn))
    assert dice[0] < 0.3
    assert dice[1] > 0.8


def test_ignored_voxels_stay_ignored_in_negatives(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml(quick())
    trainer = made(planned["2d"])
    trainer.label_manager._ignore_label = 3
    target = torch.tensor([[[[0, 1, 3]]], [[[2, 1, 3]]]])
    assert trainer._emptied(target, (False, True)).tolist() == [[[[0, 1, 3]]], [[[0, 0, 3]]]]


def test_starts_from_weights_of_a_plain_training(
    planned: dict[str, str], qa_yaml: Any, results: Path, tmp_path: Path
) -> None:
    qa_yaml(quick())
    plain = trainer_of(planned["2d"], "2d", 0, name="nnUNetTrainer")
    plain.initialize()
    torch.save({"network_weights": plain.network.state_dict()}, tmp_path / "plain.pth")
    trainer = made(planned["2d"])
    trainer.initialize()
    load_pretrained_weights(trainer.network, tmp_path / "plain.pth")
    image = torch.rand(1, 1, 32, 32)
    for ours, theirs in zip(trainer.network.encoder(image), plain.network.encoder(image), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_regions_are_refused(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml(quick())
    with pytest.raises(DatasetError, match="Dataset703_PhantomRegions: its regions overlap"):
        made(planned["regions"])


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_python_of_the_page() -> None:
    (text,) = blocks("python")
    names: dict[str, Any] = {}
    exec(text, names)
    assert names["channels"].shape == (3, 64, 64)
    assert len(names["talk"]) == 4


@pytest.mark.e2e
def test_every_command_of_the_page(fresh_folders: Path) -> None:
    write_dataset(101, "Bone", dimensions=2, pool=0, seed=5)
    (text,) = blocks("yaml")
    (raw_dataset_folder("101") / "qa.yaml").write_text(settings(scoring={"final": False}) + text)
    for words in [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]:
        if words[0] == "nnUNetv2_plan_and_preprocess":
            run(*words, "-npfp", "2", "-np", "2", nnUNet_n_proc_DA="1")
            narrow()
        else:
            run(*words, "-device", "cpu", nnUNet_n_proc_DA="1")
    assert list((fresh_folders / "nnUNet_results").rglob("InteractiveTrainer*/fold_0/validation/summary.json"))


def narrow() -> None:
    path = preprocessed_dataset_folder("101") / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    configuration = plans["configurations"]["2d"]
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [4] * arguments["n_stages"]
    configuration["batch_size"] = 2
    path.write_text(json.dumps(plans))

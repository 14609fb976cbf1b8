from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from scipy.special import expit, softmax
from scipy.stats import entropy as scipy_entropy

from nnunet_qa.data.paths import preprocessed_dataset_folder, raw_dataset_folder, read_json
from nnunet_qa.errors import ImageError, ModelError
from nnunet_qa.inference.predictor import QAPredictor, class_names, deep_supervision_on
from nnunet_qa.quality.disagreement import agreement_of_outputs
from tests.phantom import trainer_of

CPU = torch.device("cpu")


def write_model(folder: Path, dataset: str, configuration: str, folds: int) -> Path:
    """A model folder as nnUNetv2_train leaves it, with random weights."""
    model = folder / f"QAsemiTrainer__nnUNetPlans__{configuration}"
    source = preprocessed_dataset_folder(dataset)
    for fold in range(folds):
        torch.manual_seed(fold)
        trainer = trainer_of(dataset, configuration, fold)
        trainer.initialize()
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        (model / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(os.fspath(model / f"fold_{fold}" / "checkpoint_final.pth"))
    (model / "plans.json").write_bytes((source / "nnUNetPlans.json").read_bytes())
    (model / "dataset.json").write_bytes((source / "dataset.json").read_bytes())
    return model


def loaded(kind: type[Any], model: Path, folds: tuple[int, ...], *, mirroring: bool) -> Any:
    predictor = kind(use_mirroring=mirroring, perform_everything_on_device=False, device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(os.fspath(model), folds)
    return predictor


def with_dropout(model: Path, configuration: str, probability: float = 0.5) -> Path:
    """The same model with dropout between each convolution and its norm, which moves the norm one place on."""
    plans = read_json(model / "plans.json")
    settings = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
    settings["dropout_op"] = f"torch.nn.modules.dropout.Dropout{len(settings['strides'][0])}d"
    settings["dropout_op_kwargs"] = {"p": probability}
    (model / "plans.json").write_text(json.dumps(plans))
    for path in model.glob("fold_*/checkpoint_final.pth"):
        checkpoint = torch.load(path, weights_only=False)
        weights = checkpoint["network_weights"]
        moved = {name.replace(".all_modules.1.", ".all_modules.2."): value for name, value in weights.items()}
        torch.save({**checkpoint, "network_weights": moved}, path)
    return model


def image_for(kind: str) -> torch.Tensor:
    """An image that needs several patches (3D), or padding (2D)."""
    shape = (1, 20, 50, 44) if kind == "3d" else (1, 3, 40, 70)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("kind", "configuration", "folds", "mirroring"),
    [
        ("2d", "2d", 1, True),
        ("3d", "3d_fullres", 2, False),
        ("3d", "3d_fullres", 1, True),
        ("3d", "2d", 1, False),
        ("regions", "2d", 2, True),
    ],
)
def test_logits_equal_nnunets_and_q_is_that_of_the_averaged_outputs(
    planned: dict[str, str], tmp_path: Path, kind: str, configuration: str, folds: int, mirroring: bool
) -> None:
    model = write_model(tmp_path, planned[kind], configuration, folds)
    chosen = tuple(range(folds))
    ours = loaded(QAPredictor, model, chosen, mirroring=mirroring)
    stock = loaded(nnUNetPredictor, model, chosen, mirroring=mirroring)
    data = image_for(kind)
    logits = ours.predict_logits_from_preprocessed_data(data)
    assert torch.equal(logits, stock.predict_logits_from_preprocessed_data(data))

    # independently: nnU-Net's own predictor, with a network that gives the second output as its only one
    stock.network = SecondOutput(stock.network)
    stock.list_of_parameters = [
        {f"network.{name}": value for name, value in parameters.items()} for parameters in stock.list_of_parameters
    ]
    second = stock.predict_logits_from_preprocessed_data(data)
    regions = kind == "regions"
    expected = agreement_of_outputs(logits[None], second[None], regions=regions, slice_axis=0)
    found = ours.last_quality
    total = agreement_of_outputs(logits[None], second[None], regions=regions)
    np.testing.assert_allclose(found.agreement.per_class, total.per_class[0], atol=0.02)  # sums in half precision
    np.testing.assert_allclose(found.slices.mean, expected.mean[0], atol=0.05)
    assert 0 <= found.q < 1


class SecondOutput(torch.nn.Module):
    """A network whose only output is the second finest one, resized."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with deep_supervision_on(self.network):
            second = self.network(x)[1]
        mode = {4: "bilinear", 5: "trilinear"}[second.ndim]
        return torch.nn.functional.interpolate(second, size=x.shape[2:], mode=mode)


@pytest.mark.parametrize(("kind", "configuration", "folds"), [("3d", "3d_fullres", 2), ("regions", "2d", 1)])
def test_rows_count_voxels_and_hold_the_entropy_of_the_averaged_logits(
    planned: dict[str, str], tmp_path: Path, kind: str, configuration: str, folds: int
) -> None:
    predictor = loaded(
        QAPredictor, write_model(tmp_path, planned[kind], configuration, folds), tuple(range(folds)), mirroring=True
    )
    second: list[np.ndarray] = []
    finish = predictor._finish_case
    predictor._finish_case = lambda *given: (second.append(predictor._margins.numpy().astype(float)), finish(*given))[1]
    data = image_for("3d" if kind == "3d" else "2d")
    predictor.predict_logits_from_preprocessed_data(data)
    assert predictor.last_quality.entropy is None
    assert "entropy" not in predictor.last_quality.rows()[0]
    predictor.entropy = True
    logits = predictor.predict_logits_from_preprocessed_data(data).numpy().astype(float)
    if kind == "regions":
        probabilities = np.stack([expit(logits), expit(-logits)])
        expected = scipy_entropy(probabilities, axis=0).mean(0)
        first_masks, second_masks = logits > 0, second[-1] > 0
    else:
        expected = scipy_entropy(softmax(logits, axis=0), axis=0)
        labels = logits.argmax(0), np.concatenate([np.zeros_like(logits[:1]), second[-1]]).argmax(0)
        first_masks, second_masks = (np.stack([label == value for value in (1, 2)]) for label in labels)
    rows = predictor.last_quality.rows()
    assert len(rows) == 1 + logits.shape[1]
    for number, row in enumerate(rows):
        where = slice(None) if number == 0 else slice(number - 1, number)
        assert row["entropy"] == pytest.approx(expected[where].mean(), abs=1e-5)
        union = (first_masks[:, where] | second_masks[:, where]).sum()
        assert row["union_voxels"] == union
        assert row["disagreeing_voxels"] == union - (first_masks[:, where] & second_masks[:, where]).sum()


def test_dropout_is_sampled_by_seed_and_only_when_asked_for(planned: dict[str, str], tmp_path: Path) -> None:
    model, data = write_model(tmp_path, planned["2d"], "2d", 1), image_for("2d")
    plain = loaded(QAPredictor, model, (0,), mirroring=False).predict_logits_from_preprocessed_data(data)
    predictor = loaded(QAPredictor, with_dropout(model, "2d"), (0,), mirroring=False)
    assert torch.equal(predictor.predict_logits_from_preprocessed_data(data), plain)  # off by default
    predictor.mc_dropout = True
    state = torch.get_rng_state()
    samples = []
    for seed in (0, 1, 0):
        predictor.seed = seed
        samples.append((predictor.predict_logits_from_preprocessed_data(data), predictor.last_quality.q))
    assert torch.equal(samples[0][0], samples[2][0])
    assert samples[0][1] == samples[2][1]
    assert not torch.equal(samples[0][0], samples[1][0])
    assert not torch.equal(samples[0][0], plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in predictor.network.modules())
    predictor.mc_dropout = False
    assert torch.equal(predictor.predict_logits_from_preprocessed_data(data), plain)


def test_dropout_is_the_same_after_nnunet_ran_out_of_memory(
    planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_dropout(write_model(tmp_path, planned["2d"], "2d", 2), "2d")
    predictor = loaded(QAPredictor, model, (0, 1), mirroring=False)
    predictor.mc_dropout = True
    expected = predictor.predict_logits_from_preprocessed_data(image_for("2d"))
    predictor.perform_everything_on_device = True
    run, failures = QAPredictor._internal_maybe_mirror_and_predict, []

    def fail_on_the_third_patch(self: QAPredictor, patch: torch.Tensor) -> torch.Tensor:
        failures.append(patch)
        if len(failures) == 3:
            raise RuntimeError("out of memory")
        return run(self, patch)

    monkeypatch.setattr(QAPredictor, "_internal_maybe_mirror_and_predict", fail_on_the_third_patch)
    assert torch.equal(predictor.predict_logits_from_preprocessed_data(image_for("2d")), expected)
    assert len(failures) > 3


def test_folds_draw_dropout_of_their_own(planned: dict[str, str], tmp_path: Path) -> None:
    model = with_dropout(write_model(tmp_path, planned["2d"], "2d", 1), "2d")
    predictor = loaded(QAPredictor, model, (0,), mirroring=False)
    predictor.mc_dropout = True
    alone = predictor.predict_logits_from_preprocessed_data(image_for("2d"))
    predictor.list_of_parameters = predictor.list_of_parameters * 2
    assert not torch.equal(predictor.predict_logits_from_preprocessed_data(image_for("2d")), alone)


def test_every_generator_that_is_seeded_is_put_back(
    planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_dropout(write_model(tmp_path, planned["2d"], "2d", 1), "2d")
    predictor = loaded(QAPredictor, model, (0,), mirroring=False)
    predictor.mc_dropout = True
    forked: list[int] = []

    def fork(devices: Any, **_: Any) -> Any:
        forked.extend(devices)
        return nullcontext()

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.random.fork_rng", fork)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.mps.get_rng_state", lambda: "before")
    restored: list[str] = []
    monkeypatch.setattr("torch.mps.set_rng_state", restored.append)
    predictor.predict_logits_from_preprocessed_data(image_for("2d"))
    assert forked == [0, 1]
    assert restored == ["before"]


def test_only_dropout_is_in_training_mode_while_it_is_sampled(planned: dict[str, str], tmp_path: Path) -> None:
    model = with_dropout(write_model(tmp_path, planned["2d"], "2d", 1), "2d")
    predictor = loaded(QAPredictor, model, (0,), mirroring=False)
    predictor.mc_dropout = True
    training: set[str] = set()
    predictor.network.encoder.register_forward_hook(
        lambda *_: training.update(type(module).__name__ for module in predictor.network.modules() if module.training)
    )
    predictor.predict_logits_from_preprocessed_data(image_for("2d"))
    assert training == {"Dropout2d"}


def test_a_network_without_dropout_is_refused(planned: dict[str, str], tmp_path: Path) -> None:
    model = write_model(tmp_path, planned["2d"], "2d", 1)
    without = loaded(QAPredictor, model, (0,), mirroring=False)
    for predictor in (without, loaded(QAPredictor, with_dropout(model, "2d", 0.0), (0,), mirroring=False)):
        predictor.mc_dropout = True
        with pytest.raises(ModelError, match="PlainConvUNet has no dropout layer to sample from"):
            predictor.predict_logits_from_preprocessed_data(image_for("2d"))


def test_the_network_and_its_switch_are_left_as_they_were(planned: dict[str, str], tmp_path: Path) -> None:
    predictor = loaded(QAPredictor, write_model(tmp_path, planned["2d"], "2d", 1), (0,), mirroring=False)
    network, labels = predictor.network, predictor.label_manager
    predictor.predict_logits_from_preprocessed_data(image_for("2d"))
    assert predictor.network is network
    assert predictor.label_manager is labels
    assert network.decoder.deep_supervision is False
    broken = image_for("2d")
    predictor.use_gaussian = "no such thing"
    predictor.configuration_manager.configuration["patch_size"] = [-1, -1]
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever nnU-Net raises, the network must come back
        predictor.predict_logits_from_preprocessed_data(broken)
    assert predictor.network is network
    assert network.decoder.deep_supervision is False


def test_slices_are_those_of_the_image_where_the_axis_was_cropped_and_resampled(
    planned: dict[str, str], tmp_path: Path
) -> None:
    model = write_model(tmp_path, planned["3d"], "3d_fullres", 1)
    predictor = loaded(QAPredictor, model, (0,), mirroring=False)
    spacing = predictor.configuration_manager.spacing
    image = np.zeros((1, 30, 32, 40), np.float32)
    image[:, 4:24] = np.random.default_rng(0).normal(100, 10, (1, 20, 32, 40))  # slices 4 to 23 hold the patient
    properties = {"spacing": [spacing[0] * 2, spacing[1], spacing[2]]}
    segmentation = predictor.predict_single_npy_array(image, properties)
    assert segmentation.shape == image.shape[1:]
    quality = predictor.last_quality
    assert predictor.plans_manager.transpose_forward == [0, 1, 2]
    assert (quality.slice_axis, quality.first_slice, quality.slices.union.shape[0]) == (0, 4, 20)
    rows = quality.rows("test")
    assert [row["level"] for row in rows] == ["case"] + ["slice"] * 20
    assert [row["slice_index"] for row in rows[1:]] == list(range(4, 24))
    assert {"q", "q_small", "q_large"} <= set(rows[0])
    assert rows[0]["q"] == pytest.approx((rows[0]["q_small"] + rows[0]["q_large"]) / 2)


def test_nan_in_an_image_is_named(planned: dict[str, str], tmp_path: Path) -> None:
    predictor = loaded(QAPredictor, write_model(tmp_path, planned["2d"], "2d", 1), (0,), mirroring=False)
    with pytest.raises(ImageError, match="NaN or infinite"):
        predictor.predict_logits_from_preprocessed_data(torch.full((1, 1, 48, 64), float("nan")))


def test_networks_without_two_outputs_are_refused(planned: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no deep supervision"), deep_supervision_on(torch.nn.Conv2d(1, 1, 1)):
        pass
    predictor = loaded(QAPredictor, write_model(tmp_path, planned["2d"], "2d", 1), (0,), mirroring=False)
    predictor.network.decoder.seg_layers = predictor.network.decoder.seg_layers[:1]
    with pytest.raises(ModelError, match="at least three stages"), deep_supervision_on(predictor.network):
        pass


def test_classes_have_the_names_of_dataset_json(planned: dict[str, str], tmp_path: Path) -> None:
    for kind, names in (("2d", ("small", "large")), ("regions", ("both", "large"))):
        trainer = trainer_of(planned[kind], "2d", 0)
        assert class_names(trainer.dataset_json, trainer.label_manager) == names


def test_prediction_from_files_names_the_cases(planned: dict[str, str], tmp_path: Path) -> None:
    predictor = loaded(QAPredictor, write_model(tmp_path, planned["2d"], "2d", 1), (0,), mirroring=False)
    qualities = []
    predictor.on_case = qualities.append
    images = raw_dataset_folder(planned["2d"]) / "imagesTs"
    predictor.predict_from_files(os.fspath(images), os.fspath(tmp_path / "out"), num_processes_preprocessing=1)
    assert sorted(quality.case_id for quality in qualities) == ["T0_c0", "T0_c1"]
    assert read_json(tmp_path / "out" / "dataset.json") == json.loads(
        (preprocessed_dataset_folder(planned["2d"]) / "dataset.json").read_text()
    )

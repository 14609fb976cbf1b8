from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_qa.cli import plans as plans_command
from nnunet_qa.data.images import read_array
from nnunet_qa.data.paths import preprocessed_dataset_folder, raw_dataset_folder
from nnunet_qa.errors import DatasetError, ModelError
from nnunet_qa.networks.paper_unet import OriginalUNet
from nnunet_qa.trainers import PaperUNetTrainer
from nnunet_qa.trainers.paper_limited_data import CrossEntropyOfKnown
from tests.phantom import trainer_of
from tests.small import run_command

PAGE = Path(__file__).parents[2] / "docs" / "paper-limited-data.md"
NAME = "PaperUNetTrainer"
SHORT = "training: {epochs: 1, iterations_per_epoch: 2, val_iterations_per_epoch: 1}\n"
BEST = (0.3, 0.9, 0.5)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow network on small patches."""
    monkeypatch.setattr(PaperUNetTrainer, "features", (3, 4, 5))
    monkeypatch.setattr(PaperUNetTrainer, "patch", (24, 32))
    monkeypatch.setattr(PaperUNetTrainer, "images_a_batch", 3)


@pytest.fixture
def ct(planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The 3D phantom as if its channel had been planned as CT."""
    source = preprocessed_dataset_folder(planned["3d"])
    target = tmp_path / "preprocessed" / source.name
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("nnUNetPlans_3d*"))
    monkeypatch.setenv("nnUNet_preprocessed", str(target.parent))
    plans = json.loads((target / "nnUNetPlans.json").read_text())
    for configuration in plans["configurations"].values():
        configuration["normalization_schemes"] = ["CTNormalization"]
    (target / "nnUNetPlans.json").write_text(json.dumps(plans))
    return planned["3d"]


def trainer(dataset: str, **changed: Any) -> Any:
    return trainer_of(dataset, "2d", 0, name=NAME, **changed)


def test_the_papers_recipe(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml("")
    made = trainer(planned["2d"])
    assert made.num_epochs * made.num_iterations_per_epoch == 65_000
    configuration = made.configuration_manager
    assert (configuration.patch_size, configuration.batch_size) == ([96, 96], 32)
    assert configuration.network_arch_init_kwargs == {"features": [64, 128, 256, 512, 1024]}
    made.network = torch.nn.Linear(1, 1)
    optimizer, schedule = made.configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["weight_decay"] == 0
    for epoch in (0, 130, 259):
        schedule.step(epoch)
        assert optimizer.param_groups[0]["lr"] == 1e-5


@pytest.mark.parametrize("kind", ["2d", "regions"])
def test_trains_and_predicts(
    planned: dict[str, str], qa_yaml: Any, results: Path, small: None, tmp_path: Path, kind: str
) -> None:
    qa_yaml(SHORT)
    made = trainer(planned[kind])
    made.run_training()
    assert isinstance(made.network, OriginalUNet)
    assert made.pool is None
    assert "no scoring" in Path(made.log_file).read_text()
    image = raw_dataset_folder(planned[kind]) / "imagesTs" / "T0_c0_0000.png"
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(made.output_folder_base, (0,))
    assert predictor.allowed_mirroring_axes is None
    predictor.predict_from_files_sequential([[str(image)]], [str(tmp_path / "predicted")])
    predicted = read_array(tmp_path / "predicted.png", volumes=False)
    assert predicted.shape == read_array(image, volumes=False).shape
    assert set(np.unique(predicted)) <= {0, 1, 2}


def test_patches_are_crops_and_the_validation_sees_the_same_ones_each_time(
    planned: dict[str, str], qa_yaml: Any, results: Path, small: None
) -> None:
    qa_yaml("")
    made = trainer(planned["3d"])
    made.initialize()
    training, validation = made.get_dataloaders()
    assert made.num_val_iterations_per_epoch == 22  # 4 volumes of 16 slices in batches of 3
    batch = next(training)
    cases = nnUNetDatasetBlosc2(made.preprocessed_dataset_folder)
    for patch, target, case in zip(batch["data"], batch["target"], batch["keys"], strict=True):
        data, labels, _, _ = cases.load_case(case)
        crops = np.lib.stride_tricks.sliding_window_view(data[0], (24, 32), axis=(1, 2))
        (place,) = np.argwhere((crops == patch[0].numpy()).all((3, 4)))
        z, y, x = place
        assert (labels[0, z, y : y + 24, x : x + 32].clip(0) == target[0].numpy()).all()
    first = [next(validation)["data"] for _ in range(22)]
    assert all(torch.equal(next(validation)["data"], before) for before in first)


@pytest.mark.parametrize("ignore", [None, 3])
@pytest.mark.parametrize("regions", [False, True])
def test_loss_and_dice_written_out(
    planned: dict[str, str], qa_yaml: Any, results: Path, small: None, ignore: int | None, regions: bool
) -> None:
    qa_yaml("")
    made = trainer(planned["2d"])
    labels: dict[str, Any] = {"background": 0, "a": [1, 2] if regions else 1, "b": 2}
    labels |= {} if ignore is None else {"ignore": ignore}
    made.label_manager = LabelManager(labels, [1, 2] if regions else None)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 2 if regions else 3, 6, 5))
    truth = rng.integers(0, 3 if ignore is None else 4, (2, 6, 5))
    known = (truth != 3)[:, None]
    given = torch.from_numpy(logits).float()
    if regions:
        probabilities = 1 / (1 + np.exp(-logits))
        wanted = np.stack([(truth == 1) | (truth == 2), truth == 2], 1)
        target = np.concatenate([wanted, ~known], 1)[:, : 2 if ignore is None else 3]
        pixel = -np.where(wanted, np.log(probabilities), np.log(1 - probabilities))
        expected_loss = (pixel * known).sum() / (known.sum() if ignore is not None else pixel.size)
    else:
        exponentials = np.exp(logits)
        everything = exponentials / exponentials.sum(1, keepdims=True)
        probabilities, wanted = everything[:, 1:], np.stack([truth == 1, truth == 2], 1)
        target = truth[:, None].astype(np.int16)
        chosen = np.take_along_axis(everything, np.minimum(truth, 2)[:, None], 1)
        expected_loss = -np.log(chosen)[known].mean()
    made.network = lambda _: given
    made.loss = made._build_loss()
    result = made.validation_step({"data": torch.zeros(1), "target": torch.from_numpy(target)})
    p, y = probabilities * known, wanted * known
    expected = 2 * (p * y).sum((0, 2, 3)) / ((p**2).sum((0, 2, 3)) + (y**2).sum((0, 2, 3)))
    tp, fp, fn = result["tp_hard"], result["fp_hard"], result["fn_hard"]
    np.testing.assert_allclose(2 * tp / (2 * tp + fp + fn), expected, rtol=1e-5)
    np.testing.assert_allclose(result["loss"], expected_loss, rtol=1e-5)


def test_the_best_validation_dice_is_the_final_model(
    planned: dict[str, str], qa_yaml: Any, results: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml("training: {epochs: 3, iterations_per_epoch: 1, val_iterations_per_epoch: 1, initial_lr: 0.01}")
    made = trainer(planned["2d"])
    weights = []

    def validation_step(batch: dict) -> dict:
        weights.append({name: value.clone() for name, value in made.network.state_dict().items()})
        dice = BEST[made.current_epoch]
        parts = {"tp_hard": dice, "fp_hard": 1 - dice, "fn_hard": 1 - dice}
        return {"loss": np.array(0.0), **{name: np.array([part, part]) for name, part in parts.items()}}

    monkeypatch.setattr(made, "validation_step", validation_step)
    made.run_training()
    assert made.logger.get_value("mean_fg_dice", step=None) == pytest.approx(BEST)
    assert made.logger.get_value("ema_fg_dice", step=None) == pytest.approx([0.3, 0.9, 0.9])
    final = torch.load(Path(made.output_folder) / "checkpoint_final.pth", weights_only=False)
    for name, value in weights[1].items():
        assert torch.equal(final["network_weights"][name], value)
        assert torch.equal(made.network.state_dict()[name], value)  # what nnU-Net's validation then uses
    assert not torch.equal(weights[2]["head.seg_layers.weight"], weights[1]["head.seg_layers.weight"])
    assert final["current_epoch"] == 3  # so --c finds it finished
    assert "final model is that of epoch 1" in Path(made.log_file).read_text()


def test_where_no_class_is_known_the_loss_is_0_and_so_is_its_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = CrossEntropyOfKnown(3)(logits, torch.full((2, 1, 4, 4), 3, dtype=torch.int16))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_better_checkpoint_of_before_is_not_overwritten(
    planned: dict[str, str], qa_yaml: Any, results: Path, small: None
) -> None:
    """Killed after the best epoch and before the next `checkpoint_latest.pth`."""
    qa_yaml("")
    made = trainer(planned["2d"])
    made.initialize()
    folder = Path(made.output_folder)
    for name, best in (("latest", 0.3), ("best", 0.9)):
        made._best_ema = best
        made.save_checkpoint(str(folder / f"checkpoint_{name}.pth"))
    again = trainer(planned["2d"])
    again.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert again._best_ema == 0.9
    made._best_ema = 0.2
    made.save_checkpoint(str(folder / "checkpoint_best.pth"))
    again.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert again._best_ema == 0.3


def test_a_dice_that_is_no_number_does_not_stay_the_best(
    planned: dict[str, str], qa_yaml: Any, results: Path, small: None
) -> None:
    qa_yaml("")
    made = trainer(planned["2d"])
    counts = ((0.0, 0.0), (1.0, 1.0))  # of no foreground, and a Dice of 2 / 3
    for epoch, (tp, fp) in enumerate(counts):
        made.current_epoch = epoch
        parts = {"tp_hard": tp, "fp_hard": fp, "fn_hard": 0.0}
        made.on_validation_epoch_end([{"loss": 0.0, **{key: np.array([value]) for key, value in parts.items()}}])
    assert made.logger.get_value("ema_fg_dice", step=None) == pytest.approx([0, 2 / 3])


def test_weights_of_other_classes_are_taken_but_for_the_head(
    planned: dict[str, str], qa_yaml: Any, results: Path, small: None
) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    qa_yaml("")
    first, second = trainer(planned["2d"]), trainer(planned["regions"])
    first.initialize()
    second.initialize()
    first.save_checkpoint(str(results / "first.pth"))
    load_pretrained_weights(second.network, str(results / "first.pth"))
    ours, theirs = second.network.state_dict(), first.network.state_dict()
    assert all(".seg_layers." in name or torch.equal(value, theirs[name]) for name, value in ours.items())
    assert ours["head.seg_layers.weight"].shape[0] == 2


def test_three_dimensions_are_refused(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml("")
    with pytest.raises(ModelError, match=f"{NAME}: .* the configuration 3d_fullres is not; train 2d"):
        trainer_of(planned["3d"], "3d_fullres", 0, name=NAME)


def test_a_fold_without_validation_is_refused(
    planned: dict[str, str], qa_yaml: Any, results: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml("")
    made = trainer(planned["2d"])
    made.initialize()
    monkeypatch.setattr(made, "do_split", lambda: (["S0_c0"], []))
    with pytest.raises(DatasetError, match=f"fold 0: 0 validation slices; {NAME} needs some"):
        made.get_dataloaders()


def test_every_command_of_the_page(
    ct: str, qa_yaml: Any, results: Path, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(SHORT)
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line.replace(" 101 ", " 702 ")) for block in blocks for line in block.splitlines()]
    names = [words[0] for words in commands]
    after = ["nnUNetv2_train", "nnUNetv2_predict"] * 2
    assert names == ["nnUNetv2_plan_and_preprocess", "nnunet-qa", "nnUNetv2_preprocess", *after]
    result = run_command(plans_command, *commands[1][2:])
    assert result.exit_code == 0, result.output
    told = "nnUNetv2_preprocess -d 702 -plans_name nnUNetPlansHU -c 2d"
    assert commands[2] == told.split()
    assert told in result.stderr
    DefaultPreprocessor(verbose=False).run(702, "2d", "nnUNetPlansHU", num_processes=1)

    options = commands[3]
    made = trainer_of(ct, options[2], int(options[3]), name=options[7], plans=options[5])
    assert Path(made.preprocessed_dataset_folder).name == "nnUNetPlans_2d_hu-1024to3000"
    raw = read_array(raw_dataset_folder(ct) / "imagesTr" / "S0_c0_0000.nii.gz", volumes=True)
    data = nnUNetDatasetBlosc2(made.preprocessed_dataset_folder).load_case("S0_c0")[0][:]
    np.testing.assert_allclose(np.sort(data.ravel()), np.sort((raw.ravel() + 1024) / 4024), atol=1e-5)
    made.run_training()
    model = f"{options[7]}__{options[5]}__{options[2]}"
    assert commands[4][1:10] == f"-d 702 -c 2d -f 0 -p {options[5]} -tr".split()
    assert (results / ct / model / "fold_0" / "checkpoint_final.pth").is_file()
    image = raw_dataset_folder(ct) / "imagesTs" / "T0_c0_0000.nii.gz"
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(results / ct / model), (0,))
    predictor.predict_from_files_sequential([[str(image)]], [str(tmp_path / "predicted")])
    assert read_array(tmp_path / "predicted.nii.gz", volumes=True).shape == read_array(image, volumes=True).shape

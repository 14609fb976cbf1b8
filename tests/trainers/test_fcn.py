from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_qa.data.images import read_array
from nnunet_qa.data.paths import raw_dataset_folder, read_plans
from nnunet_qa.errors import ModelError
from nnunet_qa.inference.predictor import QAPredictor, unwrapped
from nnunet_qa.networks.fcn import FCN
from nnunet_qa.trainers import FCNTrainer, FCNTrainer_5epochs, FCNTrainer_50epochs, FCNTrainer_250epochs
from nnunet_qa.trainers.fcn import level_strides
from tests.phantom import trainer_of

SHORT = "training: {epochs: 1, iterations_per_epoch: 2, val_iterations_per_epoch: 1}\n"
ON = SHORT + "scoring: {every_epoch: true, final: true}\npool: {enabled: true}\n"


@pytest.mark.parametrize(
    ("kind", "configuration"), [("2d", "2d"), ("regions", "2d"), ("3d", "3d_fullres")], ids=["2d", "regions", "3d"]
)
def test_trains_and_predicts_with_stock_nnunet(
    planned: dict[str, str], qa_yaml: Any, results: Path, tmp_path: Path, kind: str, configuration: str
) -> None:
    qa_yaml(ON)
    torch.manual_seed(1)
    trainer = trainer_of(planned[kind], configuration, 0, name="FCNTrainer")
    trainer.configuration_manager.configuration["batch_size"] = 2  # the network has its full width
    trainer.run_training()
    assert isinstance(unwrapped(trainer.network), FCN)
    assert isinstance(trainer.loss, DC_and_BCE_loss if kind == "regions" else DC_and_CE_loss)  # of one output
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    assert json.loads((folder / "validation" / "summary.json").read_text())["metric_per_case"]
    assert not (folder / "quality.csv").exists()
    assert "no scoring, the pool is left out, whatever qa.yaml says" in Path(trainer.log_file).read_text()
    assert trainer.pool is None
    assert "disagreement_val" not in trainer.logger.local_logger.my_fantastic_logging

    ending = ".png" if configuration == "2d" else ".nii.gz"
    image = raw_dataset_folder(planned[kind]) / "imagesTs" / f"T0_c0_0000{ending}"
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
    assert isinstance(predictor.network, FCN)
    predictor.predict_from_files_sequential([[os.fspath(image)]], [os.fspath(tmp_path / "predicted")])
    volumes = ending != ".png"
    assert (
        read_array(tmp_path / f"predicted{ending}", volumes=volumes).shape == read_array(image, volumes=volumes).shape
    )

    scoring = QAPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    scoring.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
    with pytest.raises(ModelError, match="FCN has no deep supervision, so there is no second output to compare"):
        scoring.predict_from_files_sequential([[os.fspath(image)]], [os.fspath(tmp_path / "scored")])


def test_a_stopped_training_goes_on(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml(SHORT)
    first = trainer_of(planned["2d"], "2d", 0, name="FCNTrainer")
    first.run_training()
    again = trainer_of(planned["2d"], "2d", 0, name="FCNTrainer")
    again.initialize()
    again.load_checkpoint(str(Path(first.output_folder) / "checkpoint_final.pth"))
    assert again.current_epoch == 1
    for name, value in again.network.state_dict().items():
        assert torch.equal(value, first.network.state_dict()[name])


def test_numbers_of_epochs(planned: dict[str, str], qa_yaml: Any, results: Path) -> None:
    qa_yaml("training: {epochs: 3}")
    assert trainer_of(planned["2d"], "2d", 0, name="FCNTrainer").num_epochs == 3
    for kind, epochs in ((FCNTrainer_5epochs, 5), (FCNTrainer_50epochs, 50), (FCNTrainer_250epochs, 250)):
        trainer = trainer_of(planned["2d"], "2d", 0, name=kind.__name__)
        assert type(trainer) is kind
        assert trainer.num_epochs == epochs


def test_several_channels_and_the_strides_of_3d(planned: dict[str, str]) -> None:
    manager = PlansManager(read_plans(planned["3d"], "nnUNetPlans"))
    configuration = manager.get_configuration("3d_fullres")
    planned_strides = configuration.network_arch_init_kwargs["strides"]
    network = FCNTrainer.build_network_architecture(manager, configuration, 5, 4)
    assert network.levels[0][0][0].weight.shape[:2] == (16, 5)
    assert network.head[-1].weight.shape[0] == 4
    found = [list(level[0][0].stride) for level in network.levels]
    assert found[: len(planned_strides)] == [list(stride) for stride in planned_strides[:5]]
    assert all(stride == [1, 1, 1] for stride in found[len(planned_strides) :])


def test_strides_where_the_plans_have_more_or_fewer_stages() -> None:
    many = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    assert level_strides(many) == many[1:5]
    assert level_strides(many[:3]) == [[1, 2, 2], [1, 2, 2], [1, 1, 1], [1, 1, 1]]

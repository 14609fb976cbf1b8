"""The contract with nnU-Net: what we override and call must look as it did when it was written."""

from __future__ import annotations

import inspect
from importlib.metadata import requires, version
from typing import Any

import pytest
from nnunetv2.inference.export_prediction import export_prediction_from_logits, resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from packaging.requirements import Requirement

import nnunet_qa.trainers as trainers
from nnunet_qa.inference.predictor import QAPredictor
from nnunet_qa.trainers.pool_trainer import PoolTrainer
from nnunet_qa.trainers.progress import QALocalLogger

OURS = [(getattr(trainers, name), nnUNetTrainer) for name in trainers.__all__ if name.endswith(("Trainer", "epochs"))]
OURS += [(QAPredictor, nnUNetPredictor)]


def shape(function: Any) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults of a signature; annotations are a matter of taste."""
    return [(one.name, one.kind, repr(one.default)) for one in inspect.signature(function).parameters.values()]


def overridden(ours: type, base: type) -> list[tuple[str, type, type]]:
    between = ours.__mro__[: ours.__mro__.index(base)]
    return [
        (name, kind, base)
        for kind in between
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and hasattr(base, name) and not (name.startswith("__") and name != "__init__")
    ]


METHODS = sorted({entry for ours, base in OURS for entry in overridden(ours, base)}, key=str)


@pytest.mark.parametrize(
    ("name", "ours", "base"), METHODS, ids=[f"{kind.__name__}.{name}" for name, kind, _ in METHODS]
)
def test_an_overridden_method_has_nnunets_signature(name: str, ours: type, base: type) -> None:
    found = shape(getattr(ours, name))
    if isinstance(inspect.getattr_static(base, name), staticmethod):
        assert found.pop(0)[0] == "self"  # called on the trainer, which may well look at its settings
    assert found == shape(getattr(base, name))


def test_the_trainer_overrides_the_hooks_it_is_meant_to() -> None:
    names = {name for name, _, base in METHODS if base is nnUNetTrainer}
    assert {"__init__", "_build_loss", "do_split", "on_train_start", "on_train_end", "on_epoch_end"} <= names
    assert {"on_validation_epoch_start", "on_validation_epoch_end", "perform_actual_validation"} <= names
    assert {"on_train_epoch_start", "train_step", "validation_step", "on_train_epoch_end", "load_checkpoint"} <= names
    assert "train_step" not in vars(PoolTrainer)  # without a loss of pool images a step costs what nnU-Net's costs


def test_the_logger_takes_nnunets_calls() -> None:
    assert shape(QALocalLogger.load_checkpoint) == shape(LocalLogger.load_checkpoint)
    assert shape(QALocalLogger.plot_progress_png) == shape(LocalLogger.plot_progress_png)
    assert "epoch_end_timestamps" in LocalLogger().my_fantastic_logging


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            DefaultPreprocessor.run_case_save,
            "self output_filename_truncated image_files seg_file plans_manager configuration_manager dataset_json",
        ),
        (
            export_prediction_from_logits,
            "predicted_array_or_file properties_dict configuration_manager plans_manager dataset_json_dict_or_file "
            "output_file_truncated save_probabilities num_threads_torch",
        ),
        (
            resample_and_save,
            "predicted target_shape output_file plans_manager configuration_manager properties_dict "
            "dataset_json_dict_or_file num_threads_torch dataset_class",
        ),
        (
            nnUNetDataLoader.__init__,
            "self data batch_size patch_size final_patch_size label_manager oversample_foreground_percent "
            "sampling_probabilities pad_sides probabilistic_oversampling transforms",
        ),
        (nnUNetDatasetBlosc2.__init__, "self folder identifiers folder_with_segs_from_previous_stage"),
        (DeepSupervisionWrapper.__init__, "self loss weight_factors"),
        (
            nnUNetPredictor.manual_initialization,
            "self network plans_manager configuration_manager parameters dataset_json trainer_name "
            "inference_allowed_mirroring_axes",
        ),
    ],
)
def test_what_we_call_takes_the_same_arguments(function: Any, names: str) -> None:
    assert list(inspect.signature(function).parameters) == names.split()


def test_the_installed_nnunet_is_one_that_we_allow() -> None:
    wanted = next(Requirement(text) for text in requires("nnunet-qa") or [] if Requirement(text).name == "nnunetv2")
    assert str(wanted.specifier) == "<2.9,>=2.8.1"
    assert wanted.specifier.contains(version("nnunetv2"))

"""A phantom dataset, planned, and a model of it with random weights and nnU-Net's usual widths."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from nnunet_qa.data.paths import preprocessed_dataset_folder
from tests.phantom import EXTERNAL, plan, trainer_of, write_dataset


def prepare(folder: Path, *, dimensions: int, width: int = 32) -> tuple[str, str]:
    """Write and plan a phantom and set nnU-Net's variables.

    Args:
        folder: for everything.
        dimensions: 2 or 3.
        width: features of the first stage; doubled from stage to stage up to 16 times.

    Returns:
        Name of the dataset and of the configuration.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(exist_ok=True)
        os.environ[name] = str(folder / name)
    os.environ.update(nnUNet_extTrainer=str(EXTERNAL), nnUNet_n_proc_DA="0", nnUNet_def_n_proc="2")
    number = 800 + dimensions
    configuration = "2d" if dimensions == 2 else "3d_fullres"
    dataset = write_dataset(number, f"Benchmark{dimensions}D", dimensions=dimensions, pool=0, seed=0)
    plan([number], [configuration])
    path = preprocessed_dataset_folder(dataset) / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    arguments = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [width * min(2**stage, 16) for stage in range(arguments["n_stages"])]
    path.write_text(json.dumps(plans))
    return dataset, configuration


def write_model(folder: Path, dataset: str, configuration: str) -> Path:
    """A model folder with one fold of random weights, as nnUNetv2_train leaves it."""
    torch.manual_seed(0)
    trainer = trainer_of(dataset, configuration, 0)
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    model = folder / dataset / f"QAsemiTrainer__nnUNetPlans__{configuration}"
    (model / "fold_0").mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(os.fspath(model / "fold_0" / "checkpoint_final.pth"))
    source = preprocessed_dataset_folder(dataset)
    (model / "plans.json").write_bytes((source / "nnUNetPlans.json").read_bytes())
    (model / "dataset.json").write_bytes((source / "dataset.json").read_bytes())
    return model

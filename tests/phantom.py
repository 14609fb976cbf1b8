"""Small phantom datasets for the tests: bright blobs of two classes in noise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_qa.cases import Role
from nnunet_qa.data.images import Geometry
from nnunet_qa.data.paths import preprocessed_dataset_folder
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.environment import external_trainer_folder

EXTERNAL = external_trainer_folder()
BIN = Path(sys.executable).parent
LABELS = {"background": 0, "small": 1, "large": 2}
REGIONS = {"background": 0, "both": [1, 2], "large": 2}


def draw(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label map: one ball of class 1 and a larger one of class 2."""
    image = rng.normal(80, 10, shape)
    label = np.zeros(shape, np.uint8)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"))
    for value, radius in ((1, 5.0), (2, 8.0)):
        centre = np.array([rng.uniform(0.25, 0.75) * size for size in shape]).reshape(-1, *[1] * len(shape))
        ball = ((grid - centre) ** 2).sum(0) < radius**2
        label[ball] = value
        image[ball] += 50 * value
    return image.clip(0, 255), label


def write_dataset(
    number: int, name: str, *, dimensions: int, pool: int, seed: int, subjects: int = 4, regions: bool = False
) -> str:
    """Write a phantom dataset of `subjects` annotated subjects with two cases each, and one test subject.

    Returns:
        The dataset's full name.
    """
    rng = np.random.default_rng(seed)
    shape: tuple[int, ...] = (48, 64) if dimensions == 2 else (16, 32, 40)
    geometry = None if dimensions == 2 else Geometry((1.0, 1.0, 1.5), (3.0, -4.0, 5.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    dataset = RawDataset.named(
        number,
        name,
        channel_names=("MR",),
        labels=REGIONS if regions else LABELS,
        file_ending=".png" if dimensions == 2 else ".nii.gz",
        settings={"phantom": seed},
        extra={"regions_class_order": [1, 2]} if regions else {},
    )
    dataset.begin()
    rows: list[dict[str, Any]] = []
    cases = [(f"S{s}", f"S{s}_c{c}", Role.LABELLED) for s in range(subjects) for c in range(2)]
    cases += [("T0", f"T0_c{c}", Role.TEST) for c in range(2)]
    cases += [("P0", f"P0_c{c}", Role.UNLABELLED) for c in range(pool)]
    for subject, case, role in cases:
        image, label = draw(shape, rng)
        kind = np.uint8 if dimensions == 2 else np.float32
        dataset.write_case(
            case, role, [image.astype(kind)], None if role is Role.UNLABELLED else label, geometry=geometry
        )
        rows.append({"case_id": case, "subject_id": subject, "role": role.value})
    dataset.finish(rows, jobs=2, folds=2)
    return dataset.folder.name


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this Python environment; fails with its output when it does not end with 0."""
    done = subprocess.run(
        [os.fspath(BIN / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def plan(numbers: list[int], configurations: list[str], *more: str) -> None:
    """Plan and preprocess with nnU-Net's command, then make the networks narrow, so that tests are quick."""
    datasets = ["-d", *map(str, numbers), "-c", *configurations]
    processes = ["-npfp", "2", "-np", *(["2"] * len(configurations))]
    run("nnUNetv2_plan_and_preprocess", *datasets, *processes, *more, nnUNet_n_proc_DA="1")
    for number in numbers:
        path = preprocessed_dataset_folder(str(number)) / "nnUNetPlans.json"
        plans = json.loads(path.read_text())
        for configuration in plans["configurations"].values():
            if "architecture" in configuration:
                arguments = configuration["architecture"]["arch_kwargs"]
                arguments["features_per_stage"] = [min(4 * 2**n, 16) for n in range(arguments["n_stages"])]
        path.write_text(json.dumps(plans))


def trainer_of(
    dataset: str, configuration: str, fold: int | str, *, name: str = "QAsemiTrainer", plans: str = "nnUNetPlans"
) -> Any:
    """A trainer as nnUNetv2_train builds it, on the CPU."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args(dataset, configuration, fold, name, plans, device=torch.device("cpu"))


def tree(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Content of every file below a folder, by relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }

"""Cost of the QA loss: `python -m benchmarks.qa_step`.

A step of QAsemiTrainer on L annotated and U pool images against nnUNetTrainer's on L + U, and the share of montage and
discriminator in it, in one run on the same patches of 128×128 (2D) and 64×64×64 (3D), with nnU-Net's usual widths.
Targets: a ratio of at most 1.15, a share of at most 15 %.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.model import prepare
from nnunet_qa.inference.qa_montage import renderer_of
from nnunet_qa.networks.discriminator import resnet18_regressor
from nnunet_qa.quality.discriminator import Discriminator, frozen
from tests.phantom import trainer_of

IMAGES = 2
PATCHES = {2: [128, 128], 3: [64, 64, 64]}
ROUNDS = {2: 10, 3: 4}


def main() -> None:
    """Print the ratio and the share, 2D and 3D."""
    torch.set_num_threads(1)
    for dimensions, patch in PATCHES.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            times, shares = _measure(Path(folder), dimensions, patch)
        paired = np.median(times[:, 1] / times[:, 0])
        print(
            f"{dimensions}D, patch {'×'.join(map(str, patch))}, {IMAGES} + {IMAGES} images: ratio of medians "
            f"{np.median(times[:, 1]) / np.median(times[:, 0]):.3f}, paired {paired:.3f} (target <= 1.15); montage and "
            f"discriminator {100 * np.median(shares / times[:, 1]):.1f} % of the step (target <= 15 %)"
        )


def _measure(folder: Path, dimensions: int, patch: list[int]) -> tuple[np.ndarray, np.ndarray]:
    dataset, configuration = prepare(folder, dimensions=dimensions)
    (folder / "qa.yaml").write_text("qa_loss: {start: 0.0, guard: {enabled: false}}\n")
    os.environ["nnUNet_qa_config"] = str(folder / "qa.yaml")
    stock, ours = (trainer_of(dataset, configuration, 0, name=name) for name in ("nnUNetTrainer", "QAsemiTrainer"))
    ours.pool_images = {"P": []}  # a pool, so that the loss is built for one
    for trainer in (stock, ours):
        trainer.configuration_manager.configuration["patch_size"] = patch
        trainer.initialize()
        trainer.network.train()
    renderer = renderer_of(ours.plans_manager, ours.configuration_manager, ours.dataset_json, ours.unlabelled)
    discriminator = Discriminator(renderer.specs[0], ["small", "large"])
    discriminator.network_ = frozen(resnet18_regressor())
    ours.renderer = renderer
    ours._use(discriminator)
    ours.loss.weight = 0.1
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2 * IMAGES, 1, *patch, generator=generator)
    scales = ours._get_deep_supervision_scales()
    sizes = [[round(side * part) for side, part in zip(patch, scale, strict=True)] for scale in scales]
    targets = [torch.randint(0, 3, (2 * IMAGES, 1, *size), generator=generator).float() for size in sizes]
    keys = ["S0_c0"] * IMAGES
    half = {"data": images[:IMAGES], "target": [target[:IMAGES] for target in targets], "keys": keys}
    ours._pool_batches = _Endless(images[IMAGES:])
    calls = {0: lambda: stock.train_step({"data": images, "target": targets}), 1: lambda: ours.train_step(half)}
    rounds = ROUNDS[dimensions]
    times, shares = np.empty((rounds, 2)), np.empty(rounds)
    for number in range(-1, rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            calls[which]()
            if number >= 0:
                times[number, which] = time.process_time() - start
        if number >= 0:
            shares[number] = _share(ours, images[IMAGES:])
    return times, shares


def _share(trainer: Any, images: torch.Tensor) -> float:
    """Seconds of montage and discriminator alone, forwards and backwards to the logits."""
    logits = torch.zeros(len(images), 3, *images.shape[2:], requires_grad=True)
    start = time.process_time()
    trainer._qa([logits], images).backward()
    return time.process_time() - start


class _Endless:
    """The same pool batch again and again."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __next__(self) -> dict[str, torch.Tensor]:
        return {"data": self.images}


if __name__ == "__main__":
    main()

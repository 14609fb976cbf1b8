"""A discriminator that has learnt nothing, for tests of what stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nnunet_qa.quality.coded_montages import CodedMontages
from nnunet_qa.quality.discriminator import Discriminator
from nnunet_qa.quality.discriminator_file import save
from nnunet_qa.quality.montage import MontageSpec


def write_discriminator(path: Path, spec: MontageSpec, classes: Sequence[str], dataset: str) -> Path:
    """Fit one on noise, in one step, and save it."""
    rng = np.random.default_rng(0)
    number = 9
    montages = CodedMontages(
        pictures=torch.from_numpy(rng.integers(0, 255, (number, 3, *spec.size)).astype(np.uint8)),
        codes=np.arange(number) % 3,
        dice=np.full(number, np.nan),
        subjects=tuple(f"S{k // 3}" for k in range(number)),
        case_ids=tuple(f"case{k}" for k in range(number)),
        sources=("human",) * number,
    )
    fitted = Discriminator(spec, classes, epochs=1, steps_per_epoch=1, batch_size=3).fit(montages)
    return save(fitted, path, dataset=dataset, about={})

"""Montages whose code can be seen at once: a stripe of a colour for each code, in noise."""

from __future__ import annotations

import numpy as np
import torch

from nnunet_qa.quality.coded_montages import CodedMontages
from nnunet_qa.quality.montage import MontageSpec

SPEC = MontageSpec.for_patch((32, 32), (1.0, 1.0), classes=2)
CLASSES = ("a", "b")


def easy_montages(number: int = 60, *, subjects: int = 10, seed: int = 0, source: str = "human") -> CodedMontages:
    """Montages with codes 0, 1, 2, 0, …; every subject has all codes where it has three."""
    rng = np.random.default_rng(seed)
    codes = np.arange(number) % 3
    pictures = rng.integers(0, 60, (number, 3, *SPEC.size)).astype(np.uint8)
    for picture, code in zip(pictures, codes, strict=True):
        picture[code, 8:24] += 190
    return CodedMontages(
        pictures=torch.from_numpy(pictures),
        codes=codes.astype(np.int64),
        dice=np.full(number, np.nan),
        subjects=tuple(f"S{k * subjects // number:02d}" for k in range(number)),
        case_ids=tuple(f"case{k:03d}" for k in range(number)),
        sources=(source,) * number,
    )

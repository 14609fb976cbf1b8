"""A tiny dataset with two annotated pool cases, for the tests of `promote`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_qa.data.promote import Promotion, promote
from nnunet_qa.data.splits import grouped_splits, write_splits
from tests.small import NAME, annotate, snapshot, tiny_dataset

CASES = ("S1_b", "S4_a")


def prepare(base: Path, *, splits: bool = True, **options: Any) -> Path:
    """A dataset with folds and labels for two pool cases."""
    folder = tiny_dataset(base, **options)
    if splits:
        subjects = {"S1_a": "S1", "S2_a": "S2", "S3_a": "S3"}
        write_splits(base / "nnUNet_preprocessed" / NAME, grouped_splits(subjects))
    annotate(base / "labels", *CASES, ending=options.get("ending", ".png"))
    return folder


def run(base: Path, **options: Any) -> Promotion:
    return promote(
        base / "nnUNet_raw" / NAME,
        options.pop("labels", base / "labels"),
        preprocessed_folder=base / "nnUNet_preprocessed" / NAME,
        **options,
    )


def state(base: Path) -> dict[str, bytes]:
    return snapshot(base / "nnUNet_raw", base / "nnUNet_preprocessed", base / "labels")

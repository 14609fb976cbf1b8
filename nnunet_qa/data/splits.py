"""Cross-validation folds grouped by subject, in nnU-Net's `splits_final.json`, so that stock trainers use the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold

from nnunet_qa.errors import DatasetError
from nnunet_qa.files import write_json

FILE_NAME = "splits_final.json"
Split = dict[str, list[str]]


def grouped_splits(subjects: Mapping[str, str], *, folds: int = 5) -> list[Split]:
    """Split cases into folds such that no subject stands on both sides of one.

    Args:
        subjects: subject of each labelled case.
        folds: number of folds; as many as there are subjects where these are fewer.

    Returns:
        One `{"train": [...], "val": [...]}` a fold, cases sorted; every case is validated exactly once.

    Raises:
        DatasetError: there are fewer than two subjects.
    """
    cases = sorted(subjects)
    groups = [subjects[case] for case in cases]
    count = len(set(groups))
    if count < 2:
        raise DatasetError(
            f"{count} annotated subject(s): folds need at least two, because slices of one subject must not be on both "
            "sides; annotate another subject or train with fold `all`"
        )
    names = np.array(cases)
    parts = GroupKFold(n_splits=min(folds, count)).split(names, groups=groups)
    return [{"train": names[train].tolist(), "val": names[val].tolist()} for train, val in parts]


def check_splits(splits: Any, subjects: Mapping[str, str], source: str) -> None:
    """Refuse folds that do not fit the labelled cases or that part a subject.

    Raises:
        DatasetError: names the fold and the case or subject.
    """
    if not isinstance(splits, list) or not all(
        isinstance(fold, dict) and {"train", "val"} <= set(fold) for fold in splits
    ):
        raise DatasetError(f"{source}: is not a list of folds with train and val")
    for number, fold in enumerate(splits):
        unknown = sorted({*fold["train"], *fold["val"]} - set(subjects))
        if unknown:
            raise DatasetError(f'{source}: fold {number} names the case "{unknown[0]}", which is not annotated')
        both = {subjects[case] for case in fold["train"]} & {subjects[case] for case in fold["val"]}
        if both:
            raise DatasetError(f'{source}: in fold {number} the subject "{min(both)}" is on both sides')


def extend_splits(splits: list[Split], added: Iterable[str], subjects: Mapping[str, str]) -> list[Split]:
    """Add newly annotated cases to existing folds and leave everything else as it is.

    A case joins its subject's fold; a new subject is validated in the fold that has the fewest validation cases.
    """
    result = [{"train": list(fold["train"]), "val": list(fold["val"])} for fold in splits]
    for case in sorted(added):
        home = next(
            (n for n, fold in enumerate(result) if subjects[case] in {subjects.get(other) for other in fold["val"]}),
            None,
        )
        if home is None:
            trained_everywhere = all(
                subjects[case] in {subjects.get(other) for other in fold["train"]} for fold in result
            )
            home = None if trained_everywhere else int(np.argmin([len(fold["val"]) for fold in result]))
        for number, fold in enumerate(result):
            side = "val" if number == home else "train"
            fold[side] = sorted({*fold[side], case})
    return result


def write_splits(preprocessed_folder: Path, splits: list[Split]) -> Path:
    """Write `splits_final.json` into `nnUNet_preprocessed/DatasetXXX` in one step."""
    path = preprocessed_folder / FILE_NAME
    write_json(path, splits)
    return path

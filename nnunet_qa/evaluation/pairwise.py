"""How much the members of an ensemble agree on each case: the mean Dice over all pairs of their predictions.

An estimator of quality that needs no truth; the members are the folds of a cross-validation, or other trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.evaluation.folders import Protocol, read_labels
from nnunet_qa.evaluation.segmentation import overlaps
from nnunet_qa.progress import track


def pairwise_dice(folders: Sequence[Path], *, protocol: Protocol, jobs: int = 1) -> pd.DataFrame:
    """Mean Dice over the pairs of several predictions of each case.

    Args:
        folders: one a member, with label maps of the same cases.
        protocol: what is compared.
        jobs: processes.

    Returns:
        One row a case, sorted: `case_id`; `pairwise_dice` in [0, 1], the mean over classes, where a class that both of
        a pair leave empty counts 1; `union_voxels`, how many voxels any member gives to a class, 0 where all are empty
        and so agree; and `pairwise_dice_<class>`.

    Raises:
        DatasetError: there are fewer than two folders, one is missing or empty, or a case is not in all of them.
        ImageError: a file cannot be read, two do not have the same shape, or a label value is not declared.
    """
    if len(folders) < 2:
        raise DatasetError(f"{len(folders)} folder(s) of predictions make no pair; give those of two members or more")
    cases = _common_cases(folders, protocol.file_ending)
    # joblib keeps its processes, and they stay in the folder where they were started
    absolute = [folder.absolute() for folder in folders]
    calls = (
        delayed(_row)(case, [folder / f"{case}{protocol.file_ending}" for folder in absolute], protocol)
        for case in cases
    )
    rows = Parallel(n_jobs=jobs, return_as="generator")(calls)
    return pd.DataFrame(list(track(rows, "comparing", len(cases))))


def _row(case: str, paths: list[Path], protocol: Protocol) -> dict[str, object]:
    maps = [read_labels(path, protocol) for path in paths]
    for path, one in zip(paths, maps, strict=True):
        if one.shape != maps[0].shape:
            raise ImageError(
                f"{path}: has shape {one.shape}, {paths[0]} {maps[0].shape}; give predictions of the same images"
            )
    found = [overlaps(one, other, classes=protocol.classes) for one, other in combinations(maps, 2)]
    dice = {name: float(np.mean([pair[name].dice() for pair in found])) for name in protocol.classes}
    means = {f"pairwise_dice_{name}": value for name, value in dice.items()}
    values = sorted({value for each in protocol.classes.values() for value in each})
    union = int(np.count_nonzero(np.any([np.isin(one, values) for one in maps], axis=0)))
    return {"case_id": case, "pairwise_dice": float(np.mean(list(dice.values()))), "union_voxels": union, **means}


def _common_cases(folders: Sequence[Path], ending: str) -> list[str]:
    found: dict[Path, set[str]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; give folders of predictions")
        names = [path.name for path in folder.iterdir() if path.name.endswith(ending) and path.name[0] != "."]
        if not names:
            raise DatasetError(f"{folder}: holds no file with the ending {ending}; give folders of predictions")
        found[folder] = {name.removesuffix(ending) for name in names}
    every = set().union(*found.values())
    for folder, cases in found.items():
        if alone := sorted(every - cases):
            raise DatasetError(
                f"{folder / f'{alone[0]}{ending}'}: not found, though another folder has it; predict the same cases "
                "with every member"
            )
    return sorted(every)

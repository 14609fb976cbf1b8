"""Comparing a folder of predicted label maps with a folder of true ones, case by case, in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from nnunet_qa.data.images import check_label_values, holds_volumes, label_values, read_array
from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.evaluation.segmentation import foreground_classes, ignore_value, overlaps
from nnunet_qa.progress import track


@dataclass(frozen=True)
class Protocol:
    """What is compared, from a dataset.json.

    Attributes:
        file_ending: of both label maps.
        classes: label values of each class that counts.
        allowed: label values that may occur.
        ignore: label value of the truth whose voxels do not count.
        volumes: whether files are read as volumes even if their ending is that of a picture (3D `.tif`).
    """

    file_ending: str
    classes: Mapping[str, tuple[int, ...]]
    allowed: frozenset[int]
    ignore: int | None
    volumes: bool

    @classmethod
    def of(cls, dataset_json: Mapping[str, Any], source: str) -> Protocol:
        """Read it from a dataset.json.

        Raises:
            DatasetError: an entry is missing, or there is no foreground class.
        """
        for key in ("labels", "file_ending"):
            if key not in dataset_json:
                raise DatasetError(f'{source}: the entry "{key}" is missing; give the dataset.json of the dataset')
        labels, ending = dataset_json["labels"], str(dataset_json["file_ending"])
        classes = foreground_classes(labels)
        if not classes:
            raise DatasetError(f"{source}: declares no label but background; there is nothing to evaluate")
        allowed = frozenset(label_values(labels))
        return cls(ending, classes, allowed, ignore_value(labels), holds_volumes(dataset_json))


def compare_folders(predictions: Path, truths: Path, *, protocol: Protocol, jobs: int = 1) -> pd.DataFrame:
    """Dice of each case and class.

    Args:
        predictions: folder of predicted label maps, `<case_id><file_ending>`.
        truths: folder of true ones, with the same names.
        protocol: what is compared.
        jobs: processes.

    Returns:
        One row a case, sorted: `case_id`, `dice` (mean over classes), `dice_<class>` (1 where the class is in neither
        label map), and `foreground`, whether the truth holds any of the classes.

    Raises:
        DatasetError: a folder is missing or empty, or a case is in only one of them.
        ImageError: a file cannot be read, two do not have the same shape, or a label value is not declared.
    """
    cases = _paired_cases(predictions, truths, protocol.file_ending)
    # joblib keeps its processes, and they stay in the folder where they were started
    folders = (predictions.absolute(), truths.absolute())
    calls = (
        delayed(_compare)(case, *(folder / f"{case}{protocol.file_ending}" for folder in folders), protocol)
        for case in cases
    )
    rows: Iterator[dict[str, Any]] = Parallel(n_jobs=jobs, return_as="generator")(calls)
    return pd.DataFrame(list(track(rows, "comparing", len(cases))))


def _compare(case: str, prediction: Path, truth: Path, protocol: Protocol) -> dict[str, Any]:
    predicted, real = read_labels(prediction, protocol), read_labels(truth, protocol)
    if predicted.shape != real.shape:
        raise ImageError(
            f"{prediction}: has shape {predicted.shape}, the truth {truth} {real.shape}; they must be the same"
        )
    counts = overlaps(predicted, real, classes=protocol.classes, ignore=protocol.ignore)
    dice = {name: count.dice() for name, count in counts.items()}
    return {
        "case_id": case,
        "dice": float(np.mean(list(dice.values()))),
        **{f"dice_{name}": value for name, value in dice.items()},
        "foreground": any(count.in_truth for count in counts.values()),
    }


def read_labels(path: Path, protocol: Protocol) -> np.ndarray:
    """Read a label map.

    Raises:
        ImageError: it is missing, cannot be read, or holds a value that is not declared.
    """
    array = read_array(path, volumes=protocol.volumes)
    check_label_values(array, protocol.allowed, str(path))
    return array


def _paired_cases(predictions: Path, truths: Path, ending: str) -> list[str]:
    found = {}
    for folder, flag in ((predictions, "-p"), (truths, "-gt")):
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; {flag} takes a folder of label maps")
        found[folder] = {
            path.name.removesuffix(ending)
            for path in folder.iterdir()
            if path.name.endswith(ending) and not path.name.startswith(".")
        }
        if not found[folder]:
            raise DatasetError(f"{folder}: holds no file with the ending {ending}; {flag} takes a folder of label maps")
    for folder, other, what in ((truths, predictions, "prediction"), (predictions, truths, "truth")):
        missing = sorted(found[folder] - found[other])
        if missing:
            raise DatasetError(
                f"{other / f'{missing[0]}{ending}'}: not found; {len(missing)} of {len(found[folder])} cases in "
                f"{folder} have no {what}. Evaluate folders that hold the same cases"
            )
    return sorted(found[truths])

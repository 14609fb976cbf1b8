"""Precision, recall, Jaccard, Dice and accuracy of each image, averaged as in Table I of QU-Net++ and pooled.

A class that is in neither label map counts 1 in every ratio (rightly left empty), which lifts a mean where many images
hold nothing; so the mean over the images that do hold the class, and the ratio of the pooled pixels, stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_qa.errors import ImageError, SelectionError
from nnunet_qa.evaluation.folders import Protocol, read_labels
from nnunet_qa.evaluation.segmentation import Overlap, overlaps
from nnunet_qa.progress import track

METRICS = ("precision", "recall", "jaccard", "dice", "accuracy")
COUNTS = ("tp", "fp", "fn", "tn")
ALL = "mean"
"""What stands in the column `class` of a summary in the row with the means over classes."""


def image_metrics(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    classes: Mapping[str, Sequence[int]],
    ignore: int | None = None,
) -> list[dict[str, Any]]:
    """Metrics of one image, one row a class.

    Args:
        prediction: label map, any shape.
        truth: label map of the same shape.
        classes: label values of each class, see `nnunet_qa.evaluation.segmentation.foreground_classes`.
        ignore: label value of the truth that marks voxels which do not count, not even as true negatives.

    Returns:
        `class`, the voxels `tp`, `fp`, `fn`, `tn`, the ratios `METRICS` in [0, 1], and `foreground`, whether the truth
        holds the class. Ratios are 1 where the class is in neither label map; otherwise precision, recall, Jaccard and
        Dice are 0 where nothing is shared. Accuracy is (TP + TN) / all.

    Raises:
        ValueError: the shapes differ.

    >>> image_metrics(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]), classes={"fluid": (1,)})[0]["dice"]
    0.6666666666666666
    """
    counted = truth.size if ignore is None else int(np.count_nonzero(truth != ignore))
    found = overlaps(prediction, truth, classes=classes, ignore=ignore)
    return [
        {"class": name, **_figures(overlap, counted), "foreground": overlap.in_truth} for name, overlap in found.items()
    ]


def evaluate_images(
    predictions: Path, truths: Path, cases: Sequence[str], dataset_json: Mapping[str, Any]
) -> pd.DataFrame:
    """Metrics of the given cases of two folders of label maps.

    Args:
        predictions: folder of predicted label maps, `<case_id><file_ending>`.
        truths: folder of true ones, which may hold other cases too.
        cases: identifiers of the cases to compare.
        dataset_json: content of the dataset's dataset.json.

    Returns:
        One row a case and class, in the order of `cases`: `case_id` and the columns of `image_metrics`.

    Raises:
        DatasetError: dataset.json lacks an entry or declares no foreground.
        ImageError: a file is missing or cannot be read, two have different shapes, or a label value is not declared.
    """
    protocol = Protocol.of(dataset_json, str(truths))
    rows: list[dict[str, Any]] = []
    for case in track(cases, "comparing", len(cases)):
        paths = [folder / f"{case}{protocol.file_ending}" for folder in (predictions, truths)]
        predicted, real = (read_labels(path, protocol) for path in paths)
        if predicted.shape != real.shape:
            raise ImageError(
                f"{paths[0]}: has shape {predicted.shape}, the truth {paths[1]} {real.shape}; they must be the same"
            )
        found = image_metrics(predicted, real, classes=protocol.classes, ignore=protocol.ignore)
        rows += [{"case_id": case, **row} for row in found]
    return pd.DataFrame(rows)


def summarise_images(frame: pd.DataFrame) -> pd.DataFrame:
    """Summary of the metrics of many images.

    Args:
        frame: one row a case and class, as from `evaluate_images`; further columns are left out.

    Returns:
        One row a class, then one whose class is `ALL` with the means over the classes. For each metric the columns
        `<metric>` (mean over images, as in the paper), `<metric>_foreground` (mean over the images that hold the
        class, NaN where none does) and `<metric>_pooled` (from the sums of the voxels over all images); `images` and
        `images_foreground`, in the last row those that hold any class.

    Raises:
        SelectionError: there are no rows, or a case has two rows of one class or lacks one.
    """
    if frame.empty:
        raise SelectionError("there is no image to summarise; give at least one case")
    names, cases = frame["class"].unique(), frame["case_id"].nunique()
    wrong = (frame.groupby(["case_id", "class"]).size().unstack(fill_value=0) != 1).any(axis=1)
    if wrong.any():
        case = wrong.index[wrong][0]
        raise SelectionError(f'the case "{case}" must have one row of each class ({", ".join(map(str, names))})')
    rows = [_summary_of(name, frame[frame["class"] == name]) for name in names]
    table = pd.DataFrame(rows)
    holding = int(frame.groupby("case_id")["foreground"].any().sum())
    means = table.drop(columns=["class", "images", "images_foreground"]).mean()
    table.loc[len(table)] = {"class": ALL, "images": cases, "images_foreground": holding, **means.to_dict()}
    return table


def _summary_of(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    tp, fp, fn, tn = (int(rows[column].sum()) for column in COUNTS)
    pooled = _figures(Overlap(tp, fp, fn), tp + fp + fn + tn)
    holding = rows[rows["foreground"].astype(bool)]
    row: dict[str, Any] = {"class": name, "images": len(rows), "images_foreground": len(holding)}
    for metric in METRICS:
        row[metric] = float(rows[metric].mean())
        row[f"{metric}_foreground"] = float(holding[metric].mean())
        row[f"{metric}_pooled"] = pooled[metric]
    return row


def _figures(overlap: Overlap, counted: int) -> dict[str, Any]:
    """Voxels and ratios of one class, among so many voxels that count."""
    wrong = overlap.false_positive + overlap.false_negative
    return {
        "tp": overlap.true_positive,
        "fp": overlap.false_positive,
        "fn": overlap.false_negative,
        "tn": counted - overlap.true_positive - wrong,
        "precision": overlap.precision(),
        "recall": overlap.recall(),
        "jaccard": overlap.jaccard(),
        "dice": overlap.dice(),
        "accuracy": 1 - wrong / counted if counted else 1.0,
    }

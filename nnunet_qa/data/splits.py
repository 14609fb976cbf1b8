"""Cross-validation folds grouped by subject, in nnU-Net's `splits_final.json`, so that stock trainers use the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold

from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import DatasetError
from nnunet_qa.files import write_json

FILE_NAME = "splits_final.json"
Split = dict[str, list[str]]
LABEL_SOURCE = "label_source"
"""Column of cases.csv that says who made a label, `HUMAN` or `PSEUDO`; without it, all are people's."""
HUMAN, PSEUDO = "human", "pseudo"


def grouped_splits(subjects: Mapping[str, str], *, folds: int = 5) -> list[Split]:
    """Split cases into folds such that no subject stands on both sides of one.

    Args:
        subjects: subject of each labelled case.
        folds: number of folds, at least 2; as many as there are subjects where these are fewer.

    Returns:
        One `{"train": [...], "val": [...]}` a fold, cases sorted; every case is validated exactly once.

    Raises:
        DatasetError: there are fewer than two subjects, or fewer than two folds are asked for.
    """
    if folds < 2:
        raise DatasetError(f"{folds} fold(s) cannot be cross-validated; ask for at least 2")
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

    Folds of one's own may leave cases out, or validate a case in several folds; nnU-Net takes both.

    Args:
        splits: content of a `splits_final.json`.
        subjects: subject of each labelled case.
        source: where the folds come from, for the error text.

    Raises:
        DatasetError: names the fold and the case or subject.
    """
    mend = "correct the file, or delete it to have folds written anew"
    if not isinstance(splits, list) or not splits or not all(_is_fold(fold) for fold in splits):
        raise DatasetError(f"{source}: is not a list of folds with lists of case identifiers as train and val; {mend}")
    for number, fold in enumerate(splits):
        unknown = sorted({*fold["train"], *fold["val"]} - set(subjects))
        if unknown:
            raise DatasetError(f'{source}: fold {number} names the case "{unknown[0]}", which is not annotated; {mend}')
        both = {subjects[case] for case in fold["train"]} & {subjects[case] for case in fold["val"]}
        if both:
            raise DatasetError(f'{source}: in fold {number} the subject "{min(both)}" is on both sides; {mend}')


def extend_splits(splits: list[Split], added: Iterable[str], subjects: Mapping[str, str]) -> list[Split]:
    """Add newly annotated cases to existing folds and leave everything else as it is.

    A case of a subject that the folds know goes, fold by fold, where that subject's other cases are; a fold that leaves
    the subject out leaves the case out too. A new subject is validated in the fold that has the fewest validation cases
    (the first of several) and trained on in all others.

    Args:
        splits: existing folds; they are not changed.
        added: the new cases.
        subjects: subject of each case, new and old.

    Returns:
        The folds with the new cases, in which no subject is parted that was not parted before.
    """
    result = [{"train": list(fold["train"]), "val": list(fold["val"])} for fold in splits]
    known = {case for fold in splits for side in fold.values() for case in side}
    for case in sorted(set(added) - known):
        subject = subjects[case]
        sides = [_sides_of(subject, fold, subjects) for fold in result]
        if not any(sides):
            home = int(np.argmin([len(fold["val"]) for fold in result]))
            sides = [{"val"} if number == home else {"train"} for number in range(len(result))]
        for fold, where in zip(result, sides, strict=True):
            for side in where:
                fold[side] = sorted({*fold[side], case})
    return result


def pseudo_labelled(table: CaseTable) -> set[str]:
    """Cases whose label is a prediction; they are trained on and never validated."""
    frame = table.frame
    return set() if LABEL_SOURCE not in frame.columns else set(frame["case_id"][frame[LABEL_SOURCE] == PSEUDO])


def with_pseudo_labels(splits: list[Split], pseudo: Iterable[str], subjects: Mapping[str, str]) -> list[Split]:
    """Folds of people's labels with pseudo-labelled cases added, in the training parts alone.

    A fold does not train on a pseudo-label of a subject that it validates; nor, as in `extend_splits`, of one that it
    leaves out though other folds know it.

    Args:
        splits: the folds; they are not changed, and pseudo-labelled cases that they hold do not count.
        pseudo: the pseudo-labelled cases.
        subjects: subject of each case.
    """
    added = set(pseudo)
    human = [{side: sorted(set(cases) - added) for side, cases in fold.items()} for fold in splits]
    known = {subjects[case] for fold in human for side in fold.values() for case in side}
    result = []
    for fold in human:
        trained = {case for case in added if _sides_of(subjects[case], fold, subjects) == {"train"}}
        trained |= {case for case in added if subjects[case] not in known}
        result.append({"train": sorted({*fold["train"], *trained}), "val": fold["val"]})
    return result


def same_splits(first: Any, second: Any) -> bool:
    """Whether two lists of folds hold the same cases, in whatever order the cases of a fold stand."""
    if not isinstance(first, list) or not isinstance(second, list) or len(first) != len(second):
        return False
    if not all(_is_fold(fold) for fold in (*first, *second)):
        return False
    return all(set(a[side]) == set(b[side]) for a, b in zip(first, second, strict=True) for side in ("train", "val"))


def read_splits(path: Path) -> Any:
    """Content of a `splits_final.json`, unchecked (see `check_splits`); None where there is no such file.

    Raises:
        DatasetError: the file is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON: {error}; correct it or delete it") from error


def write_splits(preprocessed_folder: Path, splits: list[Split]) -> Path:
    """Write `splits_final.json` into `nnUNet_preprocessed/DatasetXXX` in one step."""
    path = preprocessed_folder / FILE_NAME
    write_json(path, splits)
    return path


def _is_fold(fold: Any) -> bool:
    return isinstance(fold, dict) and all(
        isinstance(fold.get(side), list) and all(isinstance(case, str) for case in fold[side])
        for side in ("train", "val")
    )


def _sides_of(subject: str, fold: Split, subjects: Mapping[str, str]) -> set[str]:
    return {side for side in ("train", "val") if subject in {subjects.get(case) for case in fold[side]}}

"""Which classes a case labels, in datasets put together from several sources (docs/partial-labels.md).

A case says so in the column `labelled_classes` of cases.csv (names separated by ";", empty for all), or in the entry
`labelled_classes` of dataset.json (a list of names by case).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.existing import names_by_role
from nnunet_qa.data.images import holds_volumes, label_values, read_array
from nnunet_qa.errors import CaseTableError, DatasetError, NnunetQAError, nearest
from nnunet_qa.progress import track

KEY = "labelled_classes"
"""Name of the column and of the entry."""


def labelled_classes(
    dataset_json: Mapping[str, Any], case_table: CaseTable | None, names: Sequence[str]
) -> dict[str, tuple[bool, ...]] | None:
    """Classes that are labelled in each case that declares them.

    Args:
        dataset_json: content of dataset.json.
        case_table: the cases of the dataset; None where there is no cases.csv.
        names: foreground classes or regions, in the order of the network's outputs.

    Returns:
        Whether each of `names` is labelled, by case. A case that is absent labels all of them. None where no case
        declares anything.

    Raises:
        CaseTableError: cases.csv names an unknown class, or says something else than dataset.json.
        DatasetError: the entry of dataset.json is no list of names by case, names an unknown class or an unknown case,
            or lists no class for a case.
    """
    in_json = _from_json(dataset_json, case_table, names)
    in_table = _from_table(case_table, names)
    if in_json is None or in_table is None:
        return in_json or in_table
    every = (True,) * len(names)
    for case in sorted({*in_json, *in_table}):
        here, there = in_table.get(case, every), in_json.get(case, every)
        if here != there:
            raise CaseTableError(
                f'{CASES}: the case "{case}" labels {_listed(here, names)}, but {_listed(there, names)} in '
                f'"{KEY}" of dataset.json; correct one or take one away'
            )
    return in_table


def check_declared(
    dataset_folder: Path,
    dataset_json: Mapping[str, Any],
    labelled: Mapping[str, tuple[bool, ...]],
    names: Sequence[str],
) -> None:
    """Read the labels of the training cases that declare their classes, and refuse those that hold another class.

    Args:
        dataset_folder: `nnUNet_raw/DatasetXXX`.
        dataset_json: its dataset.json.
        labelled: what `labelled_classes` gave.
        names: as for `labelled_classes`.

    Raises:
        DatasetError: a label holds a class that its case does not declare; a case has no image.
        ImageError: a label cannot be read.
    """
    # imported here, because it takes seconds
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    roles = names_by_role(dataset_folder, dict(dataset_json))
    known = [case for cases in roles.values() for case in cases]
    for case in labelled:
        if case not in known:
            raise DatasetError(
                f'{dataset_folder}: the case "{case}" declares its {KEY}, but has no image there{nearest(case, known)}'
            )
    values = {name: label_values({name: dataset_json["labels"][name]}) for name in names}
    files = get_filenames_of_train_images_and_targets(str(dataset_folder), copy.deepcopy(dict(dataset_json)))
    declaring = [case for case in roles[Role.LABELLED] if case in labelled]
    for case in track(declaring, "checking declared classes", len(declaring)):
        flags, path = labelled[case], Path(files[case]["label"])
        declared = {value for name, flag in zip(names, flags, strict=True) if flag for value in values[name]}
        found = np.unique(read_array(path, volumes=holds_volumes(dataset_json))).tolist()
        for name in names:
            undeclared = [value for value in found if value in values[name] and value not in declared]
            if undeclared:
                raise DatasetError(
                    f'{path}: holds the label {undeclared[0]:g} ("{name}"), but its case declares only '
                    f'{_listed(flags, names)}; add "{name}" to its {KEY} or take it out of the label'
                )


def _from_table(case_table: CaseTable | None, names: Sequence[str]) -> dict[str, tuple[bool, ...]] | None:
    if case_table is None or KEY not in case_table.frame:
        return None
    texts = case_table.frame[KEY].fillna("").astype(str)
    found = {}
    for case, text in zip(case_table.frame["case_id"], texts, strict=True):
        listed = [name for part in text.split(";") if (name := part.strip())]
        if listed:
            found[case] = _flags(listed, names, f'{CASES}: the case "{case}"', CaseTableError)
    return found or None


def _from_json(
    dataset_json: Mapping[str, Any], case_table: CaseTable | None, names: Sequence[str]
) -> dict[str, tuple[bool, ...]] | None:
    entry = dataset_json.get(KEY)
    if entry is None:
        return None
    shape = f'"{KEY}" must be an object with a list of class names for each case'
    if not isinstance(entry, dict):
        raise DatasetError(f"dataset.json: {shape}, found a {type(entry).__name__}")
    known = None if case_table is None else case_table.case_ids()
    found = {}
    for case, listed in entry.items():
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise DatasetError(f'dataset.json: {shape}, found {listed!r} for "{case}"')
        if known is not None and case not in known:
            raise DatasetError(f'dataset.json: "{KEY}" names the case "{case}", not in {CASES}{nearest(case, known)}')
        if not listed:
            raise DatasetError(f'dataset.json: "{KEY}" lists no class for "{case}"; leave out cases that label all')
        found[case] = _flags(listed, names, f'dataset.json: the case "{case}"', DatasetError)
    return found or None


def _flags(listed: Sequence[str], names: Sequence[str], where: str, error: type[NnunetQAError]) -> tuple[bool, ...]:
    for name in listed:
        if name not in names:
            raise error(
                f'{where} declares the unknown class "{name}" in {KEY}{nearest(name, names)}; classes are '
                f"{', '.join(names)}"
            )
    return tuple(name in listed for name in names)


def _listed(flags: Sequence[bool], names: Sequence[str]) -> str:
    return ", ".join(name for name, flag in zip(names, flags, strict=True) if flag)

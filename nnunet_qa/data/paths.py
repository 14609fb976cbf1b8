"""Where nnU-Net keeps a dataset, with one clear line where a path is unset or a dataset is missing."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from nnunet_qa.environment import FOLDERS
from nnunet_qa.errors import DatasetError, EnvironmentVariableError

RAW, PREPROCESSED, RESULTS = FOLDERS
_NAME = re.compile(r"Dataset(\d{3})_\w[\w-]*")


def base_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables names.

    Raises:
        EnvironmentVariableError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise EnvironmentVariableError(
            f"{variable} is not set; run `export {variable}=/a/folder` (see `nnunet-qa env`)"
        )
    return Path(value)


def dataset_name(dataset: str) -> str:
    """Full name `DatasetXXX_Name` of a dataset given by number or name, as nnU-Net's `-d` takes it.

    Looks in nnUNet_raw, nnUNet_preprocessed and nnUNet_results, whichever are set.

    Raises:
        EnvironmentVariableError: none of the three is set.
        DatasetError: no dataset, or more than one, has this number.
    """
    if _NAME.fullmatch(dataset):
        return dataset
    if not dataset.isdecimal() or int(dataset) > 999:
        raise DatasetError(f'"{dataset}" is neither a dataset number (1 to 999) nor a name like Dataset101_OCT')
    folders = [Path(os.environ[name]) for name in (RAW, PREPROCESSED, RESULTS) if os.environ.get(name)]
    if not folders:
        raise EnvironmentVariableError(f"{RAW}, {PREPROCESSED} and {RESULTS} are not set (see `nnunet-qa env`)")
    prefix = f"Dataset{int(dataset):03d}_"
    names = {entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir() if entry.is_dir()}
    found = sorted(name for name in names if name.startswith(prefix))
    if not found:
        raise DatasetError(f"no dataset {dataset} ({prefix}…) in {', '.join(map(str, folders))}; convert one first")
    if len(found) > 1:
        raise DatasetError(f"dataset {dataset} is ambiguous: {', '.join(found)}; give the full name")
    return found[0]


def new_dataset_name(number: int, name: str) -> str:
    """Name of a dataset that is to be written, `DatasetXXX_Name`.

    Raises:
        DatasetError: number or name is not what nnU-Net accepts, or another dataset in nnUNet_raw has the number.
    """
    full = f"Dataset{number:03d}_{name}"
    if not 1 <= number <= 999 or not _NAME.fullmatch(full):
        raise DatasetError(f'"{full}" is no dataset name: use a number from 1 to 999 and letters, digits, "_" or "-"')
    raw = base_folder(RAW)
    others = sorted(entry.name for entry in raw.glob(f"Dataset{number:03d}_*") if entry.name != full)
    if others:
        raise DatasetError(f"the number {number} is taken by {raw / others[0]}; choose another with -d")
    return full


def raw_dataset_folder(dataset: str) -> Path:
    """`nnUNet_raw/DatasetXXX_Name` of an existing raw dataset.

    Raises:
        EnvironmentVariableError: nnUNet_raw is not set.
        DatasetError: there is no such dataset, or it has no dataset.json.
    """
    folder = base_folder(RAW) / dataset_name(dataset)
    if not (folder / "dataset.json").is_file():
        raise DatasetError(f"{folder}: no dataset.json there; finish the conversion first (run it again)")
    return folder


def raw_dataset_folder_if_known(name: str) -> Path | None:
    """`nnUNet_raw/name`, or None where nnUNet_raw is not set (training needs only the preprocessed data)."""
    value = os.environ.get(RAW)
    return Path(value) / name if value else None


def preprocessed_dataset_folder(dataset: str) -> Path:
    """`nnUNet_preprocessed/DatasetXXX_Name` of a planned dataset.

    Raises:
        EnvironmentVariableError: nnUNet_preprocessed is not set.
        DatasetError: the dataset has not been planned and preprocessed.
    """
    folder = base_folder(PREPROCESSED) / dataset_name(dataset)
    if not (folder / "dataset.json").is_file():
        number = folder.name[7:10].lstrip("0")
        raise DatasetError(
            f"{folder}: this dataset has not been planned; run `nnUNetv2_plan_and_preprocess -d {number}` first"
        )
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        DatasetError: the file is missing or is not valid JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: not found") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: must hold a JSON object, found a {type(content).__name__}")
    return content


def read_plans(dataset: str, plans_identifier: str) -> dict[str, Any]:
    """Content of `nnUNet_preprocessed/DatasetXXX/<plans_identifier>.json`.

    Raises:
        DatasetError: the dataset has not been planned, or not under this name (those that exist are named).
    """
    folder = preprocessed_dataset_folder(dataset)
    path = folder / f"{plans_identifier}.json"
    if not path.is_file():
        found = sorted(file.stem for file in folder.glob("*.json") if "Plans" in file.stem)
        raise DatasetError(f"{path}: no such plans; found: {', '.join(found) or 'none'}. Choose one with -p")
    return read_json(path)

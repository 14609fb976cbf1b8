"""Where a command finds the case table: `--cases` names the file, `-d` the dataset that has one."""

from __future__ import annotations

from pathlib import Path

from nnunet_qa.cases import FILE_NAME
from nnunet_qa.data.paths import raw_dataset_folder
from nnunet_qa.errors import CaseTableError


def find_cases(dataset: str | None, cases: Path | None) -> Path | None:
    """The case table that the options name, or None where they name none.

    Raises:
        CaseTableError: the dataset has no cases.csv.
        DatasetError: there is no such dataset.
        EnvironmentVariableError: nnUNet_raw is not set.
    """
    if cases is not None or dataset is None:
        return cases
    path = raw_dataset_folder(dataset) / FILE_NAME
    if not path.is_file():
        raise CaseTableError(f"{path}: not found; write it from the file names with `nnunet-qa cases -d {dataset}`")
    return path

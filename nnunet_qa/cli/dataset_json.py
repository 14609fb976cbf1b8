"""Where a command that looks at predictions finds their dataset.json."""

from __future__ import annotations

from pathlib import Path


def find_dataset_json(predictions: Path, dataset: str | None, given: Path | None) -> Path:
    """The dataset.json that was named, that of the dataset, or the one that nnU-Net wrote beside the predictions.

    Raises:
        DatasetError: there is none.
        EnvironmentVariableError: a dataset is named, and nnU-Net's folders are not.
    """
    from nnunet_qa.data.paths import preprocessed_dataset_folder, raw_dataset_folder
    from nnunet_qa.errors import DatasetError, EnvironmentVariableError

    if given is not None:
        return given
    if dataset is None:
        beside = predictions / "dataset.json"
        if not beside.is_file():
            raise DatasetError(f"{beside}: not found; name the dataset with -d, or its file with --dataset-json")
        return beside
    try:
        return raw_dataset_folder(dataset) / "dataset.json"
    except (DatasetError, EnvironmentVariableError):
        return preprocessed_dataset_folder(dataset) / "dataset.json"

"""Plans of an annotated dataset for one that has only unlabelled images, so that weights fit both.

nnU-Net's own `nnUNetv2_move_plans_between_datasets` asks the target for an annotated case, and its planning and
preprocessing, which would write dataset.json and fingerprint, want one too. Here the images are those of `imagesUn/`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_qa.data.paths import (
    PREPROCESSED,
    base_folder,
    preprocessed_dataset_folder,
    raw_dataset_folder,
    read_json,
    read_plans,
)
from nnunet_qa.data.plans import PlansError
from nnunet_qa.data.pool import pool_images
from nnunet_qa.errors import DatasetError
from nnunet_qa.files import make_folder, replacing, write_json

_FINGERPRINT = "dataset_fingerprint.json"


def move_plans(source: str, target: str, *, plans: str, identifier: str, overwrite: bool = False) -> Path:
    """Write plans of one dataset for another, and the files that a training of that one needs beside them.

    Args:
        source: number or name of the planned dataset.
        target: number or name of a raw dataset with a pool; it may have annotated cases or none.
        plans: name of the source's plans.
        identifier: their name at the target.
        overwrite: replace other plans of this name.

    Returns:
        The plans file. Where it already holds the same plans, it is left alone.

    Raises:
        EnvironmentVariableError: nnUNet_raw or nnUNet_preprocessed is not set.
        DatasetError: the source has not been planned, or the target has no dataset.json or no pool.
        PlansError: the two have different numbers of channels, or other plans have the name already.
    """
    content, origin = read_plans(source, plans), preprocessed_dataset_folder(source)
    raw = raw_dataset_folder(target)
    dataset_json = read_json(raw / "dataset.json")
    wanted, found = (len(one["channel_names"]) for one in (read_json(origin / "dataset.json"), dataset_json))
    if wanted != found:
        raise PlansError(
            f"{raw / 'dataset.json'}: {found} channel(s), and {plans} of {origin.name} are for {wanted}; plans can "
            "only be moved between datasets of the same channels"
        )
    images = pool_images(raw, dataset_json)
    if not images:
        raise DatasetError(f"{raw / 'imagesUn'}: no unlabelled image there; put some in, named like case_0000.nii.gz")
    reader = determine_reader_writer_from_dataset_json(dataset_json, str(next(iter(images.values()))[0]), verbose=False)
    new = _renamed(content, plans, identifier) | {"dataset_name": raw.name, "image_reader_writer": reader.__name__}
    folder = make_folder(base_folder(PREPROCESSED) / raw.name)
    path = folder / f"{identifier}.json"
    if path.is_file() and read_json(path) != new and not overwrite:
        raise PlansError(f"{path}: other plans of this name exist; replace them with --overwrite or choose -tp")
    if not (folder / _FINGERPRINT).is_file():  # nnU-Net copies it beside each model and reads nothing in it
        with replacing(folder / _FINGERPRINT) as temporary:
            shutil.copyfile(origin / _FINGERPRINT, temporary)
    write_json(folder / "dataset.json", dataset_json)
    write_json(path, new)
    return path


def _renamed(plans: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Plans under another name, whose preprocessed data gets folders of that name, as nnU-Net names them."""
    configurations = {}
    for name, configuration in plans["configurations"].items():
        data = configuration.get("data_identifier")
        if data is not None and new != old:
            data = new + (data.removeprefix(old) if data.startswith(old) else f"_{data}")
        configurations[name] = configuration | ({"data_identifier": data} if data is not None else {})
    return plans | {"plans_name": new, "configurations": configurations}

"""The unlabelled pool: `imagesUn/`, preprocessed by the plan's own preprocessor, and a data loader over it.

A dataset that refers to images of another one (`nnunet-qa inject`) names its pool in the entry `unlabelled` of
dataset.json, a list of channel files by case, written as nnU-Net's own entry `dataset` is: paths relative to the
dataset folder or absolute, environment variables in them expanded.

The preprocessed pool lies beside the preprocessed annotated cases, in `<data_identifier>_unlabelled`, in nnU-Net's own
format. A case is complete when its `.pkl` is there; that file also says what it was made from, so a changed image or
changed plans are noticed and a killed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle
from joblib import Parallel, delayed
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_qa.data.images import check_finite
from nnunet_qa.data.journal import locked
from nnunet_qa.data.nifti import check_nifti
from nnunet_qa.errors import DatasetError, ImageError, NnunetQAError
from nnunet_qa.files import make_folder, storage_error
from nnunet_qa.progress import track

logger = logging.getLogger(__name__)

IMAGES = "imagesUn"
ENTRY = "unlabelled"
SUFFIX = "_unlabelled"
_SOURCE = "nnunet_qa_source"


@dataclass(frozen=True)
class PreprocessedPool:
    """The preprocessed pool of one configuration.

    Attributes:
        folder: where the preprocessed cases lie.
        case_ids: complete cases, sorted.
    """

    folder: Path
    case_ids: tuple[str, ...]

    def dataset(self, previous_stage: str | None = None) -> nnUNetDatasetBlosc2:
        """nnU-Net's dataset over the pool.

        Args:
            previous_stage: folder of the previous stage's segmentations, for the second stage of the cascade.
        """
        return nnUNetDatasetBlosc2(os.fspath(self.folder), list(self.case_ids), previous_stage)


def case_files(folder: Path, file_ending: str, channels: int) -> dict[str, list[Path]]:
    """Channel files of each case in a folder of nnU-Net images, by case.

    Raises:
        DatasetError: the folder is missing, or a case lacks a channel or has one too many.
    """
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(file_ending)}")
    cases: dict[str, list[Path]] = {}
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match and not path.name.startswith("."):
            cases.setdefault(match.group(1), []).append(path)
    for case, paths in cases.items():
        expected = [f"{case}_{channel:04d}{file_ending}" for channel in range(channels)]
        if [path.name for path in paths] != expected:
            raise DatasetError(
                f"{folder}: the case {case} has {', '.join(path.name for path in paths)}; "
                f"dataset.json asks for {', '.join(expected)}"
            )
    return cases


def pool_images(raw_dataset_folder: Path, dataset_json: dict[str, Any]) -> dict[str, list[Path]]:
    """Channel files of every pool case, in `imagesUn/` and in the entry `unlabelled`; empty where there is neither.

    Raises:
        DatasetError: a case lacks a channel or has one too many, or a file that the entry names is not there.
    """
    folder, channels = raw_dataset_folder / IMAGES, len(dataset_json["channel_names"])
    found = case_files(folder, dataset_json["file_ending"], channels) if folder.is_dir() else {}
    for case, names in dataset_json.get(ENTRY, {}).items():
        paths = [referenced(raw_dataset_folder, name) for name in names]
        missing = [path for path in paths if not path.is_file()]
        if missing or len(paths) != channels:
            wrong = f"{missing[0]}, which is not there" if missing else f"{len(paths)} files for {channels} channels"
            raise DatasetError(
                f'{raw_dataset_folder / "dataset.json"}: the entry "{ENTRY}" names for the case "{case}" {wrong}; put '
                "the images back, or inject again"
            )
        found[case] = paths
    return dict(sorted(found.items()))


def referenced(raw_dataset_folder: Path, name: str) -> Path:
    """The file that a dataset.json refers to, as nnU-Net finds it."""
    return Path(os.path.abspath(os.path.join(raw_dataset_folder, os.path.expandvars(name))))


def refuse_overlap(raw_dataset_folder: Path, images: dict[str, list[Path]], file_ending: str) -> None:
    """Refuse a case that is annotated and in the pool at once.

    Raises:
        DatasetError: names the first such case.
    """
    for case in images:
        if (raw_dataset_folder / "imagesTr" / f"{case}_0000{file_ending}").is_file():
            raise DatasetError(
                f"{raw_dataset_folder}: the case {case} is in imagesTr and in {IMAGES}; remove one of them"
            )


def pool_folder(preprocessed_dataset_folder: Path, data_identifier: str) -> Path:
    """Folder of the preprocessed pool of a configuration."""
    return preprocessed_dataset_folder / f"{data_identifier}{SUFFIX}"


def prepare_pool(
    images: dict[str, list[Path]],
    preprocessed_dataset_folder: Path,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    *,
    jobs: int = 1,
) -> PreprocessedPool:
    """Preprocess the pool for one configuration; what an earlier run completed is kept.

    Args:
        images: channel files by case (`pool_images`).
        preprocessed_dataset_folder: `nnUNet_preprocessed/DatasetXXX`.
        plans: content of the plans file.
        configuration: `2d`, `3d_fullres`, `3d_lowres`, …
        dataset_json: content of dataset.json.
        jobs: processes.

    Raises:
        DatasetError: the plans lack the configuration.
        ImageError: an image cannot be read or holds NaN or infinite values; all other work done so far is kept.
        StorageError: the disk is full or read-only.
    """
    if configuration not in plans.get("configurations", {}):
        found = ", ".join(plans.get("configurations", {}))
        raise DatasetError(
            f'the plans "{plans.get("plans_name")}" have no configuration "{configuration}"; found: {found}'
        )
    manager = PlansManager(plans)
    folder = make_folder(
        pool_folder(preprocessed_dataset_folder, manager.get_configuration(configuration).data_identifier)
    )
    with locked(folder, wait=True):  # folds are often trained side by side
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        stamps = {case: _stamp(paths, plans, configuration) for case, paths in images.items()}
        _remove_strangers(folder, set(images))
        todo = [case for case in sorted(images) if _made_from(folder, case) != stamps[case]]
        if todo:
            logger.info("preprocessing %d of %d pool cases into %s", len(todo), len(images), folder)
            make_folder(partial)
            work = (
                delayed(_preprocess)(
                    case, images[case], folder, partial, plans, configuration, dataset_json, stamps[case]
                )
                for case in todo
            )
            done = Parallel(n_jobs=jobs, return_as="generator_unordered")(work)
            try:
                for _ in track(done, f"preprocessing the pool ({configuration})", len(todo)):
                    pass
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return PreprocessedPool(folder, tuple(sorted(images)))


def _stamp(paths: Iterable[Path], plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """What a preprocessed case depends on: the image files, and the plans less what only training reads."""
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration).configuration
    training_only = (
        "batch_size",
        "architecture",
        "patch_size",
        "batch_dice",
        "inherits_from",
        "previous_stage",
        "next_stage",
    )
    relevant = {
        "configuration": {key: value for key, value in chosen.items() if key not in training_only},
        "intensities": plans.get("foreground_intensity_properties_per_channel"),
        "transpose": plans.get("transpose_forward"),
        "reader": plans.get("image_reader_writer"),
    }
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest()
    files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return {"files": files, "plans": digest}


def _made_from(folder: Path, case: str) -> Any:
    path = folder / f"{case}.pkl"
    if not path.is_file():
        return None
    try:
        return load_pickle(os.fspath(path)).get(_SOURCE)
    except Exception:  # a damaged file is made again
        return None


def _case_paths(folder: Path, case: str) -> list[Path]:
    """Files of a preprocessed case; the last one makes it complete."""
    return [folder / f"{case}_seg.b2nd", folder / f"{case}.b2nd", folder / f"{case}.pkl"]


def _remove_strangers(folder: Path, wanted: set[str]) -> None:
    """Delete cases that are no longer in the pool, promoted ones for example."""
    present = {re.sub(r"(_seg)?\.b2nd$|\.pkl$", "", path.name) for path in folder.iterdir() if path.is_file()}
    for case in present - wanted:
        for path in reversed(_case_paths(folder, case)):
            path.unlink(missing_ok=True)


def _preprocess(
    case: str,
    paths: list[Path],
    folder: Path,
    partial: Path,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    stamp: dict[str, Any],
) -> None:
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    preprocessor = chosen.preprocessor_class(verbose=False)
    start = os.fspath(partial / case)
    for path in paths:
        check_nifti(path)
    try:
        preprocessor.run_case_save(start, [os.fspath(path) for path in paths], None, manager, chosen, dataset_json)
        check_finite(np.asarray(blosc2.open(f"{start}.b2nd", mode="r")[:]), f"{paths[0]} (after normalisation)")
        properties = load_pickle(f"{start}.pkl")
        # the data loader wants class locations; a case without label has none
        write_pickle({**properties, "class_locations": {}, _SOURCE: stamp}, f"{start}.pkl")
        (folder / f"{case}.pkl").unlink(missing_ok=True)
        for source, target in zip(_case_paths(partial, case), _case_paths(folder, case), strict=True):
            os.replace(source, target)
    except NnunetQAError:
        raise
    except OSError as error:
        if error.errno is None or not all(path.exists() for path in paths):
            raise _unreadable(paths[0], error) from error
        raise storage_error(folder, error) from error
    except Exception as error:
        raise _unreadable(paths[0], error) from error


def _unreadable(path: Path, error: Exception) -> ImageError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return ImageError(f"{path}: cannot be preprocessed (truncated, or channels of different shape?): {lines[-1]}")


class PoolLoader:
    """Batches of pool patches without end; close it when done.

    Args:
        make: builds nnU-Net's data loader over the pool.
        processes: background processes; 0 loads in the calling process.
        pin_memory: for a CUDA device.
    """

    def __init__(self, make: Callable[[], Any], *, processes: int = 1, pin_memory: bool = False) -> None:
        from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
        from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

        if processes == 0:
            self._batches: Any = SingleThreadedAugmenter(make(), None)
        else:
            self._batches = NonDetMultiThreadedAugmenter(
                make(), None, processes, num_cached=2, seeds=None, pin_memory=pin_memory, wait_time=0.002
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._batches is None:
            raise ValueError("this pool loader has been closed")
        return next(self._batches)

    def close(self) -> None:
        """End the background processes; closing twice does no harm."""
        batches, self._batches = self._batches, None
        if batches is not None and hasattr(batches, "_finish"):
            batches._finish()

    def __enter__(self) -> PoolLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

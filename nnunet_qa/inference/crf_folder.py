"""The CRF on folders: the probabilities that `nnUNetv2_predict --save_probabilities` wrote, and the images beside them.

Images are read and masks are written by the reader that nnU-Net itself uses for the dataset, so that a refined mask
lies exactly where the predicted one does. Frames of a series are cases of their own in nnU-Net and stay so.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_qa.data.existing import case_images
from nnunet_qa.data.images import check_finite, label_values
from nnunet_qa.data.nifti import check_nifti
from nnunet_qa.errors import CRFError, DatasetError, ImageError
from nnunet_qa.evaluation.segmentation import ignore_value
from nnunet_qa.files import clear, remove_leftovers, replacing, write_json
from nnunet_qa.inference.crf import CRFSettings, labels_of, library, refine
from nnunet_qa.progress import track

SETTINGS = "crf.json"
"""Settings with which the masks of a folder were made; lies among them."""
_KEY = "probabilities"
_TOLERANCE = 1e-2  # of the sum over classes, for files in half precision
_PREDICT = "`nnUNetv2_predict --save_probabilities`"


@dataclass(frozen=True, kw_only=True)
class CRFCase:
    """Files of one case: probabilities (`.npz`) and one image a channel."""

    case_id: str
    probabilities: Path
    images: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class CaseReader:
    """Reads the cases of one dataset.

    Attributes:
        files: nnU-Net's reader and writer.
        classes: labels with the background, without an ignore label.
        file_ending: of images and masks.
    """

    files: Any = field(compare=False)
    classes: int
    file_ending: str

    @classmethod
    def of(cls, dataset_json: Mapping[str, Any], source: str) -> CaseReader:
        """The reader for a dataset.json.

        Raises:
            DatasetError: an entry is missing, or nnU-Net has no reader for the file ending.
            CRFError: it declares regions.
        """
        for key in ("labels", "file_ending"):
            if key not in dataset_json:
                raise DatasetError(f'{source}: the entry "{key}" is missing; give the dataset.json of the dataset')
        labels = dataset_json["labels"]
        regions = [name for name, value in labels.items() if isinstance(value, (list, tuple)) and len(value) > 1]
        if regions:
            raise CRFError(
                f'{source}: declares regions ("{regions[0]}"), which overlap; the CRF needs classes of which each '
                "voxel has one"
            )
        try:
            files = determine_reader_writer_from_dataset_json(dict(dataset_json), verbose=False)()
        except RuntimeError as error:
            raise DatasetError(f"{source}: nnU-Net has no reader for {dataset_json['file_ending']}") from error
        classes = len(label_values(labels) - {ignore_value(labels)})
        return cls(files=files, classes=classes, file_ending=str(dataset_json["file_ending"]))

    def image(self, paths: Sequence[Path]) -> tuple[np.ndarray, dict[str, Any]]:
        """Image `(channels, z, y, x)` and nnU-Net's properties, of which `spacing` is `(z, y, x)` in mm.

        Raises:
            ImageError: a file cannot be read, holds NaN, or channels do not fit each other.
        """
        for path in paths:
            check_nifti(path)
        try:
            image, properties = self.files.read_images([str(path) for path in paths])
        except Exception as error:  # each of nnU-Net's readers raises its own
            reason = str(error).strip().splitlines() or ["its channels do not have one shape and spacing"]
            raise ImageError(f"{paths[0]}: cannot be read as an image: {reason[-1]}") from error
        check_finite(image, str(paths[0]))
        return image, properties

    def probabilities(self, path: Path) -> np.ndarray:
        """Probabilities `(classes, z, y, x)`, float32.

        Raises:
            CRFError: the file cannot be read, or does not hold probabilities of these classes.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                if _KEY not in content:
                    raise CRFError(f'{path}: holds no array "{_KEY}"; write it with {_PREDICT}')
                array = content[_KEY].astype(np.float32)
        except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise CRFError(f"{path}: cannot be read (cut off?): {error}; write it again with {_PREDICT}") from error
        if array.ndim != 4 or len(array) != self.classes:
            raise CRFError(
                f"{path}: has shape {array.shape}; expected probabilities of {self.classes} labels with the background "
                "and three axes. Is it from a model of this dataset?"
            )
        if not (array.min() >= 0 and np.abs(array.sum(axis=0) - 1).max() <= _TOLERANCE):  # NaN fails too
            raise CRFError(f"{path}: the values are no probabilities that sum to 1; write them with {_PREDICT}")
        return array

    def case(self, case: CRFCase) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Probabilities, image and properties of a case.

        Raises:
            CRFError: as `probabilities`, or they have not the shape of the image.
            ImageError: as `image`.
        """
        probabilities = self.probabilities(case.probabilities)
        image, properties = self.image(case.images)
        if probabilities.shape[1:] != image.shape[1:]:
            raise CRFError(
                f"{case.probabilities}: has shape {probabilities.shape[1:]}, the image {case.images[0]} "
                f"{image.shape[1:]}; give the images that were predicted"
            )
        return probabilities, image, properties


def probability_files(folder: Path) -> dict[str, Path]:
    """The `.npz` file of each case in a folder, sorted.

    Raises:
        DatasetError: there is no such folder, or none in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; -p takes a folder of probabilities (.npz)")
    found = {path.stem: path for path in sorted(folder.glob("*.npz")) if not path.name.startswith(".")}
    if not found:
        raise DatasetError(f"{folder}: holds no probabilities (.npz); write them with {_PREDICT}")
    return found


def apply_folder(
    probabilities: Path,
    images: Path,
    output: Path,
    *,
    dataset_json: Mapping[str, Any],
    source: str,
    settings: CRFSettings,
    overwrite: bool = False,
    jobs: int = 1,
) -> int:
    """Write the refined mask of each case as `output/<case_id><file_ending>`, with `SETTINGS` and dataset.json.

    A run that was stopped goes on where it was; a mask that is older than its probabilities is made anew.

    Args:
        probabilities: folder of `<case_id>.npz`.
        images: folder of the images, named as nnU-Net names them.
        output: folder.
        dataset_json: content of the dataset's dataset.json.
        source: where it comes from, for error texts.
        settings: of the CRF.
        overwrite: replace masks that were made with other settings.
        jobs: processes.

    Returns:
        Number of cases.

    Raises:
        DatasetError: a folder is missing or holds something else, or a case has no image.
        CRFError: as `CaseReader`.
        ImageError: as `CaseReader`.
        DependencyError: pydensecrf2 is not installed.
        StorageError: a file could not be written.
    """
    if not settings.does_nothing:
        library()
    reader = CaseReader.of(dataset_json, source)
    found = probability_files(probabilities)
    cases = _cases(found, images, reader.file_ending)
    _begin(output, settings, overwrite=overwrite)
    write_json(output / "dataset.json", dict(dataset_json))
    targets = [output.absolute() / f"{case.case_id}{reader.file_ending}" for case in cases]
    calls = [
        delayed(_apply)(case, target, reader, settings)
        for case, target in zip(cases, targets, strict=True)
        if not _is_newer(target, case.probabilities)
    ]
    for _ in track(Parallel(n_jobs=jobs, return_as="generator")(calls), "refining", len(calls)):
        pass
    return len(cases)


def _cases(found: Mapping[str, Path], images: Path, ending: str) -> list[CRFCase]:
    """Each case with its images; absolute, for joblib's processes stay in the folder where they were started."""
    known = case_images(images, ending)
    for case in found:
        if case not in known:
            raise DatasetError(
                f'{images}: holds no image of the case "{case}" ({case}_0000{ending}); give the images that were '
                "predicted with -i"
            )
    return [
        CRFCase(case_id=case, probabilities=path.absolute(), images=tuple(image.absolute() for image in known[case]))
        for case, path in found.items()
    ]


def _begin(output: Path, settings: CRFSettings, *, overwrite: bool) -> None:
    mark = output / SETTINGS
    if not mark.is_file() and output.is_dir() and any(output.iterdir()):
        raise DatasetError(
            f"{output}: is not empty and holds no {SETTINGS}, so nothing is written there; choose another"
        )
    if mark.is_file() and overwrite:
        clear(output, mark)
    elif mark.is_file() and CRFSettings.read(mark) != settings:
        raise DatasetError(
            f"{output}: holds masks made with other settings ({SETTINGS}); choose another folder, or replace them with "
            "--overwrite"
        )
    write_json(mark, settings.model_dump(mode="json"))
    remove_leftovers(output)


def _is_newer(mask: Path, probabilities: Path) -> bool:
    return mask.is_file() and mask.stat().st_mtime_ns >= probabilities.stat().st_mtime_ns


def _apply(case: CRFCase, target: Path, reader: CaseReader, settings: CRFSettings) -> None:
    probabilities, image, properties = reader.case(case)
    spacing = [float(step) for step in properties["spacing"]]
    labels = labels_of(refine(probabilities, image, spacing=spacing, settings=settings))
    with replacing(target) as temporary:
        reader.files.write_seg(labels, str(temporary), properties)

"""Image quality of many cases from their files, in parallel: one row a case and one a slice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from nnunet_qa.data.existing import case_images
from nnunet_qa.data.images import NATURAL_ENDINGS, check_finite, check_same_grid, read_picture, read_volume
from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.progress import track
from nnunet_qa.quality.image_quality import METRICS, Definition, image_quality
from nnunet_qa.quality.roi import Roi, from_labels, lungs, retina

COLUMNS = ("case_id", "level", "slice_index", *METRICS)
"""`level` is `case` or `slice`; `slice_index` counts along the first axis (z), from 0, and is missing for a case."""


ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", *NATURAL_ENDINGS)
"""Endings that `images_in` looks for."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What is the same for all cases; see `measure_cases`."""

    roi: Roi
    labels: frozenset[int]
    definition: Definition
    median_size: int | None
    channel: int
    volumes: bool


def measure_cases(
    images: Mapping[str, Sequence[Path]],
    *,
    file_ending: str,
    roi: Roi = Roi.NONE,
    masks: Path | None = None,
    labels: Collection[int] = (),
    definition: Definition = Definition.PAPER,
    median_size: int | None = None,
    channel: int = 0,
    volumes: bool | None = None,
    jobs: int = 1,
    show_progress: bool = True,
) -> pd.DataFrame:
    """Measure images of a raw dataset, volumes slice by slice along nnU-Net's axis 0 (z).

    The value of a case is the mean over its slices. Left out are slices of one single intensity (padding), and of CoV
    and ROI mean the slices without a pixel of the region.

    Args:
        images: files of each case, one a channel, in order (`nnunet_qa.data.existing.case_images`).
        file_ending: ".png", ".nii.gz", …, of images and masks.
        roi: where the region of interest comes from.
        masks: with `Roi.MASK` and `Roi.LABELS`, the folder of masks or label maps, `<case_id><file_ending>`.
        labels: with `Roi.LABELS`, the label values that count; none for all above 0.
        definition: whose formulas.
        median_size: see `nnunet_qa.quality.image_quality.image_quality`.
        channel: which channel is measured.
        volumes: whether files are read as volumes; None for all endings but pictures' (`Tiff3DIO` datasets need True).
        jobs: processes.
        show_progress: draw a bar on the standard error stream.

    Returns:
        The columns of `COLUMNS`; each case in the order given, first the row of the case, then its slices.

    Raises:
        DatasetError: there is no case, a case lacks the channel, or the folder of masks or a mask is not there.
        ImageError: a file cannot be read, holds NaN, has one single intensity throughout or no positive one, its mask
            does not fit it or marks nothing, or no retina is found; the text names the file.
    """
    if not images:
        raise DatasetError(f"there is no image with the ending {file_ending} to measure")
    settings = _Settings(
        roi=roi,
        labels=frozenset(labels) if roi is Roi.LABELS else frozenset(),
        definition=definition,
        median_size=median_size,
        channel=channel,
        volumes=file_ending not in NATURAL_ENDINGS if volumes is None else volumes,
    )
    folder = _mask_folder(roi, masks)
    calls = [
        delayed(_measure)(case, _of_channel(case, paths, channel), folder and folder / f"{case}{file_ending}", settings)
        for case, paths in images.items()
    ]
    tables: Iterable[pd.DataFrame] = Parallel(n_jobs=jobs, return_as="generator")(calls)
    table = pd.concat(list(track(tables, "measuring", len(calls)) if show_progress else tables), ignore_index=True)
    table["slice_index"] = table["slice_index"].astype("Int64")
    return table


def images_in(folder: Path) -> tuple[dict[str, list[Path]], str]:
    """The images of any folder, and their ending: named as nnU-Net names them, or each file a case of one channel.

    Raises:
        DatasetError: there is no such folder, no image in it, or images with different endings.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; give a folder of images")
    names = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    found = sorted({ending for ending in ENDINGS for name in names if name.endswith(ending)})
    if len(found) != 1:
        some = f"images with different endings ({', '.join(found)})" if found else f"no image ({', '.join(ENDINGS)})"
        raise DatasetError(f"{folder}: holds {some}; give a folder of images of one kind")
    (ending,) = found
    plain = {name.removesuffix(ending): [folder / name] for name in sorted(names) if name.endswith(ending)}
    return case_images(folder, ending) or plain, ending


def _mask_folder(roi: Roi, masks: Path | None) -> Path | None:
    """The folder of masks, absolute, for joblib's processes stay in the folder where they were started."""
    if roi not in (Roi.MASK, Roi.LABELS):
        return None
    if masks is None:
        raise DatasetError(f'the region of interest "{roi.value}" needs a folder of masks, <case><file ending>')
    if not masks.is_dir():
        raise DatasetError(f"{masks}: no such folder; the masks of the region of interest are looked for there")
    return masks.absolute()


def _of_channel(case: str, paths: Sequence[Path], channel: int) -> Path:
    if not 0 <= channel < len(paths):
        raise DatasetError(f'the case "{case}" has no channel {channel}; it has {len(paths)}, counted from 0')
    return Path(paths[channel]).absolute()


def _measure(case: str, path: Path, mask: Path | None, settings: _Settings) -> pd.DataFrame:
    slices = _read(path, volumes=settings.volumes)
    check_finite(slices, str(path))
    if slices.min() == slices.max():
        raise ImageError(
            f'{path}: the case "{case}" is constant (all intensities are {slices.min():g}), so its Laplacian has no '
            "variance; leave it out or check the file"
        )
    inside = _region(path, slices, mask, settings)
    if inside is not None and not inside.any():
        raise ImageError(
            f'{mask or path}: the region of interest ({settings.roi.value}) of the case "{case}" is empty; leave the '
            "case out or choose another region"
        )
    quality = image_quality(slices, inside, definition=settings.definition, median_size=settings.median_size)
    values = np.stack([getattr(quality, name) for name in METRICS])
    known = np.isfinite(values)
    for name, found in zip(METRICS, known.any(axis=1), strict=True):
        if not found:
            raise ImageError(
                f'{path}: {name} of the case "{case}" is not defined: no slice has intensities above 0 to divide by; '
                "add a constant to all images (1024 to HU)"
            )
    rows = np.column_stack([np.mean(values, axis=1, where=known), values]).T
    table = pd.DataFrame(rows, columns=list(METRICS))
    table.insert(0, "case_id", case)
    table.insert(1, "level", ["case"] + ["slice"] * len(slices))
    table.insert(2, "slice_index", [None, *range(len(slices))])
    return table


def _region(path: Path, slices: np.ndarray, mask: Path | None, settings: _Settings) -> np.ndarray | None:
    if mask is not None:
        if not mask.is_file():
            raise DatasetError(f"{mask}: not found; every measured case needs a mask in that folder")
        found = _read(mask, volumes=settings.volumes)
        check_same_grid(slices, found, str(mask))
        return from_labels(found, settings.labels)
    if settings.roi is Roi.NONZERO:  # images that were masked before, such as the lung-masked CT of paper 001
        return slices != 0
    if settings.roi is Roi.LUNGS:
        return lungs(slices)
    if settings.roi is Roi.RETINA:
        try:
            return retina(slices)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
    return None


def _read(path: Path, *, volumes: bool) -> np.ndarray:
    """A stack of slices `(slices, rows, columns)`; a 2D file is a stack of one."""
    array = read_volume(path)[0] if volumes else read_picture(path)
    return array[None] if array.ndim == 2 else array

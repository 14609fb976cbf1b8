"""Image quality of many cases from their files, in parallel: one row a case and one a slice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from nnunet_qa.data.existing import case_images
from nnunet_qa.data.images import NATURAL_ENDINGS, check_finite, check_same_grid, holds_volumes, read_array
from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.progress import track
from nnunet_qa.quality.image_quality import METRICS, Definition, image_quality
from nnunet_qa.quality.roi import Roi, from_labels, lungs, retina

COLUMNS = ("case_id", "level", "slice_index", *METRICS)
"""`level` is `case` or `slice`; `slice_index` counts along the first axis (z), from 0, and is missing for a case."""

ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", *NATURAL_ENDINGS)
"""Endings that `images_in` looks for."""
_MOST_CHANNELS = 4  # of a case in a folder that no dataset.json describes; more are numbered slices


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What is the same for all cases; see `measure_cases`."""

    roi: Roi
    labels: frozenset[int]
    definition: Definition
    median_size: int | None
    channel: int
    volumes: bool
    offset: float


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
    offset: float = 0.0,
    jobs: int = 1,
    show_progress: bool = True,
) -> pd.DataFrame:
    """Measure images of a raw dataset, volumes slice by slice along nnU-Net's axis 0 (z).

    The value of a case is the median over its slices, so that a few nearly empty ones, whose blurriness is a hundred
    times that of the others, do not decide it; the paper knows single slices only. Left out are slices of one single
    intensity (padding), and of CoV and ROI mean the slices without a pixel of the region.

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
        offset: added to every intensity once the region is found, 1024 for HU: PSNR-inv and CoV divide by a maximum or
            mean, which says nothing where there are negative intensities. The ROI mean includes it.
        jobs: processes.
        show_progress: draw a bar on the standard error stream.

    Returns:
        The columns of `COLUMNS`; each case in the order given, first the row of the case, then its slices.

    Raises:
        DatasetError: there is no case, a case lacks the channel, or the folder of masks or a mask is not there.
        ImageError: a file cannot be read, holds NaN, has one single intensity throughout or a negative one, its mask
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
        volumes=holds_volumes({"file_ending": file_ending}) if volumes is None else volumes,
        offset=offset,
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

    Numbered slices look like nnU-Net's names. So these count only where they fit every file, all cases have the same
    channels 0 to at most 3, and a case of several channels is not the only one.

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
    cases = case_images(folder, ending)
    return cases if _as_nnunet_names_them(cases, ending, len(plain)) else plain, ending


def _as_nnunet_names_them(cases: Mapping[str, Sequence[Path]], ending: str, files: int) -> bool:
    channels = len(next(iter(cases.values()), ()))
    expected = {f"{case}_{channel:04d}{ending}" for case in cases for channel in range(channels)}
    found = {path.name for paths in cases.values() for path in paths}
    plausible = channels == 1 or (len(cases) > 1 and channels <= _MOST_CHANNELS)
    return plausible and len(found) == files and found == expected


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
    if slices.min() + settings.offset < 0:
        raise ImageError(
            f'{path}: the case "{case}" has intensities down to {slices.min():g}, of which CoV and PSNR-inv make '
            "nothing; add a constant to all images that leaves none below 0, such as --offset 1024 for HU"
        )
    if settings.offset:
        slices = slices.astype(np.float64) + settings.offset
    quality = image_quality(slices, inside, definition=settings.definition, median_size=settings.median_size)
    values = np.stack([getattr(quality, name) for name in METRICS])
    for name, known in zip(METRICS, np.isfinite(values).any(axis=1), strict=True):
        if not known:
            raise ImageError(
                f'{path}: {name} of the case "{case}" is not defined: every slice is constant, or 0 throughout the '
                "region; leave the case out or choose another region"
            )
    rows = np.column_stack([np.nanmedian(values, axis=1), values]).T
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
    array = read_array(path, volumes=volumes)
    return array[None] if array.ndim == 2 else array

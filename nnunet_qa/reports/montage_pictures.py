"""Montages for people: each predicted case of a folder as one PNG, to give it a quality code by eye (paper 002).

The pictures come from the function that draws for the discriminator, `nnunet_qa.quality.montage`, at full size. Volumes
are first turned to LPS, so that the nose is up in axial slices and the head in coronal and sagittal ones, and empty
borders are cut off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import SimpleITK as sitk
import torch
from joblib import Parallel, delayed
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from nnunet_qa.data.images import Geometry, check_finite, check_same_grid, read_picture, read_volume
from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.evaluation.folders import Protocol, read_labels
from nnunet_qa.files import make_folder, remove_leftovers, replacing
from nnunet_qa.progress import track
from nnunet_qa.quality.montage import MontageSpec, gray, montage, slice_indices

ENDING = ".png"
_ABOUT = "montage"
_TILE = MontageSpec().tile[0]
_THICK = 1.5
_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the pictures look like.

    Attributes:
        channel: image channel that is shown.
        window: intensities shown as black and white, in units of the image; None for the window of paper 002 where
            dataset.json calls the channel CT, and for robust percentiles of each image elsewhere.
        axis: how volumes are cut: 0 axial, 1 coronal, 2 sagittal; None for the slices as they were taken, where one
            spacing is more than 1.5 times the others, and axial ones elsewhere.
        grid: rows and columns of tiles; None for up to 8×8, no more than there are slices. Rows without any slice are
            left out.
        tile: pixels of the longer side of a tile; None for 168, or for 2D images for their own size.
        legend: names of the classes beside their colours, below the tiles.

    Raises:
        SelectionError: no montage can look like this.
    """

    channel: int = 0
    window: tuple[float, float] | None = None
    axis: int | None = None
    grid: tuple[int, int] | None = None
    tile: int | None = None
    legend: bool = False

    def __post_init__(self) -> None:
        tile = 1 if self.tile is None else self.tile
        MontageSpec(grid=self.grid or (1, 1), tile=(tile, tile), output=None, window=self.window)


@dataclass(frozen=True)
class _Shown:
    """An array `(slices, rows, columns)` or `(rows, columns)` as it is shown, with mm (or any unit) along its axes."""

    array: np.ndarray
    spacing: tuple[float, ...]


def montage_pictures(
    predictions: Path,
    images: Path,
    output: Path,
    *,
    dataset_json: Mapping[str, Any],
    source: str,
    look: Look,
    jobs: int = 1,
    overwrite: bool = False,
) -> tuple[list[Path], int]:
    """Write `<case>.png` for each label map of a folder.

    A picture that is newer than its label map and its image and was drawn with the same settings is kept.

    Args:
        predictions: folder of label maps, `<case><file ending>`.
        images: folder of images, named as nnU-Net names them.
        output: where the pictures go.
        dataset_json: content of dataset.json.
        source: where it comes from, for error texts.
        look: what the pictures look like.
        jobs: processes.
        overwrite: draw pictures again that are there.

    Returns:
        The pictures of all cases, and how many of them were drawn now.

    Raises:
        DatasetError: a folder is missing or empty, or a case has no image.
        ImageError: a file cannot be read, or label map and image do not fit.
        StorageError: a picture could not be written.
    """
    protocol = Protocol.of(dataset_json, source)
    if look.window is None and _is_ct(dataset_json, look.channel):
        look = replace(look, window=MontageSpec().window)
    classes = _in_order(protocol.classes)
    about = json.dumps({**asdict(look), "classes": classes})
    cases = _cases(predictions, protocol.file_ending)
    if protocol.file_ending == ENDING and output.resolve() in (predictions.resolve(), images.resolve()):
        raise DatasetError(f"{output}: the pictures would replace the files there; choose another folder with -o")
    # joblib keeps its processes, and they stay in the folder where they were started
    predictions, images, output = predictions.absolute(), images.absolute(), make_folder(output).absolute()
    remove_leftovers(output)
    pictures, calls = [], []
    for case in cases:
        label = predictions / f"{case}{protocol.file_ending}"
        image = _existing(images / f"{case}_{look.channel:04d}{protocol.file_ending}")
        path = output / f"{case}{ENDING}"
        pictures.append(path)
        if overwrite or not _is_current(path, (label, image), about):
            calls.append(delayed(_draw)(path, image, label, protocol, look, about))
    if not calls:
        return pictures, 0
    done: Iterator[None] = Parallel(n_jobs=jobs, return_as="generator")(calls)
    return pictures, len(list(track(done, "drawing", len(calls))))


def montage_picture(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    classes: Mapping[str, Sequence[int]],
    spacing: Sequence[float],
    look: Look,
) -> np.ndarray:
    """Draw one case.

    Args:
        image: `(slices, rows, columns)` in LPS orientation, or `(rows, columns)`, any numbers.
        labels: label values of the same shape.
        classes: label values of each class or region; the first has the first colour.
        spacing: distance of slices, rows and columns, or of rows and columns, in any unit.
        look: what the picture looks like.

    Returns:
        `(rows, columns, 3)`, uint8.
    """
    shades = gray(torch.from_numpy(image.astype(np.float32))[None], window=look.window)[0].numpy()
    if image.ndim == 2:
        slices, masks, plane = shades[None], labels[None], spacing
    else:
        axis = _slice_axis(image.shape, spacing, look.axis)
        slices, masks = (_cut(array, axis) for array in (shades, labels))
        plane = [length for k, length in enumerate(spacing) if k != axis]
    if len(slices) > 1:
        slices, masks = _framed(slices, masks)
    spec = _spec(slices.shape, plane, len(classes), look)
    chosen = slice_indices(len(slices), spec.slices)
    slices, masks = slices[chosen], masks[chosen]
    # one row of tiles at a time: probabilities of many classes in a whole volume can take gigabytes
    columns = spec.grid[1]
    row = replace(spec, grid=(1, columns))
    strips = [
        _draw_row(slices[first : first + columns], masks[first : first + columns], classes, row)
        for first in range(0, len(slices), columns)
    ]
    picture = np.concatenate(strips)
    return np.concatenate([picture, _legend(picture.shape[1], list(classes), spec)]) if look.legend else picture


def _slice_axis(shape: Sequence[int], spacing: Sequence[float], wanted: int | None) -> int:
    if 1 in shape:  # a 2D image, in a file format of volumes
        return list(shape).index(1)
    if wanted is not None:
        return wanted
    *_, finer, coarsest = sorted(range(3), key=lambda k: spacing[k])
    return coarsest if spacing[coarsest] > _THICK * spacing[finer] else 0


def _cut(volume: np.ndarray, axis: int) -> np.ndarray:
    """Slices along an axis of a volume in LPS orientation, `(slices, rows, columns)`, first rows on top."""
    slices = np.moveaxis(volume, axis, 0)
    return slices if axis == 0 else slices[:, ::-1]  # the first rows of a coronal or sagittal slice are the feet


def _framed(slices: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut off what is black and without label on all sides, and put a black frame around that parts the tiles."""
    shown = (slices > 0) | (masks > 0)
    if shown.any():
        inside = [np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        box = tuple(slice(found[0], found[-1] + 1) for found in inside)
        slices, masks = slices[box], masks[box]
    frame = ((0, 0), (1, 1), (1, 1))
    return np.pad(slices, frame), np.pad(masks, frame)


def _spec(shape: Sequence[int], plane: Sequence[float], classes: int, look: Look) -> MontageSpec:
    """The montage for so many slices, rows and columns, with `plane` between rows and between columns."""
    wanted = None if look.grid is None else math.prod(look.grid)
    spec = MontageSpec.for_patch(
        shape, (1.0, *plane), classes=classes, window=look.window, slices=wanted, axis=0
    ).full_size()
    height, width = shape[1] * plane[0], shape[2] * plane[1]
    own = _TILE if shape[0] > 1 else max(height, width) / min(plane)
    scale = (own if look.tile is None else look.tile) / max(height, width)
    tile = (max(1, round(height * scale)), max(1, round(width * scale)))
    return replace(spec, tile=tile, grid=spec.grid if look.grid is None or shape[0] == 1 else look.grid)


def _draw_row(
    slices: np.ndarray, labels: np.ndarray, classes: Mapping[str, Sequence[int]], spec: MontageSpec
) -> np.ndarray:
    masks = np.stack([np.isin(labels, values) for values in classes.values()]).astype(np.float32)
    drawn = montage(torch.from_numpy(slices.copy())[None], torch.from_numpy(masks)[None], spec)[0]
    return (drawn * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _legend(width: int, names: Sequence[str], spec: MontageSpec) -> np.ndarray:
    """A strip of names beside their colours, as these look on a medium gray, in as many lines as needed."""
    size = min(20, max(10, width // 40))
    font = ImageFont.truetype(str(_FONT), size)
    places: list[tuple[int, int]] = []
    x = y = size // 2
    for name in names:
        length = math.ceil(font.getlength(name)) + 3 * size
        if places and x + length > width:
            x, y = size // 2, y + 3 * size // 2
        places.append((x, y))
        x += length
    strip = Image.new("RGB", (width, y + 3 * size // 2))
    draw = ImageDraw.Draw(strip)
    for name, colour, (left, top) in zip(names, spec.palette, places, strict=True):
        red, green, blue = (round(255 * ((1 - spec.blend) / 2 + spec.blend * value)) for value in colour)
        draw.rectangle((left, top, left + size, top + size), fill=(red, green, blue))
        draw.text((left + 3 * size // 2, top + size // 2), name, font=font, fill="white", anchor="lm")
    return np.asarray(strip)


def _draw(path: Path, image: Path, label: Path, protocol: Protocol, look: Look, about: str) -> None:
    labels = read_labels(label, protocol)
    if protocol.volumes:
        array, geometry = read_volume(image)
    else:
        array, geometry = read_picture(image), None
    check_same_grid(array, labels, str(label))
    check_finite(array, str(image))
    if array.ndim not in (2, 3):
        raise ImageError(f"{image}: has {array.ndim} axes; only 2D and 3D images can be shown")
    shown, mask = _upright(array, geometry), _upright(labels, geometry)
    picture = montage_picture(
        shown.array, mask.array, classes=_in_order(protocol.classes), spacing=shown.spacing, look=look
    )
    text = PngInfo()
    text.add_text(_ABOUT, about)
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, pnginfo=text)


def _upright(array: np.ndarray, geometry: Geometry | None) -> _Shown:
    """Turn a volume so that its axes run to the patient's head, back and left, without resampling."""
    if geometry is None:
        return _Shown(array, (1.0,) * array.ndim)
    if array.ndim != 3:
        return _Shown(array, geometry.spacing[::-1])
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing)
    image.SetDirection(geometry.direction)
    image = sitk.DICOMOrient(image, "LPS")
    return _Shown(sitk.GetArrayFromImage(image), image.GetSpacing()[::-1])


def _is_current(path: Path, inputs: Sequence[Path], about: str) -> bool:
    if not path.is_file() or path.stat().st_mtime <= max(one.stat().st_mtime for one in inputs):
        return False
    try:
        with Image.open(path) as picture:
            return picture.info.get(_ABOUT) == about
    except OSError:
        return False


def _existing(image: Path) -> Path:
    if not image.is_file():
        raise DatasetError(f"{image}: not found; -i takes the folder of the predicted images, --channel one of them")
    return image


def _in_order(classes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Classes in the order of the network's outputs, so that they have the colours that the discriminator sees."""
    if any(len(values) > 1 for values in classes.values()):
        return dict(classes)
    return dict(sorted(classes.items(), key=lambda item: item[1]))


def _is_ct(dataset_json: Mapping[str, Any], channel: int) -> bool:
    names = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    return str(names.get(str(channel), "")).casefold() == "ct"


def _cases(predictions: Path, ending: str) -> list[str]:
    if not predictions.is_dir():
        raise DatasetError(f"{predictions}: no such folder; -p takes a folder of predicted label maps")
    found = sorted(
        path.name.removesuffix(ending)
        for path in predictions.iterdir()
        if path.name.endswith(ending) and not path.name.startswith(".")
    )
    if not found:
        raise DatasetError(f"{predictions}: holds no file with the ending {ending}; -p takes a folder of label maps")
    return found

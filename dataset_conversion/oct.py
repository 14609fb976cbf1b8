"""What the OCT conversions share: one 2D case a B-scan, cropped to the retina, resized, and the way back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from skimage.transform import resize, resize_local_mean

from nnunet_qa.cases import Role
from nnunet_qa.data.images import check_finite, check_same_grid
from nnunet_qa.data.retina import RetinaBand, default_crop_rows, find_retina, padding_mask
from nnunet_qa.dataset_conversion.engine import Case, LeftOut
from nnunet_qa.errors import CaseTableError, DatasetError, ImageError

SIZE = (80, 192)
"""Rows and columns of a converted B-scan: a crop of 320 x 768 native pixels, shrunk fourfold."""
LABELS = {"background": 0, "fluid": 1}
PLACE = ("crop_row", "crop_column", "crop_rows", "crop_columns", "source_rows", "source_columns")
"""Columns of cases.csv that say where in the native B-scan a case lies, in native pixels."""


@dataclass(frozen=True)
class Framing:
    """Which part of a B-scan becomes the case, and at which size.

    Attributes:
        crop: whether to crop to the retina; otherwise the case is the whole B-scan.
        crop_rows: native rows of the crop; None for the part of the B-scan that `default_crop_rows` gives (320 of 496).
        size: rows and columns of the converted case; None for native pixels.
        blank_padding: whether the white corners that a shifted raster left free are set to 0. They are no tissue, and
            nnU-Net's normalisation of each image by its own mean and deviation would suffer from them.
    """

    crop: bool = True
    crop_rows: int | None = None
    size: tuple[int, int] | None = SIZE
    blank_padding: bool = True

    def __post_init__(self) -> None:
        if self.crop_rows is not None and (self.crop_rows < 8 or not self.crop):
            raise DatasetError(f"--crop-rows {self.crop_rows} needs the crop and at least 8 rows")
        if self.size is not None and min(self.size) < 8:
            raise DatasetError(f"--size {self.size[0]}x{self.size[1]} is too small; give at least 8x8")

    def band(self, image: np.ndarray, padding: np.ndarray) -> RetinaBand:
        """Rows of a native B-scan that become the case.

        Args:
            image: the B-scan.
            padding: its `padding_mask`.

        Raises:
            ImageError: no retina was found.
        """
        if not self.crop:
            return RetinaBand(0, image.shape[0])
        return find_retina(image, rows=self.crop_rows or default_crop_rows(image.shape[0]), padding=padding)

    def image(self, cropped: np.ndarray) -> np.ndarray:
        """A crop at the size of the case: low-pass filtered before it is sampled (anti-aliasing), uint8."""
        if self.size is None or self.size == cropped.shape:
            return cropped
        by_row, by_column = (_shrinking(*pair) for pair in zip(cropped.shape, self.size, strict=True))
        return np.rint(_along_both(by_row, by_column, cropped)).clip(0, 255).astype(np.uint8)

    def mask(self, cropped: np.ndarray) -> np.ndarray:
        """A mask at the size of the case, uint8.

        A pixel is fluid where at least half of its area is, and of several fluids it is the one with the largest part:
        this keeps the area of fluid, also of cysts that are a few pixels wide, while nearest neighbours would keep or
        drop these by chance.
        """
        if self.size is None or self.size == cropped.shape:
            return cropped.astype(np.uint8)
        small = np.zeros(self.size, dtype=np.uint8)
        drawn = np.flatnonzero(cropped.any(axis=1))
        if not drawn.size:
            return small
        rows = slice(drawn[0], drawn[-1] + 1)  # fluid lies in few rows
        whole, target = len(cropped), len(small)
        reached = slice(rows.start * target // whole, -(-rows.stop * target // whole))
        by_row, by_column = (_averaging(*pair) for pair in zip(cropped.shape, self.size, strict=True))
        by_row = by_row[reached, rows]
        part = cropped[rows]
        fluids = np.array([value for value in range(1, int(part.max()) + 1) if (part == value).any()])
        shares = np.stack([_along_both(by_row, by_column, part == fluid) for fluid in fluids])
        enough = shares.sum(axis=0) >= 0.5 - 1e-5  # rounding must not decide about an exact half
        small[reached] = np.where(enough, fluids[shares.argmax(axis=0)], 0)
        return small


@lru_cache(maxsize=32)
def _shrinking(length: int, target: int) -> csr_array:
    """Matrix `(target, length)` of the low-pass filter and the linear interpolation along one axis.

    Both work on each axis by itself, and all B-scans of a scan have one size; so the matrix is made once.
    """
    return csr_array(resize(np.eye(length), (target, length), order=1, anti_aliasing=True).astype(np.float32))


@lru_cache(maxsize=32)
def _averaging(length: int, target: int) -> csr_array:
    """Matrix `(target, length)` of the mean over the part of an axis that a coarser pixel covers; made once, too."""
    return csr_array(resize_local_mean(np.eye(length), (target, length), preserve_range=True).astype(np.float32))


def _along_both(by_row: csr_array, by_column: csr_array, picture: np.ndarray) -> np.ndarray:
    """A picture `(rows, columns)` at a smaller size, by the matrix of each axis."""
    return np.asarray((by_column @ (by_row @ picture.astype(np.float32)).T).T)


def parse_size(text: str) -> tuple[int, int] | None:
    """Read `--size`: ROWSxCOLUMNS, or `native` for None.

    Raises:
        DatasetError: the text is neither.

    >>> parse_size("80x192"), parse_size("native")
    ((80, 192), None)
    """
    if text.strip().lower() == "native":
        return None
    match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text)
    if match is None:
        raise DatasetError(f'--size "{text}" is neither ROWSxCOLUMNS (such as 80x192) nor native')
    return int(match.group(1)), int(match.group(2))


@dataclass(frozen=True)
class BscanCase:
    """One B-scan: who, where, what for; the fields are those of the case table."""

    case_id: str
    subject_id: str
    stack_id: str
    slice_index: int
    site: str
    role: Role


def scale_of(pixels: np.ndarray, name: str) -> float:
    """Factor that brings intensities to 0–255: 1, 255 for values up to 1 in a float type, 1/257 for 16 bits.

    Raises:
        ImageError: the values fit none of these.
    """
    low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
    if np.issubdtype(pixels.dtype, np.floating) and low >= 0 and high <= 1:
        return 255.0
    if pixels.dtype == np.uint16 and high > 255:
        return 1 / 257
    if low < 0 or high > 255:
        raise ImageError(f"{name}: intensities from {low:g} to {high:g}; expected 0–255, 0–1 or 16 bits; rescale them")
    return 1.0


def frame_bscan(
    case: BscanCase, image: np.ndarray, fluid: np.ndarray | None, *, framing: Framing, scale: float
) -> Iterator[Case | LeftOut]:
    """Crop and resize one B-scan.

    Left out are a B-scan without contents (all pixels alike), one in which neither retina is found nor fluid drawn, and
    what the crop cuts off of the fluid.

    Args:
        case: what the B-scan is.
        image: native B-scan `(rows, columns)`.
        fluid: mask on the same grid, booleans or label values; None where not annotated.
        framing: crop and size.
        scale: factor to 0–255, from `scale_of`.

    Yields:
        The case, its place in the native B-scan in its row, and what is left out.

    Raises:
        ImageError: NaN intensities, a mask of another shape, or no retina in a B-scan with fluid.
    """
    check_finite(image, case.case_id)
    if fluid is not None:
        check_same_grid(image, fluid, case.case_id)
    drawn = 0 if fluid is None else int(np.count_nonzero(fluid))
    if image.min() == image.max():
        yield LeftOut(case.case_id, f"all pixels are {float(image.min()):g}", bad=drawn > 0)
        return
    pixels = image.copy() if scale == 1 and image.dtype == np.uint8 else np.rint(image * scale).astype(np.uint8)
    padding = padding_mask(pixels)
    try:
        band = framing.band(pixels, padding)
    except ImageError as error:
        if drawn:
            raise ImageError(f"{case.case_id}: {error}") from error
        yield LeftOut(case.case_id, str(error))
        return
    if framing.blank_padding:
        pixels[padding] = 0
    rows = slice(band.top, band.bottom)
    if fluid is not None and (lost := drawn - int(np.count_nonzero(fluid[rows]))):
        what = f"{case.case_id}: {lost} of {drawn} fluid pixels"
        yield LeftOut(what, "the crop cuts them off; raise --crop-rows", bad=True)
    place = (band.top, 0, band.rows, image.shape[1], *image.shape)
    yield Case(
        case_id=case.case_id,
        role=case.role,
        images=[framing.image(pixels[rows])],
        label=None if fluid is None else framing.mask(fluid[rows]),
        row={
            "subject_id": case.subject_id,
            "stack_id": case.stack_id,
            "slice_index": case.slice_index,
            "site": case.site,
            **dict(zip(PLACE, place, strict=True)),
        },
    )


def restore(mask: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    """Put a mask of a converted case back onto the native B-scan, by nearest neighbours; 0 outside the crop.

    Args:
        mask: label values `(rows, columns)` at the converted size, such as a prediction.
        row: the case's row of cases.csv.

    Returns:
        Label values `(source_rows, source_columns)` of the same type.

    Raises:
        CaseTableError: the row lacks a column of `PLACE` or holds no whole number there.
        ImageError: the mask is not 2D, or the crop leaves the B-scan.
    """
    name = str(row.get("case_id", "case"))
    try:
        top, left, rows, columns, source_rows, source_columns = (int(row[column]) for column in PLACE)
    except (KeyError, TypeError, ValueError) as error:
        raise CaseTableError(
            f"{name}: cases.csv must hold whole numbers in {', '.join(PLACE)}; convert the dataset again"
        ) from error
    if mask.ndim != 2:
        raise ImageError(f"{name}: a mask (rows, columns) is needed, found shape {mask.shape}")
    if min(top, left) < 0 or min(rows, columns) < 1 or top + rows > source_rows or left + columns > source_columns:
        raise ImageError(f"{name}: the crop in cases.csv leaves the B-scan of {source_rows} x {source_columns} pixels")
    native = np.zeros((source_rows, source_columns), dtype=mask.dtype)
    native[top : top + rows, left : left + columns] = resize(
        mask, (rows, columns), order=0, anti_aliasing=False, preserve_range=True
    )
    return native

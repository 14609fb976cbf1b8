"""A segmented image as one RGB picture of slices (paper 002, the montage that the discriminator and people look at).

Slices in gray with the classes in colour lie side by side on a grid. No argmax and no image library is in the path, so
that a loss on the picture reaches the class probabilities.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch.nn.functional import interpolate, pad

from nnunet_qa.errors import ModelError, SelectionError

RGB = tuple[float, float, float]

PERCENTILES = (0.5, 99.5)
"""Intensities shown as black and white where there is no window."""

_LONGEST, _SHORTEST, _MULTIPLE = 256, 32, 16
_GOLDEN = (math.sqrt(5) - 1) / 2
_SAMPLED = 2**18


def distinct_colours(classes: int) -> tuple[RGB, ...]:
    """Colours for any number of classes; the colour of a class does not depend on how many there are.

    Hues a golden angle apart, in turn vivid, pale and dark, for hues alone run out after a few.

    >>> distinct_colours(2) == distinct_colours(9)[:2]
    True
    """
    tones = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.7))
    return tuple(colorsys.hsv_to_rgb((0.1 + k * _GOLDEN) % 1, *tones[k % len(tones)]) for k in range(classes))


@dataclass(frozen=True, kw_only=True)
class MontageSpec:
    """How a montage is drawn. The defaults are the values of paper 002.

    Attributes:
        grid: rows and columns of tiles.
        tile: rows and columns of pixels of a tile.
        output: size that the picture is shrunk to (with antialiasing), rows and columns; None for grid times tile.
        window: intensities shown as black and white, in units of the image before normalisation (HU); None for the
            robust percentiles of each image.
        palette: a colour in [0, 1] for each foreground class or region; the background has none.
        blend: weight of the colours; the gray image has the rest.
        axis: array axis along which slices are taken; 0 for 2D images, which are one slice.

    Raises:
        SelectionError: a value that no montage can have.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    grid: tuple[int, int] = (8, 8)
    tile: tuple[int, int] = (168, 168)
    output: tuple[int, int] | None = (256, 256)
    window: tuple[float, float] | None = (-175.0, 275.0)
    palette: tuple[RGB, ...] = distinct_colours(20)
    blend: float = 0.4
    axis: int = 0

    def __post_init__(self) -> None:
        sizes = {"grid": self.grid, "tile": self.tile, "output": self.output or (1, 1)}
        for name, (rows, columns) in sizes.items():
            if rows < 1 or columns < 1:
                raise SelectionError(f"montage: {name} is {rows}x{columns}; rows and columns must be at least 1")
        if self.output is not None and any(
            side > max(full, _SHORTEST) for side, full in zip(self.output, self.full_size().size, strict=True)
        ):
            raise SelectionError(
                f"montage: output {_by(self.output)} is larger than grid times tile, {_by(self.full_size().size)}; "
                "choose a smaller output or larger tiles"
            )
        if self.window is not None and not (all(map(math.isfinite, self.window)) and self.window[0] < self.window[1]):
            raise SelectionError(f"montage: window {list(self.window)} must be two numbers, the lower one first")
        if not 0 <= self.blend <= 1:
            raise SelectionError(f"montage: blend is {self.blend}; it must be in [0, 1]")
        if not all(0 <= value <= 1 for colour in self.palette for value in colour):
            raise SelectionError("montage: colours of the palette must be in [0, 1]")

    @classmethod
    def paper(cls, classes: int) -> MontageSpec:
        """The montage of paper 002 for so many foreground classes: 8×8 tiles of 168×168, shrunk to 256×256."""
        return cls(palette=distinct_colours(classes))

    @classmethod
    def for_patch(
        cls,
        patch_size: Sequence[int],
        spacing: Sequence[float],
        *,
        classes: int,
        window: tuple[float, float] | None = None,
        slices: int | None = None,
        axis: int | None = None,
    ) -> MontageSpec:
        """A montage that fits the patches of an nnU-Net configuration.

        Args:
            patch_size: pixels or voxels an axis, two or three.
            spacing: mm an axis, as many.
            classes: number of foreground classes or regions.
            window: as in the attributes.
            slices: 2D: images of one case that are shown together (default 1). 3D: most slices shown (default 64, never
                more than there are).
            axis: 3D: axis along which slices are taken; None for the one with the coarsest spacing.

        Raises:
            SelectionError: the patch has not two or three axes, or `axis` is none of them.
        """
        if len(patch_size) not in (2, 3) or len(spacing) != len(patch_size):
            raise SelectionError(
                f"montage: patch {list(patch_size)} with spacing {list(spacing)}; both must have two or three axes"
            )
        if axis is None:
            axis = 0 if len(patch_size) == 2 else max(range(3), key=lambda k: spacing[k])
        _check_axis(axis, patch_size)
        if len(patch_size) == 2:
            tiles, tile = (1 if slices is None else slices), tuple(patch_size)
        else:
            tiles = min(64 if slices is None else slices, patch_size[axis])
            tile = tuple(size for k, size in enumerate(patch_size) if k != axis)
        if tiles < 1:
            raise SelectionError(f"montage: {tiles} slices; there must be at least 1")
        columns = math.ceil(math.sqrt(tiles))
        spec = cls(
            grid=(math.ceil(tiles / columns), columns),
            tile=(int(tile[0]), int(tile[1])),  # NumPy's integers would not go into JSON
            output=None,
            window=window,
            palette=distinct_colours(classes),
            axis=axis,
        )
        spec.check(patch_size, classes)
        return replace(spec, output=_shrunk(spec.size))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the picture."""
        return self.output or (self.grid[0] * self.tile[0], self.grid[1] * self.tile[1])

    @property
    def slices(self) -> int:
        """Number of tiles."""
        return self.grid[0] * self.grid[1]

    def full_size(self) -> MontageSpec:
        """The same montage before it is shrunk, for people."""
        return replace(self, output=None)

    def check(self, shape: Sequence[int], classes: int) -> None:
        """Refuse images that this montage cannot show.

        Args:
            shape: spatial shape of an image, two or three axes.
            classes: number of foreground classes or regions.

        Raises:
            SelectionError: there is no such axis, or the palette has too few colours.
        """
        _check_axis(self.axis, shape)
        if classes > len(self.palette):
            raise SelectionError(f"montage: {classes} classes but only {len(self.palette)} colours in the palette")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary for a JSON file."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    @classmethod
    def from_json(cls, content: Any) -> MontageSpec:
        """Read what `to_json` gave.

        Raises:
            ModelError: unknown keys, wrong types or values.
        """
        try:
            return TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "specification"
            raise ModelError(f"montage: {key}: {first['msg']}. Was this file written by hand?") from None
        except SelectionError as error:
            raise ModelError(str(error)) from None


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _check_axis(axis: int, shape: Sequence[int]) -> None:
    axes = {2: 1, 3: 3}.get(len(shape), 0)
    if not 0 <= axis < axes:
        raise SelectionError(f"montage: slices along axis {axis} of an image of shape {list(shape)}: no such axis")


def _shrunk(size: tuple[int, int]) -> tuple[int, int]:
    """Longest side in [32, 256], both sides multiples of 16 and no larger than `size` where that is possible."""

    def fitting(wanted: float, full: int) -> int:
        return max(_MULTIPLE, min(round(wanted / _MULTIPLE), full // _MULTIPLE) * _MULTIPLE)

    longest = max(_SHORTEST, fitting(min(max(size), _LONGEST), max(size)))
    rows, columns = (longest if side == max(size) else fitting(side * longest / max(size), side) for side in size)
    return rows, columns


def slice_indices(slices: int, tiles: int) -> list[int]:
    """Slices that go to the tiles: evenly spaced and centred, all of them where there are no more than tiles.

    >>> slice_indices(10, 3), slice_indices(2, 64)
    ([1, 5, 8], [0, 1])
    """
    shown = min(slices, tiles)
    return [(2 * k + 1) * slices // (2 * shown) for k in range(shown)]


def normalised_window(window: tuple[float, float], *, mean: float, std: float) -> tuple[float, float]:
    """A window in HU in the units of an image that nnU-Net's CTNormalization has normalised, (HU − mean) / std."""
    low, high = ((value - mean) / max(std, 1e-8) for value in window)
    return low, high


def gray(image: torch.Tensor, *, window: tuple[float, float] | None) -> torch.Tensor:
    """Intensities as gray values.

    Args:
        image: `(batch, *spatial)`, any numbers.
        window: intensities shown as black and white, in the units of `image`; None for the 0.5 and 99.5 percentiles of
            each image (of an even sample of large ones).

    Returns:
        `(batch, *spatial)` in [0, 1], float32 (or float64 for float64 images); 0 for constant images without a window.
    """
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    if window is not None:
        low, high = window
        return ((image - low) / (high - low)).clamp(0, 1)
    values = image.flatten(1)
    # an odd step, so that the sample does not fall into a few columns of the image
    step = math.ceil(values.shape[1] / _SAMPLED) // 2 * 2 + 1
    ranks = torch.tensor(PERCENTILES, dtype=image.dtype, device=image.device) / 100
    black, white = torch.quantile(values[:, ::step], ranks, dim=1).view(2, -1, *[1] * (image.ndim - 1))
    shades = ((image - black) / (white - black).clamp(min=torch.finfo(image.dtype).tiny)).clamp(0, 1)
    return shades.where(white > black, torch.zeros_like(shades))


def stacked(image: torch.Tensor, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """2D slices of one case as one volume, so that one montage shows them all.

    Args:
        image: `(slices, rows, columns)`.
        probabilities: `(slices, classes, rows, columns)`.

    Returns:
        `(1, slices, rows, columns)` and `(1, classes, slices, rows, columns)`.
    """
    return image[None], probabilities.transpose(0, 1)[None]


def montage(image: torch.Tensor, probabilities: torch.Tensor, spec: MontageSpec) -> torch.Tensor:
    """Draw the picture: (1 − blend) · gray + blend · Σ_c p_c · colour_c for each slice, slice k in tile k by rows.

    Overlapping regions whose probabilities sum to more than 1 mix their colours.

    Args:
        image: gray values in [0, 1], `(batch, *spatial)` with two or three spatial axes; see `gray`.
        probabilities: of the foreground classes or regions, in [0, 1], `(batch, classes, *spatial)`.
        spec: how it is drawn. Tiles for which there is no slice are black.

    Returns:
        `(batch, 3, rows, columns)` in [0, 1], float32 (float64 for float64 probabilities), differentiable in the
        probabilities.

    Raises:
        SelectionError: `spec` does not fit the shape or the number of classes.
        ValueError: image and probabilities differ in shape.
    """
    if image.ndim < 3 or image.shape != (probabilities.shape[0], *probabilities.shape[2:]):
        raise ValueError(f"image {tuple(image.shape)} and probabilities {tuple(probabilities.shape)} do not fit")
    spec.check(image.shape[1:], probabilities.shape[1])
    if image.ndim == 3:
        image, probabilities = image.unsqueeze(1), probabilities.unsqueeze(2)
    image, probabilities = image.movedim(spec.axis + 1, 1), probabilities.movedim(spec.axis + 2, 2)
    chosen = slice_indices(image.shape[1], spec.slices)
    if len(chosen) < image.shape[1]:
        index = torch.tensor(chosen, device=image.device)
        image, probabilities = image.index_select(1, index), probabilities.index_select(2, index)
    # half precision has fewer steps than a screen, and antialiasing is not there for it on every device
    with torch.autocast(image.device.type, enabled=False):
        slices = _coloured(image, probabilities, spec)
        tiles = _resize(slices.flatten(0, 1), spec.tile).unflatten(0, slices.shape[:2])
        tiles = pad(tiles, (0, 0, 0, 0, 0, 0, 0, spec.slices - len(chosen))).unflatten(1, spec.grid)
        picture = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return _resize(picture, spec.size).clamp(0, 1)


def _coloured(image: torch.Tensor, probabilities: torch.Tensor, spec: MontageSpec) -> torch.Tensor:
    """RGB slices `(batch, slices, 3, rows, columns)`."""
    dtype = torch.promote_types(probabilities.dtype, torch.float32)
    probabilities = probabilities.to(dtype)
    palette = torch.tensor(spec.palette[: probabilities.shape[1]], dtype=dtype, device=image.device)
    colour = torch.einsum("bcsyx,ck->bskyx", probabilities, palette)
    # the tolerance keeps the rounded sum of a softmax from changing its gradient
    excess = (probabilities.sum(1) - 1.001).relu().unsqueeze(2)
    return (1 - spec.blend) * image.to(dtype).unsqueeze(2) + spec.blend * colour / (1 + excess)


def _resize(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(pictures.shape[2:]) == size:
        return pictures
    return interpolate(pictures, size=size, mode="bilinear", align_corners=False, antialias=True)

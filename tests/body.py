"""Drawn bodies for body-part regression: a cone in air with a bright spot that wanders; no two heights look alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_qa.data.images import Geometry, write_image
from nnunet_qa.data.slice_stack import SliceSpec, SliceStack, slices_of

SPACING = (8.0, 8.0, 5.0)
SPEC = SliceSpec(size=16, field_of_view=256.0, window=(-175.0, 275.0))


def draw_body(rng: np.random.Generator, *, top: float, slices: int = 40) -> tuple[np.ndarray, Geometry]:
    """A scan in HU, stored head first; its first slice is `top` mm below the crown, 300 mm is the deepest."""
    heights = top + SPACING[2] * np.arange(slices)
    y, x = np.meshgrid(*[(np.arange(32) - 15.5) * SPACING[0]] * 2, indexing="ij")
    middle = rng.uniform(-8, 8, 2)
    x, y = x - middle[0], y - middle[1]
    array = rng.normal(-1000, 15, (slices, 32, 32))
    for image, height in zip(array, heights, strict=True):
        radius = 30 + 0.22 * height
        body = x**2 + (y / 0.8) ** 2 < radius**2
        image[body] += 1000 + 0.3 * height
        image[(x - radius * (height / 300 - 0.5)) ** 2 + y**2 < 16**2] += 200
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    return array.round().astype(np.int16), Geometry(SPACING, (-124.0, -124.0, 500.0 - top), direction)


def stacks(number: int, *, seed: int = 0, slices: int = 40) -> list[SliceStack]:
    """Scans that begin at different heights."""
    rng = np.random.default_rng(seed)
    drawn = [draw_body(rng, top=top, slices=slices) for top in np.linspace(0, 60, number)]
    return [slices_of(array, geometry, f"c{index}", SPEC) for index, (array, geometry) in enumerate(drawn)]


def write_bodies(folder: Path, number: int, *, seed: int = 0, suffix: str = "", labels: Path | None = None) -> None:
    """Write such scans as `c0.nii.gz`, …, and where wanted label maps of what is denser than water."""
    rng = np.random.default_rng(seed)
    for index, top in enumerate(np.linspace(0, 60, number)):
        array, geometry = draw_body(rng, top=top)
        write_image(folder / f"c{index}{suffix}.nii.gz", array, geometry)
        if labels is not None:
            write_image(labels / f"c{index}.nii.gz", (array > 100).astype(np.uint8), geometry)


def turned(array: np.ndarray, geometry: Geometry, orientation: str) -> tuple[np.ndarray, Geometry]:
    """The same scan, stored with other axes."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    image = sitk.DICOMOrient(image, orientation)
    return sitk.GetArrayFromImage(image), Geometry.of(image)


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch to one thread, whatever a command asks for: more make such small networks slower on a busy machine."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    set_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda number: None)
        yield
    set_threads(threads)

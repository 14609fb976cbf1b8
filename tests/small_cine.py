"""Small cine series for tests: ellipses that beat, so small that a test of their files takes no time."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

SPACING = (8.0, 1.5, 1.25)
FRAME_TIME = 0.03


def heart(*, frames: int = 6, slices: int = 3, seed: int = 0, scheme: tuple[int, int, int] = (1, 2, 3)) -> np.ndarray:
    """A short-axis series `(frames, slices, 40, 44)`; `scheme` holds the values of LV, myocardium and RV.

    The largest volume is not in the first frame, and the RV is smallest in another frame than the LV.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :44]
    size = rng.uniform(0.9, 1.1)
    labels = np.zeros((frames, slices, *rows.shape), np.uint8)
    for frame, index in np.ndindex(frames, slices):
        phase = 2 * np.pi * (frame - 1) / frames
        left = size * (8 + 2 * np.cos(phase)) * (1 - 0.15 * index)
        right = size * (8 + 2 * np.cos(phase - 1.2)) * (1 - 0.2 * index)
        lv = np.hypot((rows - 20) / 1.1, columns - 28)
        rv = np.hypot(rows - 19, (columns - 12) * 1.2)
        labels[frame, index] = np.select([lv < left, lv < left + 4, rv < right], scheme)
    return labels


def aorta(*, frames: int = 8, seed: int = 0) -> np.ndarray:
    """An aortic series of one slice `(frames, 1, 40, 44)`, 1 ascending and 2 descending."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :44]
    radius = rng.uniform(6, 7) + np.sin(np.pi * np.arange(frames) / frames)
    distances = (np.hypot(rows - 12, columns - 14), np.hypot(rows - 28, columns - 30) * 1.3)
    return np.stack([np.select([distance < size for distance in distances], [1, 2])[None] for size in radius]).astype(
        np.uint8
    )


def write_nifti(
    path: Path,
    labels: np.ndarray,
    *,
    spacing: tuple[float, float, float] = SPACING,
    frame_time: float = FRAME_TIME,
) -> Path:
    """Write `(frames, slices, rows, columns)` or `(slices, rows, columns)` with nibabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(labels.T, np.diag([*spacing[::-1], 1.0]))
    image.header.set_zooms((*spacing[::-1], frame_time)[: labels.ndim])
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return path


def itk_sizes(labels: np.ndarray, value: int, *, spacing: tuple[float, ...] = SPACING) -> np.ndarray:
    """What SimpleITK measures of a label in each frame: mm³, or mm² of a series of one slice."""
    sizes = []
    for frame in labels:
        flat = len(frame) == 1
        image = sitk.GetImageFromArray(frame[0] if flat else frame)
        image.SetSpacing([float(size) for size in spacing[::-1]][: image.GetDimension()])
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.Execute(image)
        sizes.append(shape.GetPhysicalSize(value) if shape.HasLabel(value) else 0.0)
    return np.array(sizes)

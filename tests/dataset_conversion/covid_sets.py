"""What the tests of the COVID-19 CT conversions share: files written and compared with nibabel, not with SimpleITK."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from nnunet_qa.data.covid_phantom import Chest, draw_chest
from nnunet_qa.dataset_conversion.engine import Options
from nnunet_qa.dataset_conversion.report import REPORT

RAS = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
LPS = np.diag([-1.0, -1.0, 1.0])
SPINE_UP_AND_MIRRORED = np.diag([1.0, -1.0, -1.0])
CORONAL = np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]])
OBLIQUE = Rotation.from_euler("xyz", [12, -9, 17], degrees=True).as_matrix() @ LPS
ONE = Options()


def chest(seed: int, *, slices: int = 5, size: int = 24) -> Chest:
    return draw_chest(np.random.default_rng(seed), slices=slices, size=size)


def affine(axes: np.ndarray, spacing: tuple[float, ...] = (0.7, 0.9, 3.0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = axes * spacing
    matrix[:3, 3] = (-31.5, 12.25, -204.0)
    return matrix


def write(path: Path, array: np.ndarray, matrix: np.ndarray) -> None:
    """Write `(slices, rows, columns)` with an affine of nibabel's axes (columns, rows, slices)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), matrix), path)


def voxels(path: Path) -> np.ndarray:
    """`(slices, rows, columns)` as stored."""
    return np.asanyarray(nibabel.load(path).dataobj).transpose(2, 1, 0)


def same_in_space(source: Path, target: Path) -> None:
    """Every voxel of the target has the value that the source has at its place in the patient."""
    old, new = nibabel.load(source), nibabel.load(target)
    index = np.indices(new.shape).reshape(3, -1)
    place = np.linalg.inv(old.affine) @ new.affine @ np.vstack([index, np.ones((1, index.shape[1]))])
    there = np.rint(place[:3]).astype(int)
    assert np.abs(place[:3] - there).max() < 1e-2
    assert ((there >= 0) & (there < np.array(old.shape)[:, None])).all()
    np.testing.assert_array_equal(np.asanyarray(new.dataobj)[tuple(index)], np.asanyarray(old.dataobj)[tuple(there)])


def report(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / REPORT, keep_default_na=False).set_index("name")

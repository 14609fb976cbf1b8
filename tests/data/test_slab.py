from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from nnunet_qa.data.images import Geometry
from nnunet_qa.data.slab import SlabSpec, cut_slab
from nnunet_qa.data.slice_stack import BodyAxis
from tests.body import turned

HEAD_FIRST = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
GEOMETRY = Geometry((1.5, 1.25, 2.5), (-20.0, 30.0, 400.0), HEAD_FIRST)
SPEC = SlabSpec(spacing=(2.0, 2.0, 6.0), size=(12, 10, 8))


def points(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Coordinates in mm (LPS) of every voxel, `(slices, rows, columns, 3)`."""
    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), axis=-1)[..., ::-1]
    return (index * geometry.spacing) @ np.reshape(geometry.direction, (3, 3)).T + geometry.origin


def plane(places: np.ndarray) -> np.ndarray:
    return places @ [0.5, -1.0, 2.0] + 3


def oblique() -> Geometry:
    a, b = np.radians(12), np.radians(-8)
    first = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return Geometry((1.5, 1.25, 2.5), (-20.0, 30.0, 400.0), tuple((first @ second).ravel()))


@pytest.mark.parametrize("orientation", ["LPS", "RAI", "ASL", "IPR"])
@pytest.mark.parametrize("geometry", [GEOMETRY, oblique()], ids=["straight", "oblique"])
def test_every_voxel_is_where_its_geometry_says(orientation: str, geometry: Geometry) -> None:
    # A linear function of the place is its own linear interpolation.
    array = plane(points(np.empty((40, 30, 30)), geometry))
    slab, where = cut_slab(
        *turned(array, geometry, orientation), axis=BodyAxis.HEAD_TO_FEET, start=20.0, end=68.0, spec=SPEC
    )
    assert slab.shape == (8, 10, 12)
    assert where.spacing == pytest.approx((2, 2, 6))
    np.testing.assert_allclose(slab, plane(points(slab, where)), atol=2e-3)


def test_the_slab_lies_between_the_depths() -> None:
    array = plane(points(np.empty((40, 30, 30)), GEOMETRY))
    slab, where = cut_slab(array, GEOMETRY, axis=BodyAxis.HEAD_TO_FEET, start=20.0, end=56.0, spec=SPEC)
    shown = points(slab, where)[slab > array.min() + 1e-3]
    # depth 0 is z = 400, and of slices 6 mm apart in 36 mm six fit, the outer ones 3 mm inside the ends
    assert shown[:, 2].max() == pytest.approx(400 - 23)
    assert shown[:, 2].min() == pytest.approx(400 - 53)
    assert (slab[[0, -1]] == array.min()).all()
    middle = points(slab, where).reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(middle, [-20 + 29 * 1.5 / 2, 30 + 29 * 1.25 / 2, 400 - 38], atol=1e-6)


def test_filled_slices_by_counting() -> None:
    grid = SlabSpec(size=(4, 4, 9), spacing=(1, 1, 6))
    for length in (0.0, 11.9, 12.0, 30.0, 48.0, 500.0):
        expected = [abs(6 * offset) <= length / 2 for offset in range(-4, 5)]
        assert grid.filled(length).tolist() == expected


@pytest.mark.parametrize(("axis", "along"), [(BodyAxis.FRONT_TO_BACK, 1), (BodyAxis.RIGHT_TO_LEFT, 0)])
def test_other_axes_of_the_body(axis: BodyAxis, along: int) -> None:
    array = plane(points(np.empty((30, 40, 40)), GEOMETRY))
    slab, where = cut_slab(
        array, GEOMETRY, axis=axis, start=6.0, end=30.0, spec=SlabSpec(spacing=(2, 2, 6), size=(8, 8, 4))
    )
    assert where.spacing[along] == pytest.approx(6)
    assert slab.shape[2 - along] == 4
    np.testing.assert_allclose(slab, plane(points(slab, where)), atol=2e-3)
    coordinates = points(slab, where)[..., along]
    assert coordinates.mean() == pytest.approx(GEOMETRY.origin[along] + 18)


def test_images_as_scipy_interpolates_them() -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 1000, (20, 16, 16)).astype(np.int16)
    slab, where = cut_slab(array, GEOMETRY, axis=BodyAxis.HEAD_TO_FEET, start=2.0, end=44.0, spec=SPEC)
    index = (points(slab, where) - GEOMETRY.origin) @ np.reshape(GEOMETRY.direction, (3, 3)) / GEOMETRY.spacing
    inside = ((index >= 0) & (index <= np.array([15, 15, 19]))).all(axis=-1) & SPEC.filled(42)[:, None, None]
    expected = map_coordinates(array.astype(float), index[..., ::-1].reshape(-1, 3).T, order=1).reshape(slab.shape)
    assert slab.dtype == np.int16
    assert inside.sum() > 500
    assert np.abs(slab - expected)[inside].max() <= 0.51


def test_labels_keep_their_values() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice([0, 3, 7], (20, 16, 16)).astype(np.uint8)
    slab, where = cut_slab(label, GEOMETRY, axis=BodyAxis.HEAD_TO_FEET, start=2.0, end=44.0, spec=SPEC, is_label=True)
    assert slab.dtype == np.uint8
    index = (points(slab, where) - GEOMETRY.origin) @ np.reshape(GEOMETRY.direction, (3, 3)) / GEOMETRY.spacing
    inside = ((index >= 0) & (index <= np.array([15, 15, 19]))).all(axis=-1) & SPEC.filled(42)[:, None, None]
    # in the middle between two voxels either may be the nearest
    clear = inside & (np.abs(index % 1 - 0.5) > 1e-6).all(axis=-1)
    nearest = label[tuple(np.rint(index).astype(int)[clear][:, ::-1].T)]
    np.testing.assert_array_equal(slab[clear], nearest)
    assert clear.sum() > 200
    assert not slab[~SPEC.filled(42)].any()


@pytest.mark.parametrize(("lowest", "background"), [(-1000, -1000), (-3024, -1024), (0, 0), (17, 17)])
def test_the_background_of_images(lowest: int, background: int) -> None:
    array = np.random.default_rng(0).integers(lowest + 100, lowest + 5000, (6, 4, 4)).astype(np.int16)
    array[0, 0, 0] = lowest
    slab, _ = cut_slab(array, GEOMETRY, axis=BodyAxis.HEAD_TO_FEET, start=0.0, end=12.5, spec=SPEC)
    for corner in itertools.product((0, -1), repeat=3):
        assert slab[corner] == background


def test_image_and_label_lie_on_one_grid() -> None:
    array = np.random.default_rng(0).integers(0, 9, (20, 16, 16)).astype(np.int16)
    place = {"axis": BodyAxis.HEAD_TO_FEET, "start": 2.0, "end": 44.0, "spec": SPEC}
    assert cut_slab(array, GEOMETRY, **place)[1] == cut_slab(array, GEOMETRY, **place, is_label=True)[1]


def test_the_axes_of_a_slab_are_lps() -> None:
    array = np.random.default_rng(0).integers(0, 9, (20, 16, 16)).astype(np.int16)
    _, where = cut_slab(*turned(array, GEOMETRY, "SAR"), axis=BodyAxis.HEAD_TO_FEET, start=2.0, end=44.0, spec=SPEC)
    found = sitk.DICOMOrientImageFilter().GetOrientationFromDirectionCosines(where.direction)
    assert found == "LPS"

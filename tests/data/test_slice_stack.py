from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_qa.data.images import Geometry, write_image
from nnunet_qa.data.slice_stack import BodyAxis, SliceSpec, field_of_view, read_slices, read_stacks, slices_of
from nnunet_qa.errors import ImageError
from tests.body import SPACING, SPEC, draw_body, turned, write_bodies

HEAD_FIRST = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
PLAIN = Geometry((1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


@pytest.mark.parametrize("orientation", ["LPS", "RAI", "ASL", "SPL", "IRP"])
def test_a_scan_is_the_same_however_it_is_stored(orientation: str) -> None:
    array, geometry = draw_body(np.random.default_rng(0), top=20)
    expected = slices_of(array, geometry, "a", SPEC)
    stored = turned(array, geometry, orientation)
    stack = slices_of(*stored, "a", SPEC)
    np.testing.assert_array_equal(stack.pictures, expected.pictures)
    np.testing.assert_allclose(stack.positions, expected.positions)
    np.testing.assert_allclose(stack.depth, np.arange(40) * SPACING[2])
    # nibabel counts the same voxels with another library
    codes = nibabel.orientations.aff2axcodes(nibabel.Nifti1Image(stored[0].T, affine(stored[1])).affine)
    (along,) = (axis for axis, code in enumerate(codes) if code in "SI")
    assert stack.indices.tolist() == (list(range(40)) if codes[along] == "I" else list(range(40))[::-1])


def affine(geometry: Geometry) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(geometry.direction, (3, 3)) * geometry.spacing
    matrix[:3, 3] = geometry.origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


@pytest.mark.parametrize(
    ("axis", "first"),
    [
        (BodyAxis.HEAD_TO_FEET, (-1, None, None)),
        (BodyAxis.FRONT_TO_BACK, (None, 0, None)),
        (BodyAxis.RIGHT_TO_LEFT, (None, None, 0)),
    ],
)
def test_the_first_slice_of_each_axis(axis: BodyAxis, first: tuple[int | None, ...]) -> None:
    # in LPS the arrays' axes run to the head, the back and the left
    array = np.random.default_rng(0).random((6, 7, 8))
    geometry = replace(PLAIN, spacing=(1.0, 1.0, 1.0))
    spec = SliceSpec(size=8, field_of_view=8, window=(0, 1), axis=axis)
    stack = slices_of(array, geometry, "a", spec)
    (along,) = (number for number, index in enumerate(first) if index is not None)
    assert len(stack.pictures) == array.shape[along]
    expected = array[tuple(slice(None) if index is None else index for index in first)]
    assert sorted(stack.pictures[0][stack.pictures[0] > 0]) == pytest.approx(
        sorted((expected * 255).round().ravel()), abs=0.51
    )


def test_positions_and_depth_of_an_oblique_scan() -> None:
    tilt = np.radians(20)
    direction = (1, 0, 0, 0, np.cos(tilt), -np.sin(tilt), 0, np.sin(tilt), np.cos(tilt))
    geometry = Geometry((1.0, 1.0, 3.0), (5.0, 6.0, 7.0), tuple(map(float, direction)))
    stack = slices_of(np.random.default_rng(0).random((4, 5, 5)), geometry, "a", SliceSpec(size=8, field_of_view=5))
    image = sitk.Image((5, 5, 4), sitk.sitkUInt8)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    centres = [image.TransformIndexToPhysicalPoint((2, 2, k))[2] for k in (3, 2, 1, 0)]
    np.testing.assert_allclose(stack.positions, centres)
    np.testing.assert_allclose(stack.depth, [0, 3, 6, 9])
    assert stack.indices.tolist() == [3, 2, 1, 0]


def test_a_picture_shows_the_field_of_view_around_the_centre() -> None:
    array = np.zeros((2, 8, 6))
    array[:, 2:6, 2:4] = 50
    array[:, 3, 2] = 100
    geometry = Geometry((2.0, 1.0, 3.0), (0.0, 0.0, 0.0), HEAD_FIRST)  # 12 mm wide, 8 mm high
    stack = slices_of(array, geometry, "a", SliceSpec(size=8, field_of_view=8, window=(0, 100)))
    expected = np.zeros((8, 8))
    expected[:] = np.repeat(array[0][:, 1:5], 2, axis=1)  # 4 columns of 2 mm
    # two new columns a pixel: linear interpolation keeps what is constant on both sides
    assert stack.pictures[0].shape == (8, 8)
    np.testing.assert_allclose(stack.pictures[0][:, 3:5].mean(axis=1), expected[:, 3:5].mean(axis=1) * 2.55, atol=13)
    wider = slices_of(array, geometry, "a", SliceSpec(size=16, field_of_view=16, window=(0, 100)))
    assert wider.pictures[0][:4].max() == 0
    assert wider.pictures[0][4:12].max() > 0
    assert wider.pictures[0][12:].max() == 0


def test_the_window_and_its_default() -> None:
    ramp = np.linspace(-1000, 1000, 16 * 16 * 3).reshape(3, 16, 16)
    geometry = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), HEAD_FIRST)
    spec = SliceSpec(size=16, field_of_view=16, window=(-175, 275))
    expected = ((ramp + 175) / 450).clip(0, 1) * 255
    np.testing.assert_allclose(slices_of(ramp, geometry, "a", spec).pictures, expected, atol=0.51)
    low, high = np.percentile(ramp, (0.5, 99.5))
    padded = np.concatenate([ramp, np.full((5, 16, 16), -3000.0)])  # empty slices do not count
    found = slices_of(padded, geometry, "a", replace(spec, window=None))
    np.testing.assert_allclose(found.pictures[:3], ((ramp - low) / (high - low)).clip(0, 1) * 255, atol=0.51)
    assert found.seen.tolist() == [True] * 3 + [False] * 5


def test_slices_with_next_to_nothing_are_empty() -> None:
    array = np.zeros((4, 20, 20))
    array[1:, 5:15, 5:15] = 1000
    array[2] = 0
    array[2, 9, 9:12] = 1000  # 3 of 400 pixels
    array[3] = 1000
    geometry = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), HEAD_FIRST)
    stack = slices_of(array, geometry, "a", SliceSpec(size=20, field_of_view=20, window=(0, 1000)))
    assert stack.seen.tolist() == [False, True, False, False]


def test_field_of_view_is_the_median_of_the_larger_sides(tmp_path: Path) -> None:
    for number, (rows, columns) in enumerate([(10, 20), (8, 8), (30, 12)]):
        array = np.random.default_rng(0).integers(0, 9, (4, rows, columns)).astype(np.uint8)
        write_image(tmp_path / f"{number}.nii.gz", *turned(array, replace(PLAIN, spacing=(2.0, 3.0, 50.0)), "ASL"))
    # mm: 30 by 40, 24 by 16, 90 by 24
    assert field_of_view(sorted(tmp_path.iterdir()), BodyAxis.HEAD_TO_FEET) == pytest.approx(40)


def test_reading_in_processes_keeps_the_order(tmp_path: Path) -> None:
    write_bodies(tmp_path, 3)
    paths = {path.name[:2]: path for path in sorted(tmp_path.iterdir())}
    one, two = read_stacks(paths, SPEC), read_stacks(paths, SPEC, jobs=2)
    assert [stack.case_id for stack in one] == [stack.case_id for stack in two] == ["c0", "c1", "c2"]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.pictures, b.pictures)


def test_what_is_no_scan_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_image(tmp_path / "flat.nii.gz", rng.integers(0, 9, (1, 8, 8)).astype(np.uint8), PLAIN)
    write_image(tmp_path / "picture.png", rng.integers(0, 9, (8, 8)).astype(np.uint8))
    sitk.WriteImage(sitk.Image((4, 4, 4, 2), sitk.sitkUInt8), str(tmp_path / "cine.nii.gz"))
    array = rng.random((4, 8, 8))
    array[1, 2, 3] = np.nan
    write_image(tmp_path / "nan.mha", array, PLAIN)
    write_image(tmp_path / "empty.nii.gz", np.zeros((4, 8, 8), np.uint8), PLAIN)
    (tmp_path / "text.nii.gz").write_text("no image")
    for name, said in {
        "flat.nii.gz": "is no volume",
        "picture.png": "is no volume",
        "cine.nii.gz": "is no volume",
        "nan.mha": "1 of 256 intensities are NaN",
        "empty.nii.gz": "every slice is empty",
        "text.nii.gz": "cannot be read",
        "none.nii.gz": "not found",
    }.items():
        with pytest.raises(ImageError, match=f"{name}: .*{said}"):
            read_slices(tmp_path / name, "a", SPEC)
    for name in ("picture.png", "cine.nii.gz", "text.nii.gz"):
        with pytest.raises(ImageError, match=name):
            field_of_view([tmp_path / name], BodyAxis.HEAD_TO_FEET)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_qa.data.volume_series import read_volume_series
from nnunet_qa.errors import ImageError
from tests.small_cine import FRAME_TIME, SPACING, heart

SIZES = "1.25 1.5 8 0.03"
NRRD = "NRRD0005\ntype: uint8\ndimension: {axes}\nsizes: {shape}\nencoding: raw\n{more}\n"
MHA = "ObjectType = Image\nNDims = {axes}\nBinaryData = True\nDimSize = {shape}\n{more}ElementType = MET_UCHAR\n"


def write_header(path: Path, labels: np.ndarray, *more: str) -> Path:
    """Write labels behind a header of what each format cannot do without, and `more` lines."""
    header = (NRRD if path.suffix == ".nrrd" else MHA + "ElementDataFile = LOCAL\n").format(
        axes=labels.ndim,
        shape=" ".join(map(str, labels.shape[::-1])),
        more="".join(f"{line}\n" for line in more),
    )
    path.write_bytes(header.encode() + labels.tobytes())
    return path


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_what_simpleitk_writes_states_its_spacing(tmp_path: Path, ending: str) -> None:
    labels = heart()
    for axes, spacing in ((4, (*SPACING[::-1], FRAME_TIME)), (3, SPACING[::-1]), (2, SPACING[:0:-1])):
        array = labels[(0,) * (4 - axes)]
        image = sitk.GetImageFromArray(array, isVector=False)
        image.SetSpacing(spacing)
        sitk.WriteImage(image, str(tmp_path / f"a{ending}"), useCompression=True)
        series = read_volume_series(tmp_path / f"a{ending}")
        np.testing.assert_array_equal(series.labels, array.reshape((1,) * (4 - axes) + array.shape))
        assert series.spacing == (SPACING if axes > 2 else (1.0, *SPACING[1:]))
        assert series.frame_time == (FRAME_TIME if axes == 4 else None)


@pytest.mark.parametrize(
    ("ending", "more", "spacing", "time"),
    [
        (".nrrd", (), None, None),
        (".nrrd", ("thicknesses: 1 1 8 1", "spacings:=1 1 1 1"), None, None),  # neither is a spacing
        (".nrrd", (f"Spacings: {SIZES}",), SPACING, FRAME_TIME),
        (".nrrd", ("spacings: 1.25 1.5 8 nan",), SPACING, None),
        (".nrrd", ("spacings: 1.25 1.5 nan 0.03",), None, FRAME_TIME),
        (
            ".nrrd",
            ("space: scanner-xyz-time", "space directions: (1.25,0,0,0) (0,1.5,0,0) (0,0,8,0) none"),
            SPACING,
            None,
        ),
        (".mha", (), None, None),
        (".mha", (f"Comment = ElementSpacing = {SIZES}",), None, None),
        (".mha", (f"ElementSpacing = {SIZES}",), SPACING, FRAME_TIME),
        (".mha", (f"ElementSize = {SIZES}",), SPACING, FRAME_TIME),
    ],
)
def test_what_the_header_does_not_state_is_not_known(
    tmp_path: Path, ending: str, more: tuple[str, ...], spacing: object, time: float | None
) -> None:
    labels = heart()
    series = read_volume_series(write_header(tmp_path / f"a{ending}", labels, *more))
    np.testing.assert_array_equal(series.labels, labels)
    assert (series.spacing, series.frame_time) == (spacing, time)


def test_files_that_are_no_series_are_named(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.moveaxis(heart(), 0, -1), isVector=True)  # frames as channels
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(ImageError, match=r"a\.nrrd: a series has .* one number a voxel, this file 3 axes and the"):
        read_volume_series(tmp_path / "a.nrrd")
    with pytest.raises(ImageError, match=r"b\.mha: not found"):
        read_volume_series(tmp_path / "b.mha")
    path = write_header(tmp_path / "c.mha", heart())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match=r"c\.mha: cannot be read"):
        read_volume_series(path)

"""Drawn RETOUCH scans: layout, bytes and fluids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_qa.data.images import Geometry
from nnunet_qa.data.phantoms import SubjectLook
from nnunet_qa.data.retouch_phantom import draw_with_fluids, write_metaimage, write_retouch

SMALL = {"rows": 64, "columns": 96, "bscans": 2}


def test_layout_and_types(tmp_path: Path) -> None:
    scans = write_retouch(tmp_path, np.random.default_rng(0), annotated=1, **SMALL)
    assert [str(scan.relative_to(tmp_path)) for scan in scans] == [
        f"RETOUCH-{kind}Set-{vendor}/{short}{number:03d}"
        for number, vendor in enumerate(("Cirrus", "Spectralis", "Topcon"), start=1)
        for kind, short in (("Training", "TRAIN"), ("Test", "TEST"))
    ]
    for scan in scans:
        files = {"oct.mhd", "oct.raw"} | (
            {"reference.mhd", "reference.raw"} if scan.name.startswith("TRAIN") else set()
        )
        assert {path.name for path in scan.iterdir()} == files
        image = sitk.ReadImage(str(scan / "oct.mhd"))
        assert image.GetPixelIDValue() == (sitk.sitkUInt16 if "Spectralis" in str(scan) else sitk.sitkUInt8)
        assert image.GetSize() == (96, 64, 2)
        np.testing.assert_allclose(image.GetSpacing(), (6 / 96, 2 / 64, 6 / 2))


def test_oblique_volumes_are_read_back_by_another_library(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-900, 900, (2, 3, 4)).astype(np.int16)
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]])
    geometry = Geometry((0.1, 0.25, 3.0), (-7.5, 3.25, 11.0), tuple(turn.ravel().tolist()))
    write_metaimage(tmp_path / "a.mhd", array, geometry)
    image = sitk.ReadImage(str(tmp_path / "a.mhd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    np.testing.assert_allclose(image.GetDirection(), turn.ravel())
    np.testing.assert_allclose(image.GetSpacing(), geometry.spacing)
    np.testing.assert_allclose(image.GetOrigin(), geometry.origin)


def test_fluids_lie_where_they_belong() -> None:
    rng = np.random.default_rng(3)
    look = SubjectLook.draw(rng, severity=1.0)
    image, labels = draw_with_fluids(rng, look, position=0.0, rows=124, columns=192)
    assert image.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    cysts, under, below = (ndimage.center_of_mass(labels == value)[0] for value in (1, 2, 3))
    assert cysts < under < below
    ring = ndimage.binary_dilation(labels > 0, iterations=2) & (labels == 0)
    assert image[labels > 0].mean() < 0.6 * image[ring].mean()
    assert not draw_with_fluids(rng, SubjectLook.draw(rng, severity=0.0), position=0.0, rows=64, columns=96)[1].any()
